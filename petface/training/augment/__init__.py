"""Augment a whole batch on its device: parameters drawn per image, in two regimes (base, tail)."""

from petface.training.augment.exact import augment
from petface.training.augment.regimes import (
    BASE,
    MILD,
    NONE,
    STRONG,
    TAIL,
    AugmentParameters,
    AugmentRegime,
    Strength,
    draw_parameters,
    regimes_of,
)

__all__ = [
    "BASE",
    "MILD",
    "NONE",
    "STRONG",
    "TAIL",
    "AugmentParameters",
    "AugmentRegime",
    "Strength",
    "augment",
    "draw_parameters",
    "regimes_of",
]
