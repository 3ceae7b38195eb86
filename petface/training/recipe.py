"""What trainers build from their constants: the average of the weights, the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petface.data.loading import Batch
from petface.models.network import Outputs
from petface.training import losses, sampling

Loss = Callable[[Outputs, Batch], list[Tensor]]  # of each head; their sum is minimised


class WeightAverage:
    """An exponential moving average of a model's parameters and statistics, after every step.

    Often better than the last weights, at no cost in inference. The decay after step n is
    min(`decay`, (1 + n) / (10 + n)), so that the first random weights are soon forgotten.
    Polyak & Juditsky 1992; the ramp is that of TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        assert 0.0 <= decay < 1.0, decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module, good: Tensor) -> None:
        """Take in the model's weights unless `good` is 0; counters are copied.

        A GPU is not waited for: there a step that was skipped counts in the ramp of the decay.
        """
        on_cpu = good.device.type == "cpu"
        if on_cpu and not good:
            return
        share = 1 - min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        pairs = [*zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)]
        own, new = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        if on_cpu:
            torch._foreach_lerp_(own, new, share)
        else:
            torch._foreach_add_(own, torch._foreach_mul(torch._foreach_sub(new, own), share * good))
        if counters := [pair for pair in pairs if not pair[0].is_floating_point()]:
            own, new = zip(*counters, strict=True)
            torch._foreach_copy_(own, new)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        return {"model": self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.num_updates = state["num_updates"]


def heads_loss(
    counts: Mapping[str, np.ndarray],
    gammas: Mapping[str, float],
    device: torch.device,
    *,
    weight_alphas: Mapping[str, float] | None = None,
    weight_clip: tuple[float, float] = (0.0, float("inf")),
    label_smoothing: float = 0.0,
    logit_adjustment: float = 0.0,
    shown: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, Tensor | None], Loss]:
    """Build the loss of each head, and the weights of each head's classes, None = equal.

    `counts[head]` (K,): how often each class occurs; heads stand in output order. `shown` is how
    often the sampler shows it, on any scale, where that differs: logits are adjusted by that.
    `gammas[head]` is that of the focal loss, 0 = cross-entropy. With `weight_alphas` classes weigh
    by `sampling.class_weights` with the head's alpha. Unknown labels are masked.
    """
    weights: dict[str, Tensor | None] = dict.fromkeys(counts)
    for head, alpha in (weight_alphas or {}).items():
        weight = torch.from_numpy(sampling.class_weights(counts[head], alpha, weight_clip))
        weights[head] = weight.to(device, torch.float32)
    adjustments = {}
    if logit_adjustment:
        adjustments = {
            head: losses.logit_adjustment(number, logit_adjustment).to(device)
            for head, number in (shown or counts).items()
        }

    def loss(outputs: Outputs, batch: Batch) -> list[Tensor]:
        return [
            losses.masked_focal_loss(
                logits + adjustments[head] if adjustments else logits,
                batch.labels[head],
                gammas[head],
                of_classes,
                label_smoothing,
                batch.totals.get(head),
            )
            for (head, of_classes), logits in zip(weights.items(), outputs, strict=True)
        ]

    return weights, loss


def margin_loss(head: str, kind: str, margin: float, scale: float, smoothing: float = 0.0) -> Loss:
    """Build the loss of cosines to the directions of classes; see `losses.margin_logits`."""

    def loss(outputs: Outputs, batch: Batch) -> list[Tensor]:
        labels, total = batch.labels[head], batch.totals.get(head)
        logits = losses.margin_logits(outputs[0], labels, kind, margin, scale)
        return [losses.masked_focal_loss(logits, labels, 0.0, None, smoothing, total)]

    return loss


def focal_gammas(
    heads: Collection[str], *, with_color: float, without_color: float
) -> dict[str, float]:
    """Return the focal gamma of each head of a specialist: 0, cross-entropy, for gender.

    That of the others depends on whether one of the heads is a colour.
    """
    has_color = any(head.startswith("color") for head in heads)
    gamma = with_color if has_color else without_color
    return {head: 0.0 if head == "gender" else gamma for head in heads}
