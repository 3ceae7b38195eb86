"""Convolutional bodies by name, where their stages begin, and where their first weights come
from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from petface.data.images import STATISTICS, Preprocessing
from petface.errors import SettingsError, UserError, does_not_load
from petface.files import network_patience

try:
    import torchvision
    from torchvision.ops import SqueezeExcitation
except Exception as error:  # one that was built for another torch raises whatever comes first
    raise does_not_load("torchvision", error) from error

STAGE_NAMES: Final = ("stem", "layer1", "layer2", "layer3", "layer4")
TIMM: Final = "timm/"  # what the names of the package timm begin with here
REDUCTION: Final = 16  # of the channels, between the two layers of squeeze-excitation
_OPEN: Final = 3.0  # sigmoid(3) = 0.95


@dataclass(frozen=True)
class Backbone:
    """A torchvision architecture: width of its pooled features, its classifier, its five stages.

    A ResNet has its stages by name. Others are a row of blocks, `features`, and `first_blocks` are
    the numbers of those that layer1 to layer4 begin with: the sides of their maps are a 4th, 8th,
    16th and 32nd of the image's. `map_channels` are those of what layer1 to layer4 give out.
    `made_for` is the input of its published weights.
    """

    num_features: int
    classifier: str
    map_channels: tuple[int, ...]
    first_blocks: tuple[int, ...] = ()
    made_for: Preprocessing = Preprocessing(224, "stretch", *STATISTICS["imagenet"])
    is_size_fixed: bool = False


BACKBONES: Final[Mapping[str, Backbone]] = {
    "resnet18": Backbone(512, "fc", (64, 128, 256, 512)),
    "resnet34": Backbone(512, "fc", (64, 128, 256, 512)),
    "resnet50": Backbone(2048, "fc", (256, 512, 1024, 2048)),
    "efficientnet_b0": Backbone(1280, "classifier", (24, 40, 112, 1280), (2, 3, 4, 6)),
    "mobilenet_v3_small": Backbone(576, "classifier", (16, 24, 48, 576), (1, 2, 4, 9)),
    "mobilenet_v2": Backbone(1280, "classifier", (24, 32, 96, 1280), (2, 4, 7, 14)),
}


def describe(name: str) -> Backbone:
    """Look a backbone up by name; an unknown one is refused with the list."""
    if isinstance(name, str) and name.startswith(TIMM):
        return timm_part().describe(name)
    if not isinstance(name, str) or name not in BACKBONES:
        known = f"{', '.join(BACKBONES)}, {TIMM}<name>"
        raise UserError(f"unknown backbone {name!r:.60}; known: {known}")
    return BACKBONES[name]


def timm_part() -> Any:
    """Import what knows the backbones of timm, which stands on this module."""
    from petface.models import timm_backbones

    return timm_backbones


def input_rule(name: str, size_px: int, resize: str, normalize: str) -> Preprocessing:
    """Build the preprocessing of a network: size 0 and "backbone" are what its weights know."""
    backbone = describe(name)
    own = backbone.made_for
    if backbone.is_size_fixed and size_px not in (0, own.size_px):
        raise SettingsError(f"{name} takes {own.size_px} px alone: set IMAGE_SIZE_PX = 0")
    numbers = (own.mean, own.std) if normalize == "backbone" else STATISTICS[normalize]
    return Preprocessing(size_px or own.size_px, resize, *numbers)


def build_body(name: str) -> nn.Module:
    """Build an untrained body without classifier: (B, 3, H, W) float -> (B, num_features).

    Its names are torchvision's; `backbone` is its own name.
    """
    backbone = describe(name)
    if name.startswith(TIMM):
        return timm_part().TimmBody(name)
    network: Any = getattr(torchvision.models, name)(weights=None)
    setattr(network, backbone.classifier, nn.Identity())
    network.backbone = name
    return network


def add_attention(body: Any) -> None:
    """Append squeeze-excitation to the last stage, in place: it weighs the channels of the map that
    is pooled.

    Hu et al. 2018, arXiv 1709.01507, section 3. All channels begin with the same weight,
    sigmoid(3) = 0.95, so that trained weights in front of it answer as before but for the scale.
    """
    if body.backbone.startswith(TIMM):
        raise UserError(f'{body.backbone} takes no attention: set ATTENTION = "none"')
    backbone = describe(body.backbone)
    channels = backbone.map_channels[-1]
    block = SqueezeExcitation(channels, channels // REDUCTION)
    nn.init.zeros_(block.fc2.weight)
    nn.init.constant_(block.fc2.bias, _OPEN)
    (body.features if backbone.first_blocks else body.layer4).append(block)


class AverageAndMaximum(nn.Sequential):
    """Blocks, if any, and a pooling: (B, C, H, W) -> (B, 2 C, 1, 1), the averages first."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool what the blocks give."""
        x = super().forward(x)
        return torch.cat([functional.adaptive_avg_pool2d(x, 1), x.amax((2, 3), keepdim=True)], 1)


def pool_both(body: Any) -> None:
    """Let a body give the maximum of each map beside its average, in place."""
    if body.backbone.startswith(TIMM):
        raise UserError(f'{body.backbone} pools in its own way: set POOLING = "average"')
    if not hasattr(body, "avgpool"):  # MobileNetV2 averages in its `forward`: of 1 x 1 it is this
        body.features = AverageAndMaximum(*body.features)
    body.avgpool = AverageAndMaximum()


def fill_body(network: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Load a body or whole network's state into the body of `network`.

    Its classifier is left alone, and so is its attention where the state has none.

    `RuntimeError` where another tensor of the body is missing, unknown or of another shape.
    """
    prefix = describe(name).classifier + "."
    body = {key: value for key, value in state.items() if not key.startswith(prefix)}
    lacking, unexpected = network.load_state_dict(body, strict=False)
    missing = [key for key in lacking if not key.startswith(prefix)]
    for end, module in network.named_modules():  # a backbone's own stand within blocks
        if isinstance(module, SqueezeExcitation) and end.count(".") == 1:
            attention = {f"{end}.{key}" for key in module.state_dict()}
            if attention <= set(missing):
                missing = [key for key in missing if key not in attention]
    if missing or unexpected:
        raise RuntimeError(f"missing {missing[:3]}, unknown {unexpected[:3]}")


def forward_with_maps(network: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return `network(x)` of (B, 3, H, W) float and, from the same pass, the maps of its stages.

    The maps are those of layer1 to layer4, each (B, C, H', W').
    `network` is one body, with a classifier or without. Written out, because hooks on a shared
    network would mix up the passes of two threads.
    """
    backbone = describe(network.backbone)
    maps: list[Tensor] = []
    if network.backbone.startswith(TIMM):
        raise UserError(f"this is not done with {network.backbone}: take a backbone of torchvision")
    if backbone.first_blocks:
        ends = [*(first - 1 for first in backbone.first_blocks[1:]), len(network.features) - 1]
        for number, block in enumerate(network.features):
            x = block(x)
            if number in ends:
                maps.append(x)
    else:
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = stage(x)
            maps.append(x)
    pooled = getattr(network, "avgpool", nn.AdaptiveAvgPool2d(1))(x).flatten(1)
    return getattr(network, backbone.classifier)(pooled), tuple(maps)


def stage_of(name: str, parameter: str) -> str:
    """Return which stage a body parameter belongs to; every parameter is in exactly one."""
    if name.startswith(TIMM):
        return timm_part().stages(name)[parameter]
    first, _, rest = parameter.partition(".")
    blocks = describe(name).first_blocks
    if blocks and first == "features":
        return STAGE_NAMES[bisect_right(blocks, int(rest.partition(".")[0]))]
    stage = "stem" if first in ("conv1", "bn1") else first
    assert not blocks and stage in STAGE_NAMES, f"{name}: parameter {parameter} is in no stage"
    return stage


def stage_end(body: Any, stage: str) -> nn.Module:
    """Find the module whose output is that of a stage; `UserError` where a body has no stages."""
    if getattr(body, "backbone", "").startswith(TIMM):
        return timm_part().stage_end(body, stage)
    blocks = describe(body.backbone).first_blocks if hasattr(body, "backbone") else ()
    if blocks:
        ends = [*(first - 1 for first in blocks), len(body.features) - 1]
        return body.features[ends[STAGE_NAMES.index(stage)]]
    module: nn.Module | None = getattr(body, "bn1" if stage == "stem" else stage, None)
    if module is None:
        raise UserError(f"knows no {type(body).__name__}; known: {', '.join(BACKBONES)}")
    return module


def load_torchvision_weights(body: nn.Module, name: str, policy: str) -> str:
    """Fill `body` in place with ImageNet weights, downloaded once; return their name.

    They are torchvision's, or for a backbone of timm its hub's. Where they cannot be had, `policy`
    "require" raises `UserError`; "auto" leaves the random weights, and the returned text names it.
    """
    try:
        with network_patience(20.0):
            if name.startswith(TIMM):
                origin, state = timm_part().hub_weights(name)
            else:
                enum = torchvision.models.get_model_weights(name).DEFAULT
                origin = f"torchvision {enum}"
                state = enum.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        if policy == "require":
            raise UserError(
                f"ImageNet weights for {name} could not be had ({error}); "
                'set PRETRAINED = "auto" to go on without, or WEIGHTS to a local file'
            ) from error
        return f"random (ImageNet weights for {name} could not be had: {error})"
    fill_body(body, name, state)
    return origin
