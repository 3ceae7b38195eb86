"""One body, several linear heads: the specialist of stage 2."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from petface.models import backbones


class _MultiHeadModel(nn.Module):
    """A pooled body and one `Linear` per head; heads without a class are not built.

    `head_sizes` maps head names to their number of classes; its order is the order of the outputs.
    """

    def __init__(self, head_sizes: Mapping[str, int], backbone: str = "resnet18") -> None:
        super().__init__()
        self.backbone = backbone
        self.body = backbones.build_body(backbone)
        width = backbones.describe(backbone).num_features
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, size) for name, size in head_sizes.items() if size > 0}
        )
        self.head_names: tuple[str, ...] = tuple(self.heads)
        assert self.head_names, "a specialist needs at least one head with classes"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float -> one (B, K_head) tensor of logits per head, in `head_names`
        order.
        """
        features = self.body(images)  # (B, num_features)
        return tuple(self.heads[name](features) for name in self.head_names)


class ChinchillaMultiHeadResNet18(_MultiHeadModel):
    """What a checkpoint of the newer layouts (vocabularies stored with the weights) becomes."""


class GenericMultiHeadResNet18(_MultiHeadModel):
    """What a legacy checkpoint (flat `head_*` weights, no vocabulary) becomes."""


def unfreeze(model: _MultiHeadModel, stages: tuple[str, ...]) -> list[nn.Parameter]:
    """Make the heads and the named body stages trainable and everything else not; return the
    former.

    `stages` holds names of `backbones.STAGE_NAMES`, or "all" for the whole body.
    """
    trainable = []
    for name, parameter in model.named_parameters():
        stage = "heads"
        if name.startswith("body."):
            stage = backbones.stage_of(model.backbone, name.removeprefix("body."))
        parameter.requires_grad_(stage == "heads" or stage in stages or "all" in stages)
        if parameter.requires_grad:
            trainable.append(parameter)
    return trainable


def train_mode(model: nn.Module, freeze_batchnorm: bool = False) -> None:
    """Set train mode, except for BatchNorm with frozen parameters: its statistics stay as they
    are.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parameters = list(module.parameters())
            learns = not parameters or any(p.requires_grad for p in parameters)
            module.train(learns and not freeze_batchnorm)
