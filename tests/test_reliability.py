"""Figures of confidence against scikit-learn, scipy, naive loops and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from petface.calibration import (
    brier,
    coverage_curve,
    expected_calibration_error,
    nll,
    reliability_bins,
    softmax,
)


def draw(seed: int, n: int, num_classes: int, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits and labels of a network whose probabilities are exactly right."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, num_classes)) * spread
    return logits, (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)


def answer(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = softmax(logits)
    return p.max(axis=1), p.argmax(axis=1) == labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_losses_equal_scikit_learn_on_the_known_rows(temperature: float) -> None:
    logits, labels = draw(0, 200, 5)
    p = softmax(logits, temperature)
    hidden = labels.copy()
    hidden[::3] = -1
    known = hidden >= 0
    expected = sklearn.metrics.log_loss(labels[known], p[known], labels=range(5))
    assert nll(logits, hidden, temperature) == pytest.approx(expected, rel=1e-9)
    expected = sklearn.metrics.brier_score_loss(
        labels[known], p[known], labels=range(5), scale_by_half=False
    )
    assert brier(p, hidden) == pytest.approx(expected, rel=1e-9)


def test_rows_that_are_not_finite_do_not_count_and_big_logits_do_not_overflow() -> None:
    logits, labels = draw(1, 50, 3)
    broken = np.vstack([logits, [[np.nan, 0, 0]], [[np.inf, 0, 0]]])
    more = np.append(labels, [0, 0])
    assert nll(broken, more) == nll(logits, labels)
    assert nll([[1e30, 0.0]], [0]) == 0.0 and nll([[5000.0, 0.0]], [1]) == 5000.0
    assert softmax([[1000.0, 1000.0]]).tolist() == [[0.5, 0.5]]


def test_without_a_known_row_nothing_is_defined() -> None:
    logits = np.zeros((3, 2))
    assert math.isnan(nll(logits, [-1] * 3)) and math.isnan(brier(logits, [-1] * 3))
    assert math.isnan(expected_calibration_error([], []))
    assert [len(column) for column in coverage_curve([], [])] == [0, 0, 0]


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(AssertionError, match="outside"):
        nll(np.zeros((1, 2)), [2])


def naive_bins(confidence: np.ndarray, num_bins: int) -> list[list[int]]:
    """Deal the rows out by rank; equal confidences go where the first of them goes."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for row, value in enumerate(confidence):
        num_below = sum(other < value for other in confidence)
        bins[num_below * num_bins // len(confidence)].append(row)
    return [rows for rows in bins if rows]


@pytest.mark.parametrize(("digits", "num_bins"), [(9, 7), (1, 7), (1, 15), (9, 1)])
def test_bins_and_calibration_error_equal_naive_loops(digits: int, num_bins: int) -> None:
    confidence, correct = answer(*draw(2, 101, 4))
    confidence = confidence.round(digits)
    rows_of = naive_bins(confidence, num_bins)
    bins = reliability_bins(confidence, correct, num_bins)
    assert bins.num.tolist() == [len(rows) for rows in rows_of]
    error = 0.0
    for place, rows in enumerate(rows_of):
        accuracy = sum(correct[row] for row in rows) / len(rows)
        mean = sum(confidence[row] for row in rows) / len(rows)
        assert bins.accuracy[place] == pytest.approx(accuracy)
        assert bins.confidence[place] == pytest.approx(mean)
        test = scipy.stats.binomtest(int(sum(correct[row] for row in rows)), len(rows))
        interval = test.proportion_ci(method="wilson")
        assert (bins.low[place], bins.high[place]) == pytest.approx((interval.low, interval.high))
        error += abs(accuracy - mean) * len(rows) / len(confidence)
    assert expected_calibration_error(confidence, correct, num_bins) == pytest.approx(error)


def test_the_order_of_the_rows_does_not_matter() -> None:
    confidence, correct = answer(*draw(3, 300, 3))
    confidence = confidence.round(1)
    order = np.random.default_rng(0).permutation(300)
    for figure in (reliability_bins, coverage_curve):
        straight = figure(confidence, correct)
        shuffled = figure(confidence[order], correct[order])
        for one, other in zip(straight, shuffled, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_calibration_error_is_as_small_as_chance_lets_it_and_sees_overconfidence() -> None:
    logits, labels = draw(4, 20_000, 5)
    by_chance = 0.3 * math.sqrt(15 / 20_000)
    confidence, correct = answer(logits, labels)
    assert expected_calibration_error(confidence, correct) < 2 * by_chance
    assert expected_calibration_error(*answer(logits * 3, labels)) > 0.1
    # a network that is always right at confidence 0.8 is wrong about itself by 0.2
    assert expected_calibration_error([0.8] * 50, [True] * 50) == pytest.approx(0.2)


def test_coverage_curve_equals_a_loop_over_every_threshold() -> None:
    confidence, correct = answer(*draw(5, 150, 4))
    confidence = confidence.round(2)
    thresholds, coverage, accuracy = coverage_curve(confidence, correct)
    assert thresholds.tolist() == sorted(set(confidence.tolist()), reverse=True)
    assert len(thresholds) < 150  # ties are there
    for place, threshold in enumerate(thresholds):
        answered = [row for row in range(150) if confidence[row] >= threshold]
        assert coverage[place] == pytest.approx(len(answered) / 150)
        assert accuracy[place] == pytest.approx(sum(correct[answered]) / len(answered))
