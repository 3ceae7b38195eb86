"""Two models on the same photos: what differs, how surely, and what chance alone would do.

Everything is told by record, the animal of each photo: the photos of one animal are right or wrong
together, so whole records are resampled and flipped. `num` (R,) photos of each record, `gain` (R,)
whole numbers: photos that B has right minus those that A has right.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

MIN_RECORDS: Final = 10  # with fewer an interval would pretend to know; callers give none
_CELLS_AT_ONCE = 4_000_000  # resampled counts held at once: 32 MB of int64
_EXACT_STEPS = 20_000_000  # of the sums of all flips; beyond it they are sampled
_FLIPS_AT_ONCE = 20_000

Interval = tuple[float, float]


def difference_interval(
    gain: npt.ArrayLike,
    num: npt.ArrayLike,
    classes: npt.ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Give a percentile interval of accuracy B - accuracy A when whole records are resampled.

    Both models are asked the same resampled records. With `classes` (R,), the true class of each
    record, it is the difference in balanced accuracy: the mean of the classes' differences, over
    the classes that a resample holds. Where no record differs the interval is (0, 0): the
    bootstrap sees no spread to learn from. Source: Davison & Hinkley 1997, Bootstrap Methods and
    their Application, sections 3.8 and 5.3.1.
    """
    d, n = np.asarray(gain, np.int64), np.asarray(num, np.int64)
    k = np.zeros(len(n), np.int64) if classes is None else np.asarray(classes, np.int64)
    assert d.ndim == 1 and d.shape == n.shape == k.shape, (d.shape, n.shape, k.shape)
    assert 0.0 < confidence < 1.0 and resamples > 0, (confidence, resamples)
    assert len(n) and (np.abs(d) <= n).all() and (n > 0).all() and (k >= 0).all()
    # Records alike in class, gain and photos are interchangeable: how often each kind is drawn is
    # the same resampling as record by record, at a fraction of the cost.
    base = int(n.max()) + 1
    kinds, frequency = np.unique((k * 2 * base + d + base) * base + n, return_counts=True)
    rest, kind_num = np.divmod(kinds, base)
    kind_class, kind_gain = np.divmod(rest, 2 * base)
    kind_gain -= base
    first = np.flatnonzero(np.append(True, kind_class[1:] != kind_class[:-1]))
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS_AT_ONCE // len(kinds))
    found = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = generator.multinomial(len(n), frequency / len(n), size=size)  # (size, kinds)
        gains = np.add.reduceat(drawn * kind_gain, first, axis=1)
        nums = np.add.reduceat(drawn * kind_num, first, axis=1)
        held = nums > 0
        shares = np.divide(gains, nums, out=np.zeros(gains.shape), where=held)
        found.append(shares.sum(axis=1) / held.sum(axis=1))
    outside = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(found), (outside, 1.0 - outside), method="weibull")
    return float(low), float(high)


def mean_interval(sums: npt.ArrayLike, num: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Give an interval of sum(sums) / sum(num) for real `sums` (R,) per record.

    The ratio's linearised standard error between records, and Student's t with R - 1 degrees of
    freedom in the expansion of Abramowitz & Stegun 26.7.5. Source: Cochran 1977, Sampling
    Techniques, section 9A.
    """
    s, n = np.asarray(sums, np.float64), np.asarray(num, np.float64)
    assert s.ndim == 1 and s.shape == n.shape and len(s) > 1, (s.shape, n.shape)
    mean = s.sum() / n.sum()
    rest = s - mean * n
    error = float(np.sqrt(len(s) / (len(s) - 1) * (rest**2).sum())) / n.sum()
    z, free = NormalDist().inv_cdf(0.5 + confidence / 2), len(s) - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return float(mean - t * error), float(mean + t * error)


def sign_flip_p_value(
    gain: npt.ArrayLike, *, flips: int = 100_000, seed: int = 0
) -> tuple[float, bool]:
    """Give the two-sided p-value of "A and B may be swapped in any record", and whether exact.

    Swapping the answers of a record turns the sign of its gain. The p-value is the share of all
    2^R flips whose summed gain is at least as far from 0; they are counted exactly, sum by sum,
    while that is quick, else `flips` of them are drawn and the one seen is added. With one photo a
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
