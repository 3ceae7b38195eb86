"""How far the answers of an evaluation can be believed: thresholds, sets and reliability."""

from __future__ import annotations

from typing import Any

import numpy as np

from petface.calibration import OVERCONFIDENT, coverage_rows, reliability_rows
from petface.evaluation.details import TOP, Evaluation, HeadAnswers, share

# An older evaluation does not say; nothing else was ever fitted by default.
WANTED_ACCURACY, ALPHA = 0.9, 0.1
_TOLERANCE = 1e-6  # as `HeadCalibration.is_sure`
_NUM_STEPS = {True: 100, False: 40}  # of the curve of all species, and of one


def describe_reliability(evaluation: Evaluation, answers: HeadAnswers) -> dict[str, Any]:
    """Measure the confidence of one head on the photos it predicted: "all", and by species.

    In "all" each photo is judged by what was fitted for its own species; `threshold` and what was
    wanted are None there where they differ. `num_fitted` photos are of species whose head was
    fitted at all: `coverage` is the share of these at or above the threshold. `num_with_threshold`
    are of species with a threshold; without any, no answer counts as sure. `curve` has the rows
    [coverage, accuracy, threshold] of one threshold for all, `reliability` [mean confidence,
    accuracy, photos, low, high], a 95 % interval that takes photos for independent;
    `raw_reliability` at temperature 1. `reason` says why a species has no threshold.
    """
    own = answers.predicted()
    if not len(own):
        return {}
    found = {"all": _describe(evaluation, own, is_all=True)}
    if answers.head != "species":
        found["all"]["end_to_end"] = _end_to_end(found["all"], answers)
        for name, of_species in own.per_species().items():
            found[name] = _describe(evaluation, of_species, is_all=False)
    return found


def _describe(evaluation: Evaluation, own: HeadAnswers, *, is_all: bool) -> dict[str, Any]:
    group, right = own.group, own.is_right
    fitted = {
        g: evaluation.fitted(own.head, own.species_names[g]) for g in np.unique(group).tolist()
    }
    threshold, quantile = np.full((2, len(own.first_class)), np.nan)
    is_fitted = np.zeros(len(own.first_class), bool)
    for g, entry in fitted.items():
        is_fitted[g] = bool(entry)
        for column, key in ((threshold, "threshold"), (quantile, "conformal_quantile")):
            column[g] = np.nan if entry.get(key) is None else entry[key]
    confidence = own.details["top_prob"][:, 0].astype(np.float64)
    judged = is_fitted[group]
    is_sure = judged & (confidence >= threshold[group] - _TOLERANCE)  # never where it is NaN
    thresholds = {entry.get("threshold") for entry in fitted.values() if entry}
    return {
        "num": len(own),
        "num_fitted": int(judged.sum()),
        "num_with_threshold": int((~np.isnan(threshold[group])).sum()),
        "threshold": thresholds.pop() if len(thresholds) == 1 else None,
        "reason": next(iter(fitted.values())).get("reason", "") if len(fitted) == 1 else "",
        "wanted_accuracy": _given(fitted, "wanted_accuracy", WANTED_ACCURACY),
        "coverage": share(is_sure[judged]),
        "accuracy_of_answered": share(right[is_sure]),
        "overconfident_error_share": share(confidence[~right] >= OVERCONFIDENT),
        "conformal": _conformal(own, quantile[group], _given(fitted, "conformal_alpha", ALPHA)),
        "curve": coverage_rows(confidence, right, _NUM_STEPS[is_all]),
        "reliability": reliability_rows(confidence, right),
        "raw_reliability": reliability_rows(own.details["raw_prob"], right),
    }


def _end_to_end(found: dict[str, Any], answers: HeadAnswers) -> dict[str, Any]:
    """Measure what a user meets, whose photo may be of a species that stage 1 got wrong.

    The specialist that such a photo meets was not asked. The worst is assumed: it counts as a sure
    answer, wrong, and its truth as in no set. So coverage is at most and accuracy at least this.
    """
    lost, num = int((~answers.is_species_right).sum()), found["num_fitted"]
    lost_if_sure = lost if found["num_with_threshold"] else 0
    sure = (found["coverage"] or 0.0) * num
    right = sure * (found["accuracy_of_answered"] or 0.0)
    sets = found["conformal"]
    in_sets = sets["coverage"] * sets["num"] / (sets["num"] + lost) if sets else None
    return {
        "num": len(answers),
        "coverage": (sure + lost_if_sure) / (num + lost) if num + lost else None,
        "accuracy_of_answered": right / (sure + lost_if_sure) if sure + lost_if_sure else None,
        "conformal_coverage": in_sets,
    }


def _given(fitted: dict[int, dict[str, Any]], key: str, otherwise: float) -> float | None:
    """Return what the species were fitted for; None where that differs between them."""
    given = {float(entry.get(key, otherwise)) for entry in fitted.values() if entry}
    return given.pop() if len(given) == 1 else None if given else otherwise


def _conformal(
    own: HeadAnswers, quantile: np.ndarray, alpha: float | None
) -> dict[str, Any] | None:
    """Measure the sets of the photos that have a quantile (M,); None where none has.

    Coverage is exact. The size is counted among the five best answers; where the fifth is in the
    set and there are more classes, the set may be larger.
    """
    chosen = ~np.isnan(quantile)
    if not chosen.any():
        return None
    details, q = own.details[chosen], quantile[chosen]
    own_classes = own.num_classes[own.group][chosen]
    with np.errstate(invalid="ignore"):  # NaN: none of the classes
        true_is_in = 1.0 - np.exp(-details["nll"].astype(np.float64)) <= q
        is_in = 1.0 - details["top_prob"].astype(np.float64) <= q[:, None]
    return {
        "alpha": alpha,
        "num": int(chosen.sum()),
        "coverage": share(true_is_in | (details["rank"] == 1)),
        "mean_size": share(np.maximum(is_in.sum(axis=1), 1)),
        "is_lower_bound": bool((is_in[:, -1] & (own_classes > TOP)).any()),
    }
