"""One body or several, several heads: the specialist of stage 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from petface.models.architecture import (
    HEAD_PREFIXES,
    PLAIN,
    Architecture,
    build_body,
    build_head,
    stage_of,
)


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

    `model` is a specialist or what `architecture.build_classifier` gives. `stages` holds names of
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
