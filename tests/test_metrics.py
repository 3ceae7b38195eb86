"""Metrics against scikit-learn, scipy, hand calculations and a coverage simulation."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics

from petface import metrics
from petface.files import plain_cell
from tests import simulations


def random_labels(seed):
    """Draw labels in which class 2 is never true, class 3 never predicted, class 5 neither."""
    generator = np.random.default_rng(seed)
    true = generator.choice([-1, 0, 1, 3, 4], size=300)
    predicted = np.where(
        generator.random(300) < 0.6, true, generator.choice([0, 1, 2, 4], size=300)
    )
    predicted[(predicted == 3) | (predicted == -1)] = 0
    assert not {2, 5} & set(true) and not {3, 5} & set(predicted)
    return true, predicted


@pytest.mark.parametrize("seed", range(5))
def test_counts_and_averages_equal_scikit_learn(seed):
    true, predicted = random_labels(seed)
    known = true != -1
    t, p = true[known], predicted[known]
    cm = metrics.confusion_matrix(true, predicted, 6)
    assert cm.dtype == np.int64
    np.testing.assert_array_equal(cm, sklearn.metrics.confusion_matrix(t, p, labels=range(6)))
    assert metrics.accuracy(cm) == pytest.approx(sklearn.metrics.accuracy_score(t, p))
    supported = np.unique(t)
    recalls = sklearn.metrics.recall_score(t, p, labels=supported, average=None)
    np.testing.assert_allclose(metrics.recall_per_class(cm)[supported], recalls)
    assert np.isnan(metrics.recall_per_class(cm)[[2, 5]]).all()
    assert metrics.balanced_accuracy(cm) == pytest.approx(recalls.mean())

    scores = metrics.precision_recall_f1(cm)
    by_class = sklearn.metrics.precision_recall_fscore_support(
        t, p, labels=range(6), average=None, zero_division=0
    )
    for ours, theirs in zip(scores[:3], by_class[:3], strict=True):
        np.testing.assert_allclose(ours, theirs)
    macro = sklearn.metrics.precision_recall_fscore_support(t, p, average="macro", zero_division=0)
    assert scores[3:] == pytest.approx(macro[:3])


@pytest.mark.parametrize("seed", range(4))
def test_kappa_equals_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    true, predicted = draw.integers(0, 5, (2, 60))
    predicted[: 10 * seed] = true[: 10 * seed]
    cm = metrics.confusion_matrix(true, predicted, 7)
    found = metrics.cohen_kappa(np.diag(cm), cm.sum(axis=1), cm.sum(axis=0))
    assert found == pytest.approx(sklearn.metrics.cohen_kappa_score(true, predicted))


def test_kappa_earns_nothing_by_a_group_that_is_known():
    """Two species, each gender by a coin: chance, although the pairs agree more often than that."""
    cm = np.kron(np.eye(2, dtype=int), np.full((2, 2), 25))
    counts = np.diag(cm), cm.sum(axis=1), cm.sum(axis=0)
    assert metrics.cohen_kappa(*counts) == pytest.approx(1 / 3)
    assert metrics.cohen_kappa(*counts, np.array([0, 0, 1, 1])) == pytest.approx(0.0)
    assert math.isnan(metrics.cohen_kappa(*np.zeros((3, 4), int)))
    assert math.isnan(metrics.cohen_kappa(*[np.array([5, 0])] * 3))  # no choice


def test_unknown_rows_are_left_out_and_others_must_be_classes():
    cm = metrics.confusion_matrix(np.array([-1, 1, -1], np.int16), np.array([-1, 1, 9]), 2)
    assert cm.tolist() == [[0, 0], [0, 1]]
    for true, predicted in ((2, 0), (-2, 0), (0, 2), (0, -1)):
        with pytest.raises(AssertionError):
            metrics.confusion_matrix(np.array([true]), np.array([predicted]), 2)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_nothing_known_is_nan_everywhere_without_a_warning(num_classes):
    with np.errstate(all="raise"):
        cm = metrics.confusion_matrix(np.array([-1, -1]), np.array([0, 0]), num_classes)
        scores = metrics.precision_recall_f1(cm)
        assert cm.shape == (num_classes, num_classes)
        assert math.isnan(metrics.accuracy(cm)) and math.isnan(metrics.balanced_accuracy(cm))
        assert np.isnan(metrics.recall_per_class(cm)).all() and math.isnan(scores.macro_f1)
        assert scores.f1.tolist() == [0.0] * num_classes
        assert metrics.top_confusions(cm, ["a"] * num_classes, 5) == []


def test_majority_baseline_answers_the_training_class():
    assert metrics.majority_baseline([5, 90, 3], [50, 30, 20]) == pytest.approx(0.3)
    assert metrics.majority_baseline([7, 7], [1, 3]) == pytest.approx(0.25)  # the first of equals
    assert math.isnan(metrics.majority_baseline([0, 0], [1, 3]))
    assert math.isnan(metrics.majority_baseline([1, 0], [0, 0]))


def test_top_confusions_by_hand():
    cm, names = np.array([[10, 3, 0], [1, 0, 3], [5, 0, 99]]), ["cat", "dog", "pig"]
    first = [("pig", "cat", 5, 5 / 104), ("cat", "dog", 3, 3 / 13), ("dog", "pig", 3, 3 / 4)]
    found = [tuple(entry.values()) for entry in metrics.top_confusions(cm, names, 50)]
    assert found == [*first, ("dog", "cat", 1, 1 / 4)]
    assert [tuple(entry.values()) for entry in metrics.top_confusions(cm, names, 3)] == first
    assert cm[0, 0] == 10  # the caller's matrix is not touched


def test_a_confusion_table_round_trips_for_us_and_for_pandas(tmp_path):
    names, path = ["Bulldog, Olde mix", "=1+1", 'so-called "x"', "NA"], tmp_path / "x.csv"
    cm = np.diag([1, 2, 3, 4])
    cm[1, 3] = 7
    metrics.write_confusion(path, cm, names)
    table = pd.read_csv(path, index_col=0, keep_default_na=False)
    np.testing.assert_array_equal(table.to_numpy(), cm)
    assert table.index.name == "true \\ predicted" and not any(table.columns.str.startswith("="))
    assert [plain_cell(n) for n in table.index] == [plain_cell(n) for n in table.columns] == names
    found = metrics.read_confusion(path)
    assert found is not None and found[0] == names and (found[1] == cm).all()
    with pytest.raises(ValueError, match="zip"):
        metrics.write_confusion(path, cm[:3], names)


@pytest.mark.parametrize("text", ["", "a\n", "x,a,b\na,1\nb,1,2\n", "x,a\na,one\n", "x,a\n"])
def test_what_is_no_confusion_table_is_not_read(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    assert (
        metrics.read_confusion(tmp_path / "t.csv")
        is metrics.read_confusion(tmp_path / "gone.csv")
        is None
    )


# ---- Intervals over animals ----


def korn_graubard(right, record):
    """The interval of an accuracy record by record, with scipy's distributions."""
    own = [right[record == name] for name in np.unique(record)]
    num, p = len(own), right.mean()
    spread = sum((photos.sum() - p * len(photos)) ** 2 for photos in own)
    effective = len(right) ** 2 / sum(len(photos) ** 2 for photos in own)
    if spread > 0:
        variance = num / (num - 1) * spread / len(right) ** 2
        effective = min(len(right), p * (1 - p) / variance)
    effective *= (scipy.stats.norm.ppf(0.975) / scipy.stats.t.ppf(0.975, num - 1)) ** 2
    x = p * effective
    return [
        scipy.stats.beta.ppf(0.025, x, effective - x + 1) if x > 0 else 0.0,
        scipy.stats.beta.ppf(0.975, x + 1, effective - x) if p < 1 else 1.0,
    ]


@pytest.mark.parametrize("num", [10, 40, 200, 3000])
@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.9, 0.995, 1.0])
def test_the_interval_of_an_accuracy_is_korn_and_graubards(num, accuracy):
    draw = np.random.default_rng(num)
    right, record = simulations.photos(draw, np.clip(accuracy, 1e-9, 1 - 1e-9), 0.5, num)
    low, high = metrics.accuracy_interval(right, record)
    assert [low, high] == pytest.approx(korn_graubard(right, record), abs=1e-6)
    assert low <= right.mean() <= high and low < high
    order = draw.permutation(len(right))
    assert [low, high] == pytest.approx(metrics.accuracy_interval(right[order], record[order]))


@pytest.mark.parametrize("num", [0, 1, 9])
def test_fewer_than_ten_animals_are_too_few(num):
    record = np.repeat(np.arange(num), 7)
    right = np.arange(len(record)) % 2 == 0
    assert (
        metrics.accuracy_interval(right, record) is metrics.gain_interval(right * 1, record) is None
    )
    assert metrics.balanced_accuracy_interval(right, right, record) is None
    assert metrics.macro_f1_interval(right, right, record) is None
    assert metrics.accuracy_interval(np.ones(10, bool), np.arange(10)) is not None
    two = np.arange(19) % 2
    assert (
        metrics.balanced_accuracy_interval(two, two == 0, np.arange(19)) is None
    )  # for two classes


@pytest.mark.parametrize(("right", "num"), [(0, 12), (12, 12), (63, 90), (3.7, 8.2), (8.2, 8.2)])
def test_clopper_and_pearsons_bounds_are_scipys(right, num):
    low = scipy.stats.beta.ppf(0.025, right, num - right + 1) if right else 0
    high = scipy.stats.beta.ppf(0.975, right + 1, num - right) if right < num else 1
    assert metrics.clopper_pearson(right, num, 0.025) == pytest.approx((low, high))
    statsmodels = pytest.importorskip("statsmodels.stats.proportion")
    expected = statsmodels.proportion_confint(right, num, method="beta")
    assert metrics.clopper_pearson(right, num, 0.025) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1"])
def test_the_spread_of_an_average_is_that_of_a_bootstrap_over_animals(name):
    """The width of the interval, against 400 draws of whole animals scored by scikit-learn."""
    draw = np.random.default_rng(3)
    true, predicted, record = simulations.answers(draw, 3, 0.8, 0.4, 150)

    def figure(t, p):
        if name == "macro_f1":
            return float(sklearn.metrics.f1_score(t, p, average="macro"))
        return float(sklearn.metrics.balanced_accuracy_score(t, p))

    rows, shares = [np.flatnonzero(record == k) for k in range(150)], []
    for _ in range(400):
        drawn = np.concatenate([rows[k] for k in draw.integers(0, 150, 150)])
        shares.append(figure(true[drawn], predicted[drawn]))
    found = (
        metrics.macro_f1_interval(true, predicted, record)
        if name == "macro_f1"
        else metrics.balanced_accuracy_interval(true, true == predicted, record)
    )
    assert found is not None and found[0] < figure(true, predicted) < found[1]
    assert np.diff(found)[0] == pytest.approx(
        np.diff(np.quantile(shares, (0.025, 0.975)))[0], rel=0.2
    )


def test_a_gain_that_nobody_showed_is_not_certain_to_be_none():
    low, high = metrics.gain_interval(np.zeros(120), np.arange(120) // 3)
    assert low == pytest.approx(-high) and 0.02 < high < 0.08
    gain = np.repeat([1, 0, 0, 0, -1], 400)
    found = metrics.gain_interval(
        gain, np.arange(2000)
    )  # many animals: the plain interval of a mean
    half = 1.96 * gain.std() / 2000**0.5
    assert found == pytest.approx([-half, half], rel=0.05)


@pytest.mark.parametrize("num", [10, 200])
@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.995])
def test_intervals_hold_what_they_promise(num, accuracy):
    """Few runs; results/simulated_coverage.csv has more. Above 98 % where almost all are right."""
    for correlation in (0.3, 0.7):
        made = partial(simulations.photos, accuracy=accuracy, correlation=correlation, num=num)
        found = simulations.held(400, 1, accuracy, made, metrics.accuracy_interval)
        assert found["covered"] > 0.92
        assert found["too_low"] < 0.06 and found["too_high"] < 0.06


def test_the_classification_report_is_scikit_learns(tmp_path):
    draw = np.random.default_rng(5)
    true, predicted = draw.choice(4, 90, p=[0.6, 0.2, 0.15, 0.05]), draw.choice(4, 90)
    names = ["=Black", "Tabby, dark", "c", "d", "never"]
    cm = metrics.confusion_matrix(true, predicted, 5)
    wanted = sklearn.metrics.classification_report(
        true, predicted, target_names=names[:4], output_dict=True, zero_division=0
    )
    wanted["accuracy"] = dict.fromkeys(("precision", "recall", "f1-score"), wanted["accuracy"])
    wanted["accuracy"]["support"] = 90
    metrics.write_classification_report(tmp_path, "x", cm, names)
    found = pd.read_csv(tmp_path / "classification_x.csv", index_col="class")
    found.index = found.index.map(plain_cell)
    assert list(found.index) == [*names[:4], "accuracy", "macro average", "weighted average"]
    for name, row in found.iterrows():
        entry = wanted[name.replace("average", "avg")]
        np.testing.assert_allclose(row, list(entry.values()), atol=5.1e-5)
    lines = (tmp_path / "classification_x.txt").read_text().splitlines()
    assert len(lines) == 1 + 4 + 3 and len({len(line) for line in lines}) == 1
    metrics.write_classification_report(tmp_path, "x", np.zeros((5, 5), int), names)
    found = pd.read_csv(tmp_path / "classification_x.csv", index_col="class")
    assert list(found["recall"].isna()) == [True] * 3 and list(found["support"]) == [0] * 3
