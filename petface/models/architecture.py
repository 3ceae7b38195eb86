"""What a network is made of, in one value that a checkpoint keeps; and the network itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from torch import nn

from petface.errors import UserError
from petface.models.backbones import add_attention, describe
from petface.models.backbones import build_body as build_one_body
from petface.models.multi_body import MultiBody

ATTENTIONS: Final = ("none", "se")
MAX_HIDDEN: Final = 4096  # both are limits for what an untrusted checkpoint may ask to be built
MAX_BODIES: Final = 8
HEAD_PREFIXES: Final = ("fc.", "classifier.", "head.", "heads.")  # of parameters, in both stages


@dataclass(frozen=True)
class Architecture:
    """A backbone; attention after its last stage; the head's hidden layer (0 = none) and share of
    features dropped in training (0 = off); how many such bodies stand side by side.

    `UserError`, which is a `ValueError`, where a value is unknown, of another type or too large.
    """

    backbone: str = "resnet18"
    attention: str = "none"
    hidden: int = 0
    dropout: float = 0.0
    bodies: int = 1

    def __post_init__(self) -> None:
        describe(self.backbone)
        if not isinstance(self.attention, str) or self.attention not in ATTENTIONS:
            known = ", ".join(ATTENTIONS)
            raise UserError(f"attention is {_said(self.attention)}; known: {known}")
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
        )
        return ", ".join(filter(None, parts))

    @property
    def is_plain(self) -> bool:
        """Tell whether it is the backbone and nothing else."""
        return self == Architecture(self.backbone)

    @property
    def width(self) -> int:
        """Give the number of features that the head gets."""
        return self.bodies * describe(self.backbone).num_features

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Give the channels of the maps of layer1 to layer4, of all bodies together."""
        return tuple(self.bodies * channels for channels in describe(self.backbone).map_channels)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Architecture:
        """Read what `to_dict` gave; `ValueError` says what makes no sense."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or not set(values) <= names:
            raise ValueError(f"is not a table of {', '.join(sorted(names))}")
        return cls(**values)

    def stored(self) -> dict[str, Any]:
        """Give a checkpoint's entries: of a plain network the backbone's name alone, as ever."""
        entries = {"backbone": self.backbone}
        return entries if self.is_plain else {**entries, "architecture": self.to_dict()}

    @classmethod
    def from_stored(cls, content: Mapping[str, Any]) -> Architecture:
        """Read a checkpoint's entries; without any, a plain ResNet-18 was meant. `ValueError` says
        what makes no sense. What other programs call "architecture" is left alone.
        """
        plain = cls(content.get("backbone", "resnet18"))
        if "architecture" not in content or "format" not in content:
            return plain
        try:
            found = cls.from_dict(content["architecture"])
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


def build_body(architecture: Architecture) -> nn.Module:
    """Build untrained bodies without a head: (B, 3, H, W) float -> (B, width)."""
    bodies = []
    for _ in range(architecture.bodies):
        bodies.append(build_one_body(architecture.backbone))
        if architecture.attention == "se":
            add_attention(bodies[-1])
    body: Any = MultiBody(bodies) if architecture.bodies > 1 else bodies[0]
    body.architecture = architecture
    return body


def build_classifier(architecture: Architecture, num_classes: int) -> nn.Module:
    """Build an untrained network: (B, 3, H, W) float -> (B, num_classes) logits."""
    network = build_body(architecture)
    is_one = architecture.bodies == 1
    place = describe(architecture.backbone).classifier if is_one else "head"
    setattr(network, place, build_head(architecture, num_classes))
    return network


def build_head(architecture: Architecture, num_outputs: int) -> nn.Module:
    """Build an untrained head: (B, width) features -> (B, num_outputs) logits."""
    width, hidden, dropout = architecture.width, architecture.hidden, architecture.dropout
    if not hidden and not dropout:
        return nn.Linear(width, num_outputs)
    if not hidden:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_outputs))
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, num_outputs),
    )
