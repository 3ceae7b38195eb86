"""How strongly to augment, and what that means for each image of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class AugmentRegime:
    """How strongly to augment; every default is "off"."""

    flip_p: float = 0.0  # probability of a horizontal flip
    rotate_deg: float = 0.0  # angle drawn from -rotate_deg..rotate_deg
    translate_frac: float = 0.0  # shift drawn from -f..f of the width and of the height
    scale_min: float = 1.0  # zoom drawn from scale_min..scale_max; 1 is off
    scale_max: float = 1.0
    shear_deg: float = 0.0  # columns lean by an angle drawn from -shear_deg..shear_deg
    brightness: float = 0.0  # factor drawn from 1-x..1+x, not below 0; same for the next two
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # shift drawn from -hue..hue, in turns of the colour circle (at most 0.5)
    blur_p: float = 0.0  # probability of a Gaussian blur of 0.1 to 2 px, as torchvision's
    erase_p: float = 0.0  # probability of blackening one rectangle
    erase_area_max_frac: float = 0.0  # its largest share of the image, the smallest is a tenth
    crop_area_min_frac: float = 1.0  # share of the image enlarged to the whole: from here to 1
    crop_aspect_max: float = 1.0  # its sides are stretched by a ratio from 1/x..x, log-uniform

    def __post_init__(self) -> None:
        assert all(getattr(self, field.name) >= 0 for field in fields(self)), self
        assert 0 < self.scale_min <= self.scale_max, self
        assert 0 < self.crop_area_min_frac <= 1 <= self.crop_aspect_max, self


NONE: Final = AugmentRegime()
# The reference's two. Its largest erased area is not known: torchvision's stands here.
BASE: Final = AugmentRegime(
    flip_p=0.5,
    rotate_deg=10.0,
    translate_frac=0.05,
    shear_deg=5.0,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.05,
    erase_p=0.25,
    erase_area_max_frac=0.33,
)
TAIL: Final = replace(
    BASE,
    rotate_deg=12.0,
    translate_frac=0.06,
    shear_deg=7.0,
    brightness=0.25,
    contrast=0.25,
    saturation=0.25,
    erase_p=0.4,
)
MILD: Final = AugmentRegime(
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
STRONG: Final = AugmentRegime(
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
CROP: Final = replace(
    STRONG,
    rotate_deg=10.0,
    translate_frac=0.0,
    scale_min=1.0,
    scale_max=1.0,
    crop_area_min_frac=0.35,
    crop_aspect_max=4 / 3,
)
# reference: BASE, or TAIL for minority classes; crop: strong, and a random part enlarged
Strength = Literal["reference", "none", "mild", "strong", "crop"]
_REGIMES: Final = {"none": NONE, "mild": MILD, "strong": STRONG, "crop": CROP}


def regimes_of(base: str, tail: str, blur_p: float = 0.0) -> tuple[AugmentRegime, AugmentRegime]:
    """Return the regimes of all classes and of minority classes by the names of their strengths."""
    pair = {**_REGIMES, "reference": BASE}[base], {**_REGIMES, "reference": TAIL}[tail]
    return replace(pair[0], blur_p=blur_p), replace(pair[1], blur_p=blur_p)


@dataclass(frozen=True)
class AugmentParameters:
    """What happens to each image of a batch: (B, ...) CPU tensors, float32 but for `flip`."""

    flip: Tensor  # bool
    angle_deg: Tensor  # clockwise
    translate_x_frac: Tensor  # of the width, to the right
    translate_y_frac: Tensor  # of the height, downwards
    scale: Tensor
    shear_deg: Tensor  # to the left at the top, as torchvision's
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # in turns
    blur_px: Tensor  # standard deviation; 0: none
    erase_box_frac: Tensor  # (B, 4) left, top, right, bottom of what turns black; all 0: nothing
    crop_box_frac: Tensor  # (B, 4) what of the flipped image fills the output; 0, 0, 1, 1: all

    def __getitem__(self, rows: slice) -> AugmentParameters:
        """Return the parameters of some images of the batch."""
        return AugmentParameters(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_parameters(
    is_tail: Tensor, base: AugmentRegime, tail: AugmentRegime, generator: torch.Generator
) -> AugmentParameters:
    """Draw the parameters of a batch; `is_tail` (B,) bool chooses each image's regime.

    `generator` is on the CPU: a seed means the same on every device. Every image takes the same
    number of draws, so its parameters do not depend on the regimes of the others.
    """
    is_tail = is_tail.cpu()
    draws = torch.rand((14, len(is_tail)), generator=generator).unbind()
    crop_draws = torch.rand((4, len(is_tail)), generator=generator).unbind()
    shear_draws = torch.zeros(len(is_tail))
    if base.shear_deg or tail.shear_deg:  # regimes without it draw what they did before it came
        shear_draws = torch.rand(len(is_tail), generator=generator)

    blur_draws = torch.ones(2, len(is_tail))
    if base.blur_p or tail.blur_p:
        blur_draws = torch.rand((2, len(is_tail)), generator=generator)

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
        shear_deg=around(0, "shear_deg", shear_draws),
        brightness=around(1, "brightness", draws[5]),
        contrast=around(1, "contrast", draws[6]),
        saturation=around(1, "saturation", draws[7]),
        hue=around(0, "hue", draws[8]),
        blur_px=(0.1 + 1.9 * blur_draws[1]) * (blur_draws[0] < choose("blur_p")),
        erase_box_frac=_draw_boxes(erased, choose("erase_area_max_frac"), draws[10:]),
        crop_box_frac=_draw_crops(
            choose("crop_area_min_frac"), choose("crop_aspect_max"), crop_draws
        ),
    )


def _draw_boxes(erased: Tensor, area_max_frac: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """Draw (B, 4) left, top, right, bottom as fractions; all zero where `erased` is False.

    The area is a tenth to all of `area_max_frac`; the aspect is log-uniform in 0.3..3.3, as in
    "Random Erasing Data Augmentation" (Zhong et al., arXiv 1708.04896), as far as the box fits.
    """
    area = area_max_frac * (0.1 + 0.9 * draws[0]) * erased
    aspect = 0.3 * 11 ** draws[1]
    return _placed(area, (area * aspect).sqrt(), draws[2:]) * erased[:, None]


def _draw_crops(area_min: Tensor, aspect_max: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """Draw (B, 4) left, top, right, bottom as fractions, as torchvision's `RandomResizedCrop` does.

    The area is uniform, the ratio of the sides log-uniform as far as the box fits; the place is
    not bound to whole pixels.
    """
    area = area_min + (1 - area_min) * draws[0]
    aspect = aspect_max ** (2 * draws[1] - 1)
    return _placed(area, (area / aspect).sqrt(), draws[2:])


def _placed(area: Tensor, wanted_height: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """Draw where boxes of these areas lie, their heights as wanted as far as they fit: (B, 4)."""
    height = torch.minimum(torch.maximum(wanted_height, area), torch.ones(()))
    width = area / height.clamp_min(1e-9)
    left, top = (1 - width) * draws[0], (1 - height) * draws[1]
    return torch.stack((left, top, left + width, top + height), dim=1)
