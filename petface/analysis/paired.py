"""Tests and intervals of two models on the same photos, with animals as the unit.

The photos of one animal are right or wrong together, so whole records are resampled and flipped.
`gain` (R,) is whole: photos of a record that B has right minus those that A has right. Intervals
of a difference come from `metrics.cluster_bootstrap_interval`, with gains in place of hits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student  # type: ignore[import-untyped]

MIN_RECORDS: Final = 10  # with fewer an interval would pretend to know; callers give none
_EXACT_STEPS = 20_000_000  # of the sums of all flips; beyond it they are sampled
_FLIPS_AT_ONCE = 20_000


def mean_interval(
    sums: npt.ArrayLike, num: npt.ArrayLike, confidence: float = 0.95
) -> tuple[float, float]:
    """Return an interval of sum(sums) / sum(num) for real `sums` (R,) per record.

    The ratio's linearised standard error between records, and Student's t with R - 1 degrees of
    freedom. Source: Cochran 1977, Sampling Techniques, section 9A.
    """
    s, n = np.asarray(sums, np.float64), np.asarray(num, np.float64)
    assert s.ndim == 1 and s.shape == n.shape and len(s) > 1, (s.shape, n.shape)
    mean = s.sum() / n.sum()
    error = np.sqrt(len(s) / (len(s) - 1) * ((s - mean * n) ** 2).sum()) / n.sum()
    half = student.ppf(0.5 + confidence / 2, len(s) - 1) * error
    return float(mean - half), float(mean + half)


def sign_flip_p_value(
    gain: npt.ArrayLike, *, flips: int = 100_000, seed: int = 0
) -> tuple[float, bool]:
    """Return the two-sided p-value of "A and B may be swapped in any record", and whether exact.

    Swapping the answers of a record turns the sign of its gain. The p-value is the share of all
    2^R flips whose summed gain is at least as far from 0. They are counted exactly, sum by sum,
    while that is quick; else `flips` of them are drawn and the one seen is added. With one photo a
    record this is the exact McNemar test. Sources: Yeh 2000, COLING, arXiv cs/0008005 (the test);
    Phipson & Smyth 2010, arXiv 1603.05766 (the added one).
    """
    d = np.asarray(gain, np.int64)
    assert d.ndim == 1 and flips > 0, (d.shape, flips)
    sizes = np.abs(d[d != 0])
    if not len(sizes):
        return 1.0, True
    seen, total = abs(int(d.sum())), int(sizes.sum())
    if len(sizes) * total <= _EXACT_STEPS:
        chance = np.zeros(total + 1)  # of each sum of the gains whose sign is +
        chance[0] = 1.0
        for size in sizes.tolist():
            moved = 0.5 * chance
            chance = moved.copy()
            chance[size:] += moved[:-size]
        sums = 2 * np.arange(total + 1) - total
        return min(1.0, float(chance[np.abs(sums) >= seen].sum())), True
    kinds, frequency = np.unique(sizes, return_counts=True)
    generator, as_far = np.random.default_rng(seed), 0
    for start in range(0, flips, _FLIPS_AT_ONCE):
        shape = (min(_FLIPS_AT_ONCE, flips - start), len(kinds))
        plus = generator.binomial(frequency, 0.5, size=shape) @ kinds
        as_far += int((np.abs(2 * plus - total) >= seen).sum())
    return (1 + as_far) / (1 + flips), False


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Adjust p-values (n,) so that the chance of one false finding among them stays as named.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2).
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
