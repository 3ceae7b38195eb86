"""The intervals over animals: how often they hold the truth, on photos made with a known one."""

from __future__ import annotations

import numpy as np
import pytest

from petface.metrics import cluster_bootstrap_interval, cluster_wilson_interval

Counts = tuple[np.ndarray, np.ndarray]


def made_records(
    draw: np.random.Generator, num: int, accuracy: float, correlation: float
) -> Counts:
    """Beta-binomial: each animal has its own chance; two of its photos agree by `correlation`."""
    photos = draw.integers(1, 9, num)
    strength = (1.0 - correlation) / correlation
    chance = draw.beta(accuracy * strength, (1.0 - accuracy) * strength, num)
    return draw.binomial(photos, chance), photos


@pytest.mark.parametrize("correlation", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("num", "accuracy"), [(200, 0.5), (200, 0.8), (400, 0.9)])
def test_both_intervals_hold_what_they_promise(
    num: int, accuracy: float, correlation: float
) -> None:
    draw, held = np.random.default_rng(0), np.zeros(2)
    num_runs = 500
    for run in range(num_runs):
        correct, photos = made_records(draw, num, accuracy, correlation)
        for place, (low, high) in enumerate(
            (
                cluster_bootstrap_interval(correct, photos, resamples=400, seed=run),
                cluster_wilson_interval(correct, photos),
            )
        ):
            held[place] += low <= accuracy <= high
    assert (held / num_runs > 0.92).all() and (held / num_runs < 0.975).all(), held / num_runs


def test_with_few_animals_the_bootstrap_promises_too_much_and_wilson_does_not() -> None:
    """Why `reports.figures` takes Wilson's below 200: 20 animals, 90 % right, photos alike."""
    for num, most in ((20, 0.88), (5, 0.7)):
        draw, held = np.random.default_rng(1), np.zeros(2)
        for run in range(500):
            correct, photos = made_records(draw, num, 0.9, 0.5)
            bootstrap = cluster_bootstrap_interval(correct, photos, resamples=200, seed=run)
            wilson = cluster_wilson_interval(correct, photos)
            held += [low <= 0.9 <= high for low, high in (bootstrap, wilson)]
        assert held[0] / 500 < most and held[1] / 500 > 0.9, held / 500


def test_photos_that_know_nothing_of_each_other_count_singly() -> None:
    """One photo an animal: Wilson's interval of a plain share, by its formula."""
    right, num, z = 63, 90, 1.959964
    p = right / num
    middle = (p + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z * ((p * (1 - p) / num + z**2 / (4 * num**2)) ** 0.5) / (1 + z**2 / num)
    correct = np.arange(num) < right
    found = cluster_wilson_interval(correct, np.ones(num, int))
    assert found == pytest.approx((middle - half, middle + half), abs=1e-3)


@pytest.mark.parametrize("share", [0, 1])
def test_without_spread_an_animal_counts_once(share: int) -> None:
    photos = np.full(12, 5)
    low, high = cluster_wilson_interval(share * photos, photos)
    width = 1.959964**2 / (12 + 1.959964**2)  # Wilson's at 0 or all of 12
    assert (low, high) == pytest.approx((1 - width, 1.0) if share else (0.0, width))
    assert low <= share <= high


def test_animals_without_a_photo_do_not_count() -> None:
    with_empty = cluster_wilson_interval([3, 0, 1, 0], [4, 0, 2, 0])
    assert with_empty == cluster_wilson_interval([3, 1], [4, 2])
    assert np.isnan(cluster_wilson_interval([], [])).all()
    assert np.isnan(cluster_wilson_interval([0], [0])).all()
    assert 0 < cluster_wilson_interval([2], [3])[0] < cluster_wilson_interval([2], [3])[1] < 1
