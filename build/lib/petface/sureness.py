"""From which confidence on answers are sure: right as often as was wanted, on new animals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from petface.metrics import clopper_pearson

Floats = npt.NDArray[np.float64]
Truths = npt.NDArray[np.bool_]

SURE_LEVEL = 0.95  # how certain it must be that the wanted accuracy is reached
TOO_FEW = "too few animals"  # how a reason begins
_NUM_STEPS = 20
_LEAST_CORRELATION = 0.35  # of two photos of one animal: fewer are not learnt from a few animals


class Threshold(NamedTuple):
    """A threshold, the share of answers from it on, and why there is none."""

    threshold: float | None
    coverage: float
    reason: str


def coverage_curve(confidence: np.ndarray, correct: Truths) -> tuple[Floats, Floats, Floats]:
    """Return thresholds (S,) falling, and coverage and accuracy (S,) of answering from each on.

    Equal confidences are one step, because no threshold can tell them apart.
    """
    order = np.argsort(-confidence, kind="stable")
    c, num_right = np.asarray(confidence, np.float64)[order], np.cumsum(correct[order])
    last = np.flatnonzero(np.append(c[1:] != c[:-1], len(c) > 0))
    return c[last], (last + 1) / max(len(c), 1), num_right[last] / (last + 1)


def threshold_for_accuracy(
    confidence: Floats, correct: Truths, wanted_accuracy: float, records: np.ndarray
) -> Threshold:
    """Return the lowest threshold whose answers are right often enough, its coverage, and why none.

    (None, 0.0, why) where none is; 0 where all are. From the surest answers down, a twentieth of
    all at a time, the one-sided lower bound of the accuracy (Clopper & Pearson at `SURE_LEVEL`)
    must reach `wanted_accuracy`; the first step that fails ends it, so that many steps are no more
    likely to err than one. Steps so small that even faultless answers would fail are passed over,
    and where there are larger ones those that a quarter of the allowed errors would make fail.
    Source: fixed-sequence testing as in Angelopoulos et al. 2021, arXiv 2110.01052.

    The photos of one animal are right or wrong together and count for less than their number; see
    `_design_effect`. Simulated: results/simulated_sure.csv.
    """
    thresholds, coverage, accuracy = coverage_curve(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    right, group = correct[order], np.unique(records, return_inverse=True)[1][order]
    steps = np.searchsorted(coverage, np.arange(1, _NUM_STEPS + 1) / _NUM_STEPS - 1e-9)
    steps = np.unique(steps[steps < len(coverage)])
    nums = np.rint(coverage[steps] * len(right)).astype(np.int64)
    most = [n / _design_effect(np.ones(n, bool), group[:n]) for n in nums.tolist()]  # faultless
    quarter = 1.0 - (1.0 - wanted_accuracy) / 4.0
    can, able = (
        np.array([_lower_bound(good, n) >= wanted_accuracy for n in most], bool)
        for good in (1.0, quarter)
    )
    tried, found = able if able.any() else can, None
    for step, num in zip(steps[tried].tolist(), nums[tried].tolist(), strict=True):
        counting = num / _design_effect(right[:num], group[:num])
        if _lower_bound(float(accuracy[step]), counting) < wanted_accuracy:
            break
        found = step
    if found is None:
        best = float(accuracy[steps[can][0] :].max()) if can.any() else 1.0
        if best < wanted_accuracy:
            return Threshold(None, 0.0, f"no threshold reaches {wanted_accuracy * 100:.0f} %")
        return Threshold(None, 0.0, _too_few(best, wanted_accuracy, group))
    thresholds[-1] = 0.0  # who answers all of these also answers a photo below all of them
    return Threshold(float(thresholds[found]), float(coverage[found]), "")


def _lower_bound(accuracy: float, num: float) -> float:
    return clopper_pearson(accuracy * num, num, 1.0 - SURE_LEVEL)[0]


def _too_few(accuracy: float, wanted: float, group: np.ndarray) -> str:
    """Return how many animals there are, and how many like these would show that `accuracy`."""
    num = int(group.max(initial=-1)) + 1
    photos = len(group) / num if num else 1.0
    counting = photos / max(1.0, photos / 2.0, _least_effect(photos))
    counts = np.unique(np.geomspace(num + 1, 10_000 * (num + 1), 1000).astype(np.int64))
    enough = (n for n in counts.tolist() if _lower_bound(accuracy, n * counting) >= wanted)
    return f"{TOO_FEW} ({num}; {next(enough, 'more')} needed)"


def _design_effect(correct: Truths, group: np.ndarray) -> float:
    """Return how many photos count as one independent photo, 1 or more (Kish 1965, section 8.2).

    The variance over animals of the share right, over the binomial one; an animal of mean size that
    is half right is added. Without it, no spread could be learnt from where all photos are right,
    and one wrong photo would count as much proof of certainty.
    """
    photos = np.bincount(group)
    right = np.bincount(group, correct)[photos > 0]
    photos = photos[photos > 0]
    mean = photos.mean()
    photos, right = np.append(photos, mean), np.append(right, mean / 2.0)
    share = right.sum() / photos.sum()
    spread = float(((right - share * photos) ** 2).sum())
    effect = spread / float(photos.sum() * share * (1.0 - share))
    return max(1.0, effect, _least_effect(float(mean)))


def _least_effect(photos: float) -> float:
    """Return the effect of a correlation that photos of an animal have at least."""
    return 1.0 + _LEAST_CORRELATION * (photos - 1.0)


def pool_thresholds(
    fitted: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, dict[str, Any]]:
    """Fit one threshold of one head for the species whose own animals are too few.

    `fitted[species]` is from `calibration.calibrate_head`, `rows[species]` from `rows_to_pool`.
    Species that the others lift over the limit come back changed. The promise then is an average
    over these species, not one for each.
    """
    names = sorted(name for name in rows if rows[name])
    wanted = {fitted[name]["wanted_accuracy"] for name in names}
    if len(names) < 2 or len(wanted) > 1:
        return {}
    pooled = [[*row, number] for number, name in enumerate(names) for row in rows[name]]
    confidence, correct, record, number = np.array(pooled).T
    animal = np.unique(np.stack([number, record]), axis=1, return_inverse=True)[1]
    threshold = threshold_for_accuracy(confidence, correct > 0, wanted.pop(), animal)[0]
    if threshold is None:
        return {}
    return {
        name: {
            **fitted[name],
            "threshold": threshold,
            "reason": "",
            "coverage": float((confidence[number == k] >= threshold).mean()),
            "pooled_over": names,
        }
        for k, name in enumerate(names)
    }
