"""Small changes to photos that leave the animal what it is: does the network's answer stay, too?

Every function takes and gives (B, 3, S, S) uint8 of any device, and is deterministic. Lengths are
shares of the side S, rounded to whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DIRECTIONS: Final = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Probe(NamedTuple):
    """One change; probes of one `group` ask the same question."""

    name: str
    group: str
    apply: Callable[[Tensor], Tensor]


def all_probes() -> list[Probe]:
    """List the probes: alignment (shift, scale, rotation), border, centre, mirror, colour."""
    found = []
    for fill, reflect in (("black", False), ("reflected", True)):
        for frac in (0.05, 0.10, 0.20):
            for name, (rows, columns) in DIRECTIONS.items():
                move = partial(shift, down_frac=rows * frac, right_frac=columns * frac)
                found.append(
                    Probe(f"{name} {frac:.0%}", f"shift, {fill}", partial(move, reflect=reflect))
                )
    for fill, reflect in (("black", False), ("reflected", True)):
        for factor in (0.8, 0.9):
            change = partial(turn_and_scale, factor=factor, reflect=reflect)
            found.append(Probe(f"x {factor}, {fill}", "scale", change))
    for factor in (1.1, 1.25):
        found.append(Probe(f"x {factor}", "scale", partial(turn_and_scale, factor=factor)))
    for fill, reflect in (("black", False), ("reflected", True)):
        for degrees in (-10, 10):
            change = partial(turn_and_scale, degrees=degrees, reflect=reflect)
            found.append(Probe(f"{degrees:+d} degrees, {fill}", "rotation", change))
    for frac in (0.05, 0.10, 0.15):
        found.append(Probe(f"outer {frac:.0%} black", "border", partial(mask_border, frac=frac)))
    for frac in (0.05, 0.10, 0.15):
        change = partial(mask_border, frac=frac, mean_colour=True)
        found.append(Probe(f"outer {frac:.0%} mean colour", "border", change))
    found.append(Probe("inner 50% black", "centre (control)", partial(mask_centre, frac=0.5)))
    found.append(Probe("mirrored", "mirror and colour", flip))
    found.append(Probe("grey", "mirror and colour", grey))
    return [Probe(p.name.replace("%", " %"), p.group, p.apply) for p in found]


def shift(
    photos: Tensor, *, down_frac: float = 0.0, right_frac: float = 0.0, reflect: bool = False
) -> Tensor:
    """Move the content; what moves in is black or the photo mirrored at its edge."""
    for axis, frac in ((2, down_frac), (3, right_frac)):
        side = photos.shape[axis]
        source = torch.arange(side, device=photos.device) - round(frac * side)
        inside = (source >= 0) & (source < side)
        mirrored = torch.where(source < 0, -1 - source, 2 * side - 1 - source)
        source = torch.where(inside, source, mirrored)
        photos = photos.index_select(axis, source)
        if not reflect:
            shape = [1, 1, 1, 1]
            shape[axis] = side
            photos = photos * inside.view(shape)
    return photos


def turn_and_scale(
    photos: Tensor, *, degrees: float = 0.0, factor: float = 1.0, reflect: bool = False
) -> Tensor:
    """Turn counter-clockwise and enlarge by `factor` around the centre, bilinear."""
    c = math.cos(math.radians(degrees)) / factor
    s = math.sin(math.radians(degrees)) / factor
    # from places of the result to places of the photo, in -1..1 with y downwards
    table = torch.tensor([[c, -s, 0.0], [s, c, 0.0]], device=photos.device)
    grid = F.affine_grid(table.expand(len(photos), 2, 3), list(photos.shape), align_corners=False)
    padding = "reflection" if reflect else "zeros"
    moved = F.grid_sample(
        photos.float(), grid, mode="bilinear", padding_mode=padding, align_corners=False
    )
    return moved.round().clamp(0, 255).to(torch.uint8)


def mask_border(photos: Tensor, *, frac: float, mean_colour: bool = False) -> Tensor:
    """Paint a frame of this width black, or in the mean colour of what it leaves of each photo."""
    side = photos.shape[-1]
    width = round(frac * side)
    inner = photos[:, :, width : side - width, width : side - width]
    if mean_colour:
        colour = inner.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
        masked = colour.expand_as(photos).clone()
    else:
        masked = torch.zeros_like(photos)
    masked[:, :, width : side - width, width : side - width] = inner
    return masked


def mask_centre(photos: Tensor, *, frac: float) -> Tensor:
    """Paint the central square whose side is this share of the photo's black."""
    side = photos.shape[-1]
    width = round(frac * side)
    start = (side - width) // 2
    masked = photos.clone()
    masked[:, :, start : start + width, start : start + width] = 0
    return masked


def flip(photos: Tensor) -> Tensor:
    """Mirror left and right."""
    return photos.flip(3)


def grey(photos: Tensor) -> Tensor:
    """Give all three channels the luma."""
    weights = torch.tensor(_LUMA, device=photos.device).view(1, 3, 1, 1)
    luma = (photos.float() * weights).sum(dim=1, keepdim=True)
    return luma.round().clamp(0, 255).to(torch.uint8).expand_as(photos)
