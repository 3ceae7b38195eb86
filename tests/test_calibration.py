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
    brier,
    calibrate_head,
    calibrate_heads,
    conformal_quantile,
    conformal_set,
    coverage_curve,
    describe_calibration,
    expected_calibration_error,
    fit_temperature,
    headline_figures,
    nll,
    reliability_bins,
    softmax,
    threshold_for_accuracy,
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


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_is_the_minimum_that_scipy_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = draw(seed, 80, 2 + 5 * seed, spread=float(generator.uniform(1, 6)))
    logits *= generator.uniform(0.5, 4)
    labels[::7] = -1

    def loss(log_t: float) -> float:
        return nll(logits, labels, math.exp(log_t))

    best = scipy.optimize.minimize_scalar(
        loss, bounds=(math.log(0.05), math.log(20)), method="bounded", options={"xatol": 1e-10}
    )
    assert fit_temperature(logits, labels) == pytest.approx(math.exp(best.x), rel=1e-5)


def test_the_temperature_stays_in_its_range() -> None:
    logits, labels = draw(1, 500, 4)
    assert fit_temperature(logits * 100, labels) == 20.0
    assert fit_temperature(logits / 100, labels) == 0.05


def test_labels_that_cannot_tell_leave_the_temperature_alone() -> None:
    logits, labels = draw(2, 400, 3)
    logits *= 3
    assert fit_temperature(logits, labels) > 2
    few = labels.copy()
    few[MIN_ROWS_FOR_TEMPERATURE - 1 :] = -1
    assert fit_temperature(logits, few) == 1.0
    few[MIN_ROWS_FOR_TEMPERATURE - 1] = labels[MIN_ROWS_FOR_TEMPERATURE - 1]
    assert fit_temperature(logits, few) != 1.0
    assert fit_temperature(logits, np.where(labels == 1, 1, -1)) == 1.0  # one class
    assert fit_temperature(logits, logits.argmax(axis=1)) == 1.0  # never wrong
    assert fit_temperature(np.ones((100, 1)), np.zeros(100, int)) == 1.0


def naive_threshold(confidence, correct, wanted: float, effect: float = 1.0) -> float:
    """Try every threshold with the bound solved as a root: (p - w)^2 = z^2 w (1 - w) / n at
    w = bound.
    """
    found = math.inf
    for threshold in sorted(set(confidence), reverse=True):
        answered = confidence >= threshold
        n, p = answered.sum() / effect, correct[answered].mean()
        z = scipy.special.ndtri(0.95)
        if p > wanted and (p - wanted) ** 2 >= z * z * wanted * (1 - wanted) / n:
            found = threshold
    return found


@pytest.mark.parametrize(("seed", "wanted"), [(0, 0.9), (1, 0.8), (2, 0.85), (3, 0.999)])
def test_the_threshold_is_the_lowest_whose_bound_reaches_the_wanted_accuracy(
    seed: int, wanted: float
) -> None:
    confidence, correct = answer(*draw(seed, 400, 5))
    confidence = confidence.round(2)
    found = threshold_for_accuracy(confidence, correct, wanted)
    assert found.threshold == naive_threshold(confidence, correct, wanted)
    if seed == 3:
        assert found.threshold == math.inf and found.coverage == 0.0 and math.isnan(found.accuracy)
    else:
        answered = confidence >= found.threshold
        assert found.coverage == pytest.approx(answered.mean())
        assert found.accuracy == pytest.approx(correct[answered].mean()) and 0 < found.coverage < 1


def test_few_answers_are_never_enough_and_a_good_network_answers_everything() -> None:
    assert threshold_for_accuracy([0.99] * 24, [True] * 24, 0.9).threshold == math.inf
    assert threshold_for_accuracy([0.99] * 25, [True] * 25, 0.9) == (0.0, 1.0, 1.0)
    assert threshold_for_accuracy([], [], 0.9).coverage == 0.0


def test_photos_of_one_animal_count_less() -> None:
    confidence, correct = answer(*draw(5, 300, 5))
    records = np.arange(300)
    once = threshold_for_accuracy(confidence, correct, 0.9)
    assert threshold_for_accuracy(confidence, correct, 0.9, records=records) == once
    thrice = [np.repeat(column, 3) for column in (confidence, correct, records)]
    assert threshold_for_accuracy(*thrice[:2], 0.9).coverage > once.coverage
    again = threshold_for_accuracy(*thrice[:2], 0.9, records=thrice[2])
    assert again == pytest.approx(once)  # copies teach nothing
    # never wrong: no spread to learn the correlation from, so an animal counts once
    sure = np.ones(60)
    assert threshold_for_accuracy(sure, sure > 0, 0.9).threshold == 0.0
    pairs = np.arange(60) // 3
    assert threshold_for_accuracy(sure, sure > 0, 0.9, records=pairs).threshold == math.inf


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
        records = np.repeat(np.arange(shape[0]), photos_per_record) if with_records else None
        found = threshold_for_accuracy(p, correct, wanted, records=records)
        num = int((probability >= found.threshold).sum())
        misses += num > 0 and truth[num - 1] < wanted
    return misses / 300


def test_the_wanted_accuracy_is_met_on_unseen_data_as_often_as_promised() -> None:
    assert miss_frac(1, with_records=False) < 0.09  # a bound without a margin misses every second
    assert miss_frac(4, with_records=True) < 0.06 < miss_frac(4, with_records=False)


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
    n, alpha, logits_and_labels = 60, 0.1, draw(6, 37_500, 12, spread=2.0)
    raw, fitted = [], []
    for part in range(250):
        rows = slice(150 * part, 150 * part + 150)
        logits, labels = logits_and_labels[0][rows] * 2, logits_and_labels[1][rows]
        for covered, t in ((raw, 1.0), (fitted, fit_temperature(logits[:n], labels[:n]))):
            p = softmax(logits, t)
            q = conformal_quantile(p[:n], labels[:n], alpha)
            assert q is not None
            covered.append(conformal_set(p[n:], q)[np.arange(90), labels[n:]].mean())
    three_errors = 3 * np.std(raw) / math.sqrt(len(raw))
    assert three_errors < 0.01
    for covered in (raw, fitted):
        assert 0.9 - three_errors < np.mean(covered) < 0.9 + 1 / (n + 1) + three_errors


def test_a_head_is_fitted_on_one_part_and_described_on_another() -> None:
    logits, labels = draw(7, 8000, 6)
    logits *= 3
    labels[::5] = -1
    logits[1, 2] = np.nan
    fitted = calibrate_head(logits[:4000], labels[:4000], wanted_accuracy=0.9, alpha=0.2)
    assert fitted == json.loads(json.dumps(fitted))
    assert fitted["temperature"] == pytest.approx(3, rel=0.1) and fitted["num"] == 3199
    seen = describe_calibration("breed", logits[4000:], labels[4000:], fitted)
    assert seen == json.loads(json.dumps(seen, allow_nan=False))
    known = labels[4000:] >= 0
    y, z = labels[4000:][known], logits[4000:][known]
    for name, t in (("before", 1.0), ("after", fitted["temperature"])):
        p = scipy.special.softmax(z / t, axis=1)
        assert seen[f"nll_{name}"] == pytest.approx(sklearn.metrics.log_loss(y, p))
        score = sklearn.metrics.brier_score_loss(y, p, labels=range(6), scale_by_half=False)
        assert seen[f"brier_{name}"] == pytest.approx(score)
    assert seen["ece_after"] < 0.03 < 0.1 < seen["ece_before"]
    answered = p.max(axis=1) >= fitted["threshold"]
    assert seen["coverage"] == pytest.approx(answered.mean())
    assert seen["accuracy"] == pytest.approx((p.argmax(axis=1) == y)[answered].mean())
    assert seen["accuracy"] > 0.88 and abs(seen["coverage"] - fitted["coverage"]) < 0.05
    assert seen["conformal_coverage"] == pytest.approx(0.8, abs=0.04)
    sizes = [sum(1 - value <= fitted["conformal_quantile"] for value in row) for row in p]
    assert seen["conformal_mean_size"] == pytest.approx(np.mean(np.maximum(sizes, 1)))
    again = describe_calibration("breed", logits[:4000], labels[:4000], fitted)
    assert again["coverage"] == fitted["coverage"]  # the answer at the threshold is given, too
    assert seen["head"] == "breed" and seen["num"] == known.sum()


def test_the_records_of_rows_that_do_not_count_do_not_count() -> None:
    logits, labels = draw(8, 300, 3, spread=5)
    twice, twice_labels = np.repeat(logits, 2, axis=0), np.repeat(labels, 2)
    records = np.repeat(np.arange(300), 2)
    expected = calibrate_head(twice, twice_labels, records=records)
    assert expected["coverage"] < calibrate_head(twice, twice_labels)["coverage"]
    found = calibrate_head(
        np.vstack([logits, twice]),
        np.append(np.full(300, -1), twice_labels),
        records=np.append(np.arange(1000, 1300), records),
    )
    assert found == expected


def test_what_cannot_be_had_is_none() -> None:
    logits, labels = draw(9, 6, 3)
    fitted = calibrate_head(logits, labels)
    assert fitted["threshold"] is None and fitted["conformal_quantile"] is None
    assert fitted["temperature"] == 1.0 and fitted["coverage"] == 0.0
    seen = describe_calibration("color", logits, labels, fitted)
    assert seen["coverage"] == 0.0 and seen["accuracy"] is None
    assert seen["conformal_coverage"] is None and seen["nll_before"] == seen["nll_after"] > 0
    empty = calibrate_head(np.zeros((4, 3)), [-1] * 4)
    assert empty["num"] == 0 and empty["threshold"] is None
    unseen = describe_calibration("color", np.zeros((4, 3)), [-1] * 4, empty)
    assert all(v in (None, []) for k, v in unseen.items() if k not in ("head", "num"))


def test_heads_are_fitted_on_one_part_and_measured_on_the_other() -> None:
    """Three photos an animal, as alike as can be: they count as one."""
    logits, labels = draw(11, 400, 4, spread=2)
    records, labels = np.arange(1200) // 3, np.repeat(labels, 3)
    logits = np.repeat(2 * logits, 3, axis=0).astype(np.float32)
    val, test = ((logits[r], labels[r], records[r]) for r in (slice(600), slice(600, None)))
    nobody = (np.empty((0, 2), np.float32), np.empty(0, np.int64), np.empty(0, np.int32))
    fitted, measured = calibrate_heads(
        {"breed": val, "gender": nobody}, {"gender": nobody, "breed": test}, 0.8
    )
    assert fitted["breed"] == calibrate_head(*val[:2], wanted_accuracy=0.8, records=val[2])
    assert fitted["breed"] != calibrate_head(*val[:2], wanted_accuracy=0.8)
    assert measured["breed"].pop("fitted") == fitted["breed"]
    assert measured["breed"] == describe_calibration("breed", *test[:2], fitted["breed"])
    json.dumps(measured, allow_nan=False)
    shown = headline_figures(measured)
    assert shown.pop("test_breed_ece_before") == measured["breed"]["ece_before"]
    assert shown.pop("test_breed_ece_after") == measured["breed"]["ece_after"]
    assert shown.pop("test_breed_answered_share") == measured["breed"]["coverage"] > 0.1
    assert list(shown) == [
        f"test_gender_{n}" for n in ("ece_before", "ece_after", "answered_share")
    ]
    assert all(math.isnan(v) for v in shown.values())


def test_all_answers_or_none_can_be_wanted() -> None:
    logits, labels = draw(12, 400, 3)
    p = softmax(logits)
    correct = p.argmax(axis=1) == labels
    assert threshold_for_accuracy(p.max(axis=1), correct, 0.0) == (0.0, 1.0, correct.mean())
    assert threshold_for_accuracy(p.max(axis=1), np.ones(400, bool), 1.0).threshold == math.inf
