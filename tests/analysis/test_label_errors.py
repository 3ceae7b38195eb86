"""Wrong labels against naive loops, and planted ones where the features tell the classes apart."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from petface.analysis import label_errors


def toy(seed: int, num_records: int = 200, num_classes: int = 4):
    """Records with one to four photos each around the centre of their class; class 3 is rarer."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(num_classes, num_records, p=[0.4, 0.3, 0.2, 0.1])
    photo_record = np.repeat(np.arange(num_records), draw.integers(1, 5, num_records))
    centres = draw.normal(size=(num_classes, 12)) * 2
    features = centres[labels[photo_record]] + draw.normal(size=(len(photo_record), 12))
    return (features * np.logspace(-3, 3, 12)).astype(np.float32), photo_record, labels


OPTIONS = {"num_folds": 5, "inverse_strength": 0.1, "seed": 3}


def test_each_record_is_predicted_by_the_other_folds_alone(monkeypatch) -> None:
    """The folds spied out: no photo of a held-out record, and no other label, reaches its model."""
    features, photo_record, labels = toy(1)
    labels[::7] = -1
    features[:, 0] = photo_record  # tells which record a row is of, after scaling
    of_value = {}
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    for value, record in zip(scaled[:, 0], photo_record, strict=True):
        of_value[float(value)] = record
    seen: list[tuple[set[int], set[int]]] = []

    class Spy(LogisticRegression):
        def fit(self, x, y):
            self.learnt = {of_value[float(v)] for v in x[:, 0]}
            assert (labels[[of_value[float(v)] for v in x[:, 0]]] == y).all()
            return super().fit(x, y)

        def predict_proba(self, x):
            seen.append((self.learnt, {of_value[float(v)] for v in x[:, 0]}))
            return super().predict_proba(x)

    monkeypatch.setattr(label_errors, "LogisticRegression", Spy)
    p = label_errors.predict_out_of_sample(features, photo_record, labels, 4, **OPTIONS)
    assert len(seen) == 5
    known = set(np.flatnonzero(labels >= 0).tolist())
    assert all(not learnt & asked and learnt | asked == known for learnt, asked in seen)
    assert sorted(r for _, asked in seen for r in asked) == sorted(known)
    assert (np.isnan(p).any(axis=1) == (labels < 0)).all()
    np.testing.assert_allclose(p[labels >= 0].sum(axis=1), 1)


def test_photos_are_fused_by_the_mean_of_their_logarithms() -> None:
    draw = np.random.default_rng(2)
    p = draw.dirichlet(np.ones(3), 9)
    p[3] = np.nan
    p[5] = [1.0, 0.0, 0.0]
    photo_record = np.array([0, 0, 0, 1, 2, 2, 4, 4, 4])
    assert np.isnan(label_errors.fuse_photos(p[3:4], photo_record[3:4], 2)).all()
    fused = label_errors.fuse_photos(p, photo_record, 5)
    for record in range(5):
        own = [row for row, r in zip(p, photo_record, strict=True) if r == record]
        own = [np.maximum(row, 1e-6) for row in own if not np.isnan(row).any()]
        if not own:
            assert np.isnan(fused[record]).all()
            continue
        product = np.prod(own, axis=0) ** (1 / len(own))
        np.testing.assert_allclose(fused[record], product / product.sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_ranking_is_that_of_a_naive_loop(seed: int) -> None:
    """With ties, unknown labels, a record without a prediction, a rare and an empty class."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(-1, 3, 60)
    labels[[0, 20]] = 3
    p = draw.dirichlet(np.ones(5), 60).round(2) + 1e-3
    p /= p.sum(axis=1, keepdims=True)
    p[7] = np.nan
    for least, classes in ((2, range(4)), (3, range(3))):
        places = [r for r in range(60) if labels[r] in classes and r != 7]
        thresholds = {k: np.mean([p[r, k] for r in places if labels[r] == k]) for k in classes}
        expected = []
        for r in places:
            others = [k for k in range(5) if k != labels[r]]
            suggested = max(others, key=lambda k, r=r: p[r, k])
            reached = [k for k in classes if p[r, k] >= thresholds[k]]
            counted = max(reached, key=lambda k, r=r: p[r, k]) if reached else labels[r]
            given = p[r, labels[r]]
            expected.append((given, given - p[r, suggested], r, suggested, counted != labels[r]))
        expected.sort(key=lambda row: row[:3])
        found = label_errors.rank_suspects(p, labels, least)
        for k, name in ((2, "record"), (3, "suggested"), (4, "confident")):
            assert found[name].tolist() == [row[k] for row in expected]
        np.testing.assert_allclose(found.margin, [row[1] for row in expected])
        np.testing.assert_allclose(found.p_label - found.p_suggested, found.margin)
    assert label_errors.rank_suspects(p, np.full(60, -1), 1).empty


def test_a_fold_that_leaves_one_class_or_none() -> None:
    features, record = np.eye(3, dtype=np.float32), np.arange(3)
    p = label_errors.predict_out_of_sample(features, record, np.array([0, 0, -1]), 2, **OPTIONS)
    assert p[:2, 0].min() > 0.999 and np.isnan(p[2]).all()


def test_frozen_features_are_measured_on_the_test_split_as_scikit_learn_does() -> None:
    draw = np.random.default_rng(0)
    labels, split = draw.integers(-1, 3, 90), np.arange(90) % 3
    record = np.repeat(np.arange(90), 2)
    features = draw.normal(size=(180, 5)) + labels[record][:, None]
    found = label_errors.frozen_baseline(features, record, labels, split, 0.1)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    known, part = labels[record] >= 0, split[record]
    train, test = known & (part == 0), known & (part == 2)
    assert found["num"] == test.sum()
    model = LogisticRegression(C=0.1, max_iter=300).fit(scaled[train], labels[record][train])
    accuracy = model.score(scaled[test], labels[record][test])
    assert found["logistic_regression"]["accuracy"] == pytest.approx(accuracy)
    low, high = found["logistic_regression"]["interval_95"]
    assert 0.5 < low < accuracy < high
    assert label_errors.frozen_baseline(features, record, np.full(90, -1), split, 0.1) == {}
