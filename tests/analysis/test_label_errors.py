"""Wrong labels against naive loops, and planted ones where the features tell the classes apart."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from petface.analysis import label_errors
from petface.errors import UserError
from tests.analysis.error_cases import BREEDS, make_evaluation


def toy(seed: int, num_records: int = 200, num_classes: int = 4):
    """Records with one to four photos each around the centre of their class; class 3 is rarer."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(num_classes, num_records, p=[0.4, 0.3, 0.2, 0.1])
    photo_record = np.repeat(np.arange(num_records), draw.integers(1, 5, num_records))
    centres = draw.normal(size=(num_classes, 12)) * 2
    features = centres[labels[photo_record]] + draw.normal(size=(len(photo_record), 12))
    return (features * np.logspace(-3, 3, 12)).astype(np.float32), photo_record, labels


OPTIONS = {"num_folds": 5, "inverse_strength": 0.1, "seed": 3}


def test_planted_flips_come_first() -> None:
    features, photo_record, labels = toy(0)
    flipped, planted = labels.copy(), np.arange(0, 200, 20)
    flipped[planted] = (labels[planted] + 1) % 4
    p = label_errors.predict_out_of_sample(features, photo_record, flipped, 4, **OPTIONS)
    suspects = label_errors.rank_suspects(p, flipped, np.ones(len(labels), bool))
    wrong = np.isin(suspects["record"], planted)
    assert wrong[: len(planted)].mean() >= 0.9
    assert (suspects["suggested"][wrong] == labels[suspects["record"][wrong]]).mean() >= 0.9
    assert suspects.is_confident.sum() >= 3 and wrong[suspects.is_confident].mean() >= 0.9


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


def test_folds_deal_every_class_out_evenly() -> None:
    labels = np.repeat([0, 1, 2], [53, 12, 3])
    folds = label_errors.record_folds(labels, 5, 0)
    for k in range(3):
        counts = np.bincount(folds[labels == k], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (folds != label_errors.record_folds(labels, 5, 1)).any()
    assert (folds == label_errors.record_folds(labels, 5, 0)).all()


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
    draw = np.random.default_rng(seed)
    labels = draw.integers(-1, 3, 60)
    p = draw.dirichlet(np.ones(4), 60).round(2) + 1e-3  # with ties; class 3 has no record
    p /= p.sum(axis=1, keepdims=True)
    p[7] = np.nan
    judged = labels >= 0
    judged[9] = False
    places = [r for r in range(60) if judged[r] and r != 7]
    thresholds = {k: np.mean([p[r, k] for r in places if labels[r] == k]) for k in range(3)}
    expected = []
    for r in places:
        others = [k for k in range(4) if k != labels[r]]
        suggested = max(others, key=lambda k, r=r: p[r, k])
        reached = [k for k in range(3) if p[r, k] >= thresholds[k]]
        counted = max(reached, key=lambda k, r=r: p[r, k]) if reached else None
        given = p[r, labels[r]]
        expected.append(
            (given, given - p[r, suggested], r, suggested, counted not in (None, labels[r]))
        )
    expected.sort(key=lambda row: row[:3])
    found = label_errors.rank_suspects(p, labels, judged)
    assert found.record.tolist() == [row[2] for row in expected]
    assert found.suggested.tolist() == [row[3] for row in expected]
    assert found.is_confident.tolist() == [row[4] for row in expected]
    np.testing.assert_allclose(found.margin, [row[1] for row in expected])
    np.testing.assert_allclose(found.p_given - found.p_suggested, found.margin)


def test_rare_classes_and_unknown_labels_are_not_judged() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, -1, -1])
    assert label_errors.judged_records(labels, 4, 3).tolist() == [True] * 3 + [False] * 5
    assert label_errors.judged_records(labels, 4, 1).tolist() == [True] * 6 + [False] * 2
    assert not label_errors.judged_records(np.array([-1, -1]), 2, 1).any()


def test_a_fold_that_leaves_one_class_or_none() -> None:
    features, record = np.eye(3, dtype=np.float32), np.arange(3)
    p = label_errors.predict_out_of_sample(features, record, np.array([0, 0, -1]), 2, **OPTIONS)
    assert p[:2, 0].min() > 0.999 and np.isnan(p[2]).all()


def test_an_evaluation_judges_the_records_that_its_specialist_has_not_learnt(tmp_path) -> None:
    evaluation, rows = make_evaluation(tmp_path)
    evaluation.models["dataset"] = "known"
    names = ["Never", *BREEDS["dog"][::-1]]  # an annotation file in another order
    records = sorted({row["record"] for row in rows if row["species"] == "dog"})
    dataset = SimpleNamespace(
        fingerprint=lambda: "known", catalog=SimpleNamespace(record_names=np.array(records))
    )
    head = label_errors.Head("dog", "breed", names, np.zeros(len(records)), slice(0, len(records)))
    found = label_errors.evaluated_probabilities(evaluation, dataset)(head, head.labels)
    num_judged = 0
    for place, record in enumerate(records):
        logs = []
        for row, details in zip(rows, evaluation.details["breed"], strict=True):
            is_own = (row["species"], row["record"]) == ("dog", record)
            if is_own and row["split"] != "train" and row["breed_pred"]:
                best = zip(details["top"], details["top_prob"], strict=True)
                p = {BREEDS["dog"][k]: share for k, share in best if k >= 0}
                logs.append(np.log(np.maximum([p.get(name, 0.0) for name in names], 1e-6)))
        if not logs:
            assert np.isnan(found[place]).all()
            continue
        expected = np.exp(np.mean(logs, axis=0))
        np.testing.assert_allclose(found[place], expected / expected.sum(), rtol=1e-4, atol=1e-6)
        num_judged += 1
    assert 10 < num_judged < len(records)
    evaluation.models["dataset"] = "other"
    with pytest.raises(UserError, match="made of other images"):
        label_errors.evaluated_probabilities(evaluation, dataset)
