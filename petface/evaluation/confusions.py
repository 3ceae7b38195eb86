"""What is taken for what: confusion matrices as files, commonest mistakes, hardest classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petface import metrics
from petface.drawing import figure_maker, save_png
from petface.evaluation.figures import class_counts
from petface.evaluation.heads import HeadAnswers

CONFUSIONS = "confusion"
WRITTEN = ("test", "all")
NUM_LISTED = 20
MIN_PHOTOS = 5  # of a class that can be called hard
_MAX_DRAWN, _MAX_WITH_NUMBERS, _MAX_LETTERS = 40, 16, 26


def matrices(answers: HeadAnswers) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Count a head's answers: per species its name, the class names (K,), and counts (K, K).

    One matrix with the name "" for the head "species". A label that the network has no class for
    has a row, and a column without a count. Species without a photo are left out.
    """
    predicted = answers.predicted()
    groups = {"": predicted} if answers.head == "species" else predicted.per_species()
    for species, own in groups.items():
        if len(own):
            first = int(own.first_class[own.group[0]])
            names = [label for name, label in own.classes if species in ("", name)]
            counts = metrics.confusion_matrix(own.true - first, own.top[:, 0] - first, len(names))
            yield species, names, counts


def top_confusions(answers: HeadAnswers) -> list[dict[str, Any]]:
    """List the most frequent mistakes of a head, most frequent first, ties in class order."""
    found: list[dict[str, Any]] = [
        {
            "species": species or mistake.true,
            "true": mistake.true,
            "predicted": mistake.predicted,
            "num": mistake.num,
            "share_of_true": mistake.frac_of_true,
        }
        for species, names, counts in matrices(answers)
        for mistake in metrics.top_confusions(counts, names, NUM_LISTED)
    ]
    return sorted(found, key=lambda entry: -entry["num"])[:NUM_LISTED]


def hardest_classes(answers: HeadAnswers) -> list[dict[str, Any]]:
    """List the classes of `MIN_PHOTOS` or more with the lowest recall, then the lowest F1."""
    counts = class_counts(answers.predicted())
    scores = metrics.class_scores(*counts)
    tested = np.flatnonzero(counts[1] >= MIN_PHOTOS)
    order = np.lexsort((scores.f1[tested], scores.recall[tested]))
    return [
        {
            "species": answers.classes[k][0],
            "label": answers.classes[k][1],
            "num": int(counts[1][k]),
            "recall": float(scores.recall[k]),
            "f1": float(scores.f1[k]),
        }
        for k in tested[order][:NUM_LISTED].tolist()
    ]


def write_confusions(heads: Mapping[str, HeadAnswers], folder: Path) -> None:
    """Write `<split>_<head>[_<species>].csv` and .png for the test split and all images.

    Files of an earlier evaluation that are not written again are removed.
    """
    kept = set()
    can_draw = True
    for split in WRITTEN:
        where = "test split" if split == "test" else "all images, training split included"
        for head, answers in heads.items():
            for species, names, counts in matrices(answers.of_split(split)):
                path = folder / "_".join(filter(None, (split, head, species)))
                metrics.write_confusion(path.with_name(f"{path.name}.csv"), counts, names)
                kept.add(f"{path.name}.csv")
                title = f"{head}{' of ' + species if species else ''}: {counts.sum():,} photos"
                picture = path.with_name(f"{path.name}.png")
                if can_draw := can_draw and draw_confusion(
                    picture, counts, names, f"{title}, {where}"
                ):
                    kept.add(picture.name)
    for path in [path for split in WRITTEN for path in folder.glob(f"{split}_*.*")]:
        if path.suffix in (".csv", ".png") and path.name not in kept:
            path.unlink()


def draw_confusion(path: Path, counts: np.ndarray, names: Sequence[str], title: str) -> bool:
    """Draw (K, K) counts as shares of the true class into a PNG, rows true, columns predicted.

    Of many classes the most frequent are drawn. False, with a line that says how to install it,
    where matplotlib is missing.
    """
    make_figure = figure_maker(path)
    if make_figure is None:
        return False
    support = counts.sum(axis=1)
    drawn = np.sort(np.argsort(-(support + counts.sum(axis=0)), kind="stable")[:_MAX_DRAWN])
    num = len(drawn)
    if num < len(names):
        title += f"\n{num} most frequent of {len(names)} classes"
    counts = counts[np.ix_(drawn, drawn)]
    shares = counts / np.maximum(support[drawn], 1)[:, None]
    side = 2.5 + num * (0.42 if num <= _MAX_WITH_NUMBERS else 0.22)  # inches
    figure = make_figure(figsize=(max(side, 4.5), side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [_shortened(names[k]) for k in drawn.tolist()]
    axes.set_xticks(range(num), labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(num), labels, fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="true")
    figure.suptitle(_printable(title), fontsize=9, parse_math=False)
    for row, column in np.argwhere(counts) if num <= _MAX_WITH_NUMBERS else ():
        color = "white" if shares[row, column] > 0.6 else "black"
        text = f"{counts[row, column]}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        save_png(figure, path, 100)
    return True


def _shortened(name: str) -> str:
    name = _printable(name)
    return name if len(name) <= _MAX_LETTERS else name[: _MAX_LETTERS - 1] + "…"


def _printable(name: str) -> str:
    """Leave nothing that a font cannot take: control characters, halves of letters."""
    whole = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() or c == "\n" else " " for c in whole)
