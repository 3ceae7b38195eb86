"""Augment a whole batch on its device: parameters drawn per image, in two regimes (base, tail)."""

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
    "draw_parameters",
]
