"""Confidence that can be believed: fitted on the validation part, measured on the test part.

Shapes and words are those of `petface.reliability`. A head's answers are its logits (N, K), the
labels (N,) and the records (N,), the animal of each photo.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from petface.reliability import (
    answers,
    brier,
    coverage_curve,
    expected_calibration_error,
    nll,
    shifted,
    softmax,
    usable_rows,
    wilson_interval,
)

Answers = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]

# With fewer known rows the fit does more harm to the log loss of a network that needs none than
# good to one that is mildly off: simulated, true temperatures 1 to 2, 2 and 13 classes.
MIN_ROWS_FOR_TEMPERATURE = 50
TEMPERATURE_RANGE = (0.05, 20.0)
_BISECTIONS = 36  # halvings of the log range: 1e-10 of it


class Threshold(NamedTuple):
    """Confidence from which answers are given, and what that gave on the data it was fitted on.

    "Never answers" is (inf, 0.0, NaN); "always" has threshold 0.
    """

    threshold: float
    coverage: float
    accuracy: float


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Find the T in [0.05, 20] with the least `nll(logits, labels, T)`.

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
    confidence_level: float = 0.95,
    records: npt.ArrayLike | None = None,
) -> Threshold:
    """Find the lowest threshold whose answers are right often enough, with a margin for chance.

    The one-sided Wilson lower bound of the accuracy, not the accuracy itself, must reach
    `wanted_accuracy`; so at 0.9 and 0.95 at least 25 answers are needed. Simulated on unseen data,
    the wanted accuracy was missed in 3 to 7 of 100 fits (50 to 60 with the plain accuracy).

    `records` (N,) names the animal of each photo. The photos of one animal are right or wrong
    together and count for less than their number: it is divided by Kish's design effect, the
    cluster variance of the share right over the binomial one. Without it, four photos an animal
    that correlate by 0.6 miss in 10 of 100 fits; with it, in 5 at most.
    """
    assert 0.0 <= wanted_accuracy <= 1.0 and 0.5 <= confidence_level < 1.0
    c, right = answers(confidence, correct)
    thresholds, coverage, accuracy = coverage_curve(c, right)
    num = coverage * len(c) / _design_effect(right, records)
    low, _ = wilson_interval(accuracy, num, NormalDist().inv_cdf(confidence_level))
    good = np.flatnonzero(low >= wanted_accuracy)
    if not len(good):
        return Threshold(math.inf, 0.0, math.nan)
    thresholds[-1] = 0.0  # who answers all of these also answers a photo below all of them
    return Threshold(*(float(column[good[-1]]) for column in (thresholds, coverage, accuracy)))


def conformal_quantile(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, alpha: float
) -> float | None:
    """Give the q for `conformal_set` whose sets hold the truth with probability 1 - alpha or more.

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

    The answer is added so that no set is empty, as those of a network that is right more often
    than 1 - alpha would be; coverage then lies above 1 - alpha.
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

    `before` is temperature 1. `coverage` and `accuracy` are those of the answers at the threshold,
    `conformal_coverage` and `conformal_mean_size` those of the sets.
    """
    z, y, _ = usable_rows(test_logits, test_labels)
    figures: dict[str, Any] = {"head": head, "num": len(y)}
    for name, temperature in (("before", 1.0), ("after", calibration["temperature"])):
        p = softmax(z, temperature)
        confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
        figures[f"ece_{name}"] = expected_calibration_error(confidence, correct)
        figures[f"nll_{name}"] = nll(z, y, temperature)
        figures[f"brier_{name}"] = brier(p, y)
    threshold, q = calibration["threshold"], calibration["conformal_quantile"]
    answered = confidence >= (math.inf if threshold is None else threshold)
    sets = conformal_set(p, math.nan if q is None else q)
    figures["coverage"] = _mean(answered)
    figures["accuracy"] = _mean(correct[answered])
    figures["conformal_coverage"] = None if q is None else _mean(sets[np.arange(len(y)), y])
    figures["conformal_mean_size"] = None if q is None else _mean(sets.sum(axis=1))
    return {k: None if v != v else v for k, v in figures.items()}


def calibrate_heads(
    val: Mapping[str, Answers], test: Mapping[str, Answers], wanted_accuracy: float
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Fit every head on the validation part, for the checkpoint, and measure it on the test part.

    What was fitted stands beside what was measured, so that the second alone makes a report.
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
    """Pick what a run prints of `calibrate_heads`: three figures per head, NaN if not defined."""
    names = {"ece_before": "ece_before", "ece_after": "ece_after", "coverage": "answered_share"}
    return {
        f"test_{head}_{shown}": math.nan if figures[name] is None else figures[name]
        for head, figures in measured.items()
        for name, shown in names.items()
    }


def _design_effect(right: npt.NDArray[np.bool_], records: npt.ArrayLike | None) -> float:
    """Give how many photos count as one independent photo, 1 or more."""
    if records is None or not len(right):
        return 1.0
    _, group = np.unique(np.asarray(records), return_inverse=True)
    gap = right - right.mean()
    if not gap.any():  # no spread to learn from: photos of an animal count as one
        return float((np.bincount(group) ** 2).sum() / len(right))
    return max(1.0, float((np.bincount(group, gap) ** 2).sum() / (gap**2).sum()))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
