"""Mix the images of a batch in pairs: mixup and CutMix.

Each image gets a partner from the same batch; one share, how much of the result is the image
itself, holds for the whole batch. A loss of the mixed images is share * loss(own labels) +
(1 - share) * loss(labels of the partners), whatever the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from petface.devices import to_device

MixKind = Literal["none", "mixup", "cutmix", "both"]


@dataclass(frozen=True)
class Mixing:
    """How often batches are mixed, and how: "both" takes either, a coin for each batch."""

    kind: MixKind = "none"
    probability: float = 0.0
    alpha: float = 1.0  # share ~ Beta(alpha, alpha)
    adapts: bool = False  # `after` changes the probability, up to what it is here

    def after(self, val_losses: Sequence[float]) -> Mixing:
        """Return how the next epoch is mixed: the more the network overfits, the more often.

        The probability begins at half of what it is here and goes up by a fifth of it after an
        epoch whose validation loss was not the lowest so far, down by a tenth after one whose was.
        """
        if not self.adapts:
            return self
        steps, lowest = 5, float("inf")  # in tenths
        for loss in val_losses:
            steps = max(steps - 1, 0) if loss < lowest else min(steps + 2, 10)
            lowest = min(lowest, loss) if loss == loss else lowest
        return replace(self, probability=self.probability * steps / 10)


@dataclass(frozen=True, eq=False)
class Mixed:
    """Mixed images (B, C, H, W), each image's partner (B,) int64 and the share of itself."""

    images: Tensor
    partner: Tensor
    share: float


def draw_mix(
    num: int, mixing: Mixing, generator: torch.Generator, device: torch.device
) -> partial[Mixed] | None:
    """Return what mixes (B, C, H, W) float images; None where the lot says that they stay.

    `generator` is on the CPU. All that it decides before the partners depends on its state alone,
    so processes that share a batch mix it alike, each within its own `num` images.
    """
    if mixing.kind == "none" or mixing.probability == 0:
        return None
    lot, coin = torch.rand(2, generator=generator).tolist()
    seed = int(torch.randint(1 << 62, (), generator=generator))  # torch's Beta takes no generator
    share = float(np.random.default_rng(seed).beta(mixing.alpha, mixing.alpha))
    centre = torch.rand(2, generator=generator).tolist()
    if lot >= mixing.probability:
        return None
    partner = to_device(torch.randperm(num, generator=generator), device)
    if mixing.kind == "mixup" or (mixing.kind == "both" and coin < 0.5):
        return partial(mixup, partner=partner, share=share)
    return partial(cutmix, partner=partner, wanted_share=share, centre=(centre[0], centre[1]))


def mixup(images: Tensor, partner: Tensor, share: float) -> Mixed:
    """Blend: share * own + (1 - share) * partner. Zhang et al., "mixup", arXiv 1710.09412."""
    return Mixed(torch.lerp(images[partner], images, share), partner, share)


def cutmix(
    images: Tensor, partner: Tensor, wanted_share: float, centre: tuple[float, float]
) -> Mixed:
    """Replace a rectangle by the same place of the partner.

    It has the image's shape, 1 - `wanted_share` of its area and its centre (y, x) at these
    fractions of the sides, and is cut at the border; the share that is given back counts the pixels
    that were kept. Yun et al., "CutMix", arXiv 1905.04899.
    """
    inside, area = [], 1.0
    for place, side in zip(centre, images.shape[2:], strict=True):
        half = (1 - wanted_share) ** 0.5 * side / 2
        begin = min(max(round(place * side - half), 0), side)
        end = min(max(round(place * side + half), 0), side)
        inside.append(slice(begin, end))
        area *= (end - begin) / side
    mixed = images.clone()
    mixed[:, :, inside[0], inside[1]] = images[partner, :, inside[0], inside[1]]
    return Mixed(mixed, partner, 1 - area)
