"""Paired tests against loops over every flip and every resample, and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from petface.analysis import paired
from petface.analysis.paired import holm, sign_flip_p_value


def all_flips(gain: list[int]) -> float:
    """Swap A and B in every possible set of records."""
    flipped = [
        abs(sum(s * g for s, g in zip(signs, gain, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(gain))
    ]
    return sum(value >= abs(sum(gain)) for value in flipped) / len(flipped)


@pytest.mark.parametrize("seed", range(6))
def test_the_p_value_is_the_share_of_all_flips(seed: int) -> None:
    draw = np.random.default_rng(seed)
    gain = draw.integers(-4, 6, draw.integers(1, 12)).tolist()
    assert sign_flip_p_value(gain) == (pytest.approx(all_flips(gain), abs=1e-12), True)


def test_p_values_of_hand_made_cases() -> None:
    assert sign_flip_p_value([0, 0]) == sign_flip_p_value([]) == (1.0, True)
    assert sign_flip_p_value([7]) == (1.0, True)  # one record shows nothing
    # one photo a record: the exact McNemar test, 3 against 12
    p_value = sign_flip_p_value([-1] * 3 + [1] * 12 + [0] * 40)[0]
    assert p_value == pytest.approx(binomtest(3, 15).pvalue)


def test_drawn_flips_come_near_all_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = np.random.default_rng(1).integers(-2, 4, 60)
    exact, is_exact = sign_flip_p_value(gain)
    monkeypatch.setattr(paired, "_EXACT_STEPS", 0)
    drawn, was_exact = sign_flip_p_value(gain, flips=50_000)
    assert is_exact and not was_exact
    assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact / 50_000))
    assert sign_flip_p_value(gain, flips=50_000) == (drawn, False)  # seeded
    assert sign_flip_p_value([3] * 40, flips=999)[0] == 1 / 1000  # never 0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0] and holm([]).tolist() == []


def test_without_a_difference_it_is_found_in_five_of_a_hundred() -> None:
    """Hard animals are hard for both models and each has its own bad animals: by photo, too often
    a difference is seen.
    """
    draw, by_record, by_photo = np.random.default_rng(11), 0, 0
    for _ in range(600):
        record = np.repeat(np.arange(80), draw.integers(1, 9, 80))
        ease = 0.9 + 0.8 * draw.normal(size=80)
        a, b = (
            ease[record] + (0.6 * draw.normal(size=80))[record] + draw.normal(size=len(record)) > 0
            for _ in "ab"
        )
        gain = np.bincount(record, b.astype(int) - a.astype(int)).astype(int)
        by_record += sign_flip_p_value(gain)[0] < 0.05
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        by_photo += binomtest(only_a, only_a + only_b).pvalue < 0.05
    assert 0.02 < by_record / 600 < 0.08
    assert by_photo / 600 > 0.09 and by_photo > 2 * by_record
