"""Augment a whole batch on its device: parameters drawn per image, in two regimes (base, tail).

The formulas are torchvision's (`transforms.v2.functional` on float tensors), batched; the order is
fixed: flip, affine (one bilinear resampling), brightness, contrast, saturation, hue, erasing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from petface.errors import UserError

_GREY_WEIGHTS: Final = (0.2989, 0.587, 0.114)  # torchvision's
_SUB_BATCH_PIXELS: Final = 1 << 18  # on a CPU larger temporaries fall out of the cache


@dataclass(frozen=True)
class AugmentRegime:
    """How strongly to augment; every default is "off". Values out of range raise `UserError`."""

    flip_p: float = 0.0  # probability of a horizontal flip
    rotate_deg: float = 0.0  # angle drawn from -rotate_deg..rotate_deg
    translate_frac: float = 0.0  # shift drawn from -f..f of the width and of the height
    scale_min: float = 1.0  # zoom drawn from scale_min..scale_max; 1 is off
    scale_max: float = 1.0
    brightness: float = 0.0  # factor drawn from 1-x..1+x, not below 0; same for the next two
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # shift drawn from -hue..hue, in turns of the colour circle (at most 0.5)
    erase_p: float = 0.0  # probability of blackening one rectangle
    erase_area_max_frac: float = 0.0  # its largest share of the image, the smallest is a tenth

    def __post_init__(self) -> None:
        most = {"rotate_deg": 180.0, "hue": 0.5, "scale_min": 100.0, "scale_max": 100.0}
        for field in fields(self):
            value, highest = getattr(self, field.name), most.get(field.name, 1.0)
            if not 0 <= value <= highest:
                raise UserError(f"augmentation: {field.name} must be in 0..{highest}, not {value}")
        if not 0 < self.scale_min <= self.scale_max:
            raise UserError(
                "augmentation: scale_min must be above 0 and not above scale_max, "
                f"not {self.scale_min} and {self.scale_max}"
            )


NONE: Final = AugmentRegime()
BASE: Final = AugmentRegime(
    flip_p=0.5,
    rotate_deg=10.0,
    translate_frac=0.05,
    scale_min=0.9,
    scale_max=1.1,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.02,
)
TAIL: Final = AugmentRegime(
    flip_p=0.5,
    rotate_deg=20.0,
    translate_frac=0.1,
    scale_min=0.8,
    scale_max=1.2,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.05,
    erase_p=0.25,
    erase_area_max_frac=0.2,
)
REGIMES: Final = {"none": NONE, "mild": BASE, "strong": TAIL}  # by the name that settings use


@dataclass(frozen=True)
class AugmentParameters:
    """What happens to each image of a batch: (B, ...) CPU tensors, float32 but for `flip`."""

    flip: Tensor  # bool
    angle_deg: Tensor  # clockwise
    translate_x_frac: Tensor  # of the width, to the right
    translate_y_frac: Tensor  # of the height, downwards
    scale: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # in turns
    erase_box_frac: Tensor  # (B, 4) left, top, right, bottom of what turns black; all 0: nothing


def draw_parameters(
    is_tail: Tensor, base: AugmentRegime, tail: AugmentRegime, generator: torch.Generator
) -> AugmentParameters:
    """Draw the parameters of a batch; `is_tail` (B,) bool chooses each image's regime.

    `generator` is on the CPU: a seed means the same on every device. Every image takes the same
    number of draws, so its parameters do not depend on the regimes of the others.
    """
    is_tail = is_tail.cpu()
    draws = torch.rand((14, len(is_tail)), generator=generator).unbind()

    def choose(name: str) -> Tensor:
        return torch.where(is_tail, float(getattr(tail, name)), float(getattr(base, name)))

    def around(centre: float, name: str, draw: Tensor) -> Tensor:
        return centre + choose(name) * (2 * draw - 1)

    scale_min, scale_max = choose("scale_min"), choose("scale_max")
    erased = draws[9] < choose("erase_p")
    return AugmentParameters(
        flip=draws[0] < choose("flip_p"),
        angle_deg=around(0, "rotate_deg", draws[1]),
        translate_x_frac=around(0, "translate_frac", draws[2]),
        translate_y_frac=around(0, "translate_frac", draws[3]),
        scale=scale_min + (scale_max - scale_min) * draws[4],
        brightness=around(1, "brightness", draws[5]),
        contrast=around(1, "contrast", draws[6]),
        saturation=around(1, "saturation", draws[7]),
        hue=around(0, "hue", draws[8]),
        erase_box_frac=_draw_boxes(erased, choose("erase_area_max_frac"), draws[10:]),
    )


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
    table = _table(parameters, height, width)
    step = max(1, num_images)
    if images.device.type == "cpu":
        step = max(1, _SUB_BATCH_PIXELS // (height * width))
    output = torch.empty(images.shape, dtype=dtype, device=images.device)
    for start in range(0, num_images, step):
        part = slice(start, start + step)
        output[part] = _augment_part(images[part], parameters.flip[part], table[part])
    return output


def augment_batch(
    images: Tensor,
    is_tail: Tensor,
    base: AugmentRegime,
    tail: AugmentRegime,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw parameters and augment: (B, 3, H, W) uint8 -> (B, 3, H, W) `dtype` in [0, 1]."""
    return augment(images, draw_parameters(is_tail, base, tail, generator), dtype)


def to_float(images: Tensor) -> Tensor:
    """Turn (B, 3, H, W) uint8 into float32 in [0, 1]: what `augment` does without any change."""
    return images.float().div_(255)


def normalise(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Give (images - mean) / std per channel of (B, 3, H, W), dtype kept; None: `images` as is."""
    if mean is None or std is None:
        return images
    centre = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1).to(images.device)
    spread = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1).to(images.device)
    return images.float().sub(centre).div_(spread).to(images.dtype)


def _draw_boxes(erased: Tensor, area_max_frac: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """Draw (B, 4) left, top, right, bottom as fractions; all zero where `erased` is False.

    The area is a tenth to all of `area_max_frac`; the aspect is log-uniform in 0.3..3.3, as in
    "Random Erasing Data Augmentation" (Zhong et al., arXiv 1708.04896), as far as the box fits.
    """
    area = area_max_frac * (0.1 + 0.9 * draws[0]) * erased
    aspect = 0.3 * 11 ** draws[1]
    height = torch.minimum(torch.maximum((area * aspect).sqrt(), area), torch.ones(()))
    width = area / height.clamp_min(1e-9)
    left, top = (1 - width) * draws[2] * erased, (1 - height) * draws[3] * erased
    return torch.stack((left, top, left + width, top + height), dim=1)


# What the device needs: one float32 table, one transfer. Its columns:
_INVERSE_AFFINE = slice(
    0, 6
)  # row by row, from output pixels to input pixels, both from the centre
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 6, 7, 8, 9
_BOX = slice(10, 14)  # left, top, right, bottom in pixels
_STILL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def _table(p: AugmentParameters, height: int, width: int) -> Tensor:
    """Put everything but the flips into one (B, 14) float32 table on the CPU."""
    angle = torch.deg2rad(p.angle_deg.double())
    cosine, sine = torch.cos(angle) / p.scale, torch.sin(angle) / p.scale
    x, y = p.translate_x_frac.double() * width, p.translate_y_frac.double() * height
    affine = (cosine, sine, -cosine * x - sine * y, -sine, cosine, sine * x - cosine * y)
    box = p.erase_box_frac * torch.tensor([width, height, width, height])
    columns = (*affine, p.brightness, p.contrast, p.saturation, p.hue, *box.unbind(1))
    return torch.stack([column.float() for column in columns], dim=1)


def _augment_part(images: Tensor, flip: Tensor, table: Tensor) -> Tensor:
    """Augment (B, 3, H, W) uint8 to float32; `flip` and `table` stay on the CPU: no waiting."""
    rows = table.to(images.device, non_blocking=True)
    moved = (table[:, _INVERSE_AFFINE] != torch.tensor(_STILL)).any(dim=1)
    x = _on_rows(images, rows, flip, lambda chosen, _: chosen.flip(-1))
    x = _on_rows(to_float(x), rows, moved, _move)
    if moved.any() or (table[:, _BRIGHTNESS] != 1).any():  # moving can round to just above 1
        x.mul_(_per_image(rows, _BRIGHTNESS)).clamp_(max=1)
    if (table[:, _CONTRAST] != 1).any():
        _contrast(x, _per_image(rows, _CONTRAST))
    if (table[:, _SATURATION] != 1).any():
        _saturate(x, _per_image(rows, _SATURATION))
    x = _on_rows(x, rows, table[:, _HUE] != 0, _shift_hue)
    return _on_rows(x, rows, table[:, _BOX.stop - 1] > 0, _erase)


def _on_rows(
    x: Tensor, rows: Tensor, chosen: Tensor, operation: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Apply `operation` to the `chosen` images alone: the others stay as they are, bit for bit."""
    if chosen.all():
        return operation(x, rows)
    if not chosen.any():
        return x
    index = chosen.nonzero().flatten().to(x.device, non_blocking=True)
    return x.index_copy(0, index, operation(x.index_select(0, index), rows.index_select(0, index)))


def _per_image(rows: Tensor, column: int) -> Tensor:
    return rows[:, column].view(-1, 1, 1, 1)


def _move(x: Tensor, rows: Tensor) -> Tensor:
    """Resample by the inverse affine, bilinear, black outside."""
    num_images, _, height, width = x.shape
    across = torch.arange(width, device=x.device).sub((width - 1) / 2).view(1, 1, -1)
    down = torch.arange(height, device=x.device).sub((height - 1) / 2).view(1, -1, 1)
    affine = rows[:, _INVERSE_AFFINE].reshape(-1, 2, 3, 1, 1)
    # Not F.affine_grid: its matrix product loses whole tenths of a pixel under TF32 or autocast.
    grid = torch.empty((num_images, height, width, 2), device=x.device)
    for axis, side in ((0, width), (1, height)):
        a, b, c = (affine[:, axis] / (0.5 * side)).unbind(1)
        torch.add(a * across + c, b * down, out=grid[..., axis])
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _contrast(x: Tensor, factor: Tensor) -> None:
    """Blend with the mean grey of each image, in place."""
    weights = torch.tensor(_GREY_WEIGHTS).to(x.device, non_blocking=True)
    mean_grey = (x.mean((2, 3)) * weights).sum(1).view(-1, 1, 1, 1)
    x.mul_(factor).add_(mean_grey * (1 - factor)).clamp_(0, 1)


def _saturate(x: Tensor, factor: Tensor) -> None:
    """Blend with the grey of each pixel, in place."""
    red, green, blue = x.split(1, dim=1)
    grey = (red * _GREY_WEIGHTS[0]).add_(green, alpha=_GREY_WEIGHTS[1])
    grey.add_(blue, alpha=_GREY_WEIGHTS[2]).mul_(1 - factor)
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
    hue.add_(rows[:, _HUE].view(-1, 1, 1), alpha=6)
    hue.sub_((hue / 6).round_(), alpha=6)  # back into -3..3
    torch.addcmul(low, chroma, hue.abs().neg_().add_(2).clamp_(0, 1), out=red)
    torch.addcmul(low, chroma, (hue + 1).abs_().sub_(1).clamp_(0, 1), out=green)
    torch.addcmul(low, chroma, (hue - 1).abs_().sub_(1).clamp_(0, 1), out=blue)
    return x


def _erase(x: Tensor, rows: Tensor) -> Tensor:
    """Blacken the pixels whose centre lies in the box, in place."""
    left, top, right, bottom = rows[:, _BOX].view(-1, 4, 1, 1).unbind(1)
    across = torch.arange(x.shape[3], device=x.device).add(0.5).view(1, 1, -1)
    down = torch.arange(x.shape[2], device=x.device).add(0.5).view(1, -1, 1)
    inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
    return x.masked_fill_(inside.unsqueeze(1), 0)
