"""Test-time augmentation: a photo is predicted in several views, and their logits are averaged."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from petface.devices import to_device
from petface.models.network import Answerer, Outputs

Views = Literal["none", "flip", "five"]
_CROP: Final = 7 / 8  # of each side, what a corner view of "five" shows


class AveragedViews:
    """A network of any engine that predicts each view.

    "flip": the photo and its mirror image, twice the work; "five": the photo, and each corner of it
    enlarged from 7/8 of the sides, five times the work. Every view counts the same.
    """

    def __init__(self, network: Answerer, views: Views) -> None:
        self.network, self.views = network, views
        self.preprocessing, self.temperatures = network.preprocessing, network.temperatures
        self.device = network.device

    def answer_pixels(self, pixels: Tensor) -> Outputs:
        """(B, size, size, 3) uint8 -> (B, K) float32 logits per head, on the device."""
        views = views_of(to_device(pixels, self.device), self.views)
        answers = [self.network.answer_pixels(view) for view in views]
        return tuple(torch.stack(heads).mean(dim=0) for heads in zip(*answers, strict=True))


def views_of(pixels: Tensor, views: Views) -> list[Tensor]:
    """Return the views of (B, H, W, 3) uint8, each of the same shape and type.

    The first is the photo itself.
    """
    if views == "flip":
        return [pixels, pixels.flip(2)]
    if views == "five":
        height, width = pixels.shape[1:3]
        rows, columns = round(height * _CROP), round(width * _CROP)
        places = [(y, x) for y in (0, height - rows) for x in (0, width - columns)]
        crops = [pixels[:, y : y + rows, x : x + columns] for y, x in places]
        return [pixels, *(_enlarged(crop, height, width) for crop in crops)]
    return [pixels]


def _enlarged(pixels: Tensor, height: int, width: int) -> Tensor:
    x = pixels.permute(0, 3, 1, 2).float()
    x = functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    return x.round().to(torch.uint8).permute(0, 2, 3, 1)
