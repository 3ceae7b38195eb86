"""Metrics against scikit-learn, a naive bootstrap, hand calculations and a coverage simulation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics

from petface.files import plain_cell
from petface.metrics import (
    accuracy,
    balanced_accuracy,
    cluster_bootstrap_interval,
    cluster_wilson_interval,
    cohen_kappa,
    confusion_matrix,
    majority_baseline,
    precision_recall_f1,
    read_confusion,
    recall_per_class,
    top_confusions,
    write_confusion,
)


def random_labels(seed: int) -> tuple[np.ndarray, np.ndarray]:
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
def test_counts_and_averages_equal_scikit_learn(seed: int) -> None:
    true, predicted = random_labels(seed)
    known = true != -1
    t, p = true[known], predicted[known]
    cm = confusion_matrix(true, predicted, 6)
    assert cm.dtype == np.int64
    np.testing.assert_array_equal(cm, sklearn.metrics.confusion_matrix(t, p, labels=range(6)))
    assert accuracy(cm) == pytest.approx(sklearn.metrics.accuracy_score(t, p))
    supported = np.unique(t)
    recalls = sklearn.metrics.recall_score(t, p, labels=supported, average=None)
    np.testing.assert_allclose(recall_per_class(cm)[supported], recalls)
    assert np.isnan(recall_per_class(cm)[[2, 5]]).all()
    assert balanced_accuracy(cm) == pytest.approx(recalls.mean())

    scores = precision_recall_f1(cm)
    by_class = sklearn.metrics.precision_recall_fscore_support(
        t, p, labels=range(6), average=None, zero_division=0
    )
    for ours, theirs in zip(scores[:3], by_class[:3], strict=True):
        np.testing.assert_allclose(ours, theirs)
    macro = sklearn.metrics.precision_recall_fscore_support(t, p, average="macro", zero_division=0)
    assert scores[3:] == pytest.approx(macro[:3])


@pytest.mark.parametrize("seed", range(4))
def test_kappa_equals_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    true, predicted = draw.integers(0, 5, (2, 60))
    predicted[: 10 * seed] = true[: 10 * seed]
    cm = confusion_matrix(true, predicted, 7)
    found = cohen_kappa(np.diag(cm), cm.sum(axis=1), cm.sum(axis=0))
    assert found == pytest.approx(sklearn.metrics.cohen_kappa_score(true, predicted))


def test_kappa_earns_nothing_by_a_group_that_is_known() -> None:
    """Two species, each gender by a coin: chance, although the pairs agree more often than that."""
    cm = np.kron(np.eye(2, dtype=int), np.full((2, 2), 25))
    counts = np.diag(cm), cm.sum(axis=1), cm.sum(axis=0)
    assert cohen_kappa(*counts) == pytest.approx(1 / 3)
    assert cohen_kappa(*counts, np.array([0, 0, 1, 1])) == pytest.approx(0.0)


def test_kappa_is_not_defined_without_a_choice() -> None:
    assert math.isnan(cohen_kappa(*np.zeros((3, 4), int)))
    assert math.isnan(cohen_kappa(np.array([5, 0]), np.array([5, 0]), np.array([5, 0])))


def test_unknown_rows_are_left_out_whatever_was_predicted_there() -> None:
    cm = confusion_matrix(np.array([-1, 1, -1], np.int16), np.array([-1, 1, 9]), 2)
    assert cm.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(("true", "predicted"), [([2], [0]), ([-2], [0]), ([0], [2]), ([0], [-1])])
def test_indices_out_of_range_are_a_programmers_error(true: list, predicted: list) -> None:
    with pytest.raises(AssertionError):
        confusion_matrix(np.array(true), np.array(predicted), 2)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_nothing_known_is_nan_everywhere_without_a_warning(num_classes: int) -> None:
    with np.errstate(all="raise"):
        cm = confusion_matrix(np.array([-1, -1]), np.array([0, 0]), num_classes)
        scores = precision_recall_f1(cm)
        assert cm.shape == (num_classes, num_classes)
        assert math.isnan(accuracy(cm)) and math.isnan(balanced_accuracy(cm))
        assert np.isnan(recall_per_class(cm)).all() and math.isnan(scores.macro_f1)
        assert scores.f1.tolist() == [0.0] * num_classes
        assert top_confusions(cm, ["a"] * num_classes, 5) == []


def test_majority_baseline_answers_the_training_class() -> None:
    assert majority_baseline([5, 90, 3], [50, 30, 20]) == pytest.approx(0.3)
    assert majority_baseline([7, 7], [1, 3]) == pytest.approx(0.25)  # the first of equals
    assert math.isnan(majority_baseline([0, 0], [1, 3]))
    assert math.isnan(majority_baseline([1, 0], [0, 0]))


def test_top_confusions_by_hand() -> None:
    cm, names = np.array([[10, 3, 0], [1, 0, 3], [5, 0, 99]]), ["cat", "dog", "pig"]
    first = [("pig", "cat", 5, 5 / 104), ("cat", "dog", 3, 3 / 13), ("dog", "pig", 3, 3 / 4)]
    assert top_confusions(cm, names, 3) == first
    assert top_confusions(cm, names, 50) == [*first, ("dog", "cat", 1, 1 / 4)]
    assert cm[0, 0] == 10  # the caller's matrix is not touched


@pytest.mark.parametrize("num_classes", [1, 3])
def test_interval_agrees_with_a_naive_bootstrap(num_classes: int) -> None:
    correct, photos = made_records(np.random.default_rng(0), 120, 0.75, 1 / 3)
    classes = np.arange(120) % 7 % num_classes  # of unequal size
    generator = np.random.default_rng(1)
    shares = []
    for _ in range(4000):
        chosen = generator.integers(0, 120, 120)
        own = [chosen[classes[chosen] == k] for k in range(num_classes)]
        shares.append(np.mean([correct[rows].sum() / photos[rows].sum() for rows in own]))
    expected = np.quantile(shares, [0.025, 0.975])
    ours = cluster_bootstrap_interval(correct, photos, classes, resamples=4000)
    np.testing.assert_allclose(ours, expected, atol=0.006)  # its own error is 0.002


def test_interval_depends_on_the_seed_alone() -> None:
    correct, photos = made_records(np.random.default_rng(3), 80, 0.75, 1 / 3)
    first = cluster_bootstrap_interval(correct, photos, seed=7)
    assert first == cluster_bootstrap_interval(correct, photos, seed=7)
    assert first != cluster_bootstrap_interval(correct, photos, seed=8)
    order = np.random.default_rng(4).permutation(80)
    assert first == cluster_bootstrap_interval(correct[order], photos[order], seed=7)
    padded = np.append(correct, [0, 0, 0]), np.append(photos, [0, 0, 0])
    assert first == cluster_bootstrap_interval(*padded, seed=7)


def test_interval_edge_cases() -> None:
    for nothing in ([], [0, 0]):
        assert np.isnan(cluster_bootstrap_interval(nothing, nothing)).all()
        assert np.isnan(cluster_wilson_interval(nothing, nothing)).all()
    assert cluster_bootstrap_interval([4, 4], [4, 4]) == (1.0, 1.0)
    assert cluster_bootstrap_interval([1], [4]) == (0.25, 0.25)
    assert cluster_bootstrap_interval([0, 4], [4, 4], [0, 1], resamples=99) == (0.0, 1.0)
    with pytest.raises(AssertionError):
        cluster_bootstrap_interval([5], [4])


def test_a_confusion_table_round_trips_for_us_and_for_pandas(tmp_path: Path) -> None:
    names, path = ["Bulldog, Olde mix", "=1+1", 'so-called "x"', "NA"], tmp_path / "x.csv"
    cm = np.diag([1, 2, 3, 4])
    cm[1, 3] = 7
    write_confusion(path, cm, names)
    table = pd.read_csv(path, index_col=0, keep_default_na=False)
    np.testing.assert_array_equal(table.to_numpy(), cm)
    assert table.index.name == "true \\ predicted" and not any(table.columns.str.startswith("="))
    assert [plain_cell(n) for n in table.index] == [plain_cell(n) for n in table.columns] == names
    found = read_confusion(path)
    assert found is not None and found[0] == names and (found[1] == cm).all()
    with pytest.raises(ValueError, match="zip"):
        write_confusion(path, cm[:3], names)


@pytest.mark.parametrize("text", ["", "a\n", "x,a,b\na,1\nb,1,2\n", "x,a\na,one\n", "x,a\n"])
def test_what_is_no_confusion_table_is_not_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert read_confusion(tmp_path / "t.csv") is read_confusion(tmp_path / "gone.csv") is None


# ---- How often the intervals over animals hold the truth, on photos made with a known one ----


def made_records(
    draw: np.random.Generator, num: int, accuracy: float, correlation: float
) -> tuple[np.ndarray, np.ndarray]:
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
    """Why `evaluation.figures` takes Wilson's below 200: 20 animals, 90 % right, photos alike."""
    for num, most in ((20, 0.88), (5, 0.7)):
        draw, held = np.random.default_rng(1), np.zeros(2)
        for run in range(500):
            correct, photos = made_records(draw, num, 0.9, 0.5)
            bootstrap = cluster_bootstrap_interval(correct, photos, resamples=200, seed=run)
            wilson = cluster_wilson_interval(correct, photos)
            held += [low <= 0.9 <= high for low, high in (bootstrap, wilson)]
        assert held[0] / 500 < most and held[1] / 500 > 0.9, held / 500


@pytest.mark.parametrize(("right", "num"), [(63, 90), (4, 7)])
def test_photos_that_know_nothing_of_each_other_count_singly(right: int, num: int) -> None:
    """One photo an animal: nearly scipy's interval of a plain share."""
    found = cluster_wilson_interval(np.arange(num) < right, np.ones(num, int))
    expected = scipy.stats.binomtest(right, num).proportion_ci(method="wilson")
    assert found == pytest.approx((expected.low, expected.high), abs=1 / num**1.5)


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
    assert 0 < cluster_wilson_interval([2], [3])[0] < cluster_wilson_interval([2], [3])[1] < 1
