"""Find labels that are likely wrong, from predictions of records that no prediction learnt from.

The labels of R records are (R,) class numbers, -1 unknown; probabilities are (R, K), NaN where a
record could not be judged. The criterion is confident learning's (Northcutt et al. 2021, arXiv
1911.00068): records are ranked by self-confidence, the probability of the given label, and counted
as errors by thresholds per class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from petface.taxonomy import UNKNOWN

Floats = npt.NDArray[np.float64]
_LEAST_P = 1e-6  # a photo's veto must not be absolute when a record's photos are fused
_MAX_ITERATIONS = 300


@dataclass(frozen=True, eq=False)
class Suspects:
    """All judged records, the most suspicious label first: arrays (n,)."""

    record: np.ndarray  # place among the R
    suggested: np.ndarray  # the most probable other class
    p_given: Floats  # self-confidence
    p_suggested: Floats
    margin: Floats  # p_given - p_suggested: negative = another class is more probable
    is_confident: npt.NDArray[np.bool_]  # off the diagonal of the confident joint


def judged_records(labels: np.ndarray, num_classes: int, least: int) -> npt.NDArray[np.bool_]:
    """Mark the records of known classes with at least `least` records: (R,) bool.

    Of a rarer class too little is left to learn from when one of its records is held out.
    """
    counts = np.bincount(labels[labels != UNKNOWN], minlength=num_classes)
    return np.where(labels == UNKNOWN, 0, counts[labels]) >= least


def record_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Deal records out to folds, each class as evenly as it allows: (R,) labels -> (R,) folds."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % num_folds
    return folds


def predict_out_of_sample(
    features: np.ndarray,
    photo_record: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    num_folds: int,
    inverse_strength: float,
    seed: int,
) -> Floats:
    """Predict each record by a logistic regression that saw none of its photos: (R, K).

    `features` (M, D) of the photos of record `photo_record` (M,); the regression's C is
    `inverse_strength`, for features scaled to unit variance. Only records with a label count; a
    record without a photo is NaN.
    """
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    of_record = np.full(len(labels), -1, np.int64)
    known = np.flatnonzero(labels != UNKNOWN)
    of_record[known] = record_folds(labels[known], num_folds, seed)
    fold, truth = of_record[photo_record], labels[photo_record]
    probabilities = np.full((len(features), num_classes), np.nan)
    for number in range(num_folds):
        held_out, learnt = fold == number, (fold >= 0) & (fold != number)
        if not held_out.any():
            continue
        classes = np.unique(truth[learnt])
        probabilities[held_out] = 0.0
        if len(classes) == 1:
            probabilities[np.ix_(held_out, classes)] = 1.0
        elif len(classes):
            model = LogisticRegression(C=inverse_strength, max_iter=_MAX_ITERATIONS)
            model.fit(scaled[learnt], truth[learnt])
            probabilities[np.ix_(held_out, classes)] = model.predict_proba(scaled[held_out])
    return fuse_photos(probabilities, photo_record, len(labels))


def fuse_photos(probabilities: Floats, photo_record: np.ndarray, num_records: int) -> Floats:
    """Fuse the photos' probabilities (M, K) by their mean logarithm: (R, K), rows sum to 1.

    NaN for a record without a predicted photo.
    """
    usable = np.isfinite(probabilities).all(axis=1)
    log_p = np.log(np.maximum(probabilities[usable], _LEAST_P))
    place = photo_record[usable]
    num = np.bincount(place, minlength=num_records).astype(np.float64)
    sums = np.stack([np.bincount(place, c, num_records) for c in log_p.T], axis=1)
    mean = np.divide(sums, num[:, None], out=np.full_like(sums, np.nan), where=num[:, None] > 0)
    fused = np.exp(mean - mean.max(axis=1, keepdims=True))
    return fused / fused.sum(axis=1, keepdims=True)


def class_thresholds(probabilities: Floats, labels: np.ndarray) -> Floats:
    """Give each class's mean self-confidence, (K,); infinite for a class without a record.

    Source: Northcutt et al. 2021, equation 2.
    """
    num_classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    num = np.bincount(labels, minlength=num_classes)
    total = np.bincount(labels, own, num_classes)
    return np.divide(total, num, out=np.full(num_classes, np.inf), where=num > 0)


def confident_classes(probabilities: Floats, labels: np.ndarray) -> np.ndarray:
    """Give the class that each record is counted under, (R,), -1 under none.

    The most probable of the classes whose threshold its probability reaches: where it differs from
    the given label, the label is estimated to be wrong. Source: Northcutt et al. 2021, equation 1.
    """
    reached = probabilities >= class_thresholds(probabilities, labels)
    best = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), best, -1)


def rank_suspects(probabilities: Floats, labels: np.ndarray, judged: np.ndarray) -> Suspects:
    """Rank the `judged` (R,) bool records with a prediction, the least self-confident label first.

    Ties go by the margin, then by the record. At least two classes are needed.
    """
    record = np.flatnonzero(judged & np.isfinite(probabilities).all(axis=1))
    p, given = probabilities[record], labels[record]
    rows = np.arange(len(record))
    p_given = p[rows, given]
    others = p.copy()
    others[rows, given] = -1.0
    suggested = others.argmax(axis=1)
    p_suggested = p[rows, suggested]
    found = confident_classes(p, given)
    margin = p_given - p_suggested
    order = np.lexsort((record, margin, p_given))
    return Suspects(
        record[order],
        suggested[order],
        p_given[order],
        p_suggested[order],
        margin[order],
        ((found >= 0) & (found != given))[order],
    )


def plant_flips(
    labels: np.ndarray, eligible: np.ndarray, num_classes: int, frac: float, seed: int
) -> tuple[np.ndarray, npt.NDArray[np.bool_]]:
    """Give another class, at random, to a random share of the `eligible` (R,) bool records.

    Gives the labels with the flips in them, and where they are: (R,) each.
    """
    draw = np.random.default_rng(seed)
    places = np.flatnonzero(eligible)
    chosen = draw.choice(places, round(frac * len(places)), replace=False)
    flipped, is_planted = labels.copy(), np.zeros(len(labels), bool)
    flipped[chosen] = (labels[chosen] + draw.integers(1, num_classes, len(chosen))) % num_classes
    is_planted[chosen] = True
    return flipped, is_planted


def describe_planted(is_planted: np.ndarray, frac: float) -> dict[str, Any]:
    """Measure a ranking (n,) bool, the most suspicious first: True where a flip was planted.

    `precision` is the share of flips in the first `frac`; labels that were wrong before count as
    misses, so it is a lower bound of the share of wrong labels. `found_in_twice_as_many` is the
    share of the flips that stand in the first 2 `frac`.
    """
    num, num_top = int(is_planted.sum()), round(frac * len(is_planted))
    found = int(is_planted[:num_top].sum())
    twice = int(is_planted[: 2 * num_top].sum())
    return {
        "num_records": len(is_planted),
        "num_planted": num,
        "num_top": num_top,
        "num_found": found,
        "precision": found / num_top if num_top else None,
        "chance": num / len(is_planted) if len(is_planted) else None,
        "found_in_twice_as_many": twice / num if num else None,
    }
