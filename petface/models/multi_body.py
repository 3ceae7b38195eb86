"""Several bodies of one backbone side by side, their features in a row: one network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petface.models import backbones

_OF_A_BODY = re.compile(r"bodies\.(\d{1,3})\.(.+)")


class MultiBody(nn.Module):
    """Bodies that all see the image, and a head on their pooled features: (B, 3, H, W) float ->
    what the head makes of (B, sum of the widths).

    Without a head of its own it gives the features.
    """

    def __init__(self, bodies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, K)."""
        return self.head(torch.cat([body(x) for body in self.bodies], dim=1))


def bodies_of(network: Any) -> list[nn.Module]:
    """List the bodies of a network: itself, where it is one."""
    return list(network.bodies) if isinstance(network, MultiBody) else [network]


def forward_with_maps(network: nn.Module, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Do `backbones.forward_with_maps` for one body or several, whose maps are joined by stage:
    (B, sum of C, H', W') each.
    """
    if not isinstance(network, MultiBody):
        return backbones.forward_with_maps(network, x)
    features, maps = zip(
        *(backbones.forward_with_maps(body, x) for body in network.bodies), strict=True
    )
    joined = tuple(torch.cat(stage, dim=1) for stage in zip(*maps, strict=True))
    return network.head(torch.cat(features, dim=1)), joined


def stage_of(backbone: str, parameter: str) -> str:
    """Do `backbones.stage_of` for the parameter of one body or of one among several."""
    match = _OF_A_BODY.fullmatch(parameter)
    return backbones.stage_of(backbone, match[2] if match else parameter)


def states_of_bodies(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Take the state of a network apart, one dictionary per body; all of it, where it is one."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = _OF_A_BODY.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = value
    return [found[number] for number in sorted(found)] or [dict(state)]
