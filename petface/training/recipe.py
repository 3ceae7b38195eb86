"""What trainers build from their constants: optimizer, average of the weights, stage 1's loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petface.data.loading import Batch
from petface.models.architecture import HEAD_PREFIXES
from petface.models.network import Outputs
from petface.training import losses

Loss = Callable[[Outputs, Batch], Tensor]


def make_optimizer(
    model: nn.Module, lr: float, *, weight_decay: float, body_lr_factor: float = 1.0
) -> torch.optim.Optimizer:
    """Build AdamW over the parameters that are trained; those of the body take `body_lr_factor`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named]}]
    if body_lr_factor != 1:
        head = [p for name, p in named if name.startswith(HEAD_PREFIXES)]
        body = [p for name, p in named if not name.startswith(HEAD_PREFIXES)]
        groups = [{"params": head}, {"params": body, "lr_factor": body_lr_factor}]
        groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


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
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights; counters are copied."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        own, new = self.model.state_dict(), model.state_dict()
        names = [name for name, tensor in own.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([own[n] for n in names], [new[n] for n in names], 1 - decay)
        for name in own.keys() - set(names):
            own[name].copy_(new[name])

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        return {"model": self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.num_updates = state["num_updates"]


def species_loss(
    shown: np.ndarray,
    device: torch.device,
    *,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
    logit_adjustment: float = 0.0,
) -> Loss:
    """Build the loss of stage 1; `shown` (K,): how often each class comes up, on any scale."""
    adjustment = None
    if logit_adjustment:
        adjustment = losses.logit_adjustment(shown, logit_adjustment).to(device)

    def loss(outputs: Outputs, batch: Batch) -> Tensor:
        return losses.masked_focal_loss(
            outputs[0] if adjustment is None else outputs[0] + adjustment,
            batch.labels["species"],
            focal_gamma,
            label_smoothing=label_smoothing,
            total=batch.totals.get("species"),
        )

    return loss
