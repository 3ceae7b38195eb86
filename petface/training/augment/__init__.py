"""Augment a whole batch on its device: parameters drawn per image, in two regimes (base, tail).

The "exact" way equals torchvision's functions one after the other; "fast" does all colours of an
image as one matrix.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from petface.training.augment.exact import augment
from petface.training.augment.fast import augment_fast
from petface.training.augment.regimes import (
    BASE,
    NONE,
    REGIMES,
    TAIL,
    AugmentParameters,
    AugmentRegime,
    Strength,
    draw_parameters,
)

AugmentMode = Literal["exact", "fast"]

__all__ = [
    "BASE",
    "NONE",
    "REGIMES",
    "TAIL",
    "AugmentMode",
    "AugmentParameters",
    "AugmentRegime",
    "Strength",
    "augment",
    "augment_batch",
    "augment_fast",
    "draw_parameters",
]


def augment_batch(
    images: Tensor,
    is_tail: Tensor,
    base: AugmentRegime,
    tail: AugmentRegime,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    mode: AugmentMode = "exact",
) -> Tensor:
    """Draw parameters and augment: (B, 3, H, W) uint8 -> (B, 3, H, W) `dtype` in [0, 1].

    Every `mode` draws the same parameters from the same generator.
    """
    parameters = draw_parameters(is_tail, base, tail, generator)
    way = augment if mode == "exact" else augment_fast
    return way(images, parameters, dtype)
