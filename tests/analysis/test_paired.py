"""Paired figures against loops over every flip and every resample, and by simulation."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import t as student

from petface.analysis import paired
from petface.analysis.paired import difference_interval, holm, mean_interval, sign_flip_p_value

PHI = NormalDist().cdf
ERF = np.vectorize(math.erf)


def all_flips(gain: list[int]) -> float:
    """Swap A and B in every possible set of records."""
    flipped = [
        abs(sum(s * g for s, g in zip(signs, gain, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(gain))
    ]
    return sum(value >= abs(sum(gain)) for value in flipped) / len(flipped)


@pytest.mark.parametrize("seed", range(12))
def test_the_p_value_is_the_share_of_all_flips(seed: int) -> None:
    draw = np.random.default_rng(seed)
    gain = draw.integers(-4, 6, draw.integers(1, 12)).tolist()
    assert sign_flip_p_value(gain) == (pytest.approx(all_flips(gain), abs=1e-12), True)


def test_p_values_of_hand_made_cases() -> None:
    assert sign_flip_p_value([0, 0]) == sign_flip_p_value([]) == (1.0, True)
    assert sign_flip_p_value([7]) == (1.0, True)  # one record shows nothing
    assert sign_flip_p_value([1] * 6)[0] == 2 / 2**6
    # one photo a record: the exact McNemar test, 3 against 12
    tail = sum(math.comb(15, k) for k in range(4)) / 2**15
    assert sign_flip_p_value([-1] * 3 + [1] * 12 + [0] * 40)[0] == pytest.approx(2 * tail)


def test_drawn_flips_come_near_all_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = np.random.default_rng(1).integers(-2, 4, 60)
    exact, is_exact = sign_flip_p_value(gain)
    monkeypatch.setattr(paired, "_EXACT_STEPS", 0)
    drawn, was_exact = sign_flip_p_value(gain, flips=50_000)
    assert is_exact and not was_exact
    assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact / 50_000))
    assert sign_flip_p_value(gain, flips=50_000) == (drawn, False)  # seeded
    assert sign_flip_p_value([3] * 40, flips=999)[0] == 1 / 1000  # never 0


@pytest.mark.parametrize("chunk", [50, 4_000_000])
@pytest.mark.parametrize("by_class", [False, True])
def test_the_interval_equals_a_loop_over_resamples(
    by_class: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(5)
    num = draw.integers(1, 6, 40)
    gain = np.array([draw.integers(-n, n + 1) for n in num])
    classes = draw.integers(0, 4, 40)
    found = []
    for _ in range(4000):
        sums: dict[int, list[int]] = {}
        for record in draw.integers(0, 40, 40).tolist():
            entry = sums.setdefault(int(classes[record]) if by_class else 0, [0, 0])
            entry[0] += int(gain[record])
            entry[1] += int(num[record])
        found.append(np.mean([g / n for g, n in sums.values()]))
    monkeypatch.setattr(paired, "_CELLS_AT_ONCE", chunk)
    result = difference_interval(gain, num, classes if by_class else None, resamples=4000)
    assert result == pytest.approx(np.quantile(found, (0.025, 0.975)), abs=0.02)
    narrow = difference_interval(gain, num, classes if by_class else None, confidence=0.5)
    assert result[0] < narrow[0] < narrow[1] < result[1]


def test_intervals_without_a_difference_have_no_width() -> None:
    assert difference_interval([0, 0, 0], [3, 1, 2]) == (0.0, 0.0)
    assert difference_interval([2], [4]) == (0.5, 0.5)
    assert mean_interval([2.0, 4.0, 2.0], [1, 2, 1]) == (2.0, 2.0)


def test_the_interval_of_a_mean_is_students_where_records_have_one_photo() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 14)
    half = student.ppf(0.975, 13) * values.std(ddof=1) / math.sqrt(14)
    low, high = mean_interval(values, np.ones(14))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=2e-3)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0] and holm([]).tolist() == []


def two_models(
    draw: np.random.Generator, num_records: int, mean_a: float, mean_b: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw photos of records: which record, A right, B right.

    Hard animals are hard for both, and each model has its own bad animals. The chance of a photo
    is Phi(mean + effects of variance 1), so that the true accuracy is Phi(mean / sqrt 2).
    """
    num = draw.integers(1, 9, num_records)
    record = np.repeat(np.arange(num_records), num)
    shared = 0.8 * draw.normal(size=num_records)
    right = []
    for mean in (mean_a, mean_b):
        chance = mean + shared + 0.6 * draw.normal(size=num_records)
        share = 0.5 * (1 + ERF(chance / math.sqrt(2)))
        right.append(draw.random(len(record)) < share[record])
    return record, right[0], right[1]


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """The exact test that takes photos as independent."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    total, least = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(least + 1)) / 2**total)


def per_record(record: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gain = np.bincount(record, b.astype(int) - a.astype(int)).astype(int)
    return gain, np.bincount(record)


def test_without_a_difference_it_is_found_in_five_of_a_hundred() -> None:
    draw, by_record, by_photo = np.random.default_rng(11), 0, 0
    for _ in range(800):
        record, a, b = two_models(draw, 80, 0.9, 0.9)
        by_record += sign_flip_p_value(per_record(record, a, b)[0])[0] < 0.05
        by_photo += mcnemar(a, b) < 0.05
    assert 0.02 < by_record / 800 < 0.08
    assert by_photo / 800 > 0.09 and by_photo > 2 * by_record


def test_the_interval_covers_a_known_difference() -> None:
    draw, covered, truth = np.random.default_rng(12), 0, PHI(1.3 / 2**0.5) - PHI(0.7 / 2**0.5)
    for _ in range(700):
        gain, num = per_record(*two_models(draw, 120, 0.7, 1.3))
        low, high = difference_interval(gain, num, resamples=400)
        covered += low <= truth <= high
    assert 0.92 < covered / 700 < 0.97


def test_the_interval_of_a_mean_covers() -> None:
    draw, covered = np.random.default_rng(13), 0
    for _ in range(1500):
        num = draw.integers(1, 7, 25)
        record = np.repeat(np.arange(25), num)
        values = 0.3 + draw.normal(size=25)[record] + draw.normal(size=len(record))
        low, high = mean_interval(np.bincount(record, values), num)
        covered += low <= 0.3 <= high
    assert 0.92 < covered / 1500 < 0.97
