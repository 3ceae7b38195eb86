"""The guard: distances as a naive loop gives them, and the false alarms that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from petface.models.guard import Guard, fit_guard, threshold_at

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


def test_the_score_is_the_naive_mahalanobis_distance_to_the_nearest_class(guard: Guard) -> None:
    """The covariance built as a matrix and inverted, each photo and class by itself."""
    x, labels = (a.double().numpy() for a in photos(0, 600))
    mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
    z = (x - mean) / std
    centres = np.stack([z[labels == k].mean(axis=0) for k in range(3)])
    residual = z - centres[labels.astype(int)]
    values, vectors = np.linalg.eigh(residual.T @ residual / len(z))
    # D is smaller than the number of directions that are kept: nothing is left out
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    new = photos(2, 30)[0]
    for photo, score in zip(new.double().numpy(), guard.score(new).tolist(), strict=True):
        p = (photo - mean) / std
        assert -score == pytest.approx(min((p - c) @ inverse @ (p - c) for c in centres), rel=1e-3)


def test_directions_that_are_not_kept_share_one_variance() -> None:
    x, labels = photos(0, 50)  # five directions of twenty
    guard = fit_guard(x, labels, photos(1, 100)[0])
    assert guard is not None and guard.directions.shape == (5, D)
    mean, std = x.double().mean(0), x.double().std(0)
    z = ((x.double() - mean) / std).numpy()
    centres = np.stack([z[labels == k].mean(axis=0) for k in range(3)])
    residual = z - centres[labels]
    values, vectors = np.linalg.eigh(residual.T @ residual / len(z))
    values[:-5] = values[:-5].mean()
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    p = ((photos(2, 1)[0].double() - mean) / std).numpy()[0]
    expected = min((p - c) @ inverse @ (p - c) for c in centres)
    assert -guard.score(photos(2, 1)[0])[0] == pytest.approx(expected, rel=1e-3)


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
    assert threshold_at(scores[:19], 0.05) == scores[:19].min()
    assert threshold_at(scores[:18], 0.05) is None


def test_a_channel_that_never_fires_and_rows_that_are_not_finite_do_no_harm() -> None:
    (x, labels), val = photos(0, 600), photos(1, 400)[0]
    x[:, 3], val[:, 3] = 0.0, 0.0
    expected = fit_guard(x, labels, val)
    broken = torch.full((5, D), torch.nan)
    found = fit_guard(
        torch.cat([x, broken]),
        torch.cat([labels, torch.arange(5)]),
        torch.cat([val, broken]),
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


def test_it_goes_through_a_dictionary(guard: Guard) -> None:
    again = Guard.from_dict({**guard.to_dict(), "later": 1}, D)
    x = photos(4, 50)[0]
    assert torch.equal(again.score(x), guard.score(x)) and again.threshold == guard.threshold


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mean", torch.zeros(D - 1), "mean has shape"),
        ("std", torch.zeros(D), "std is not above 0"),
        ("class_means", torch.zeros(0, D), "class_means has shape"),
        ("class_means", [[0.0] * D], "class_means is no tensor"),
        ("directions", torch.zeros(D, D + 1), "directions has shape"),
        ("variances", torch.full((D,), torch.nan), "variances is not finite"),
        ("mean", torch.zeros(D, dtype=torch.int64), "mean is no tensor of numbers"),
        ("rest_variance", 0.0, "rest_variance is not above 0"),
        ("threshold", float("nan"), "threshold is nan"),
        ("threshold", None, "threshold is None"),
        ("threshold", True, "threshold is True"),
    ],
)
def test_what_makes_no_sense_is_named(guard: Guard, name: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Guard.from_dict({**guard.to_dict(), name: value}, D)


@pytest.mark.parametrize("values", [[], "guard", 3, {}, {"mean": torch.zeros(D)}])
def test_what_is_no_guard_is_named(values: object) -> None:
    with pytest.raises(ValueError, match="is not a table with mean, std"):
        Guard.from_dict(values, D)
