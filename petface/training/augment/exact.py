"""Augment a batch by torchvision's formulas (`transforms.v2.functional` on float tensors).

The order is fixed: flip, crop and affine (one bilinear resampling), brightness, contrast,
saturation, hue, blur, erasing. The device is told about each image in one float32 row of a table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from petface.data.images import to_float
from petface.devices import constant, to_device
from petface.training.augment.regimes import AugmentParameters

_SUB_BATCH_PIXELS: Final = 1 << 18  # on a CPU larger temporaries fall out of the cache
GREY_WEIGHTS: Final = (0.2989, 0.587, 0.114)  # torchvision's

# Columns of the table:
INVERSE_AFFINE = slice(0, 6)  # row by row, from output to input pixels, both from the centre
BRIGHTNESS, CONTRAST, SATURATION, HUE = 6, 7, 8, 9
BOX = slice(10, 14)  # left, top, right, bottom in pixels
CROPPED = 14  # 1 or 0
BLUR = 15
STILL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def augment(images: Tensor, parameters: AugmentParameters) -> Tensor:
    """Augment (B, 3, H, W) uint8 to (B, 3, H, W) float32 in [0, 1] on the same device.

    An image without any change is exactly `images / 255`, and no image depends on its neighbours.
    """
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, images.shape
    num_images, _, height, width = images.shape
    assert len(parameters.flip) == num_images, (len(parameters.flip), num_images)
    table = make_table(parameters, height, width)
    step = max(1, num_images)
    if images.device.type == "cpu":
        step = max(1, _SUB_BATCH_PIXELS // (height * width))
    output = torch.empty(images.shape, device=images.device)
    for start in range(0, num_images, step):
        part = slice(start, start + step)
        output[part] = _augment_part(images[part], parameters.flip[part], table[part])
    return output


def _augment_part(images: Tensor, flip: Tensor, table: Tensor) -> Tensor:
    """Augment (B, 3, H, W) uint8 to float32; `flip` and `table` stay on the CPU: no waiting."""
    rows = to_device(table, images.device)
    moved = (table[:, INVERSE_AFFINE] != torch.tensor(STILL)).any(dim=1)
    x = on_rows(images, rows, flip, lambda chosen, _: chosen.flip(-1))
    move = partial(_move, has_crop=bool(table[:, CROPPED].any()))
    x = on_rows(to_float(x), rows, moved, move)
    if moved.any() or (table[:, BRIGHTNESS] != 1).any():  # moving can round to just above 1
        x.mul_(per_image(rows, BRIGHTNESS)).clamp_(max=1)
    if (table[:, CONTRAST] != 1).any():
        _contrast(x, per_image(rows, CONTRAST))
    if (table[:, SATURATION] != 1).any():
        _saturate(x, per_image(rows, SATURATION))
    x = on_rows(x, rows, table[:, HUE] != 0, _shift_hue)
    x = on_rows(x, rows, table[:, BLUR] > 0, _blur)
    return on_rows(x, rows, table[:, BOX.stop - 1] > 0, _erase)


def _move(x: Tensor, rows: Tensor, *, has_crop: bool) -> Tensor:
    """Resample by the inverse affine, bilinear, black outside."""
    grid = sampling_grid(rows, *x.shape[2:], has_crop=has_crop)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _contrast(x: Tensor, factor: Tensor) -> None:
    """Blend with the mean grey of each image, in place."""
    mean_grey = (x.mean((2, 3)) * constant(GREY_WEIGHTS, x.device)).sum(1).view(-1, 1, 1, 1)
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
    return x.masked_fill_(in_box(rows[:, BOX], *x.shape[2:]), 0)


def make_table(p: AugmentParameters, height: int, width: int) -> Tensor:
    """Build the table of a batch from its parameters: (B, 16) float32 on the CPU.

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
        *(is_cropped, p.blur_px),
    )
    return torch.stack([column.float() for column in columns], dim=1)


def sampling_grid(rows: Tensor, height: int, width: int, *, has_crop: bool) -> Tensor:
    """Return the (B, H, W, 2) positions for `grid_sample`, x and y in -1..1.

    `rows` is the table on the device. Of a cropped image the outer half of a border pixel is that
    pixel, as when an image is enlarged; else it fades to black, as torchvision's affine does.
    """
    across = torch.arange(width, device=rows.device).sub((width - 1) / 2).view(1, 1, -1)
    down = torch.arange(height, device=rows.device).sub((height - 1) / 2).view(1, -1, 1)
    affine = rows[:, INVERSE_AFFINE].reshape(-1, 2, 3, 1, 1)
    # Not F.affine_grid: its matrix product loses whole tenths of a pixel under TF32 or autocast.
    grid = torch.empty((len(rows), height, width, 2), device=rows.device)
    for axis, side in ((0, width), (1, height)):
        a, b, c = (affine[:, axis] / (0.5 * side)).unbind(1)
        torch.add(a * across + c, b * down, out=grid[..., axis])
        if has_crop:
            border = (side - 1) / side  # the centre of the outermost pixel
            is_edge = (grid[..., axis].abs() <= 1) & (rows[:, CROPPED] > 0).view(-1, 1, 1)
            inside = grid[..., axis].clamp(-border, border)
            grid[..., axis] = torch.where(is_edge, inside, grid[..., axis])
    return grid


def on_rows(
    x: Tensor, rows: Tensor, chosen: Tensor, operation: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Apply `operation` to the `chosen` images alone: the others stay as they are, bit for bit."""
    if chosen.all():
        return operation(x, rows)
    if not chosen.any():
        return x
    index = to_device(chosen.nonzero().flatten(), x.device)
    return x.index_copy(0, index, operation(x.index_select(0, index), rows.index_select(0, index)))


def per_image(rows: Tensor, column: int) -> Tensor:
    """Return a column as (B, 1, 1, 1)."""
    return rows[:, column].view(-1, 1, 1, 1)


def in_box(box: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels have their centre in the box of their image: (B, 1, H, W) bool."""
    left, top, right, bottom = box.view(-1, 4, 1, 1).unbind(1)
    across = torch.arange(width, device=box.device).add(0.5).view(1, 1, -1)
    down = torch.arange(height, device=box.device).add(0.5).view(1, -1, 1)
    inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
    return inside.unsqueeze(1)
