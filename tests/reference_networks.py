"""Networks built from torchvision alone, and the ways in which specialists were ever stored."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

Heads = dict[str, tuple[Tensor, Tensor]]  # head -> weight (K, 512), bias (K,)


@functools.cache
def resnet18_body() -> dict[str, Tensor]:
    """Weights of a ResNet-18 without `fc`, BatchNorm statistics included, none of them a default.

    Drawn here: the initialisation of the network would cost more than all else.
    """
    draw = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in torchvision.models.resnet18().state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif tensor.dim() == 4:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=draw) * (2 / fan_in) ** 0.5
        else:
            state[name] = torch.rand(tensor.shape, generator=draw) * 0.4 + 0.8
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def linear_heads(**sizes: int) -> Heads:
    """Draw a linear head per name, each different."""
    draw = torch.Generator().manual_seed(2)
    return {
        head: (
            torch.randn(size, 512, generator=draw) * 0.05,
            torch.randn(size, generator=draw),
        )
        for head, size in sizes.items()
    }


def reference_logits(images: Tensor, heads: Heads) -> dict[str, Tensor]:
    """(B, 3, H, W) float -> logits per head, by one ResNet-18 with all heads as `fc`."""
    network = torchvision.models.resnet18()
    network.fc = torch.nn.Linear(512, sum(len(bias) for _, bias in heads.values()))
    weight, bias = (torch.cat(parts) for parts in zip(*heads.values(), strict=True))
    network.load_state_dict({**resnet18_body(), "fc.weight": weight, "fc.bias": bias})
    with torch.inference_mode():
        outputs = network.eval()(images)
    return dict(zip(heads, outputs.split([len(b) for _, b in heads.values()], dim=1), strict=True))


def stored(heads: Heads, body: str = "body.", head: str = "heads.{}.") -> dict[str, Tensor]:
    """A state dictionary with a prefix for the body and a pattern for the heads.

    With `body` ending in "#" the body is an `nn.Sequential` of ResNet-18's children.
    """
    children = [name for name, _ in torchvision.models.resnet18().named_children()]
    state = {}
    for name, tensor in resnet18_body().items():
        first, _, rest = name.partition(".")
        if body.endswith("#"):
            name = f"{children.index(first)}.{rest}"
        state[body.removesuffix("#") + name] = tensor
    for name, (weight, bias) in heads.items():
        state[head.format(name) + "weight"] = weight
        state[head.format(name) + "bias"] = bias
    return state


def data_parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that `nn.DataParallel` gives."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


def classifier(num_classes: int, favourite: int) -> dict[str, Tensor]:
    """A ResNet-18 classifier that answers `favourite` for whatever it is shown."""
    ((weight, bias),) = linear_heads(fc=num_classes).values()
    bias[favourite] += 20
    return {**resnet18_body(), "fc.weight": weight, "fc.bias": bias}


def write(path: Path, content: Mapping[str, Any]) -> Path:
    """Store a checkpoint as other programs did, with plain `torch.save`."""
    torch.save(dict(content), path)
    return path
