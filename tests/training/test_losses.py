"""Losses against torch's own cross-entropy and naive float64 loops; nothing known is exactly 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from petface.training.losses import (
    logit_adjustment,
    margin_logits,
    masked_focal_loss,
)

every_loss = pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0.0},
        {"gamma": 0.0, "label_smoothing": 0.1},
        {"gamma": 0.5},
        {"gamma": 2.0, "label_smoothing": 0.1},
    ],
    ids=["cross-entropy", "smoothed", "focal", "smoothed focal"],
)
weighted = pytest.mark.parametrize("weighted", [False, True])


def random_case(seed: int, is_weighted: bool = True):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 5, generator=draw) * 3
    targets = torch.randint(-1, 5, (40,), generator=draw)
    weights = torch.rand(5, generator=draw) * 2
    weights[1] = 0.0
    assert (targets == -1).any() and (targets == 1).any()
    return logits, targets, weights if is_weighted else None


@weighted
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.5, 5.0])
def test_focal_loss_and_its_gradient_equal_the_textbook_formula_in_float64(
    gamma: float, smoothing: float, weighted: bool
) -> None:
    """Each row's cross-entropy by torch, times its factor; 1 where gamma is 0."""
    logits, targets, weights = random_case(3, weighted)
    known = targets >= 0
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    every = torch.ones(5).double() if weights is None else weights.double()
    rows = F.cross_entropy(
        theirs[known], targets[known], every, reduction="none", label_smoothing=smoothing
    )
    p = theirs[known].softmax(1).gather(1, targets[known, None])[:, 0]
    wanted = ((1 - p) ** gamma * rows).sum() / every[targets[known]].sum()
    loss = masked_focal_loss(ours, targets, gamma, weights, smoothing)
    if weights is not None:  # nor does their size matter
        small = masked_focal_loss(logits, targets, gamma, weights / 1000, smoothing)
        torch.testing.assert_close(small, loss.detach())
    wanted.backward()
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-7)


def test_logit_adjustment_makes_a_network_that_knows_nothing_answer_the_shares() -> None:
    """Balanced softmax: equal logits mean probabilities as often as the classes are shown."""
    counts = np.array([70, 20, 10])
    adjustment = logit_adjustment(counts, 1.0)
    torch.testing.assert_close(adjustment.exp(), torch.tensor([0.7, 0.2, 0.1]))
    torch.testing.assert_close(logit_adjustment(counts, 0.5), adjustment / 2)
    assert torch.isfinite(logit_adjustment(np.array([5, 0]), 1.0)).all()
    logits = torch.zeros(100, 3, requires_grad=True)
    targets = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    masked_focal_loss(logits + adjustment, targets, 0.0).backward()
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("scale", [1e-3, 20.0, 100.0, 1e4])
def test_the_loss_stays_finite_where_p_is_near_0_or_1(gamma: float, scale: float) -> None:
    logits = torch.tensor([[scale, -scale, 0.0], [scale, -scale, 0.0]], requires_grad=True)
    loss = masked_focal_loss(logits, torch.tensor([0, 1]), gamma)  # right, then wrong
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert logits.grad[1, 1] < 0  # the wrong row still asks for its class


@every_loss
@pytest.mark.parametrize(
    ("logits", "targets", "weights"),
    [
        (torch.randn(4, 3), [-1] * 4, None),
        (torch.randn(4, 3), [0, 1, 0, -1], [0.0, 0.0, 5.0]),
        (torch.randn(4, 0), [-1] * 4, None),
        (torch.randn(0, 3), [], [1.0, 1.0, 1.0]),
        (torch.tensor([[3.0], [-2.0]]), [0, 0], None),
        (torch.tensor([[2.0, -math.inf, -math.inf]]), [0], None),
    ],
    ids=["nothing known", "weights 0", "no class", "no row", "one class", "others ruled out"],
)
def test_with_nothing_to_learn_the_loss_is_0_with_a_zero_gradient(
    options, logits, targets, weights
) -> None:
    if options.get("label_smoothing") and logits.isinf().any():
        return  # a class that is ruled out costs infinitely much
    logits = logits.clone().requires_grad_()
    weights = None if weights is None else torch.tensor(weights)
    loss = masked_focal_loss(
        logits, torch.tensor(targets, dtype=torch.int64), class_weights=weights, **options
    )
    loss.backward()
    assert (loss.item(), loss.dtype, loss.shape) == (0.0, torch.float32, ())
    assert (logits.grad == 0).all()


@every_loss
def test_nan_poisons_from_known_rows_only(options) -> None:
    logits, targets, weights = random_case(0)
    clean = masked_focal_loss(logits, targets, class_weights=weights, **options)
    for poison in (math.nan, math.inf, -math.inf):
        spoilt = logits.clone()
        spoilt[targets == -1] = poison
        spoilt.requires_grad_()
        result = masked_focal_loss(spoilt, targets, class_weights=weights, **options)
        assert result.item() == clean.item()
        result.backward()
        assert torch.isfinite(spoilt.grad).all()
    spoilt = logits.clone()
    spoilt[(targets == 2).nonzero()[0], 0] = math.nan
    assert torch.isnan(masked_focal_loss(spoilt, targets, class_weights=weights, **options))


@every_loss
def test_half_precision_is_computed_in_float32_and_no_value_is_read_from_python(options) -> None:
    logits, targets, weights = random_case(1)
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.to(dtype).requires_grad_()
        result = masked_focal_loss(half, targets, class_weights=weights, **options)
        whole = masked_focal_loss(half.float(), targets, class_weights=weights, **options)
        assert result.dtype == torch.float32 and torch.equal(result, whole)
        result.backward()
        assert half.grad.dtype == dtype and torch.isfinite(half.grad).all()
    # tensors on "meta" have no values: any .item() or `if tensor` raises
    logits, targets, weights = (t.to("meta") for t in (logits, targets, weights))
    assert masked_focal_loss(logits, targets, class_weights=weights, **options).shape == ()


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_margins_are_those_of_the_papers(kind):
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(40, 7, generator=generator, dtype=torch.float64) * 1.98 - 0.99
    targets = torch.randint(-1, 7, (40,), generator=generator)
    found = margin_logits(cosines, targets, kind, 0.3, 20.0)
    for row, target in enumerate(targets.tolist()):
        for k in range(7):
            value = float(cosines[row, k])
            if k == target and kind == "cosface":
                value -= 0.3
            elif k == target:
                angle = math.acos(value) + 0.3
                value = math.cos(angle) if angle <= math.pi else value - 0.3 * math.sin(0.3)
            assert float(found[row, k]) == pytest.approx(20 * value, abs=1e-9)


def test_a_margin_has_a_finite_gradient_where_the_cosine_is_1():
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    margin_logits(cosines, torch.tensor([0, 0]), "arcface", 0.5, 64.0).sum().backward()
    assert cosines.grad.isfinite().all()
