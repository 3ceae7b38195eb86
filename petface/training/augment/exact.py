"""Augment a batch by torchvision's formulas (`transforms.v2.functional` on float tensors).

The order is fixed: flip, crop and affine (one bilinear resampling), brightness, contrast,
saturation, hue, blur, erasing. The device is told about each image in one float32 row of a table.
On a GPU torch's compiler makes a few kernels of all; elsewhere each operation is done to the images
alone that it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from petface.data.images import to_float
from petface.devices import Compiled, constant, to_device
from petface.training.augment.regimes import AugmentParameters

_SUB_BATCH_PIXELS: Final = 1 << 18  # on a CPU larger temporaries fall out of the cache
GREY_WEIGHTS: Final = (0.2989, 0.587, 0.114)  # torchvision's

# Columns of the table:
INVERSE_AFFINE = slice(0, 6)  # row by row, from output to input pixels, both from the centre
BRIGHTNESS, CONTRAST, SATURATION, HUE = 6, 7, 8, 9
BOX = slice(10, 14)  # left, top, right, bottom in pixels
CROPPED, FLIPPED = 14, 15  # 1 or 0
BLUR = 16
STILL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

Operation = Callable[[Tensor, Tensor], Tensor]  # of images and their rows
Finish = Callable[[Tensor], Tensor]  # of images


def augment(images: Tensor, parameters: AugmentParameters, finish: Finish = Tensor.float) -> Tensor:
    """Augment (B, 3, H, W) uint8 to (B, 3, H, W) float32 in [0, 1] on the same device.

    An image without any change is exactly `images / 255`, and no image depends on its neighbours.
    `finish` is then done to the images, such as normalising them.
    """
    height, width = images.shape[2:]
    return augment_by(Table.of(parameters, height, width, images.device), images, finish)


@dataclass(frozen=True, eq=False)
class Table:
    """What is done to each image: (B, 17) float32, on the CPU and on the device of the images."""

    known: Tensor
    rows: Tensor
    has_blur: bool

    @classmethod
    def of(cls, p: AugmentParameters, height: int, width: int, device: torch.device) -> Table:
        """Build the table of a batch from its parameters and upload it.

        The affine takes a position of the output to the flipped image.
        """
        angle = torch.deg2rad(p.angle_deg.double())
        cosine, sine = torch.cos(angle) / p.scale, torch.sin(angle) / p.scale
        x, y = p.translate_x_frac.double() * width, p.translate_y_frac.double() * height
        left, top, right, bottom = p.crop_box_frac.double().unbind(1)
        # A crop enlarges its box to the whole: what moves afterwards moves in pixels of the output.
        lean = torch.tan(torch.deg2rad(p.shear_deg.double()))
        a, b = cosine - sine * lean, sine + cosine * lean
        zoom_x, zoom_y = right - left, bottom - top
        across, down = (left + right - 1) / 2 * width, (top + bottom - 1) / 2 * height
        affine = (
            zoom_x * a,
            zoom_x * b,
            zoom_x * (-a * x - b * y) + across,
            zoom_y * -sine,
            zoom_y * cosine,
            zoom_y * (sine * x - cosine * y) + down,
        )
        box = p.erase_box_frac * torch.tensor([width, height, width, height])
        is_cropped = (zoom_x != 1) | (zoom_y != 1)
        columns = (
            *affine,
            *(p.brightness, p.contrast, p.saturation, p.hue),
            *box.unbind(1),
            *(is_cropped, p.flip, p.blur_px),
        )
        known = torch.stack([column.float() for column in columns], dim=1)
        return cls(known, to_device(known, device), bool(known[:, BLUR].any()))


def augment_by(by: Table, images: Tensor, finish: Finish) -> Tensor:
    """Augment images by a table, as `augment` does."""
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, images.shape
    num_images, _, height, width = images.shape
    table, rows = by.known, by.rows
    assert len(rows) == num_images, (len(rows), num_images)
    if images.device.type == "cuda":
        return _on_gpu(images, rows, finish, by.has_blur)
    step = max(1, num_images)
    if images.device.type == "cpu":
        step = max(1, _SUB_BATCH_PIXELS // (height * width))
    output = finish(images[:0].float()).new_empty(images.shape)
    for start in range(0, num_images, step):
        part = slice(start, start + step)
        output[part] = finish(_augment_part(images[part], rows[part], table[part]))
    return output


@Compiled
def _on_gpu(images: Tensor, rows: Tensor, finish: Finish, has_blur: bool) -> Tensor:
    x = finish(_augment_part(images, rows, has_blur=has_blur))
    return x.contiguous(memory_format=torch.channels_last)


def _augment_part(
    images: Tensor, rows: Tensor, table: Tensor | None = None, *, has_blur: bool = True
) -> Tensor:
    """Augment (B, 3, H, W) uint8 to float32.

    `table`, the rows on the CPU, tells without waiting which images an operation changes. Without
    it each is done to all, at fixed shapes, and taken where the row says so.
    """
    known = rows if table is None else table

    def on_rows(x: Tensor, chosen: Tensor, operation: Operation) -> Tensor:
        if table is None:
            return torch.where(chosen.view(-1, 1, 1, 1), operation(x.clone(), rows), x)
        if chosen.all():
            return operation(x, rows)
        if not chosen.any():
            return x
        index = to_device(chosen.nonzero().flatten(), x.device)
        changed = operation(x.index_select(0, index), rows.index_select(0, index))
        return x.index_copy(0, index, changed)

    x = on_rows(images, known[:, FLIPPED] > 0, lambda flipped, _: flipped.flip(-1))
    moved = (known[:, INVERSE_AFFINE] != constant(STILL, known.device)).any(dim=1)
    move = partial(_move, has_crop=table is None or bool(table[:, CROPPED].any()))
    x = on_rows(to_float(x), moved, move)
    x = on_rows(x, moved | (known[:, BRIGHTNESS] != 1), _brighten)  # moving can round to above 1
    x = on_rows(x, known[:, CONTRAST] != 1, _contrast)
    x = on_rows(x, known[:, SATURATION] != 1, _saturate)
    x = on_rows(x, known[:, HUE] != 0, _shift_hue)
    if has_blur:
        x = on_rows(x, known[:, BLUR] > 0, _blur)
    return on_rows(x, known[:, BOX.stop - 1] > 0, _erase)


def _move(x: Tensor, rows: Tensor, *, has_crop: bool) -> Tensor:
    """Resample by the inverse affine, bilinear, black outside.

    Of a cropped image the outer half of a border pixel is that pixel, as when an image is enlarged;
    else it fades to black, as torchvision's affine does.
    """
    height, width = x.shape[2:]
    across = torch.arange(width, device=x.device).sub((width - 1) / 2).view(1, 1, -1)
    down = torch.arange(height, device=x.device).sub((height - 1) / 2).view(1, -1, 1)
    affine = rows[:, INVERSE_AFFINE].reshape(-1, 2, 3, 1, 1)
    # Not F.affine_grid: its matrix product loses whole tenths of a pixel under TF32 or autocast.
    places = []
    for axis, side in ((0, width), (1, height)):
        a, b, c = (affine[:, axis] / (0.5 * side)).unbind(1)
        place = (a * across).add_(c) + b * down
        if has_crop:
            border = (side - 1) / side  # the centre of the outermost pixel
            is_edge = (place.abs() <= 1) & (rows[:, CROPPED, None, None] > 0)
            place = torch.where(is_edge, place.clamp(-border, border), place)
        places.append(place)
    if torch.compiler.is_compiling():  # no writes through views: they cost kernels
        grid = torch.stack(places, dim=1).permute(0, 2, 3, 1)
    else:  # `grid_sample` reads it faster on a CPU where x and y are neighbours
        grid = x.new_empty(len(x), height, width, 2)
        grid[..., 0], grid[..., 1] = places
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _brighten(x: Tensor, rows: Tensor) -> Tensor:
    return x.mul_(rows[:, BRIGHTNESS, None, None, None]).clamp_(max=1)


def _contrast(x: Tensor, rows: Tensor) -> Tensor:
    """Blend with the mean grey of each image, in place."""
    factor = rows[:, CONTRAST, None, None, None]
    mean_grey = (x.mean((2, 3)) * constant(GREY_WEIGHTS, x.device)).sum(1).view(-1, 1, 1, 1)
    return x.mul_(factor).add_(mean_grey * (1 - factor)).clamp_(0, 1)


def _saturate(x: Tensor, rows: Tensor) -> Tensor:
    """Blend with the grey of each pixel, in place."""
    factor = rows[:, SATURATION, None, None, None]
    red, green, blue = x.split(1, dim=1)
    grey = (red * GREY_WEIGHTS[0]).add_(green, alpha=GREY_WEIGHTS[1])
    grey.add_(blue, alpha=GREY_WEIGHTS[2]).mul_(1 - factor)
    return x.mul_(factor).add_(grey).clamp_(0, 1)


def _shift_hue(x: Tensor, rows: Tensor) -> Tensor:
    """Turn the hue, value and saturation kept: HSV without a comparison.

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
    hue.add_(rows[:, HUE, None, None], alpha=6)
    hue.sub_((hue / 6).round_(), alpha=6)  # back into -3..3
    shares = 2 - hue.abs(), (hue + 1).abs_().sub_(1), (hue - 1).abs_().sub_(1)
    return torch.stack([torch.addcmul(low, chroma, s.clamp_(0, 1)) for s in shares], dim=1)


def _blur(x: Tensor, rows: Tensor) -> Tensor:
    """Blur each image by its Gaussian of 9 x 9 pixels, mirrored at the border."""
    weights = (torch.arange(-4, 5, device=x.device) / rows[:, BLUR, None]).square().div(-2).exp()
    kernels = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, dim=0)  # (3 B, 9)
    planes = F.pad(x, (4, 4, 4, 4), mode="reflect").flatten(0, 1)[None]  # (1, 3 B, H + 8, W + 8)
    for shape in ((-1, 1, 1, 9), (-1, 1, 9, 1)):
        planes = F.conv2d(planes, kernels.view(shape), groups=len(kernels))
    return planes.view_as(x)


def _erase(x: Tensor, rows: Tensor) -> Tensor:
    """Blacken the pixels whose centre lies in the box, in place."""
    left, top, right, bottom = rows[:, BOX].reshape(-1, 4, 1, 1, 1).unbind(1)
    across = torch.arange(x.shape[3], device=x.device).add(0.5)
    down = torch.arange(x.shape[2], device=x.device).add(0.5).view(-1, 1)
    inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
    return x.masked_fill_(inside, 0)
