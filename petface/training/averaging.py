"""A moving average of the weights: often better than the last weights, at no cost in answering."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """An exponential moving average of a model's parameters and statistics, after every step.

    The decay after step n is min(`decay`, (1 + n) / (10 + n)), so that the first random weights are
    soon forgotten. Polyak & Juditsky 1992; the ramp is that of TensorFlow's
    `ExponentialMovingAverage`.
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
        """Plain values and tensors for a checkpoint."""
        return {"model": self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.num_updates = state["num_updates"]
