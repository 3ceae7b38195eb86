"""Confidence that can be believed: fitted on the validation split, measured on the test split.

Logits are (N, K), labels (N,) class indices with -1 unknown, records (N,) the animal of each photo,
probabilities (N, K) with rows that sum to 1. Rows of an unknown label and rows that are not finite
are left out. Confidence is the probability of the answer, the most probable class; NaN means "not
defined".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from petface.metrics import wilson_interval
from petface.taxonomy import UNKNOWN

Floats = npt.NDArray[np.float64]
Answers = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]  # logits, labels, records

# With fewer known rows the fit does more harm to the log loss of a network that needs none than
# good to one that is mildly off: simulated, true temperatures 1 to 2, 2 and 13 classes.
MIN_ROWS_FOR_TEMPERATURE = 50
TEMPERATURE_RANGE = (0.05, 20.0)
_MAX_BINS, _PHOTOS_PER_BIN = 15, 20
_MIN_ANSWERED = 10
_BISECTIONS = 36  # halvings of the log range: 1e-10 of it


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
        """Check whether an answer of this probability is right as often as was wanted."""
        # Fitted in float64, asked in float32: the photo at the threshold must not fall below it.
        return self.threshold is not None and probability >= self.threshold - 1e-6


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Floats:
    """Return softmax(logits / temperature), (N, K) float64."""
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
    """Return thresholds (S,) falling, and coverage and accuracy (S,) of answering from each on.

    Equal confidences are one step, because no threshold can tell them apart.
    """
    c, right = answers(confidence, correct)
    order = np.argsort(-c, kind="stable")
    c, num_right = c[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(c[1:] != c[:-1], len(c) > 0))
    num = last + 1
    return c[last], num / max(len(c), 1), num_right[last] / num


def reliability_rows(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> list[list[float]]:
    """Return [mean confidence, accuracy, photos, low, high] of each bin, as a JSON file holds it.

    Small splits get fewer bins: an interval as high as the whole diagram says nothing.
    """
    num = len(np.asarray(correct))
    bins = reliability_bins(confidence, correct, min(_MAX_BINS, 1 + num // _PHOTOS_PER_BIN))
    return _rounded(bins.confidence, bins.accuracy, bins.num, bins.low, bins.high)


def coverage_rows(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, num_steps: int
) -> list[list[float]]:
    """Return [coverage, accuracy, threshold] of `num_steps` steps at most, as a JSON file holds it.

    The accuracy of fewer than ten answers jumps up and down and is left out.
    """
    thresholds, coverage, accuracy = coverage_curve(confidence, correct)
    num = len(np.asarray(correct))
    steps = np.flatnonzero(coverage * num >= min(_MIN_ANSWERED, num))
    shown = steps[np.linspace(0, len(steps) - 1, min(len(steps), num_steps)).astype(int)]
    return _rounded(coverage[shown], accuracy[shown], thresholds[shown])


def usable_rows(
    logits: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the rows that are finite and have a label, their labels, and which of all they are."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    assert z.ndim == 2 and z.shape[1] > 0 and y.shape == z.shape[:1], (z.shape, y.shape)
    kept = (y != UNKNOWN) & np.isfinite(z).all(axis=1)
    z, y = z[kept], y[kept]
    assert ((y >= 0) & (y < z.shape[1])).all(), f"a label is outside 0..{z.shape[1] - 1}"
    return z, y, kept


def answers(
    confidence: npt.ArrayLike, correct: npt.ArrayLike
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Check confidence (N,) and correct (N,) and return them as arrays."""
    c, right = np.asarray(confidence, np.float64), np.asarray(correct, np.bool_)
    assert c.ndim == 1 and c.shape == right.shape, (c.shape, right.shape)
    assert np.isfinite(c).all(), "a confidence is not finite"
    return c, right


def shifted(z: Floats) -> Floats:
    """Shift the largest of each row to 0, so that exp cannot overflow."""
    return z - z.max(axis=1, keepdims=True)


class Threshold(NamedTuple):
    """Confidence from which answers are given, and what that gave on the data it was fitted on.

    "Never answers" is (inf, 0.0, NaN); "always" has threshold 0.
    """

    threshold: float
    coverage: float
    accuracy: float


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the T in [0.05, 20] with the least `nll(logits, labels, T)`.

    The loss is convex in 1 / T, so the sign of its derivative is bisected in log T. 1.0 where the
    labels cannot tell: fewer than `MIN_ROWS_FOR_TEMPERATURE` known rows, a single class among them,
    or not one wrong answer, where the optimum would be certainty. Source: Guo et al. 2017, arXiv
    1706.04599, section 4.2.
    """
    z, y, _ = usable_rows(logits, labels)
    if len(y) < MIN_ROWS_FOR_TEMPERATURE or len(np.unique(y)) < 2:
        return 1.0
    z = shifted(z)
    of_true = z[np.arange(len(y)), y]
    if (of_true == 0.0).all():
        return 1.0

    def is_too_sharp(log_t: float) -> bool:
        p = softmax(z, math.exp(log_t))
        return float((p * z).sum(axis=1).mean() - of_true.mean()) > 0.0  # d nll / d (1 / T)

    low, high = map(math.log, TEMPERATURE_RANGE)
    if is_too_sharp(high):
        return TEMPERATURE_RANGE[1]
    if not is_too_sharp(low):
        return TEMPERATURE_RANGE[0]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_too_sharp(middle) else (low, middle)
    return math.exp((low + high) / 2)


def threshold_for_accuracy(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    wanted_accuracy: float,
    records: npt.ArrayLike | None = None,
) -> Threshold:
    """Return the lowest threshold whose answers are right often enough, with a margin for chance.

    The one-sided 95 % lower bound of the accuracy (Wilson), not the accuracy itself, must reach
    `wanted_accuracy`; so at 0.9 at least 25 answers are needed. Simulated on unseen data,
    the wanted accuracy was missed in 3 to 7 of 100 fits (50 to 60 with the plain accuracy).

    `records` (N,) names the animal of each photo. The photos of one animal are right or wrong
    together and count for less than their number: it is divided by Kish's design effect, the
    cluster variance of the share right over the binomial one. Without it, four photos an animal
    that correlate by 0.6 miss in 10 of 100 fits; with it, in 5 at most.
    """
    assert 0.0 <= wanted_accuracy <= 1.0, wanted_accuracy
    c, right = answers(confidence, correct)
    thresholds, coverage, accuracy = coverage_curve(c, right)
    num = coverage * len(c) / _design_effect(right, records)
    low, _ = wilson_interval(accuracy, num, NormalDist().inv_cdf(0.95))
    good = np.flatnonzero(low >= wanted_accuracy)
    if not len(good):
        return Threshold(math.inf, 0.0, math.nan)
    thresholds[-1] = 0.0  # who answers all of these also answers a photo below all of them
    return Threshold(*(float(column[good[-1]]) for column in (thresholds, coverage, accuracy)))


def conformal_quantile(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, alpha: float
) -> float | None:
    """Return the q for `conformal_set` whose sets hold the truth with probability >= 1 - alpha.

    The ceil((n + 1)(1 - alpha))-th smallest score 1 - p(true class); None where n is smaller than
    1 / alpha - 1, too few for any promise. The promise is an average over photos, not one for each
    class. Source: Sadinle et al. 2019, arXiv 1609.00451 (LAC), with Vovk's finite-sample rank.
    """
    assert 0.0 < alpha < 1.0, alpha
    p, y, _ = usable_rows(probabilities, labels)
    rank = math.ceil((len(y) + 1) * (1.0 - alpha) - 1e-9)  # 0.9 * 10 must not become 10
    if rank > len(y):
        return None
    return float(np.sort(1.0 - p[np.arange(len(y)), y])[rank - 1])


def conformal_set(probabilities: npt.ArrayLike, q: float) -> npt.NDArray[np.bool_]:
    """Mark the classes that may be true, (N, K) bool: those with 1 - p <= q, and the answer itself.

    Without the answer, sets of a network that is right more often than 1 - alpha would be empty.
    """
    p = np.asarray(probabilities, np.float64)
    chosen = 1.0 - p <= q
    chosen[np.arange(len(p)), p.argmax(axis=1)] = True
    return chosen


def calibrate_head(
    val_logits: npt.ArrayLike,
    val_labels: npt.ArrayLike,
    *,
    wanted_accuracy: float = 0.9,
    alpha: float = 0.1,
    records: npt.ArrayLike | None = None,
) -> dict[str, Any]:
    """Fit one head on the validation part; plain numbers for the checkpoint.

    `threshold` is None where no threshold is sure to reach `wanted_accuracy` (`coverage` 0), and
    `conformal_quantile` where the part is too small. Both hold for probabilities at `temperature`.
    `records` (N,) as in `threshold_for_accuracy`.
    """
    z, y, kept = usable_rows(val_logits, val_labels)
    temperature = fit_temperature(z, y)
    p = softmax(z, temperature)
    groups = None if records is None else np.asarray(records)[kept]
    found = threshold_for_accuracy(
        p.max(axis=1), p.argmax(axis=1) == y, wanted_accuracy, records=groups
    )
    return {
        "temperature": temperature,
        "threshold": found.threshold if math.isfinite(found.threshold) else None,
        "wanted_accuracy": wanted_accuracy,
        "coverage": found.coverage,
        "num": len(y),
        "conformal_quantile": conformal_quantile(p, y, alpha),
        "conformal_alpha": alpha,
    }


def describe_calibration(
    head: str,
    test_logits: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    calibration: Mapping[str, Any],
) -> dict[str, Any]:
    """Measure a head's calibration on data it was not fitted on; None where there is nothing.

    `before` and `raw_reliability` are at temperature 1. `coverage` and `accuracy` belong to the
    answers at the threshold, `conformal_coverage` and `conformal_mean_size` to the sets.
    """
    z, y, _ = usable_rows(test_logits, test_labels)
    figures: dict[str, Any] = {"head": head, "num": len(y)}
    reliability: dict[str, list[list[float]]] = {}
    for name, temperature in (("before", 1.0), ("after", calibration["temperature"])):
        p = softmax(z, temperature)
        confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
        figures[f"ece_{name}"] = expected_calibration_error(confidence, correct)
        figures[f"nll_{name}"] = nll(z, y, temperature)
        figures[f"brier_{name}"] = brier(p, y)
        reliability[name] = reliability_rows(confidence, correct)
    threshold, q = calibration["threshold"], calibration["conformal_quantile"]
    answered = confidence >= (math.inf if threshold is None else threshold)
    sets = conformal_set(p, math.nan if q is None else q)
    figures["coverage"] = _mean(answered)
    figures["accuracy"] = _mean(correct[answered])
    figures["conformal_coverage"] = None if q is None else _mean(sets[np.arange(len(y)), y])
    figures["conformal_mean_size"] = None if q is None else _mean(sets.sum(axis=1))
    figures["reliability"], figures["raw_reliability"] = reliability["after"], reliability["before"]
    figures["curve"] = coverage_rows(confidence, correct, 100)
    return {k: None if v != v else v for k, v in figures.items()}


def calibrate_heads(
    val: Mapping[str, Answers], test: Mapping[str, Answers], wanted_accuracy: float
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Fit every head on the validation split, for the checkpoint; measure it on the test split.

    What was measured repeats what was fitted, so that it alone makes a report.
    """
    fitted, measured = {}, {}
    for head, (logits, labels, records) in val.items():
        fitted[head] = calibrate_head(
            logits, labels, wanted_accuracy=wanted_accuracy, records=records
        )
        measured[head] = {
            **describe_calibration(head, *test[head][:2], fitted[head]),
            "fitted": fitted[head],
        }
    return fitted, measured


def headline_figures(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return what a run prints of `calibrate_heads`: three metrics per head, NaN if undefined."""
    names = {"ece_before": "ece_before", "ece_after": "ece_after", "coverage": "answered_share"}
    return {
        f"test_{head}_{shown}": math.nan if figures[name] is None else figures[name]
        for head, figures in measured.items()
        for name, shown in names.items()
    }


def _design_effect(right: npt.NDArray[np.bool_], records: npt.ArrayLike | None) -> float:
    """Return how many photos count as one independent photo, 1 or more."""
    if records is None or not len(right):
        return 1.0
    _, group = np.unique(np.asarray(records), return_inverse=True)
    gap = right - right.mean()
    if not gap.any():  # no spread to learn from: photos of an animal count as one
        return float((np.bincount(group) ** 2).sum() / len(right))
    return max(1.0, float((np.bincount(group, gap) ** 2).sum() / (gap**2).sum()))


def _rounded(*columns: np.ndarray) -> list[list[float]]:
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [[round(value, 6) for value in row] for row in rows]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
