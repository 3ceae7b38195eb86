"""How far confidence can be believed: figures of probabilities and logits.

Logits are (N, K), labels (N,) class indices with -1 unknown, probabilities (N, K) with rows that
sum to 1. Rows of an unknown label and rows that are not finite are left out. Confidence is the
probability of the answer, the most probable class; NaN means "not defined".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from petface.taxonomy import UNKNOWN

Floats = npt.NDArray[np.float64]


class ReliabilityBins(NamedTuple):
    """A reliability diagram: arrays (B,) over the bins that hold a row, in rising order."""

    confidence: Floats  # mean in the bin
    accuracy: Floats
    num: npt.NDArray[np.int64]
    low: Floats  # 95 % Wilson interval of the accuracy
    high: Floats


@dataclass(frozen=True)
class HeadCalibration:
    """What was fitted on the validation part; the limits hold for softmax(logits / temperature)."""

    temperature: float
    threshold: float | None  # the confidence from which answers are sure; None = never
    conformal_quantile: float | None  # for `calibration.conformal_set`; None = no sets
    wanted_accuracy: float = 0.9  # share right for which the threshold was fitted
    conformal_alpha: float = 0.1  # share of sets that may miss the truth

    def is_sure(self, probability: float) -> bool:
        """Tell whether an answer of this probability is right as often as was wanted."""
        # Fitted in float64, asked in float32: the photo at the threshold must not fall below it.
        return self.threshold is not None and probability >= self.threshold - 1e-6


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Floats:
    """Give softmax(logits / temperature), (N, K) float64."""
    p = np.exp(shifted(np.asarray(logits, np.float64)) / temperature)
    return p / p.sum(axis=1, keepdims=True)


def nll(logits: npt.ArrayLike, labels: npt.ArrayLike, temperature: float = 1.0) -> float:
    """Average -log softmax(logits / temperature)[label], in nats; NaN without a known row."""
    z, y, _ = usable_rows(logits, labels)
    if not len(y):
        return math.nan
    z = shifted(z) / temperature
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]).mean())


def brier(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Average the squared distance to the one-hot label, summed over classes: 0 to 2; NaN if empty.

    Source: Brier 1950, Monthly Weather Review 78(1), equation 2.
    """
    p, y, _ = usable_rows(probabilities, labels)
    if not len(y):
        return math.nan
    of_true = p[np.arange(len(y)), y]
    return float(((p**2).sum(axis=1) - 2.0 * of_true + 1.0).mean())


def reliability_bins(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, num_bins: int = 15
) -> ReliabilityBins:
    """Group answers, confidence (N,) and correct (N,) bool, into bins of equal mass.

    Equal confidences share a bin, so that the order of the rows does not matter; bins left empty
    by that are dropped.
    """
    c, right = answers(confidence, correct)
    assert num_bins > 0, num_bins
    rank = np.searchsorted(np.sort(c), c)  # of the first of equals
    where = rank * num_bins // max(len(c), 1)
    num = np.bincount(where, minlength=num_bins)
    held = num > 0
    mean = np.bincount(where, c, num_bins)[held] / num[held]
    accuracy = np.bincount(where, right, num_bins)[held] / num[held]
    low, high = wilson_interval(accuracy, num[held], NormalDist().inv_cdf(0.975))
    return ReliabilityBins(mean, accuracy, num[held], low, high)


def expected_calibration_error(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, num_bins: int = 15
) -> float:
    """Average |accuracy - confidence| over bins of equal mass, weighted by count; NaN if empty.

    Chance alone gives about 0.3 sqrt(num_bins / N): never compare parts of different size. Source:
    Guo et al. 2017, equation 3, with the bins of Nguyen & O'Connor 2015, arXiv 1508.05154.
    """
    bins = reliability_bins(confidence, correct, num_bins)
    total = bins.num.sum()
    gap = np.abs(bins.accuracy - bins.confidence)
    return float((bins.num * gap).sum() / total) if total else math.nan


def coverage_curve(
    confidence: npt.ArrayLike, correct: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Give thresholds (S,) falling, and coverage and accuracy (S,) of answering from each on.

    Equal confidences are one step, because no threshold can tell them apart.
    """
    c, right = answers(confidence, correct)
    order = np.argsort(-c, kind="stable")
    c, num_right = c[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(c[1:] != c[:-1], len(c) > 0))
    num = last + 1
    return c[last], num / max(len(c), 1), num_right[last] / num


def wilson_interval(share: Floats, num: np.ndarray, z: float) -> tuple[Floats, Floats]:
    """Give Wilson's interval of a share of `num`, which may be fractional, `z` deviations wide.

    Source: Wilson 1927, JASA 22(158).
    """
    middle = share + z * z / (2 * num)
    half = z * np.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    return (middle - half) / (1 + z * z / num), (middle + half) / (1 + z * z / num)


def usable_rows(
    logits: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Give the rows that are finite and have a label, their labels, and which of all they are."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    assert z.ndim == 2 and z.shape[1] > 0 and y.shape == z.shape[:1], (z.shape, y.shape)
    kept = (y != UNKNOWN) & np.isfinite(z).all(axis=1)
    z, y = z[kept], y[kept]
    assert ((y >= 0) & (y < z.shape[1])).all(), f"a label is outside 0..{z.shape[1] - 1}"
    return z, y, kept


def answers(
    confidence: npt.ArrayLike, correct: npt.ArrayLike
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Take confidence (N,) and correct (N,) as arrays, checked."""
    c, right = np.asarray(confidence, np.float64), np.asarray(correct, np.bool_)
    assert c.ndim == 1 and c.shape == right.shape, (c.shape, right.shape)
    assert np.isfinite(c).all(), "a confidence is not finite"
    return c, right


def shifted(z: Floats) -> Floats:
    """Make the largest of each row 0, so that exp cannot overflow."""
    return z - z.max(axis=1, keepdims=True)
