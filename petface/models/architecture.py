"""What a network is made of, in one value that a checkpoint keeps; and the networks themselves.

A network is one body, or several of one backbone side by side whose features stand in a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from petface.errors import UserError
from petface.models import backbones
from petface.models.backbones import describe

ATTENTIONS: Final = ("none", "se")
POOLINGS: Final = ("average", "both")
MAX_HIDDEN: Final = 4096  # both are limits for what an untrusted checkpoint may want to have built
MAX_BODIES: Final = 8
HEAD_PREFIXES: Final = ("fc.", "classifier.", "head.", "heads.")  # of parameters, in both stages
_OF_A_BODY: Final = re.compile(r"bodies\.(\d{1,3})\.(.+)")


@dataclass(frozen=True)
class Architecture:
    """A backbone; attention after its last stage; the head's hidden layer (0 = none) and share of
    features dropped in training (0 = off); how many such bodies stand side by side; whether their
    maps are pooled by the maximum, too; whether the head begins with BatchNorm.

    `UserError`, which is a `ValueError`, where a value is unknown, of another type or too large.
    """

    backbone: str = "resnet18"
    attention: str = "none"
    hidden: int = 0
    dropout: float = 0.0
    bodies: int = 1
    pooling: str = "average"
    batchnorm: bool = False

    def __post_init__(self) -> None:
        describe(self.backbone)
        for name, known in (("attention", ATTENTIONS), ("pooling", POOLINGS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise UserError(f"{name} is {_said(value)}; known: {', '.join(known)}")
        if type(self.batchnorm) is not bool:
            raise UserError(f"batchnorm is {_said(self.batchnorm)}, not true or false")
        for name, low, high in (("hidden", 0, MAX_HIDDEN), ("bodies", 1, MAX_BODIES)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise UserError(
                    f"{name} is {_said(value)}, not a whole number from {low} to {high}"
                )
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {_said(self.dropout)}, not a share from 0 to below 1")

    def __str__(self) -> str:
        parts = (
            self.backbone,
            self.attention if self.attention != "none" else "",
            f"{self.bodies} bodies" if self.bodies > 1 else "",
            f"hidden {self.hidden}" if self.hidden else "",
            f"dropout {self.dropout}" if self.dropout else "",
            "average and maximum" if self.pooling == "both" else "",
            "head with BatchNorm" if self.batchnorm else "",
        )
        return ", ".join(filter(None, parts))

    @property
    def is_plain(self) -> bool:
        """Return whether it is the backbone and nothing else."""
        return self == Architecture(self.backbone)

    @property
    def width(self) -> int:
        """Return the number of features that the head gets."""
        num_pools = 1 + (self.pooling == "both")
        return self.bodies * num_pools * describe(self.backbone).num_features

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Return the channels of the maps of layer1 to layer4, of all bodies together."""
        return tuple(self.bodies * channels for channels in describe(self.backbone).map_channels)

    def stored(self) -> dict[str, Any]:
        """Return a checkpoint's entries: of a plain network the backbone's name alone."""
        entries = {"backbone": self.backbone}
        return entries if self.is_plain else {**entries, "architecture": asdict(self)}

    @classmethod
    def from_stored(cls, content: Mapping[str, Any]) -> Architecture:
        """Read a checkpoint's entries; without any, a plain ResNet-18 was meant.

        `ValueError` names what makes no sense. "architecture" of other programs is left alone.
        """
        plain = cls(content.get("backbone", "resnet18"))
        if "architecture" not in content or "format" not in content:
            return plain
        values, names = content["architecture"], sorted(field.name for field in fields(cls))
        try:
            if not isinstance(values, Mapping) or not set(values) <= set(names):
                raise UserError(f"is not a table of {', '.join(names)}")
            found = cls(**values)
        except ValueError as error:
            raise ValueError(f'"architecture": {error}') from error
        if found.backbone != plain.backbone:
            raise ValueError(f'"architecture" is of {found.backbone}, "backbone" {plain.backbone}')
        return found


def _said(value: Any) -> str:
    """Show a value of an untrusted file on one short line."""
    is_short = isinstance(value, (str, float)) or (type(value) is int and abs(value) < 10**9)
    return repr(value)[:40] if is_short else f"of type {type(value).__name__}"


PLAIN: Final = Architecture()


class MultiBody(nn.Module):
    """Bodies that all see the image, and a head on their pooled features: (B, 3, H, W) float ->
    what the head makes of (B, sum of the widths).

    Without a head of its own it returns the features.
    """

    def __init__(self, bodies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, K)."""
        return self.head(torch.cat([body(x) for body in self.bodies], dim=1))


def build_body(architecture: Architecture) -> nn.Module:
    """Build untrained bodies without a head: (B, 3, H, W) float -> (B, width)."""
    bodies = []
    for _ in range(architecture.bodies):
        bodies.append(backbones.build_body(architecture.backbone))
        if architecture.attention == "se":
            backbones.add_attention(bodies[-1])
        if architecture.pooling == "both":
            backbones.pool_both(bodies[-1])
    body: Any = MultiBody(bodies) if architecture.bodies > 1 else bodies[0]
    body.architecture = architecture
    return body


def build_classifier(architecture: Architecture, num_classes: int) -> nn.Module:
    """Build an untrained network: (B, 3, H, W) float -> (B, num_classes) logits."""
    network = build_body(architecture)
    setattr(network, _place(architecture), build_head(architecture, num_classes))
    return network


def _place(architecture: Architecture) -> str:
    return describe(architecture.backbone).classifier if architecture.bodies == 1 else "head"


def head_of(network: Any, name: str) -> nn.Module:
    """Return a head of a specialist by its name, or the one of a classifier."""
    heads = getattr(network, "heads", None)
    return heads[name] if heads else getattr(network, _place(network.architecture))


class _HeadNorm(nn.BatchNorm1d):
    """BatchNorm of (B, K) features; one photo alone goes by the statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch in training, by the statistics else."""
        kept = self.running_mean, self.running_var, self.weight, self.bias
        return functional.batch_norm(x, *kept, self.training and len(x) > 1, 0.1, self.eps)


def build_head(architecture: Architecture, num_outputs: int) -> nn.Module:
    """Build an untrained head: (B, width) features -> (B, num_outputs) logits."""
    width, hidden, dropout = architecture.width, architecture.hidden, architecture.dropout
    layers: list[nn.Module] = [_HeadNorm(width)] if architecture.batchnorm else []
    if hidden:
        layers += [nn.Dropout(dropout), nn.Linear(width, hidden), nn.ReLU()]
    if hidden or dropout:
        layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(hidden or width, num_outputs))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def bodies_of(network: Any) -> list[nn.Module]:
    """List the bodies of a network: itself, where it is one."""
    return list(network.bodies) if isinstance(network, MultiBody) else [network]


def forward_with_maps(network: nn.Module, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Call `backbones.forward_with_maps` for one body or several.

    Maps of several are joined by stage: (B, sum of C, H', W') each.
    """
    if not isinstance(network, MultiBody):
        return backbones.forward_with_maps(network, x)
    features, maps = zip(
        *(backbones.forward_with_maps(body, x) for body in network.bodies), strict=True
    )
    joined = tuple(torch.cat(stage, dim=1) for stage in zip(*maps, strict=True))
    return network.head(torch.cat(features, dim=1)), joined


def stage_of(backbone: str, parameter: str) -> str:
    """Call `backbones.stage_of` for the parameter of one body or of one among several."""
    match = _OF_A_BODY.fullmatch(parameter)
    return backbones.stage_of(backbone, match[2] if match else parameter)


def states_of_bodies(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split the state of a network, one dictionary per body; all of it, where it is one."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = _OF_A_BODY.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = value
    return [found[number] for number in sorted(found)] or [dict(state)]


class _MultiHeadModel(nn.Module):
    """A pooled body and its heads, plain linear layers unless `architecture` says otherwise; heads
    without a class are not built.

    `head_sizes` maps head names to their number of classes; its order is the order of the outputs.
    """

    def __init__(self, head_sizes: Mapping[str, int], architecture: Architecture = PLAIN) -> None:
        super().__init__()
        self.architecture = architecture
        self.head_sizes = {name: size for name, size in head_sizes.items() if size > 0}
        self.body = build_body(architecture)
        self.heads = nn.ModuleDict(
            {name: build_head(architecture, size) for name, size in self.head_sizes.items()}
        )
        self.head_names: tuple[str, ...] = tuple(self.heads)
        assert self.head_names, "a specialist needs at least one head with classes"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float -> one (B, K_head) tensor of logits per head, in `head_names`
        order.
        """
        features = self.body(images)  # (B, width)
        return tuple(self.heads[name](features) for name in self.head_names)


class ChinchillaMultiHeadResNet18(_MultiHeadModel):
    """What a checkpoint of the newer layouts (vocabularies stored with the weights) becomes."""


class GenericMultiHeadResNet18(_MultiHeadModel):
    """What a legacy checkpoint (flat `head_*` weights, no vocabulary) becomes."""


def unfreeze(model: Any, stages: tuple[str, ...]) -> None:
    """Make the heads and the named stages of every body trainable and everything else not.

    `model` is a specialist or what `build_classifier` gives. `stages` holds names of
    `backbones.STAGE_NAMES`, or "all" for whole bodies.
    """
    for name, parameter in model.named_parameters():
        name = name.removeprefix("body.")
        stage = "heads"
        if not name.startswith(HEAD_PREFIXES):
            stage = stage_of(model.architecture.backbone, name)
        parameter.requires_grad_(stage == "heads" or stage in stages or "all" in stages)


def train_mode(model: nn.Module, freeze_batchnorm: bool = False) -> None:
    """Set train mode, but for BatchNorm with frozen parameters, whose statistics stay."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parameters = list(module.parameters())
            learns = not parameters or any(p.requires_grad for p in parameters)
            module.train(learns and not freeze_batchnorm)
