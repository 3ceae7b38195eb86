"""What PetFace is made of: species, their attributes, unknown tokens and fall-back vocabularies.

Sources: the dataset's public description (Shinoda & Shiohara, ECCV 2024, arXiv 2407.13555).
Vocabularies are built from the CSV on disk; the lists here serve old checkpoints that carry none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

FEATURES: Final = (
    "breed",
    "color",
    "color1",
    "color2",
    "gender",
)  # the order of heads and CSV columns
PRIMARY_ATTR_PRIORITY: Final = ("breed", "color", "color1", "color2", "gender")
FEATURE_ALIASES: Final = {"attr2": "color2"}  # head names of old checkpoints -> names used here
UNKNOWN: Final = -1  # the class index of an unknown label, everywhere
UNKNOWN_TOKENS: Final = frozenset(
    {"", "unknown", "unk", "na", "n/a", "nan"}
)  # compared whole, lower-cased
GENDER_MAP: Final = {"female": "female", "f": "female", "male": "male", "m": "male"}
GENDER_VOCABULARY: Final = ("female", "male")


@dataclass(frozen=True)
class SpeciesConfig:
    """One species of PetFace: number of records and the attribute columns that hold valid
    values.
    """

    records: int
    features: tuple[str, ...]
    gender_unknown_frac: float


SPECIES_CONFIG: Final = {
    "cat": SpeciesConfig(164_100, ("breed", "color1", "color2", "gender"), 0.03),
    "chimp": SpeciesConfig(637, ("breed", "gender"), 0.46),
    "chinchilla": SpeciesConfig(1_139, ("color1", "color2", "gender"), 0.12),
    "degus": SpeciesConfig(1_110, ("color1", "color2", "gender"), 0.19),
    "dog": SpeciesConfig(71_613, ("breed", "gender"), 0.03),
    "ferret": SpeciesConfig(986, ("color1", "gender"), 0.09),
    "guineapig": SpeciesConfig(1_313, ("breed", "color1", "color2", "gender"), 0.14),
    "hamster": SpeciesConfig(1_869, ("breed", "color1", "color2", "gender"), 0.31),
    "hedgehog": SpeciesConfig(708, ("color1", "gender"), 0.22),
    "javasparrow": SpeciesConfig(1_220, ("color", "color1", "color2", "gender"), 0.94),
    "parakeet": SpeciesConfig(4_727, ("breed", "color1", "color2", "gender"), 0.98),
    "pig": SpeciesConfig(1_597, ("breed", "color1", "color2", "gender"), 0.0),
    "rabbit": SpeciesConfig(6_465, ("breed", "color1", "color2", "gender"), 0.16),
}
SPECIES: Final = tuple(SPECIES_CONFIG)
SPECIES_FEATURES: Final = {name: config.features for name, config in SPECIES_CONFIG.items()}

# Used only for heads whose checkpoint carries no vocabulary and whose size fits. Only lists that
# are public fact stand here: a guessed list would print wrong labels. Gender has its own fall-back.
FALLBACK_VOCABULARIES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "chimp": {
        "breed": ("P. t. ellioti", "P. t. schweinfurthii", "P. t. troglodytes", "P. t. verus"),
    },
}

_WHOLE_NUMBER = re.compile(r"\+?\d+(\.0*)?", re.ASCII)


def features_of(species: str, columns: tuple[str, ...] = FEATURES) -> tuple[str, ...]:
    """Return the heads of `species` in head order: its own in PetFace, every known column
    elsewhere.
    """
    wanted = SPECIES_FEATURES.get(species, FEATURES)
    return tuple(feature for feature in FEATURES if feature in wanted and feature in columns)


def canonical_record(name: str) -> str:
    """Return the one name of a record: `7`, `7.0`, `000007` and ` 000007 ` are all `000007`.

    Names that are not whole numbers are kept, without the blanks around them.
    """
    name = name.strip()
    if _WHOLE_NUMBER.fullmatch(name):
        return f"{int(name.partition('.')[0]):06d}"
    return name


def is_unknown(label: str) -> bool:
    """Check whether a raw label means "not known"; only the whole cell counts."""
    return label.strip().lower() in UNKNOWN_TOKENS
