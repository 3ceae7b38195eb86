"""The fast way: one resampling with the flip in it, then all colours as one matrix per image.

What differs from the exact way:

- Hue is a rotation of the RGB cube about its grey axis, by 360 degrees times the shift. It keeps
  the mean of the three channels where HSV keeps the largest: for a pure colour up to about 2.2
  times the shift in a channel, for grey nothing.
- Values are clamped to [0, 1] after brightness and at the end, not after contrast and saturation.
- An image that does not move while a neighbour does is resampled all the same: equal to 1e-5.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from petface.data.images import to_float
from petface.training.augment.regimes import AugmentParameters
from petface.training.augment.table import (
    BOX,
    GREY_WEIGHTS,
    INVERSE_AFFINE,
    STILL,
    has_crop,
    in_box,
    make_table,
    per_image,
    sampling_grid,
)

_SUB_BATCH_PIXELS: Final = 1 << 17  # on a CPU: what stays in the cache of one core


def augment_fast(
    images: Tensor, parameters: AugmentParameters, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Turn (B, 3, H, W) uint8 into (B, 3, H, W) `dtype` in [0, 1] on the same device, augmented.

    The arithmetic is float32 whatever `dtype` is. A batch without any change is exactly
    `images / 255`, and no image depends on its neighbours by more than rounding.
    """
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, images.shape
    num_images, _, height, width = images.shape
    assert len(parameters.flip) == num_images, (len(parameters.flip), num_images)
    table = make_table(parameters, height, width, with_flip=True)
    colours = colour_table(parameters)
    step = max(1, num_images)
    if images.device.type == "cpu":
        step = max(1, _SUB_BATCH_PIXELS // (height * width))
    output = torch.empty(images.shape, dtype=dtype, device=images.device)
    with torch.autocast(images.device.type, enabled=False):
        for start in range(0, num_images, step):
            part = slice(start, start + step)
            output[part] = _augment_part(images[part], table[part], colours[part])
    return output


def colour_table(p: AugmentParameters) -> Tensor:
    """Give (B, 11) float32 on the CPU: a 3 x 3 matrix, a share of the mean grey, a limit.

    A colour x in [0, 1] becomes matrix @ min(x, limit) + share * mean grey of min(image, limit).
    """
    brightness, contrast = p.brightness.double(), p.contrast.double()
    limit = 1 / brightness.clamp_min(1)  # what brightness takes to 1
    saturation, turn = p.saturation.double().view(-1, 1, 1), 2 * math.pi * p.hue.double()
    weights = torch.tensor(GREY_WEIGHTS).double()
    unit = torch.eye(3).double()
    saturate = saturation * unit + (1 - saturation) * weights.expand(3, 3)
    # Rotation about (1, 1, 1): Rodrigues' formula. A positive shift leads from red to green.
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]).double() / math.sqrt(3)
    cosine, sine = torch.cos(turn).view(-1, 1, 1), torch.sin(turn).view(-1, 1, 1)
    rotate = cosine * unit + sine * cross + (1 - cosine) / 3
    matrix = rotate @ saturate * (brightness * contrast).view(-1, 1, 1)
    # Rotating leaves grey alone; saturation shrinks it by the 0.0001 that the weights lack of 1.
    kept = saturation.flatten() + (1 - saturation.flatten()) * weights.sum()
    share = brightness * (1 - contrast) * kept
    return torch.cat((matrix.flatten(1), share[:, None], limit[:, None]), dim=1).float()


_LIMIT: Final = 10
_SAME_COLOUR: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0)


def _augment_part(images: Tensor, table: Tensor, colours: Tensor) -> Tensor:
    """Augment (B, 3, H, W) uint8 to float32; the tables stay on the CPU too: no waiting."""
    num_images, _, height, width = images.shape
    rows = table.to(images.device, non_blocking=True)
    is_moved = bool((table[:, INVERSE_AFFINE] != torch.tensor(STILL)).any())
    is_coloured = bool((colours != torch.tensor(_SAME_COLOUR)).any())
    if not is_moved and not is_coloured:
        x = to_float(images)
    else:
        x = images.to(torch.float32, memory_format=torch.contiguous_format)
        if is_moved:
            grid = sampling_grid(rows, height, width, has_crop=has_crop(table))
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if is_coloured:
            colours = colours.to(x.device, non_blocking=True)
            x = torch.minimum(x, per_image(colours, _LIMIT) * 255, out=x)
            matrix, offset = _in_pixels(x.mean((2, 3)), colours)
            flat = x.view(num_images, 3, -1)
            x = torch.baddbmm(offset.view(-1, 1, 1), matrix, flat).view_as(x).clamp_(0, 1)
        else:
            x.div_(255).clamp_(max=1)  # resampling can round to just above 255
    if (table[:, BOX.stop - 1] > 0).any():
        x.masked_fill_(in_box(rows[:, BOX], height, width), 0)
    return x


def _in_pixels(means: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Give (B, 3, 3) and (B,) that take values in 0..255 to 0..1; `means` (B, 3) are the image's.

    Written without a matrix product of the means: nothing here loses digits under TF32.
    """
    red, green, blue = GREY_WEIGHTS
    grey = means[:, 0] * red + means[:, 1] * green + means[:, 2] * blue
    return colours[:, :9].view(-1, 3, 3) / 255, colours[:, 9] * grey / 255
