"""Confidence and calibration against scikit-learn, scipy, naive loops and simulations."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.metrics

from petface import calibration as cal
from petface.sureness import pool_thresholds
from tests import simulations

HEADLINES = ("nll_after", "brier_after", "ece_before", "ece_after", "ece_null_after",
             "overconfident_error_share")  # fmt: skip
NOBODY = (np.empty((0, 2), np.float32), np.empty(0, np.int64), np.empty(0, np.int32))


def draw(seed, n, num_classes, spread=3.0):
    """Draw logits and labels of a network whose probabilities are exactly right."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, num_classes)) * spread
    return logits, (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)


def answer(logits, labels):
    p = cal.softmax(logits)
    return p.max(axis=1), p.argmax(axis=1) == labels


# --- Losses and curves ---


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_losses_equal_scikit_learn(temperature):
    logits, labels = draw(0, 200, 5)
    p = scipy.special.softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(cal.softmax(logits, temperature), p)
    expected = sklearn.metrics.log_loss(labels, p, labels=range(5))
    assert cal.nll(logits, labels, temperature) == pytest.approx(expected, rel=1e-9)
    expected = sklearn.metrics.brier_score_loss(labels, p, labels=range(5), scale_by_half=False)
    assert cal.brier(p, labels) == pytest.approx(expected, rel=1e-9)


def test_big_logits_do_not_overflow():
    assert cal.nll(np.array([[1e30, 0.0]]), np.array([0])) == 0.0
    assert cal.nll(np.array([[5000.0, 0.0]]), np.array([1])) == 5000.0
    assert cal.softmax(np.array([[1000.0, 1000.0]])).tolist() == [[0.5, 0.5]]


def naive_bins(confidence, num_bins):
    """Deal the rows out by rank; equal confidences go where the first of them goes."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for row, value in enumerate(confidence):
        num_below = sum(other < value for other in confidence)
        bins[num_below * num_bins // len(confidence)].append(row)
    return [rows for rows in bins if rows]


@pytest.mark.parametrize(("digits", "num_bins"), [(9, 7), (1, 7), (1, 15), (9, 1)])
def test_bins_and_calibration_error_equal_naive_loops(digits, num_bins):
    confidence, correct = answer(*draw(2, 101, 4))
    confidence = confidence.round(digits)
    rows_of = naive_bins(confidence, num_bins)
    accuracy = np.array([correct[rows].mean() for rows in rows_of])
    mean = np.array([confidence[rows].mean() for rows in rows_of])
    num = np.array([len(rows) for rows in rows_of])
    for found, expected in zip(
        cal.reliability_bins(confidence, correct, num_bins), (mean, accuracy, num), strict=True
    ):
        np.testing.assert_allclose(found, expected)
    error = (np.abs(accuracy - mean) * num).sum() / 101
    assert cal.expected_calibration_error(confidence, correct, num_bins) == pytest.approx(error)


@pytest.mark.parametrize(("num", "num_bins"), [(0, 0), (19, 1), (101, 6), (1000, 15)])
def test_rows_of_a_diagram_have_scipys_exact_interval(num, num_bins):
    rows = cal.reliability_rows(*answer(*draw(2, num, 4)))
    assert len(rows) == num_bins and sum(row[2] for row in rows) == num
    for _, accuracy, photos, low, high in rows:
        test = scipy.stats.binomtest(round(accuracy * photos), int(photos))
        assert (low, high) == pytest.approx(test.proportion_ci(method="exact"), abs=1e-6)


@pytest.mark.parametrize(("num", "num_classes"), [(140, 6), (1000, 3)])
def test_a_faultless_head_has_about_the_null_level(num, num_classes):
    found = [answer(*draw(seed, num, num_classes, spread=1.0)) for seed in range(60)]
    errors = [cal.expected_calibration_error(*own) for own in found]
    nulls = [cal.null_calibration_error(confidence) for confidence, _ in found]
    assert np.mean(errors) == pytest.approx(np.mean(nulls), rel=0.07)
    assert num > 140 or 0.08 < np.mean(nulls) < 0.14
    assert math.isnan(cal.null_calibration_error(np.empty(0)))


def test_coverage_curve_equals_a_loop_over_every_threshold():
    confidence, correct = answer(*draw(5, 150, 4))
    confidence = confidence.round(2)
    thresholds, coverage, accuracy = cal.coverage_curve(confidence, correct)
    assert thresholds.tolist() == sorted(set(confidence.tolist()), reverse=True)
    assert len(thresholds) < 150  # ties are there
    for place, threshold in enumerate(thresholds):
        answered = confidence >= threshold
        assert coverage[place] == pytest.approx(answered.mean())
        assert accuracy[place] == pytest.approx(correct[answered].mean())


# --- Temperature ---


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_is_the_minimum_that_scipy_finds(seed):
    generator = np.random.default_rng(seed)
    logits, labels = draw(seed, 80, 2 + 5 * seed, spread=float(generator.uniform(1, 6)))
    logits *= generator.uniform(0.5, 4)
    best = scipy.optimize.minimize_scalar(
        lambda log_t: cal.nll(logits, labels, math.exp(log_t)),
        bounds=(math.log(0.05), math.log(20)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert cal.fit_temperature(logits, labels) == pytest.approx(math.exp(best.x), rel=1e-5)


def test_labels_that_cannot_tell_leave_the_temperature_alone():
    logits, labels = draw(2, 400, 3)
    logits *= 3
    enough = cal.MIN_ROWS_FOR_TEMPERATURE
    assert cal.fit_temperature(logits[:enough], labels[:enough]) > 2
    assert cal.fit_temperature(logits[: enough - 1], labels[: enough - 1]) == 1.0
    assert cal.fit_temperature(logits[labels == 1], labels[labels == 1]) == 1.0  # one class
    assert cal.fit_temperature(logits, logits.argmax(axis=1)) == 1.0  # never wrong
    assert cal.fit_temperature(logits * 100, labels) == 20.0  # the ends of its range
    assert cal.fit_temperature(logits / 100, labels) == 0.05


# --- Threshold ---


def naive_threshold(confidence, correct, wanted, records):
    """Go down by twentieths of all photos, each step by a loop over its animals."""
    order, bounds = sorted(confidence, reverse=True), []
    for step in range(1, 21):
        threshold = order[math.ceil(step * len(order) / 20 - 1e-9) - 1]
        answered, row = confidence >= threshold, [threshold]
        for right, share_right in ((None, 1.0), (None, 1 - (1 - wanted) / 4), (correct, None)):
            values = np.ones(len(correct)) if right is None else right
            own = [values[answered & (records == r)] for r in np.unique(records[answered])]
            mean = answered.sum() / len(own)
            pairs = [(float(o.sum()), len(o)) for o in own] + [(mean / 2, mean)]
            share = sum(k for k, _ in pairs) / sum(n for _, n in pairs)
            spread = sum((k - share * n) ** 2 for k, n in pairs)
            effect = spread / (sum(n for _, n in pairs) * share * (1 - share))
            num = answered.sum() / max(1.0, effect, 1 + 0.35 * (mean - 1))
            p = values[answered].mean() if share_right is None else share_right
            bound = scipy.stats.beta.ppf(0.05, p * num, (1 - p) * num + 1) if p else 0.0
            row.append(bound >= wanted)
        bounds.append(row)
    column, found = 2 if any(row[2] for row in bounds) else 1, None
    for row in (row for row in bounds if row[column]):
        if not row[3]:
            break
        found = row[0]
    return found


@pytest.mark.parametrize(
    ("seed", "wanted", "photos"), [(0, 0.9, 1), (1, 0.8, 1), (2, 0.85, 3), (3, 0.999, 1)]
)
def test_the_threshold_is_where_the_sequence_of_tests_ends(seed, wanted, photos):
    confidence, correct = answer(*draw(seed, 400, 5, spread=4.0))
    confidence, records = confidence.round(2), np.arange(400) // photos
    threshold, coverage, reason = cal.threshold_for_accuracy(confidence, correct, wanted, records)
    assert threshold == naive_threshold(confidence, correct, wanted, records)
    assert (threshold is None) == (seed == 3) == bool(reason)
    answered = confidence >= (math.inf if threshold is None else threshold)
    assert coverage == pytest.approx(answered.mean()) and coverage < 1


@pytest.mark.parametrize(
    ("num", "num_records", "wanted", "expected"),
    [
        (28, 28, 0.9, (None, 0.0, "too few animals (28; 29 needed)")),
        (29, 29, 0.9, (0.0, 1.0, "")),
        (0, 0, 0.9, (None, 0.0, "too few animals (0; 29 needed)")),
        (12, 3, 0.9, (None, 0.0, "too few animals (3; 15 needed)")),  # two tosses an animal
        (60, 15, 0.9, (0.0, 1.0, "")),
        (400, 400, 1.0, (None, 0.0, "too few animals (400; more needed)")),
    ],
)
def test_always_right(num, num_records, wanted, expected):
    records = np.arange(num) % max(num_records, 1)
    assert cal.threshold_for_accuracy(np.ones(num), np.ones(num) > 0, wanted, records) == expected
    rows = answer(*draw(12, 400, 3))  # whoever wants nothing gets every answer
    assert cal.threshold_for_accuracy(*rows, 0.0, np.arange(400)) == (0.0, 1.0, "")


def test_what_is_said_where_no_threshold_is():
    """That none reaches the wanted accuracy only where none does on the validation photos."""
    generator = np.random.default_rng(0)
    confidence, records = generator.random(600), np.arange(600) // 2
    bad = cal.threshold_for_accuracy(confidence, generator.random(600) < 0.6, 0.9, records)
    assert bad == (None, 0.0, "no threshold reaches 90 %")
    few = np.arange(60) % 30 != 0  # 58 of 60
    confidence = np.ones(60)
    found = cal.threshold_for_accuracy(confidence, few, 0.9, np.arange(60) // 3)
    pattern = re.fullmatch(r"too few animals \(20; (\d+) needed\)", found.reason)
    assert pattern and 20 < int(pattern[1]) < 60


@pytest.mark.parametrize("animals", [15, 30, 100])
def test_sure_is_seldom_wrong_and_often_found(animals):
    """Few runs; results/simulated_sure.csv has more."""
    wrong = simulations.found_sure(np.random.default_rng(1), 300, 0.88, 0.3, animals, 0.0)
    found = simulations.found_sure(np.random.default_rng(0), 400, 0.97, 0.3, animals, 1.5)
    assert wrong <= 0.05 and found >= 0.5


def test_species_that_are_small_alone_are_pooled():
    def fitted(seed, animals, wanted=0.9):
        logits, labels = draw(seed, 3 * animals, 3, spread=9.0)
        own = {"breed": (logits, labels, np.arange(3 * animals) // 3)}
        entries = {"breed": cal.calibrate_head(*own["breed"], wanted)}
        return entries["breed"], cal.rows_to_pool(own, entries).get("breed", [])

    made = {name: fitted(seed, 12) for seed, name in enumerate(("cat", "dog", "pig"))}
    made["rabbit"] = fitted(9, 400)
    assert made["rabbit"][0]["threshold"] is not None and made["rabbit"][1] == []
    entries, rows = ({name: own[k] for name, own in made.items()} for k in (0, 1))
    found = pool_thresholds(entries, rows)
    assert set(found) == {"cat", "dog", "pig"}
    every = np.array([row for name in found for row in rows[name]])
    assert every.shape == (108, 3)
    expected = cal.threshold_for_accuracy(every[:, 0], every[:, 1] > 0, 0.9, np.arange(108) // 3)
    for name, entry in found.items():
        assert entries[name]["threshold"] is None
        assert entries[name]["reason"].startswith("too few animals (12; ")
        assert entry["threshold"] == expected.threshold is not None and entry["reason"] == ""
        assert entry["pooled_over"] == ["cat", "dog", "pig"] and 0 < entry["coverage"] <= 1
    assert pool_thresholds(entries, {"cat": rows["cat"]}) == {}
    entries["dog"] = entries["dog"] | {"wanted_accuracy": 0.8}
    assert pool_thresholds(entries, rows) == {}


# --- Conformal sets ---


@pytest.mark.parametrize(("n", "alpha"), [(9, 0.1), (19, 0.1), (30, 0.25), (99, 0.05), (50, 0.07)])
def test_the_conformal_quantile_is_the_score_of_its_rank(n, alpha):
    logits, labels = draw(n, n, 4)
    p = cal.softmax(logits)
    scores = sorted(1 - p[row, labels[row]] for row in range(n))
    # the smallest score that at least (n + 1)(1 - alpha) scores do not exceed, in whole hundredths
    needed = (n + 1) * (100 - round(100 * alpha))
    expected = next(s for k, s in enumerate(scores, start=1) if 100 * k >= needed)
    assert cal.conformal_quantile(p, labels, alpha) == expected
    twice = np.repeat(p, 2, axis=0), np.repeat(labels, 2), alpha, np.repeat(np.arange(n), 2)
    assert cal.conformal_quantile(*twice) == pytest.approx(expected)  # an animal has one vote
    assert cal.conformal_quantile(p[:8], labels[:8], 0.1) is None


def test_a_set_holds_the_classes_up_to_the_quantile_and_always_the_answer():
    p = np.array([[0.5, 0.375, 0.125], [0.4, 0.3, 0.3], [0.25, 0.25, 0.5]])
    expected = [[True, True, False], [True, False, False], [False, False, True]]
    assert cal.conformal_set(p, 0.625).tolist() == expected
    assert cal.conformal_set(p, 0.0).sum(axis=1).tolist() == [1, 1, 1]
    assert cal.conformal_set(p, 1.0).all()


@pytest.mark.parametrize("animals", [8, 9, 30, 100])
def test_sets_hold_the_truth_of_an_animal_as_often_as_promised(animals):
    """Few runs; results/simulated_sets.csv has more. Below nine animals there is no set."""
    covered = simulations.covered_by_sets(np.random.default_rng(0), 300, 0.6, 0.5, animals)
    assert covered is None if animals < 9 else 0.88 < covered < 0.92


# --- A head ---


@pytest.mark.parametrize(
    ("threshold", "probability", "expected"),
    [(0.8, np.float32(0.8), True), (0.8, 0.79, False), (0.0, 0.1, True), (None, 1.0, False)],
)
def test_an_answer_is_sure_from_the_threshold_on(threshold, probability, expected):
    assert cal.HeadCalibration(1.0, threshold, None).is_sure(probability) == expected


def test_a_head_is_fitted_on_one_part_and_measured_on_another():
    logits, labels = draw(7, 8000, 6)
    logits *= 3
    labels[::5] = -1
    logits[1, 2] = np.nan
    fitted = cal.calibrate_head(logits[:4000], labels[:4000], np.arange(4000), alpha=0.2)
    assert fitted == json.loads(json.dumps(fitted))
    assert fitted["temperature"] == pytest.approx(3, rel=0.1) and fitted["num"] == 3199
    seen = cal.measure_head(logits[4000:], labels[4000:], fitted)
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
    errors = p.max(axis=1)[p.argmax(axis=1) != y]
    assert 0.01 < seen["overconfident_error_share"] == pytest.approx(np.mean(errors >= 0.9))
    assert seen["accuracy"] == pytest.approx((p.argmax(axis=1) == y)[answered].mean())
    assert seen["accuracy"] > 0.88 and abs(seen["coverage"] - fitted["coverage"]) < 0.05
    assert seen["conformal_coverage"] == pytest.approx(0.8, abs=0.04)
    sizes = (1 - p <= fitted["conformal_quantile"]).sum(axis=1)
    assert seen["conformal_mean_size"] == pytest.approx(np.mean(np.maximum(sizes, 1)))
    again = cal.measure_head(logits[:4000], labels[:4000], fitted)
    assert again["coverage"] == fitted["coverage"]  # the answer at the threshold is given, too


def test_rows_that_are_unknown_or_not_finite_do_not_count():
    logits, labels = draw(8, 600, 3, spread=5)
    records = np.arange(600) // 2
    expected = cal.calibrate_head(logits, labels, records)
    more = np.vstack([logits, logits, np.full((2, 3), np.nan), np.full((2, 3), np.inf)])
    more_labels = np.concatenate([np.full(600, -1), labels, [0] * 4])
    more_records = np.concatenate([records + 1000, records, [0] * 4])
    order = np.random.default_rng(0).permutation(1204)
    more_labels[:600], more_labels[600:1200] = labels, -1
    found = cal.calibrate_head(more[order], more_labels[order], more_records[order])
    numbers = {key for key, value in expected.items() if type(value) in (int, float)}
    assert {k: found[k] for k in numbers} == pytest.approx({k: expected[k] for k in numbers})
    assert found["reason"] == expected["reason"] == ""
    found, once = (
        cal.measure_head(*rows, expected) for rows in ((more, more_labels), (logits, labels))
    )
    assert found == once


def test_what_cannot_be_had_is_none():
    logits, labels = draw(9, 6, 3)
    fitted = cal.calibrate_head(logits, labels, np.arange(6))
    assert fitted["threshold"] is None and fitted["conformal_quantile"] is None
    assert fitted["temperature"] == 1.0 and fitted["coverage"] == 0.0
    seen = cal.measure_head(logits, labels, fitted)
    assert seen["coverage"] == 0.0 and seen["accuracy"] is None
    assert seen["conformal_coverage"] is None and seen["nll_before"] == seen["nll_after"] > 0
    for rows in (NOBODY, (np.zeros((4, 3)), np.full(4, -1), np.arange(4))):
        empty = cal.calibrate_head(*rows)
        assert empty["num"] == 0 and empty["threshold"] is None
        assert all(
            v in (None, []) for k, v in cal.measure_head(*rows[:2], empty).items() if k != "num"
        )


def test_heads_are_fitted_on_one_part_and_measured_on_the_other():
    """Three photos an animal, as alike as can be: they count as one."""
    logits, labels = draw(11, 400, 4, spread=2)
    records, labels = np.arange(1200) // 3, np.repeat(labels, 3)
    logits = np.repeat(2 * logits, 3, axis=0).astype(np.float32)
    val, test = ((logits[r], labels[r], records[r]) for r in (slice(600), slice(600, None)))
    fitted, measured = cal.calibrate_heads(
        {"breed": val, "gender": NOBODY}, {"gender": NOBODY, "breed": test}, 0.8
    )
    assert fitted["breed"] == cal.calibrate_head(*val, 0.8)
    assert (
        fitted["breed"]["coverage"] < cal.calibrate_head(*val[:2], np.arange(600), 0.8)["coverage"]
    )
    own = cal.measure_head(*test[:2], fitted["breed"])
    assert measured["breed"] == {"head": "breed", **own, "fitted": fitted["breed"]}
    json.dumps(measured, allow_nan=False)
    shown = cal.headline_metrics(measured)
    for name in HEADLINES:
        assert shown.pop(f"test_breed_{name}") == own[name]
    assert shown.pop("test_breed_answered_share") == own["coverage"] > 0.1
    names = (*HEADLINES, "answered_share")
    assert list(shown) == [f"test_gender_{name}" for name in names]
    assert all(math.isnan(value) for value in shown.values())
