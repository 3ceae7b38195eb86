"""Augment a whole batch on its device: parameters drawn per image, in two regimes (base, tail)."""

from __future__ import annotations

import torch
from torch import Tensor

from petface.training.augment.exact import augment
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

__all__ = [
    "BASE",
    "NONE",
    "REGIMES",
    "TAIL",
    "AugmentParameters",
    "AugmentRegime",
    "Strength",
    "augment",
    "augment_batch",
    "draw_parameters",
]


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
