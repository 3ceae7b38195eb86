"""Confidence and calibration against scikit-learn, scipy, naive loops and simulations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.metrics

from petface.calibration import (
    MIN_ROWS_FOR_TEMPERATURE,
    HeadCalibration,
    brier,
    calibrate_head,
    calibrate_heads,
    conformal_quantile,
    conformal_set,
    coverage_curve,
    expected_calibration_error,
    fit_temperature,
    headline_figures,
    measure_head,
    nll,
    reliability_bins,
    reliability_rows,
    softmax,
    threshold_for_accuracy,
)

NOBODY = (np.empty((0, 2), np.float32), np.empty(0, np.int64), np.empty(0, np.int32))


def draw(seed: int, n: int, num_classes: int, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits and labels of a network whose probabilities are exactly right."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, num_classes)) * spread
    return logits, (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)


def answer(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = softmax(logits)
    return p.max(axis=1), p.argmax(axis=1) == labels


# --- Losses and curves ---


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_losses_equal_scikit_learn(temperature: float) -> None:
    logits, labels = draw(0, 200, 5)
    p = scipy.special.softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(softmax(logits, temperature), p)
    expected = sklearn.metrics.log_loss(labels, p, labels=range(5))
    assert nll(logits, labels, temperature) == pytest.approx(expected, rel=1e-9)
    expected = sklearn.metrics.brier_score_loss(labels, p, labels=range(5), scale_by_half=False)
    assert brier(p, labels) == pytest.approx(expected, rel=1e-9)


def test_big_logits_do_not_overflow() -> None:
    assert nll(np.array([[1e30, 0.0]]), np.array([0])) == 0.0
    assert nll(np.array([[5000.0, 0.0]]), np.array([1])) == 5000.0
    assert softmax(np.array([[1000.0, 1000.0]])).tolist() == [[0.5, 0.5]]


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
    accuracy = np.array([correct[rows].mean() for rows in rows_of])
    mean = np.array([confidence[rows].mean() for rows in rows_of])
    num = np.array([len(rows) for rows in rows_of])
    for found, expected in zip(
        reliability_bins(confidence, correct, num_bins), (mean, accuracy, num), strict=True
    ):
        np.testing.assert_allclose(found, expected)
    error = (np.abs(accuracy - mean) * num).sum() / 101
    assert expected_calibration_error(confidence, correct, num_bins) == pytest.approx(error)


@pytest.mark.parametrize(("num", "num_bins"), [(0, 0), (19, 1), (101, 6), (1000, 15)])
def test_rows_of_a_diagram_have_scipys_wilson_interval(num: int, num_bins: int) -> None:
    rows = reliability_rows(*answer(*draw(2, num, 4)))
    assert len(rows) == num_bins and sum(row[2] for row in rows) == num
    for _, accuracy, photos, low, high in rows:
        test = scipy.stats.binomtest(round(accuracy * photos), int(photos))
        assert (low, high) == pytest.approx(test.proportion_ci(method="wilson"), abs=1e-6)


def test_coverage_curve_equals_a_loop_over_every_threshold() -> None:
    confidence, correct = answer(*draw(5, 150, 4))
    confidence = confidence.round(2)
    thresholds, coverage, accuracy = coverage_curve(confidence, correct)
    assert thresholds.tolist() == sorted(set(confidence.tolist()), reverse=True)
    assert len(thresholds) < 150  # ties are there
    for place, threshold in enumerate(thresholds):
        answered = confidence >= threshold
        assert coverage[place] == pytest.approx(answered.mean())
        assert accuracy[place] == pytest.approx(correct[answered].mean())


# --- Temperature ---


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_is_the_minimum_that_scipy_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = draw(seed, 80, 2 + 5 * seed, spread=float(generator.uniform(1, 6)))
    logits *= generator.uniform(0.5, 4)
    best = scipy.optimize.minimize_scalar(
        lambda log_t: nll(logits, labels, math.exp(log_t)),
        bounds=(math.log(0.05), math.log(20)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert fit_temperature(logits, labels) == pytest.approx(math.exp(best.x), rel=1e-5)


def test_the_temperature_stays_in_its_range() -> None:
    logits, labels = draw(1, 500, 4)
    assert fit_temperature(logits * 100, labels) == 20.0
    assert fit_temperature(logits / 100, labels) == 0.05


def test_labels_that_cannot_tell_leave_the_temperature_alone() -> None:
    logits, labels = draw(2, 400, 3)
    logits *= 3
    enough = MIN_ROWS_FOR_TEMPERATURE
    assert fit_temperature(logits[:enough], labels[:enough]) > 2
    assert fit_temperature(logits[: enough - 1], labels[: enough - 1]) == 1.0
    assert fit_temperature(logits[labels == 1], labels[labels == 1]) == 1.0  # one class
    assert fit_temperature(logits, logits.argmax(axis=1)) == 1.0  # never wrong


# --- Threshold ---


def naive_threshold(confidence, correct, wanted: float) -> float | None:
    """Try every threshold with Wilson's bound solved as a root: (p - w)^2 = z^2 w (1 - w) / n."""
    found = None
    for threshold in sorted(set(confidence), reverse=True):
        answered = confidence >= threshold
        n, p, z = answered.sum(), correct[answered].mean(), scipy.special.ndtri(0.95)
        if p > wanted and (p - wanted) ** 2 >= z * z * wanted * (1 - wanted) / n:
            found = threshold
    return found


@pytest.mark.parametrize(("seed", "wanted"), [(0, 0.9), (1, 0.8), (2, 0.85), (3, 0.999)])
def test_the_threshold_is_the_lowest_whose_bound_reaches_the_wanted_accuracy(
    seed: int, wanted: float
) -> None:
    confidence, correct = answer(*draw(seed, 400, 5))
    confidence = confidence.round(2)
    threshold, coverage = threshold_for_accuracy(confidence, correct, wanted, np.arange(400))
    assert threshold == naive_threshold(confidence, correct, wanted)
    assert (threshold is None) == (seed == 3)
    answered = confidence >= (math.inf if threshold is None else threshold)
    assert coverage == pytest.approx(answered.mean()) and coverage < 1


@pytest.mark.parametrize(
    ("num", "num_records", "wanted", "expected"),
    [
        (24, 24, 0.9, (None, 0.0)),
        (25, 25, 0.9, (0.0, 1.0)),
        (0, 0, 0.9, (None, 0.0)),
        (60, 20, 0.9, (None, 0.0)),  # never wrong: an animal counts once
        (400, 400, 1.0, (None, 0.0)),
    ],
)
def test_always_right(num: int, num_records: int, wanted: float, expected: tuple) -> None:
    records = np.arange(num) % max(num_records, 1)
    assert threshold_for_accuracy(np.ones(num), np.ones(num) > 0, wanted, records) == expected


def test_whoever_wants_nothing_gets_every_answer() -> None:
    confidence, correct = answer(*draw(12, 400, 3))
    assert threshold_for_accuracy(confidence, correct, 0.0, np.arange(400)) == (0.0, 1.0)


def test_copies_of_a_photo_teach_nothing() -> None:
    once = (*answer(*draw(5, 300, 5)), np.arange(300))
    confidence, correct, records = (np.repeat(column, 3) for column in once)
    expected = threshold_for_accuracy(*once[:2], 0.9, once[2])
    found = threshold_for_accuracy(confidence, correct, 0.9, records)
    assert found == pytest.approx(expected)
    assert threshold_for_accuracy(confidence, correct, 0.9, np.arange(900))[1] > expected[1]


def miss_frac(photos_per_record: int, with_records: bool, wanted: float = 0.9) -> float:
    """How often the wanted accuracy is missed on unseen data, over 300 fits of 400 photos."""
    generator = np.random.default_rng(0)
    z = np.sort(generator.normal(size=100_000))[::-1]
    probability = 1 / (1 + np.exp(-1.2 - 1.5 * z))
    truth = np.cumsum(probability) / np.arange(1, 100_001)  # accuracy of answering the first n
    misses = 0
    for _ in range(300):
        shape = (400 // photos_per_record, photos_per_record)

        def correlated(shape: tuple[int, int] = shape) -> np.ndarray:
            own, shared = generator.normal(size=shape), generator.normal(size=(shape[0], 1))
            return (0.6**0.5 * shared + 0.4**0.5 * own).ravel()

        p = 1 / (1 + np.exp(-1.2 - 1.5 * correlated()))
        correct = scipy.special.ndtr(correlated()) < p
        records = np.arange(400) // (photos_per_record if with_records else 1)
        threshold, _ = threshold_for_accuracy(p, correct, wanted, records)
        num = 0 if threshold is None else int((probability >= threshold).sum())
        misses += num > 0 and truth[num - 1] < wanted
    return misses / 300


def test_the_wanted_accuracy_is_met_on_unseen_data_as_often_as_promised() -> None:
    assert miss_frac(1, with_records=False) < 0.09  # a bound without a margin misses every second
    assert miss_frac(4, with_records=True) < 0.06 < miss_frac(4, with_records=False)


# --- Conformal sets ---


@pytest.mark.parametrize(("n", "alpha"), [(9, 0.1), (19, 0.1), (30, 0.25), (99, 0.05), (50, 0.07)])
def test_the_conformal_quantile_is_the_score_of_its_rank(n: int, alpha: float) -> None:
    logits, labels = draw(n, n, 4)
    p = softmax(logits)
    scores = sorted(1 - p[row, labels[row]] for row in range(n))
    # the smallest score that at least (n + 1)(1 - alpha) scores do not exceed, in whole hundredths
    needed = (n + 1) * (100 - round(100 * alpha))
    expected = next(s for k, s in enumerate(scores, start=1) if 100 * k >= needed)
    assert conformal_quantile(p, labels, alpha) == expected
    assert conformal_quantile(p[:8], labels[:8], 0.1) is None


def test_a_set_holds_the_classes_up_to_the_quantile_and_always_the_answer() -> None:
    p = np.array([[0.5, 0.375, 0.125], [0.4, 0.3, 0.3], [0.25, 0.25, 0.5]])
    expected = [[True, True, False], [True, False, False], [False, False, True]]
    assert conformal_set(p, 0.625).tolist() == expected
    assert conformal_set(p, 0.0).sum(axis=1).tolist() == [1, 1, 1]
    assert conformal_set(p, 1.0).all()


def test_conformal_sets_hold_the_truth_as_often_as_promised() -> None:
    """The mean coverage lies in [1 - alpha, 1 - alpha + 1 / (n + 1)], also after the temperature
    was fitted on the same part.
    """
    n, (all_logits, all_labels) = 60, draw(6, 37_500, 12, spread=2.0)
    raw, fitted = [], []
    for part in range(250):
        rows = slice(150 * part, 150 * part + 150)
        logits, labels = all_logits[rows] * 2, all_labels[rows]
        for covered, t in ((raw, 1.0), (fitted, fit_temperature(logits[:n], labels[:n]))):
            p = softmax(logits, t)
            q = conformal_quantile(p[:n], labels[:n], 0.1)
            assert q is not None
            covered.append(conformal_set(p[n:], q)[np.arange(90), labels[n:]].mean())
    three_errors = 3 * np.std(raw) / math.sqrt(len(raw))
    assert three_errors < 0.01
    for covered in (raw, fitted):
        assert 0.9 - three_errors < np.mean(covered) < 0.9 + 1 / (n + 1) + three_errors


# --- A head ---


@pytest.mark.parametrize(
    ("threshold", "probability", "expected"),
    [(0.8, np.float32(0.8), True), (0.8, 0.79, False), (0.0, 0.1, True), (None, 1.0, False)],
)
def test_an_answer_is_sure_from_the_threshold_on(threshold, probability, expected) -> None:
    assert HeadCalibration(1.0, threshold, None).is_sure(probability) == expected


def test_a_head_is_fitted_on_one_part_and_measured_on_another() -> None:
    logits, labels = draw(7, 8000, 6)
    logits *= 3
    labels[::5] = -1
    logits[1, 2] = np.nan
    fitted = calibrate_head(logits[:4000], labels[:4000], np.arange(4000), alpha=0.2)
    assert fitted == json.loads(json.dumps(fitted))
    assert fitted["temperature"] == pytest.approx(3, rel=0.1) and fitted["num"] == 3199
    seen = measure_head(logits[4000:], labels[4000:], fitted)
    assert seen == json.loads(json.dumps(seen, allow_nan=False))
    known = labels[4000:] >= 0
    y, z = labels[4000:][known], logits[4000:][known]
    for name, t in (("before", 1.0), ("after", fitted["temperature"])):
        p = scipy.special.softmax(z / t, axis=1)
        assert seen[f"nll_{name}"] == pytest.approx(sklearn.metrics.log_loss(y, p))
        score = sklearn.metrics.brier_score_loss(y, p, labels=range(6), scale_by_half=False)
        assert seen[f"brier_{name}"] == pytest.approx(score)
    assert seen["num"] == known.sum() and seen["ece_after"] < 0.03 < 0.1 < seen["ece_before"]
    answered = p.max(axis=1) >= fitted["threshold"]
    assert seen["coverage"] == pytest.approx(answered.mean())
    assert seen["accuracy"] == pytest.approx((p.argmax(axis=1) == y)[answered].mean())
    assert seen["accuracy"] > 0.88 and abs(seen["coverage"] - fitted["coverage"]) < 0.05
    assert seen["conformal_coverage"] == pytest.approx(0.8, abs=0.04)
    sizes = (1 - p <= fitted["conformal_quantile"]).sum(axis=1)
    assert seen["conformal_mean_size"] == pytest.approx(np.mean(np.maximum(sizes, 1)))
    again = measure_head(logits[:4000], labels[:4000], fitted)
    assert again["coverage"] == fitted["coverage"]  # the answer at the threshold is given, too


def test_rows_that_are_unknown_or_not_finite_do_not_count() -> None:
    logits, labels = draw(8, 600, 3, spread=5)
    records = np.arange(600) // 2
    expected = calibrate_head(logits, labels, records)
    more = np.vstack([logits, logits, np.full((2, 3), np.nan), np.full((2, 3), np.inf)])
    more_labels = np.concatenate([np.full(600, -1), labels, [0] * 4])
    more_records = np.concatenate([records + 1000, records, [0] * 4])
    order = np.random.default_rng(0).permutation(1204)
    more_labels[:600], more_labels[600:1200] = labels, -1
    assert calibrate_head(more[order], more_labels[order], more_records[order]) == pytest.approx(
        expected
    )
    found, once = (
        measure_head(*rows, expected) for rows in ((more, more_labels), (logits, labels))
    )
    assert found == once


def test_what_cannot_be_had_is_none() -> None:
    logits, labels = draw(9, 6, 3)
    fitted = calibrate_head(logits, labels, np.arange(6))
    assert fitted["threshold"] is None and fitted["conformal_quantile"] is None
    assert fitted["temperature"] == 1.0 and fitted["coverage"] == 0.0
    seen = measure_head(logits, labels, fitted)
    assert seen["coverage"] == 0.0 and seen["accuracy"] is None
    assert seen["conformal_coverage"] is None and seen["nll_before"] == seen["nll_after"] > 0
    for rows in (NOBODY, (np.zeros((4, 3)), np.full(4, -1), np.arange(4))):
        empty = calibrate_head(*rows)
        assert empty["num"] == 0 and empty["threshold"] is None
        assert all(v in (None, []) for k, v in measure_head(*rows[:2], empty).items() if k != "num")


def test_heads_are_fitted_on_one_part_and_measured_on_the_other() -> None:
    """Three photos an animal, as alike as can be: they count as one."""
    logits, labels = draw(11, 400, 4, spread=2)
    records, labels = np.arange(1200) // 3, np.repeat(labels, 3)
    logits = np.repeat(2 * logits, 3, axis=0).astype(np.float32)
    val, test = ((logits[r], labels[r], records[r]) for r in (slice(600), slice(600, None)))
    fitted, measured = calibrate_heads(
        {"breed": val, "gender": NOBODY}, {"gender": NOBODY, "breed": test}, 0.8
    )
    assert fitted["breed"] == calibrate_head(*val, 0.8)
    assert fitted["breed"]["coverage"] < calibrate_head(*val[:2], np.arange(600), 0.8)["coverage"]
    own = measure_head(*test[:2], fitted["breed"])
    assert measured["breed"] == {"head": "breed", **own, "fitted": fitted["breed"]}
    json.dumps(measured, allow_nan=False)
    shown = headline_figures(measured)
    assert shown.pop("test_breed_ece_before") == own["ece_before"]
    assert shown.pop("test_breed_ece_after") == own["ece_after"]
    assert shown.pop("test_breed_answered_share") == own["coverage"] > 0.1
    names = ("ece_before", "ece_after", "answered_share")
    assert list(shown) == [f"test_gender_{name}" for name in names]
    assert all(math.isnan(value) for value in shown.values())
