"""Confidence that can be believed: fitted on the validation split, measured on the test split.

Logits are (N, K), labels (N,) class indices with -1 unknown, records (N,) the animal of each photo,
probabilities (N, K) with rows that sum to 1. `calibrate_heads` leaves out rows of an unknown label
and rows that are not finite; what it calls takes known rows alone. Confidence is the probability of
the answer, the most probable class; NaN means "not defined".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from petface.metrics import clopper_pearson
from petface.sureness import TOO_FEW, Floats, Truths, coverage_curve, threshold_for_accuracy
from petface.taxonomy import UNKNOWN

Labels = npt.NDArray[np.int64]
Answers = tuple[np.ndarray, np.ndarray, np.ndarray]  # logits, labels, records

# With fewer known rows the fit does more harm to the log loss of a network that needs none than
# good to one that is mildly off: simulated, true temperatures 1 to 2, 2 and 13 classes.
MIN_ROWS_FOR_TEMPERATURE = 50
TEMPERATURE_RANGE = (0.05, 20.0)
OVERCONFIDENT = 0.9  # confidence from which an error is called overconfident
_MAX_BINS, _PHOTOS_PER_BIN = 15, 20
_MIN_ANSWERED = 10
_NUM_DRAWS = 200  # of one photo of each animal
_BISECTIONS = 36  # halvings of the log range: 1e-10 of it


@dataclass(frozen=True)
class HeadCalibration:
    """What was fitted on the validation split; limits hold for softmax(logits / temperature)."""

    temperature: float
    threshold: float | None  # the confidence from which answers are sure; None = never
    conformal_quantile: float | None  # for `calibration.conformal_set`; None = no sets
    wanted_accuracy: float = 0.9  # share right for which the threshold was fitted
    conformal_alpha: float = 0.1  # share of sets that may miss the truth
    reason: str = ""  # why there is no threshold

    def is_sure(self, probability: float) -> bool:
        """Check whether an answer of this probability is right as often as was wanted."""
        # Fitted in float64, compared in float32: the photo at the threshold must not fall below it.
        return self.threshold is not None and probability >= self.threshold - 1e-6


# --- Losses and curves ---


def shifted(z: Floats) -> Floats:
    """Shift the largest of each row to 0, so that exp cannot overflow."""
    return z - z.max(axis=1, keepdims=True)


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return softmax(logits / temperature), (N, K)."""
    p = np.exp(shifted(logits) / temperature)
    return p / p.sum(axis=1, keepdims=True)


def nll(logits: Floats, labels: Labels, temperature: float = 1.0) -> float:
    """Average -log softmax(logits / temperature)[label], in nats."""
    z = shifted(logits) / temperature
    return _mean(np.log(np.exp(z).sum(axis=1)) - _at(z, labels))


def brier(probabilities: Floats, labels: Labels) -> float:
    """Average the squared distance to the one-hot label, summed over classes: 0 to 2.

    Source: Brier 1950, Monthly Weather Review 78(1), equation 2.
    """
    return _mean((probabilities**2).sum(axis=1) - 2.0 * _at(probabilities, labels) + 1.0)


def reliability_bins(
    confidence: np.ndarray, correct: Truths, num_bins: int = _MAX_BINS
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Group answers into bins of equal mass: mean confidence, accuracy and number of each (B,).

    Equal confidences share a bin, so that the order of the rows does not matter; bins left empty
    by that are dropped.
    """
    rank = np.searchsorted(np.sort(confidence), confidence)  # of the first of equals
    where = rank * num_bins // max(len(confidence), 1)
    num = np.bincount(where, minlength=num_bins)
    held = num > 0
    sums = (np.bincount(where, column, num_bins) for column in (confidence, correct))
    mean, accuracy = (total[held] / num[held] for total in sums)
    return mean, accuracy, num[held]


def expected_calibration_error(
    confidence: np.ndarray, correct: Truths, num_bins: int = _MAX_BINS
) -> float:
    """Average |accuracy - confidence| over bins of equal mass, weighted by count.

    Chance alone gives about 0.3 sqrt(num_bins / N): never compare splits of different size. Source:
    Guo et al. 2017, equation 3, with the bins of Nguyen & O'Connor 2015, arXiv 1508.05154.
    """
    mean, accuracy, num = reliability_bins(confidence, correct, num_bins)
    return float((num * np.abs(accuracy - mean)).sum() / num.sum()) if len(num) else math.nan


def null_calibration_error(confidence: np.ndarray, num_bins: int = _MAX_BINS) -> float:
    """Return about the `expected_calibration_error` of a head of these confidences without a fault.

    Chance alone: sqrt(2 / pi) deviations of each bin's number of right answers, photos taken for
    independent.
    """
    own = np.asarray(confidence, np.float64)
    rank = np.searchsorted(np.sort(own), own)
    variance = np.bincount(rank * num_bins // max(len(own), 1), own * (1.0 - own))
    return float(np.sqrt(variance * 2.0 / math.pi).sum() / len(own)) if len(own) else math.nan


def reliability_rows(confidence: np.ndarray, correct: Truths) -> list[list[float]]:
    """Return [mean confidence, accuracy, photos, low, high] of each bin, as a JSON file holds it.

    Low and high are the exact 95 % interval of that many coin tosses. Small splits get fewer bins:
    an interval as high as the whole diagram is useless.
    """
    num_bins = min(_MAX_BINS, 1 + len(correct) // _PHOTOS_PER_BIN)
    mean, accuracy, num = reliability_bins(confidence, correct, num_bins)
    bounds = [clopper_pearson(a * n, n, 0.025) for a, n in zip(accuracy, num, strict=True)]
    low, high = np.array(bounds, np.float64).reshape(-1, 2).T
    return _rows(mean, accuracy, num, low, high)


def coverage_rows(confidence: np.ndarray, correct: Truths) -> list[list[float]]:
    """Return [coverage, accuracy, threshold] of 100 steps at most, as a JSON file holds it.

    The accuracy of fewer than ten answers jumps up and down and is left out.
    """
    thresholds, coverage, accuracy = coverage_curve(confidence, correct)
    num = len(correct)
    steps = np.flatnonzero(coverage * num >= min(_MIN_ANSWERED, num))
    shown = steps[np.linspace(0, len(steps) - 1, min(len(steps), 100)).astype(int)]
    return _rows(coverage[shown], accuracy[shown], thresholds[shown])


# --- Fitting ---


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """Return the T in [0.05, 20] with the least `nll(logits, labels, T)`.

    The loss is convex in 1 / T, so the sign of its derivative is bisected in log T. 1.0 where the
    labels cannot decide: fewer than `MIN_ROWS_FOR_TEMPERATURE` rows, a single class among them, or
    not one wrong answer, where the optimum would be certainty. Source: Guo et al. 2017, arXiv
    1706.04599, section 4.2.
    """
    z = shifted(logits)
    of_true = _at(z, labels)
    too_few = len(labels) < MIN_ROWS_FOR_TEMPERATURE
    if too_few or len(np.unique(labels)) < 2 or (of_true == 0.0).all():
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


def conformal_quantile(
    probabilities: Floats, labels: Labels, alpha: float, records: np.ndarray | None = None
) -> float | None:
    """Return the q for `conformal_set` whose sets hold the truth with probability >= 1 - alpha.

    Of one photo of each of R animals q is the ceil((R + 1)(1 - alpha))-th smallest score
    1 - p(true class); it is averaged over draws of the photos. Without `records` each photo is an
    animal. None where R is smaller than 1 / alpha - 1, too few for any promise, which is an average
    over animals, not one for each class. Sources: Sadinle et al. 2019, arXiv 1609.00451 (LAC);
    Dunn, Wasserman & Ramdas 2022, arXiv 1809.07441 (one photo of each).
    """
    animals = np.arange(len(labels)) if records is None else records
    _, photos = np.unique(animals, return_counts=True)
    rank = math.ceil((len(photos) + 1) * (1.0 - alpha) - 1e-9)  # 0.9 * 10 must not become 10
    if rank > len(photos):
        return None
    scores = 1.0 - _at(probabilities, labels)
    scores = scores[np.lexsort((scores, animals))]  # no matter how the rows stand
    if len(photos) == len(scores):
        return float(np.sort(scores)[rank - 1])
    chance = np.random.default_rng(0).random((_NUM_DRAWS, len(photos)))
    drawn = scores[np.cumsum(photos) - photos + (chance * photos).astype(np.int64)]
    return float(np.partition(drawn, rank - 1, axis=1)[:, rank - 1].mean())


def conformal_set(probabilities: npt.ArrayLike, q: float) -> Truths:
    """Mark the classes that may be true, (N, K) bool: those with 1 - p <= q, and the answer itself.

    Without the answer, sets of a network that is right more often than 1 - alpha would be empty.
    """
    p = np.asarray(probabilities, np.float64)
    chosen = 1.0 - p <= q
    chosen[np.arange(len(p)), p.argmax(axis=1)] = True
    return chosen


# --- A head: fitted on one split, measured on another ---


def calibrate_heads(
    val: Mapping[str, Answers], test: Mapping[str, Answers], wanted_accuracy: float
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Fit every head on the validation split, for the checkpoint; measure it on the test split.

    What was measured repeats what was fitted, so that it alone makes a report.
    """
    fitted = {head: calibrate_head(*rows, wanted_accuracy) for head, rows in val.items()}
    measured = {
        head: {"head": head, **measure_head(*test[head][:2], own), "fitted": own}
        for head, own in fitted.items()
    }
    return fitted, measured


def rows_to_pool(
    val: Mapping[str, Answers], fitted: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[list[float]]]:
    """Return confidence, right and animal of the heads whose animals alone are too few."""
    found = {}
    for head, entry in fitted.items():
        if entry["reason"].startswith(TOO_FEW):
            z, y, kept = _known_rows(*val[head][:2])
            p = softmax(z, entry["temperature"])
            record = val[head][2][kept].astype(np.float64)
            found[head] = _rows(p.max(axis=1), (p.argmax(axis=1) == y) * 1.0, record)
    return found


def calibrate_head(
    logits: np.ndarray,
    labels: np.ndarray,
    records: np.ndarray,
    wanted_accuracy: float = 0.9,
    alpha: float = 0.1,
) -> dict[str, Any]:
    """Fit one head; plain numbers for the checkpoint.

    `threshold` is None where no threshold is sure to reach `wanted_accuracy` (`coverage` 0, and
    `reason` says why), and `conformal_quantile` where the split is too small. Both hold for
    probabilities at `temperature`.
    """
    z, y, kept = _known_rows(logits, labels)
    temperature = fit_temperature(z, y)
    p = softmax(z, temperature)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    own = records[kept]
    threshold, coverage, reason = threshold_for_accuracy(confidence, correct, wanted_accuracy, own)
    return {
        "temperature": temperature,
        "threshold": threshold,
        "reason": reason,
        "wanted_accuracy": wanted_accuracy,
        "coverage": coverage,
        "num": len(y),
        "num_records": len(np.unique(own)),
        "conformal_quantile": conformal_quantile(p, y, alpha, own),
        "conformal_alpha": alpha,
    }


def measure_head(
    logits: np.ndarray, labels: np.ndarray, fitted: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure what was fitted on data that it was not fitted on; None where there is nothing.

    `before` and `raw_reliability` are at temperature 1. `coverage` and `accuracy` belong to the
    answers at the threshold, `conformal_coverage` and `conformal_mean_size` to the sets.
    """
    z, y, _ = _known_rows(logits, labels)
    values: dict[str, Any] = {"num": len(y)}
    reliability = {}
    for name, temperature in (("before", 1.0), ("after", fitted["temperature"])):
        p = softmax(z, temperature)
        confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
        values[f"nll_{name}"] = nll(z, y, temperature)
        values[f"brier_{name}"] = brier(p, y)
        values[f"ece_{name}"] = expected_calibration_error(confidence, correct)
        values[f"ece_null_{name}"] = null_calibration_error(confidence)
        reliability[name] = reliability_rows(confidence, correct)
    threshold, q = fitted["threshold"], fitted["conformal_quantile"]
    answered = confidence >= (math.inf if threshold is None else threshold)
    sets = conformal_set(p, math.nan if q is None else q)
    values["coverage"] = _mean(answered)
    values["accuracy"] = _mean(correct[answered])
    values["overconfident_error_share"] = _mean(confidence[~correct] >= OVERCONFIDENT)
    values["conformal_coverage"] = None if q is None else _mean(_at(sets, y))
    values["conformal_mean_size"] = None if q is None else _mean(sets.sum(axis=1))
    values["reliability"], values["raw_reliability"] = reliability["after"], reliability["before"]
    values["curve"] = coverage_rows(confidence, correct)
    return {k: None if v != v else v for k, v in values.items()}


def headline_metrics(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return what a run prints of `calibrate_heads`: seven metrics per head, NaN if undefined."""
    same = ("nll_after", "brier_after", "ece_before", "ece_after", "ece_null_after")
    names = {name: name for name in (*same, "overconfident_error_share")}
    names |= {"coverage": "answered_share"}
    return {
        f"test_{head}_{shown}": math.nan if values[name] is None else values[name]
        for head, values in measured.items()
        for name, shown in names.items()
    }


def _known_rows(logits: np.ndarray, labels: np.ndarray) -> tuple[Floats, Labels, Truths]:
    """Return the rows that are finite and have a label, their labels, and which of all they are."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    kept = (y != UNKNOWN) & np.isfinite(z).all(axis=1)
    return z[kept], y[kept], kept


def _at(values: np.ndarray, labels: Labels) -> np.ndarray:
    """Return the value of each row's label, (N,)."""
    return values[np.arange(len(labels)), labels]


def _rows(*columns: np.ndarray) -> list[list[float]]:
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [[round(value, 6) for value in row] for row in rows]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
