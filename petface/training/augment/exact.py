"""The exact way: torchvision's formulas (`transforms.v2.functional` on float tensors), batched.

The order is fixed: flip, crop and affine (one bilinear resampling), brightness, contrast,
saturation, hue, erasing.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from petface.data.images import to_float
from petface.training.augment.regimes import AugmentParameters
from petface.training.augment.table import (
    BOX,
    BRIGHTNESS,
    CONTRAST,
    GREY_WEIGHTS,
    HUE,
    INVERSE_AFFINE,
    SATURATION,
    STILL,
    has_crop,
    in_box,
    make_table,
    on_rows,
    per_image,
    sampling_grid,
)

_SUB_BATCH_PIXELS: Final = 1 << 18  # on a CPU larger temporaries fall out of the cache


def augment(
    images: Tensor, parameters: AugmentParameters, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Turn (B, 3, H, W) uint8 into (B, 3, H, W) `dtype` in [0, 1] on the same device, augmented.

    The arithmetic is float32 whatever `dtype` is. An image without any change is exactly
    `images / 255`, and no image depends on its neighbours.
    """
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, images.shape
    num_images, _, height, width = images.shape
    assert len(parameters.flip) == num_images, (len(parameters.flip), num_images)
    table = make_table(parameters, height, width)
    step = max(1, num_images)
    if images.device.type == "cpu":
        step = max(1, _SUB_BATCH_PIXELS // (height * width))
    output = torch.empty(images.shape, dtype=dtype, device=images.device)
    for start in range(0, num_images, step):
        part = slice(start, start + step)
        output[part] = _augment_part(images[part], parameters.flip[part], table[part])
    return output


def _augment_part(images: Tensor, flip: Tensor, table: Tensor) -> Tensor:
    """Augment (B, 3, H, W) uint8 to float32; `flip` and `table` stay on the CPU: no waiting."""
    rows = table.to(images.device, non_blocking=True)
    moved = (table[:, INVERSE_AFFINE] != torch.tensor(STILL)).any(dim=1)
    x = on_rows(images, rows, flip, lambda chosen, _: chosen.flip(-1))
    move = partial(_move, has_crop=has_crop(table))
    x = on_rows(to_float(x), rows, moved, move)
    if moved.any() or (table[:, BRIGHTNESS] != 1).any():  # moving can round to just above 1
        x.mul_(per_image(rows, BRIGHTNESS)).clamp_(max=1)
    if (table[:, CONTRAST] != 1).any():
        _contrast(x, per_image(rows, CONTRAST))
    if (table[:, SATURATION] != 1).any():
        _saturate(x, per_image(rows, SATURATION))
    x = on_rows(x, rows, table[:, HUE] != 0, _shift_hue)
    return on_rows(x, rows, table[:, BOX.stop - 1] > 0, _erase)


def _move(x: Tensor, rows: Tensor, *, has_crop: bool) -> Tensor:
    """Resample by the inverse affine, bilinear, black outside."""
    grid = sampling_grid(rows, *x.shape[2:], has_crop=has_crop)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _contrast(x: Tensor, factor: Tensor) -> None:
    """Blend with the mean grey of each image, in place."""
    weights = torch.tensor(GREY_WEIGHTS).to(x.device, non_blocking=True)
    mean_grey = (x.mean((2, 3)) * weights).sum(1).view(-1, 1, 1, 1)
    x.mul_(factor).add_(mean_grey * (1 - factor)).clamp_(0, 1)


def _saturate(x: Tensor, factor: Tensor) -> None:
    """Blend with the grey of each pixel, in place."""
    red, green, blue = x.split(1, dim=1)
    grey = (red * GREY_WEIGHTS[0]).add_(green, alpha=GREY_WEIGHTS[1])
    grey.add_(blue, alpha=GREY_WEIGHTS[2]).mul_(1 - factor)
    x.mul_(factor).add_(grey).clamp_(0, 1)


def _shift_hue(x: Tensor, rows: Tensor) -> Tensor:
    """Turn the hue, value and saturation kept, in place: HSV without a comparison.

    Masks and `where` cost several times plain arithmetic on a CPU. With hue in sixths of a turn,
    signed from red, |hue| * chroma = chroma + max(g, b) - r + max(0, min(g, b) - r), its sign is
    that of g - b, and each channel is the minimum plus chroma times a trapezoid of the hue.
    """
    red, green, blue = x.unbind(1)
    larger, smaller = torch.maximum(green, blue), torch.minimum(green, blue)
    low = torch.minimum(smaller, red)
    chroma = torch.maximum(larger, red).sub_(low)
    hue = larger.sub_(red).add_(chroma).add_(smaller.sub_(red).clamp_(min=0))
    hue.div_(chroma.clamp(min=1e-12)).copysign_(green - blue)
    hue.add_(rows[:, HUE].view(-1, 1, 1), alpha=6)
    hue.sub_((hue / 6).round_(), alpha=6)  # back into -3..3
    torch.addcmul(low, chroma, hue.abs().neg_().add_(2).clamp_(0, 1), out=red)
    torch.addcmul(low, chroma, (hue + 1).abs_().sub_(1).clamp_(0, 1), out=green)
    torch.addcmul(low, chroma, (hue - 1).abs_().sub_(1).clamp_(0, 1), out=blue)
    return x


def _erase(x: Tensor, rows: Tensor) -> Tensor:
    """Blacken the pixels whose centre lies in the box, in place."""
    return x.masked_fill_(in_box(rows[:, BOX], *x.shape[2:]), 0)
