"""Convolutional bodies by name, where their stages begin, and where their first weights come
from.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from petface.errors import UserError
from petface.installed import does_not_load

try:
    import torchvision
except Exception as error:  # one that was built for another torch raises whatever comes first
    raise does_not_load("torchvision", error) from error

STAGE_NAMES: Final = ("stem", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Backbone:
    """A torchvision architecture: width of its pooled features, its classifier, its five stages.

    `stages` maps each of `STAGE_NAMES` to prefixes of parameter names, so that "layer4" means the
    last stage of any architecture. `map_channels` are those of what layer1 to layer4 give out.
    """

    constructor: str
    num_features: int
    classifier: str
    stages: dict[str, tuple[str, ...]]
    map_channels: tuple[int, ...]


_RESNET_STAGES: Final = {
    "stem": ("conv1.", "bn1."),
    "layer1": ("layer1.",),
    "layer2": ("layer2.",),
    "layer3": ("layer3.",),
    "layer4": ("layer4.",),
}
BACKBONES: Final = {
    "resnet18": Backbone("resnet18", 512, "fc", _RESNET_STAGES, (64, 128, 256, 512)),
    "mobilenet_v2": Backbone(
        "mobilenet_v2",
        1280,
        "classifier",
        {
            "stem": ("features.0.", "features.1."),
            "layer1": ("features.2.", "features.3."),
            "layer2": tuple(f"features.{i}." for i in range(4, 7)),
            "layer3": tuple(f"features.{i}." for i in range(7, 14)),
            "layer4": tuple(f"features.{i}." for i in range(14, 19)),
        },
        (24, 32, 96, 1280),
    ),
}


def describe(name: str) -> Backbone:
    """Look a backbone up by name; an unknown one is refused with the list."""
    if name not in BACKBONES:
        raise UserError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build_classifier(name: str, num_classes: int) -> nn.Module:
    """Build an untrained network with one linear layer: (B, 3, H, W) float -> (B, num_classes)
    logits.
    """
    backbone = describe(name)
    network: nn.Module = getattr(torchvision.models, backbone.constructor)(weights=None)
    setattr(network, backbone.classifier, nn.Linear(backbone.num_features, num_classes))
    return network


def build_body(name: str) -> nn.Module:
    """Build an untrained body without classifier: (B, 3, H, W) float -> (B, num_features)."""
    backbone = describe(name)
    network: nn.Module = getattr(torchvision.models, backbone.constructor)(weights=None)
    setattr(network, backbone.classifier, nn.Identity())
    return network


def fill_body(network: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Load a body or whole network's state into the body of `network`; its classifier is left
    alone.

    `RuntimeError` where a tensor of the body is missing, unknown or of another shape.
    """
    prefix = describe(name).classifier + "."
    body = {key: value for key, value in state.items() if not key.startswith(prefix)}
    missing, unexpected = network.load_state_dict(body, strict=False)
    missing = [key for key in missing if not key.startswith(prefix)]
    if missing or unexpected:
        raise RuntimeError(f"missing {missing[:3]}, unknown {unexpected[:3]}")


def forward_with_maps(network: Any, name: str, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Pass once: (B, 3, H, W) float -> what `network(x)` gives, and the maps that layer1 to layer4
    give out, each (B, C, H', W').

    `network` is a classifier or a body of the architecture `name`. Written out, because hooks on a
    shared network would mix up the passes of two threads.
    """
    maps = []
    if name == "resnet18":
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = stage(x)
            maps.append(x)
    else:
        assert name == "mobilenet_v2", name
        stages = describe(name).stages
        ends = [stages[stage][-1] for stage in STAGE_NAMES[1:]]
        for number, block in enumerate(network.features):
            x = block(x)
            if f"features.{number}." in ends:
                maps.append(x)
    pooled = functional.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
    return getattr(network, describe(name).classifier)(pooled), tuple(maps)


def stage_means(maps: tuple[Tensor, ...]) -> Tensor:
    """Average each map over its places: (B, C, H', W') each -> (B, sum of C) float32."""
    return torch.cat([stage.float().mean(dim=(2, 3)) for stage in maps], dim=1)


def stage_of(name: str, parameter: str) -> str:
    """Tell which stage a body parameter belongs to; every parameter is in exactly one."""
    stages = describe(name).stages
    found = [stage for stage, prefixes in stages.items() if parameter.startswith(prefixes)]
    assert len(found) == 1, f"{name}: parameter {parameter} is in stages {found}"
    return found[0]


def load_torchvision_weights(body: nn.Module, name: str, policy: str) -> str:
    """Fill `body` in place with torchvision's ImageNet weights, downloaded once; say what was
    loaded.

    Where they cannot be had, `policy` "require" raises `UserError`; "auto" leaves the random
    weights and says so in the returned text.
    """
    try:
        with network_patience(20.0):
            enum = torchvision.models.get_model_weights(describe(name).constructor).DEFAULT
            state = enum.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        if policy == "require":
            raise UserError(
                f"ImageNet weights for {name} could not be had ({error}); "
                'set PRETRAINED = "auto" to go on without, or WEIGHTS to a local file'
            ) from error
        return f"random (ImageNet weights for {name} could not be had: {error})"
    fill_body(body, name, state)
    return f"torchvision {enum}"


@contextmanager
def network_patience(seconds: float) -> Iterator[None]:
    """Bound each network wait, so that a silent firewall cannot hold a run up for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
