"""What the device is told about each image: one float32 row, and what both ways make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from petface.training.augment.regimes import AugmentParameters

GREY_WEIGHTS: Final = (0.2989, 0.587, 0.114)  # torchvision's

# Columns of the table:
INVERSE_AFFINE = slice(0, 6)  # row by row, from output to input pixels, both from the centre
BRIGHTNESS, CONTRAST, SATURATION, HUE = 6, 7, 8, 9
BOX = slice(10, 14)  # left, top, right, bottom in pixels
CROPPED = 14  # 1 or 0
STILL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def make_table(p: AugmentParameters, height: int, width: int, *, with_flip: bool = False) -> Tensor:
    """Put the parameters of a batch into one (B, 15) float32 table on the CPU.

    The affine takes a position of the output to the flipped image, to the image itself under
    `with_flip`.
    """
    angle = torch.deg2rad(p.angle_deg.double())
    cosine, sine = torch.cos(angle) / p.scale, torch.sin(angle) / p.scale
    x, y = p.translate_x_frac.double() * width, p.translate_y_frac.double() * height
    left, top, right, bottom = p.crop_box_frac.double().unbind(1)
    # A crop enlarges its box to the whole: what moves afterwards moves in pixels of the output.
    zoom_x, zoom_y = right - left, bottom - top
    across, down = (left + right - 1) / 2 * width, (top + bottom - 1) / 2 * height
    mirror = 1 - 2 * p.flip.double() if with_flip else torch.ones(len(p.flip)).double()
    affine = (
        mirror * (zoom_x * cosine),
        mirror * (zoom_x * sine),
        mirror * (zoom_x * (-cosine * x - sine * y) + across),
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
        is_cropped,
    )
    return torch.stack([column.float() for column in columns], dim=1)


def has_crop(table: Tensor) -> bool:
    """Tell from a table on the CPU whether any image is cropped."""
    return bool(table[:, CROPPED].any())


def sampling_grid(rows: Tensor, height: int, width: int, *, has_crop: bool) -> Tensor:
    """Give the (B, H, W, 2) positions for `grid_sample`, x and y in -1..1.

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
    index = chosen.nonzero().flatten().to(x.device, non_blocking=True)
    return x.index_copy(0, index, operation(x.index_select(0, index), rows.index_select(0, index)))


def per_image(rows: Tensor, column: int) -> Tensor:
    """Give a column as (B, 1, 1, 1)."""
    return rows[:, column].view(-1, 1, 1, 1)


def in_box(box: Tensor, height: int, width: int) -> Tensor:
    """Tell which pixels have their centre in the box of their image: (B, 1, H, W) bool."""
    left, top, right, bottom = box.view(-1, 4, 1, 1).unbind(1)
    across = torch.arange(width, device=box.device).add(0.5).view(1, 1, -1)
    down = torch.arange(height, device=box.device).add(0.5).view(1, -1, 1)
    inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
    return inside.unsqueeze(1)
