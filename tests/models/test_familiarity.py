"""The guard: distances as a naive loop gives them, and the false alarms that were asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from petface.data.dataset import load_dataset
from petface.data.images import Preprocessing
from petface.data.loading import FileImages, Samples
from petface.models.architecture import Architecture, build_classifier
from petface.models.familiarity import Guard, fit_guard, make_guard, threshold_at
from petface.models.network import Network

D = 20


def photos(seed: int, num: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Features around three classes, correlated and of very different scales."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, D)) * 4
    mixing = np.random.default_rng(98).normal(size=(D, D)) / D**0.5
    labels = draw.integers(0, 3, num)
    x = (centres[labels] + draw.normal(size=(num, D)) @ mixing + shift) * np.logspace(-1, 1, D)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


@pytest.fixture(scope="module")
def guard() -> Guard:
    found = fit_guard(*photos(0, 600), photos(1, 400)[0])
    assert found is not None
    return found


@pytest.mark.parametrize(("num", "num_kept"), [(600, 20), (50, 5)])
def test_the_score_is_the_naive_mahalanobis_distance_to_the_nearest_class(
    num: int, num_kept: int
) -> None:
    """The covariance built as a matrix and inverted; directions that are not kept share a variance.

    600 photos fix all twenty directions, 50 fix five of them.
    """
    features, labels = photos(0, num)
    found = fit_guard(features, labels, photos(1, 100)[0])
    assert found is not None and found.directions.shape == (num_kept, D)
    x = features.double().numpy()
    mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
    z = (x - mean) / std
    centres = np.stack([z[labels == k].mean(axis=0) for k in range(3)])
    residual = z - centres[labels]
    values, vectors = np.linalg.eigh(residual.T @ residual / len(z))
    if num_kept < D:
        values[:-num_kept] = values[:-num_kept].mean()
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    new = photos(2, 30)[0]
    for photo, score in zip(new.double().numpy(), found.score(new).tolist(), strict=True):
        p = (photo - mean) / std
        assert -score == pytest.approx(min((p - c) @ inverse @ (p - c) for c in centres), rel=1e-3)


def test_fresh_photos_raise_the_false_alarms_that_were_asked_for(guard: Guard) -> None:
    """Of 4,000: the spread of 400 validation photos is that of the threshold, and dominates."""
    share = float((~guard.knows(photos(3, 4000)[0])).double().mean())
    assert abs(share - 0.05) < 3 * (0.05 * 0.95 * (1 / 400 + 1 / 4000)) ** 0.5
    assert float((~guard.knows(photos(3, 4000, shift=3.0)[0])).double().mean()) > 0.95


def test_no_more_false_alarms_than_asked_on_average() -> None:
    alarms = []
    for seed in range(400):
        scores = torch.tensor(np.random.default_rng(seed).normal(size=230))
        threshold = threshold_at(scores[:30], 0.1)
        assert threshold is not None
        alarms.append(float((scores[30:] < threshold).double().mean()))
    three_errors = 3 * np.std(alarms) / len(alarms) ** 0.5
    assert 0.1 - 1 / 31 - three_errors < np.mean(alarms) < 0.1 + three_errors
    assert threshold_at(scores[:19]) == scores[:19].min()
    assert threshold_at(scores[:18]) is None


def test_a_channel_that_never_fires_and_rows_that_are_not_finite_do_no_harm() -> None:
    (x, labels), val = photos(0, 600), photos(1, 400)[0]
    x[:, 3], val[:, 3] = 0.0, 0.0
    broken = torch.tensor([[torch.nan], [torch.inf]]).expand(2, D)
    expected = fit_guard(x, labels, val)
    found = fit_guard(
        torch.cat([x, broken]), torch.cat([labels, torch.arange(2)]), torch.cat([val, broken])
    )
    assert expected is not None and found is not None
    assert found.threshold == expected.threshold
    new = photos(2, 200)[0]
    new[:, 3] = 0.0
    assert found.knows(new).double().mean() > 0.9
    new[:, 3] = 1.0
    assert not found.knows(new).any()
    assert not found.knows(broken).any()


def test_too_few_photos_give_no_guard() -> None:
    (x, labels), val = photos(0, 40), photos(1, 19)[0]
    assert fit_guard(x, labels, val) is not None
    assert fit_guard(x, labels, val[:18]) is None
    assert fit_guard(x[:1], labels[:1], val) is None
    assert fit_guard(x[:0], labels[:0], val) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", torch.zeros(D - 1)),
        ("mean", torch.zeros(D, dtype=torch.int64)),
        ("std", torch.zeros(D)),
        ("class_means", torch.zeros(0, D)),
        ("class_means", [[0.0] * D]),
        ("directions", torch.zeros(D, D + 1)),
        ("variances", torch.full((D,), torch.nan)),
        ("rest_variance", 0.0),
        ("threshold", float("nan")),
        ("threshold", None),
    ],
)
def test_a_table_comes_back_and_one_that_makes_no_sense_is_refused(
    guard: Guard, name: str, value: object
) -> None:
    again = Guard.from_dict({**vars(guard), "later": 1}, D)
    x = photos(4, 50)[0]
    assert torch.equal(again.score(x), guard.score(x)) and again.threshold == guard.threshold
    with pytest.raises(ValueError, match="is not the table|has tensors|has values"):
        Guard.from_dict({**vars(guard), name: value}, D)
    for values in ([], "guard", 3, {}, {name: value}):
        with pytest.raises(ValueError, match="is not the table"):
            Guard.from_dict(values, D)


def test_a_guard_is_fitted_and_measured(tree) -> None:
    """Of two bodies that were trained in bf16: the guard sees what it sees of single photos."""
    architecture = Architecture("mobilenet_v3_small", attention="se", hidden=5, bodies=2)
    dataset, rule = load_dataset(tree.images, tree.annotations), Preprocessing(32)
    torch.manual_seed(0)
    network = Network.build(build_classifier(architecture, 4), rule, "cpu", "bf16")
    places = np.random.default_rng(5).permutation(len(dataset.catalog))
    labels = dataset.catalog.class_index.astype(np.int64)
    parts = {
        name: Samples(p, {"species": labels[p]}, np.zeros(len(p), bool))
        for name, p in zip(("train", "val", "test"), np.array_split(places, 3), strict=True)
    }
    source = FileImages(dataset.catalog, rule)
    stored, figures = make_guard(network, source, parts, num_workers=0)
    assert figures == json.loads(json.dumps(figures, allow_nan=False)) and figures["fitted"]
    fitted = Guard.from_dict(stored, sum(architecture.map_channels))
    exact = Network.build(network.model, rule, "cpu", "fp32")
    pixels = source.read(parts["test"].images).arrays[0]
    assert figures["num_test"] == len(pixels) < len(places) / 3 + 1  # some cannot be read
    known = fitted.knows(exact.logits_and_means(pixels)[1])
    assert figures["test_false_alarms"] == float((~known).double().mean())
    few = {**parts, "val": Samples(places[:3], {"species": labels[places[:3]]}, np.zeros(3, bool))}
    stored, figures = make_guard(network, source, few, num_workers=0)
    assert stored is None and not figures["fitted"] and "too few" in figures["why_not"]
