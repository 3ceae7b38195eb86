"""Losses against torch's own cross-entropy and naive float64 loops; nothing known is exactly 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from petface.training.losses import (
    inverse_frequency_weights,
    logit_adjustment,
    masked_cross_entropy,
    masked_focal_loss,
)

LOSSES = {
    "cross_entropy": masked_cross_entropy,
    "smoothed": lambda x, y, w=None: masked_cross_entropy(x, y, w, label_smoothing=0.1),
    "focal_half": lambda x, y, w=None: masked_focal_loss(x, y, 0.5, w),
    "focal_two": lambda x, y, w=None: masked_focal_loss(x, y, 2.0, w),
    "focal_smoothed": lambda x, y, w=None: masked_focal_loss(x, y, 2.0, w, label_smoothing=0.1),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def random_case(seed: int, num: int = 40, num_classes: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, num_classes, generator=generator) * 3
    targets = torch.randint(-1, num_classes, (num,), generator=generator)
    weights = torch.rand(num_classes, generator=generator) * 2
    weights[1] = 0.0
    assert (targets == -1).any() and (targets == 1).any()
    return logits, targets, weights


def naive_focal(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, weights: torch.Tensor | None
) -> float:
    total = norm = 0.0
    for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True):
        if target == -1:
            continue
        p = math.exp(row[target]) / sum(math.exp(z) for z in row)
        w = 1.0 if weights is None else float(weights[target])
        total -= w * (1 - p) ** gamma * math.log(p)
        norm += w
    return total / norm


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_and_its_gradient_equal_torch(weighted: bool, smoothing: float) -> None:
    for seed in range(5):
        logits, targets, weights = random_case(seed)
        chosen = weights if weighted else None
        ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
        loss = masked_cross_entropy(ours, targets, chosen, smoothing)
        expected = F.cross_entropy(
            theirs, targets, weight=chosen, ignore_index=-1, label_smoothing=smoothing
        )
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 2.5, 5.0])
def test_focal_equals_a_naive_loop(weighted: bool, gamma: float) -> None:
    for seed in range(3):
        logits, targets, weights = random_case(seed)
        chosen = weights if weighted else None
        loss = masked_focal_loss(logits, targets, gamma, chosen)
        assert loss.item() == pytest.approx(naive_focal(logits, targets, gamma, chosen), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_smoothed_focal_is_the_smoothed_cross_entropy_of_each_row_times_its_factor(
    weighted: bool,
) -> None:
    for seed in range(3):
        logits, targets, weights = random_case(seed)
        chosen = weights if weighted else None
        known = targets >= 0
        rows = F.cross_entropy(
            logits[known].double(),
            targets[known],
            None if chosen is None else chosen.double(),
            reduction="none",
            label_smoothing=0.2,
        )
        p = logits[known].double().softmax(1).gather(1, targets[known, None])[:, 0]
        norm = known.sum() if chosen is None else chosen.double()[targets[known]].sum()
        found = masked_focal_loss(logits, targets, 1.5, chosen, label_smoothing=0.2)
        assert found.item() == pytest.approx(float(((1 - p) ** 1.5 * rows).sum() / norm), rel=1e-5)
        plain = masked_focal_loss(logits, targets, 0.0, chosen, label_smoothing=0.2)
        assert torch.equal(plain, masked_cross_entropy(logits, targets, chosen, 0.2))


def test_logit_adjustment_makes_a_network_that_knows_nothing_answer_the_shares() -> None:
    """Balanced softmax: equal logits mean probabilities as often as the classes are shown."""
    counts = np.array([70, 20, 10])
    adjustment = logit_adjustment(counts, 1.0)
    torch.testing.assert_close(adjustment.exp(), torch.tensor([0.7, 0.2, 0.1]))
    torch.testing.assert_close(logit_adjustment(counts, 0.5), adjustment / 2)
    assert torch.isfinite(logit_adjustment(np.array([5, 0]), 1.0)).all()
    logits = torch.zeros(100, 3, requires_grad=True)
    targets = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    masked_cross_entropy(logits + adjustment, targets).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.5, 5.0])
def test_focal_gradient_equals_the_textbook_formula_in_float64(gamma: float) -> None:
    logits, targets, weights = random_case(3)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    masked_focal_loss(ours, targets, gamma, weights).backward()
    known = targets >= 0
    p = theirs[known].softmax(1).gather(1, targets[known, None])[:, 0]
    w = weights.double()[targets[known]]
    ((w * (1 - p) ** gamma * -p.log()).sum() / w.sum()).backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0, 100.0, 1e4])
def test_focal_stays_finite_where_p_is_near_0_or_1(gamma: float, scale: float) -> None:
    logits = torch.tensor([[scale, -scale, 0.0], [scale, -scale, 0.0]], requires_grad=True)
    loss = masked_focal_loss(logits, torch.tensor([0, 1]), gamma)  # right, then wrong
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert logits.grad[1, 1] < 0  # the wrong row still asks for its class


@every_loss
@pytest.mark.parametrize("case", ["nothing_known", "weights_zero", "no_class", "no_row"])
def test_without_anything_to_learn_the_loss_is_0_with_a_zero_gradient(loss, case: str) -> None:  # type: ignore[no-untyped-def]
    num, num_classes = (0 if case == "no_row" else 4), (0 if case == "no_class" else 3)
    logits = torch.randn(num, num_classes, requires_grad=True)
    targets = torch.full((num,), -1)
    weights = torch.ones(num_classes)
    if case == "weights_zero":
        targets, weights = torch.tensor([0, 1, 0, -1]), torch.tensor([0.0, 0.0, 5.0])
    result = loss(logits, targets, weights)
    assert result.dtype == torch.float32 and result.shape == ()
    assert result.item() == 0.0
    result.backward()
    assert logits.grad is not None and (logits.grad == 0).all()


@every_loss
def test_nan_poisons_from_known_rows_only(loss) -> None:  # type: ignore[no-untyped-def]
    logits, targets, weights = random_case(0)
    clean = loss(logits, targets, weights)
    for poison in (math.nan, math.inf, -math.inf):
        spoilt = logits.clone()
        spoilt[targets == -1] = poison
        spoilt.requires_grad_()
        result = loss(spoilt, targets, weights)
        assert result.item() == clean.item()
        result.backward()
        assert torch.isfinite(spoilt.grad).all()
    spoilt = logits.clone()
    spoilt[(targets == 2).nonzero()[0], 0] = math.nan
    assert torch.isnan(loss(spoilt, targets, weights))


@every_loss
def test_half_precision_logits_are_computed_in_float32(loss) -> None:  # type: ignore[no-untyped-def]
    logits, targets, weights = random_case(1)
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.to(dtype).requires_grad_()
        result = loss(half, targets, weights)
        assert result.dtype == torch.float32
        assert torch.equal(result, loss(half.float(), targets, weights))
        result.backward()
        assert half.grad.dtype == dtype and torch.isfinite(half.grad).all()


@every_loss
def test_no_value_is_read_from_python(loss) -> None:  # type: ignore[no-untyped-def]
    # tensors on "meta" have no values: any .item() or `if tensor` raises
    logits, targets, weights = (t.to("meta") for t in random_case(0))
    assert loss(logits, targets, weights).shape == ()


@every_loss
def test_a_single_class_costs_nothing(loss) -> None:  # type: ignore[no-untyped-def]
    logits = torch.tensor([[3.0], [-2.0]], requires_grad=True)
    result = loss(logits, torch.tensor([0, 0]))
    result.backward()
    assert result.item() == 0.0 and (logits.grad == 0).all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_gradient_is_zero_where_every_other_class_is_ruled_out(gamma: float) -> None:
    logits = torch.tensor([[2.0, -math.inf, -math.inf]], requires_grad=True)
    loss = masked_focal_loss(logits, torch.tensor([0]), gamma)
    loss.backward()
    assert loss.item() == 0.0 and (logits.grad == 0).all()


def test_targets_below_minus_one_are_refused() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        masked_cross_entropy(torch.zeros(1, 3), torch.tensor([-2]))


def test_inverse_frequency_weights_by_hand() -> None:
    weights = inverse_frequency_weights([6, 0, 3, 1])  # 10 / (3 * count)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 0.0, 10 / 9, 10 / 3]))


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_inverse_frequency_weights_of_nothing_are_zero(counts: list[int]) -> None:
    assert inverse_frequency_weights(counts).tolist() == [0.0] * len(counts)
