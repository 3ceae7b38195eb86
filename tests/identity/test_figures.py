"""Figures of verification and search against naive loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from petface.identity import figures


def unit(rng, num, size=6):
    rows = rng.normal(size=(num, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("step", [0, 0.25])  # the second gives many ties
def test_verification_is_that_of_scikit_learn(step):
    rng = np.random.default_rng(0)
    is_same = rng.random(3000) < 0.4
    similarity = rng.normal(is_same.astype(float), 1)
    similarity = np.round(similarity / step) * step if step else similarity
    left, right = rng.integers(0, 200, (2, 3000))
    right = np.where(is_same, left, right)
    found = figures.verification(similarity, is_same, left, right)
    assert found["auc"] == pytest.approx(roc_auc_score(is_same, similarity), abs=1e-12)
    fpr, tpr, _ = roc_curve(is_same, similarity)
    for rate in (0.01, 0.001):
        best = max(t for f, t in zip(fpr, tpr, strict=True) if f <= rate)
        assert found[f"tpr_at_fpr_{rate:g}"] == pytest.approx(best)
    low, high = found["auc_interval_95"]
    assert low < found["auc"] < high


def test_the_interval_of_the_area_covers_it():
    """Animals of 4 photos, some easier than others: 95 % of the intervals hold the true area."""
    rng, num, covered, trials, areas = np.random.default_rng(1), 60, 0, 200, []

    def draw(num):
        hard = rng.normal(0, 0.7, num)
        left = np.repeat(np.arange(num), 6)
        other = rng.integers(0, num - 1, len(left))
        other += other >= left
        same = 1.2 + hard[left] + rng.normal(size=len(left))
        strangers = (hard[left] + hard[other]) / 2 + rng.normal(size=len(left))
        is_same = np.repeat([True, False], len(left))
        values = np.concatenate([same, strangers])
        return values, is_same, np.tile(left, 2), np.concatenate([left, other])

    true = figures.verification(*draw(20_000))["auc"]
    for _ in range(trials):
        found = figures.verification(*draw(num))
        low, high = found["auc_interval_95"]
        covered += low <= true <= high
        areas.append(found["auc"])
    assert np.mean(areas) == pytest.approx(true, abs=0.01)
    assert covered >= 0.9 * trials


def test_too_few_strangers_tell_no_rate():
    found = figures.verification(
        np.arange(40.0), np.arange(40) % 2 == 0, *np.arange(80).reshape(2, 40)
    )
    assert "tpr_at_fpr_0.01" not in found
    assert figures.verification(*np.ones((4, 3), int).astype(bool))["auc"] is None


def test_ranks_are_those_of_a_loop():
    rng = np.random.default_rng(2)
    queries, gallery = unit(rng, 30), unit(rng, 50)
    gallery[10] = gallery[11]  # a tie
    asked, known = rng.integers(0, 12, 30), rng.integers(0, 10, 50)
    rank, precision, place, similarity = figures.ranks(queries, gallery, asked, known)
    for k in range(30):
        values = gallery @ queries[k]
        own = known == asked[k]
        assert place[k] == values.argmax() and similarity[k] == pytest.approx(values.max())
        if not own.any():
            assert rank[k] == 0 and np.isnan(precision[k])
            continue
        order = np.lexsort((own, -values))  # of equal ones the others first
        hits = np.flatnonzero(own[order]) + 1
        assert rank[k] == hits[0]
        assert precision[k] == pytest.approx(np.mean(np.arange(1, len(hits) + 1) / hits))
    known_rows = rank > 0
    found = figures.identification(rank[known_rows], precision[known_rows], asked[known_rows])
    assert found["top1"] == (rank[known_rows] == 1).mean()
    assert found["top5"] == (rank[known_rows] <= 5).mean()
    assert found["mean_average_precision"] == pytest.approx(precision[known_rows].mean())


@pytest.mark.parametrize("spoilt", ["query", "own photo", "all"])
def test_what_is_not_a_number_is_no_match(spoilt):
    queries, gallery = unit(np.random.default_rng(0), 1), unit(np.random.default_rng(1), 5)
    if spoilt != "own photo":
        queries[0] = np.nan
    if spoilt != "query":
        gallery[2 if spoilt == "own photo" else slice(None)] = np.nan
    assert figures.ranks(queries, gallery, np.array([2]), np.arange(5))[0] == [5]


def test_a_threshold_lets_at_most_the_wanted_share_of_strangers_through():
    others = np.random.default_rng(3).normal(size=1000).astype(np.float32)
    for rate in (0.01, 0.001, 0.0):
        threshold = figures.threshold_at(others, rate)
        assert (others >= threshold).mean() <= rate
        assert (others >= np.nextafter(np.float32(threshold), -2, dtype=np.float32)).mean() > rate


def test_open_set_counts_what_is_taken():
    similarity = np.array([0.9, 0.8, 0.3, 0.7, 0.1])
    is_right = np.array([True, False, True, False, False])
    is_known = np.array([True, True, True, False, False])
    found = figures.open_set(similarity, is_right, is_known, 0.5)
    rates = found["found"], found["mistaken_for_another"], found["strangers_accepted"]
    assert rates == pytest.approx((1 / 3, 1 / 3, 1 / 2))
