"""Several photos of one animal answered as one: what that gains, by number of photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from petface.evaluation.heads import HeadAnswers, Truths, Whole, share

NUM_PHOTOS = {
    "1": (1, 1),
    "2": (2, 2),
    "3": (3, 3),
    "4-5": (4, 5),
    "6-9": (6, 9),
    "10+": (10, None),
}
_UNITS = 2.0**40  # probabilities are summed as whole numbers: no sum depends on the order of rows


@dataclass(frozen=True, eq=False)
class Fused:
    """R animals, arrays (R,)."""

    num_photos: Whole
    share_right: np.ndarray  # float64, of its photos
    is_right: Truths  # all its photos together


def fuse(answers: HeadAnswers) -> Fused:
    """Let the photos of each animal that were asked answer together.

    Each photo gives its five best classes their probabilities; the class with the largest sum is
    the answer, of equal ones the first. Labels that differ within an animal make it two.
    """
    asked = answers.asked()
    num_classes = max(len(asked.classes), 1)
    labelled = asked.record * num_classes + asked.true
    first, animal = np.unique(labelled, return_index=True, return_inverse=True)[1:]
    num_photos = np.bincount(animal, minlength=len(first))
    num_right = np.bincount(animal[asked.is_right], minlength=len(first))
    top, probability = asked.top.ravel(), asked.details["top_prob"].ravel()
    given = top >= 0
    key = (np.repeat(animal, asked.details["top"].shape[1]) * num_classes + top)[given]
    order = np.argsort(key, kind="stable")
    votes = np.rint(probability[given][order] * _UNITS).astype(np.int64)
    voted, start = np.unique(key[order], return_index=True)  # by animal, then by class
    sums = np.add.reduceat(votes, start) if len(start) else votes
    by_animal, candidate = np.divmod(voted, num_classes)
    best = np.lexsort((candidate, -sums, by_animal))
    winner = candidate[best[np.unique(by_animal[best], return_index=True)[1]]]
    return Fused(num_photos, num_right / np.maximum(num_photos, 1), winner == asked.true[first])


def describe_fusion(fused: Fused) -> dict[str, Any]:
    """Compare photos answered one by one with all of an animal's photos fused.

    `accuracy_per_photo` is over photos. `accuracy_one_photo` is over animals, as the fused one is:
    what one photo drawn from each gives. Their difference is what fusing gains.
    """
    groups = []
    for name, (low, high) in NUM_PHOTOS.items():
        inside = (fused.num_photos >= low) & (fused.num_photos <= (high or np.inf))
        if inside.any():
            groups.append({"photos": name, **_compare(fused, inside)})
    every = _compare(fused, np.ones(len(fused.num_photos), bool))
    return {"num_records": every.pop("records"), **every, "by_num_photos": groups}


def count(fused: Fused) -> dict[str, Any]:
    """Count the animals: num, correct, accuracy."""
    num, correct = len(fused.is_right), int(fused.is_right.sum())
    return {"num": num, "correct": correct, "accuracy": correct / num if num else None}


def _compare(fused: Fused, inside: Truths) -> dict[str, Any]:
    photos = fused.num_photos[inside]
    num_right = float((fused.share_right[inside] * photos).sum())
    return {
        "records": int(inside.sum()),
        "accuracy_per_photo": num_right / photos.sum() if len(photos) else None,
        "accuracy_one_photo": share(fused.share_right[inside]),
        "accuracy_fused": share(fused.is_right[inside]),
    }
