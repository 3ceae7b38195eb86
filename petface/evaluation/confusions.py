"""What is taken for what: confusion matrices as files, commonest mistakes, hardest classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from petface import metrics
from petface.evaluation.figures import class_counts
from petface.evaluation.heads import HeadAnswers

CONFUSIONS = "confusion"
WRITTEN = ("test", "all")
NUM_LISTED = 20
MIN_PHOTOS = 5  # of a class that can be called hard


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
    """Write `<split>_<head>[_<species>].csv` for the test split and all images.

    Files of an earlier evaluation that are not written again are removed, and the pictures that
    versions before this one drew.
    """
    kept = set()
    for split in WRITTEN:
        for head, answers in heads.items():
            for species, names, counts in matrices(answers.of_split(split)):
                path = folder / f"{'_'.join(filter(None, (split, head, species)))}.csv"
                metrics.write_confusion(path, counts, names)
                kept.add(path.name)
    for path in [path for split in WRITTEN for path in folder.glob(f"{split}_*.*")]:
        if path.suffix in (".csv", ".png") and path.name not in kept:
            path.unlink()
