"""What both trainers make of the same constants: network, optimizer, mixing, averaging, losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petface.data.loading import Batch
from petface.models.architecture import HEAD_PREFIXES, Architecture
from petface.models.network import Outputs
from petface.settings import Settings
from petface.training import losses
from petface.training.augment.mixing import Mixing, adapted_probability
from petface.training.averaging import WeightAverage


def architecture_of(s: Settings) -> Architecture:
    """Read what the network is made of."""
    return Architecture(s.BACKBONE, s.ATTENTION, s.HEAD_HIDDEN, s.DROPOUT, s.BODIES)


def make_optimizer(s: Settings, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Make AdamW over the parameters that are trained; those of the body take BODY_LR_FACTOR."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named]}]
    if s.BODY_LR_FACTOR != 1:
        head = [p for name, p in named if name.startswith(HEAD_PREFIXES)]
        body = [p for name, p in named if not name.startswith(HEAD_PREFIXES)]
        groups = [{"params": head}, {"params": body, "lr_factor": s.BODY_LR_FACTOR}]
        groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=s.WEIGHT_DECAY, fused=True)


def make_average(s: Settings, model: nn.Module) -> WeightAverage | None:
    """Begin the average of the weights, where EMA_DECAY wants one."""
    return WeightAverage(model, s.EMA_DECAY) if s.EMA_DECAY else None


def make_mixing(s: Settings, val_losses: Sequence[float]) -> Mixing:
    """Say how the batches of the next epoch are mixed, after epochs with these losses."""
    probability = s.MIX_PROBABILITY
    if s.MIX_ADAPTS:
        probability = adapted_probability(val_losses, probability)
    return Mixing(s.MIX, probability, s.MIX_ALPHA)


def make_adjustment(s: Settings, shown: np.ndarray, device: torch.device) -> Tensor | None:
    """Give what is added to a head's logits in training, (K,); `shown` (K,): how often each class
    comes up.
    """
    if not s.LOGIT_ADJUSTMENT:
        return None
    return losses.logit_adjustment(shown, s.LOGIT_ADJUSTMENT).to(device)


def species_loss(
    s: Settings, shown: np.ndarray, device: torch.device
) -> Callable[[Outputs, Batch], Tensor]:
    """Give the loss of stage 1; `shown` (K,): how often each class comes up, on any scale."""
    adjustment = make_adjustment(s, shown, device)

    def loss(outputs: Outputs, batch: Batch) -> Tensor:
        return losses.masked_focal_loss(
            outputs[0] if adjustment is None else outputs[0] + adjustment,
            batch.labels["species"],
            s.FOCAL_GAMMA,
            label_smoothing=s.LABEL_SMOOTHING,
            total=batch.totals.get("species"),
        )

    return loss


def specialist_loss(
    s: Settings, sizes: Mapping[str, int], labels: Mapping[str, np.ndarray], device: torch.device
) -> tuple[dict[str, Tensor | None], Callable[[Outputs, Batch], Tensor]]:
    """Give the weights of each head's classes, None = all equal, and the loss of a specialist.

    `sizes` names the heads in output order, `labels` are those of the train part, each (N,). The
    heads' losses are summed: cross-entropy for gender, focal for the others; unknown is masked.
    """
    counts = {h: np.bincount(labels[h][labels[h] >= 0], minlength=k) for h, k in sizes.items()}
    weights: dict[str, Tensor | None] = dict.fromkeys(sizes)
    if s.CLASS_WEIGHTS == "inverse":
        weights = {h: losses.inverse_frequency_weights(n).to(device) for h, n in counts.items()}
    found = {head: make_adjustment(s, number, device) for head, number in counts.items()}
    adjustments = {head: value for head, value in found.items() if value is not None}
    has_color = any(head.startswith("color") for head in sizes)
    gamma = s.FOCAL_GAMMA_COLOR if has_color else s.FOCAL_GAMMA_IMBAL

    def loss(outputs: Outputs, batch: Batch) -> Tensor:
        return losses.specialist_loss(
            outputs, batch.labels, weights, gamma, batch.totals, s.LABEL_SMOOTHING, adjustments
        )

    return weights, loss
