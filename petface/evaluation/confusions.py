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
PARTS = ("test", "all")
NUM_LISTED = 20
MIN_PHOTOS = 5  # of a class that can be called hard
_MAX_DRAWN, _MAX_WITH_NUMBERS, _MAX_LETTERS = 40, 16, 26


def top_confusions(answers: HeadAnswers) -> list[dict[str, Any]]:
    """List the most frequent mistakes of a head, most frequent first, ties in class order."""
    wrong = answers.where(answers.is_asked & ~answers.is_right)
    num = max(len(answers.classes), 1)
    support = np.bincount(answers.asked().true, minlength=num)
    cells, counts = np.unique(wrong.true * num + wrong.top[:, 0], return_counts=True)
    chosen = np.argsort(-counts, kind="stable")[:NUM_LISTED]
    listed = []
    for cell, count in zip(cells[chosen].tolist(), counts[chosen].tolist(), strict=True):
        species, true = answers.classes[cell // num]
        listed.append(
            {
                "species": species,
                "true": true,
                "predicted": answers.classes[cell % num][1],
                "num": count,
                "share_of_true": count / int(support[cell // num]),
            }
        )
    return listed


def hardest_classes(answers: HeadAnswers) -> list[dict[str, Any]]:
    """List the classes of `MIN_PHOTOS` or more with the lowest recall, then the lowest F1."""
    counts = class_counts(answers.asked())
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
    """Write `<part>_<head>[_<species>].csv` and .png for the test part and all images.

    A label that the network has no class for has a row, and a column without a count. Files of an
    earlier evaluation that are not written again are removed.
    """
    kept = set()
    can_draw = True
    for name, title, matrix, classes in _matrices(heads):
        table, picture = folder / f"{name}.csv", folder / f"{name}.png"
        metrics.write_confusion(table, matrix, classes)
        kept.add(table.name)
        if can_draw := can_draw and draw_confusion(picture, matrix, classes, title):
            kept.add(picture.name)
    for part in PARTS:
        for path in folder.glob(f"{part}_*.*"):
            if path.suffix in (".csv", ".png") and path.name not in kept:
                path.unlink()


def _matrices(
    heads: Mapping[str, HeadAnswers],
) -> Iterator[tuple[str, str, np.ndarray, list[str]]]:
    for part in PARTS:
        for head, answers in heads.items():
            asked = answers.of_part(part).asked()
            groups = {"": asked} if head == "species" else asked.per_species()
            for species, own in groups.items():
                if not len(own):
                    continue
                first = int(own.first_class[own.group[0]])
                names = [label for name, label in own.classes if species in ("", name)]
                matrix = metrics.confusion_matrix(
                    own.true - first, own.top[:, 0] - first, len(names)
                )
                name = f"{part}_{head}" + (f"_{species}" if species else "")
                where = "test part" if part == "test" else "all images, training part included"
                title = f"{head}{' of ' + species if species else ''}: {len(own):,} photos, {where}"
                yield name, title, matrix, names


def draw_confusion(path: Path, matrix: np.ndarray, names: Sequence[str], title: str) -> bool:
    """Draw (K, K) counts as shares of the true class into a PNG, rows true, columns answered.

    Of many classes the most frequent are drawn. False, with a line that says how to install it,
    where matplotlib is missing.
    """
    make_figure = figure_maker(path)
    if make_figure is None:
        return False
    support = matrix.sum(axis=1)
    drawn = np.sort(np.argsort(-(support + matrix.sum(axis=0)), kind="stable")[:_MAX_DRAWN])
    if len(drawn) < len(names):
        title += f"\n{len(drawn)} most frequent of {len(names)} classes"
    labels = [_short(names[k]) for k in drawn.tolist()]
    counts = matrix[np.ix_(drawn, drawn)]
    shares = counts / np.maximum(support[drawn], 1)[:, None]
    num = len(drawn)
    cell = 0.7 if num <= 5 else 0.42 if num <= _MAX_WITH_NUMBERS else 0.22  # inches
    left, bottom = (0.55 + 0.085 * max(map(len, labels)) for _ in range(2))
    width, height = left + num * cell + 0.2, bottom + num * cell + 0.5
    figure = make_figure(figsize=(max(width, 4.5), height))
    full = figure.get_size_inches()
    axes = figure.add_axes(
        (left / full[0], bottom / full[1], num * cell / full[0], num * cell / full[1])
    )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(num)
    axes.set_xticks(places, labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(places, labels, fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    axes.set(xlabel="answered", ylabel="true")
    figure.suptitle(_plain(title), fontsize=9, x=0.02, ha="left", parse_math=False)
    if num <= _MAX_WITH_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center",
                      fontsize=7, color=color)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        save_png(figure, path, 100)
    return True


def _short(name: str) -> str:
    name = _plain(name)
    return name if len(name) <= _MAX_LETTERS else name[: _MAX_LETTERS - 1] + "…"


def _plain(name: str) -> str:
    """Leave nothing that a font cannot take: control characters, halves of letters."""
    whole = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() or c == "\n" else " " for c in whole)
