"""What PetFace is made of: species, their attributes, unknown tokens and fall-back vocabularies.

Sources: the dataset's public description (Shinoda & Shiohara, ECCV 2024, arXiv 2407.13555).
Vocabularies are built from the CSV on disk; the lists here serve old checkpoints that carry none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from unicodedata import normalize

from petface.errors import SettingsError

FEATURES: Final = ("breed", "color", "color1", "color2", "gender")  # order of heads and columns
PRIMARY_ATTR_PRIORITY: Final = FEATURES  # the first with a known label is what a sampler balances
# The head "attr2" of old checkpoints; elsewhere it is the first feature that no other head answers.
ATTR2: Final = {"cat": "breed", "dog": "breed", "parakeet": "breed", "javasparrow": "color"}
UNKNOWN: Final = -1  # the class index of an unknown label, everywhere
UNKNOWN_TOKENS: Final = frozenset({"", "unknown", "unk", "na", "n/a", "nan"})  # lower-cased cells
GENDER_MAP: Final = {"female": "female", "f": "female", "male": "male", "m": "male"}
GENDER_VOCABULARY: Final = ("female", "male")

# The attribute columns of each species that hold valid values.
SPECIES_FEATURES: Final[dict[str, tuple[str, ...]]] = {
    "cat": ("breed", "color1", "color2", "gender"),
    "chimp": ("breed", "gender"),
    "chinchilla": ("color1", "color2", "gender"),
    "degus": ("color1", "color2", "gender"),
    "dog": ("breed", "gender"),
    "ferret": ("color1", "gender"),
    "guineapig": ("breed", "color1", "color2", "gender"),
    "hamster": ("breed", "color1", "color2", "gender"),
    "hedgehog": ("color1", "gender"),
    "javasparrow": ("color", "color1", "color2", "gender"),
    "parakeet": ("breed", "color1", "color2", "gender"),
    "pig": ("breed", "color1", "color2", "gender"),
    "rabbit": ("breed", "color1", "color2", "gender"),
}

# Used only for heads whose checkpoint carries no vocabulary and whose size fits. Only lists that
# are public fact stand here: a guessed list would print wrong labels. Gender has its own fall-back.
# Published chimps have five, one mixed, whose names are not documented: five need names elsewhere.
FALLBACK_VOCABULARIES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "chimp": {
        "breed": ("P. t. ellioti", "P. t. schweinfurthii", "P. t. troglodytes", "P. t. verus")
    }
}

# How the labels of a species are read: head -> its column, or (column, its classes in order: other
# labels are unknown then); "file" -> the name of its table, where that is not <species>.csv.
SpeciesTable = Mapping[str, str | Sequence[Any]]
_WHOLE_NUMBER = re.compile(r"\+?\d+(\.0*)?", re.ASCII)


def features_of(species: str, columns: tuple[str, ...] = FEATURES) -> tuple[str, ...]:
    """Return the heads of a species in head order: its own in PetFace, every column elsewhere."""
    wanted = SPECIES_FEATURES.get(species, FEATURES)
    return tuple(feature for feature in FEATURES if feature in wanted and feature in columns)


def feature_names(species: str, heads: Sequence[str], others: Sequence[str] = ()) -> dict[str, str]:
    """Return the feature that each head of a specialist answers, whatever case its name has.

    `others` are more names that stand for these heads.
    """
    free = [f for f in features_of(species) if f not in map(str.lower, heads)]
    attr2 = ATTR2.get(species, free[0] if free else "attr2")
    lower = {head: head.lower() for head in (*heads, *others)}
    return {head: attr2 if name == "attr2" else name for head, name in lower.items()}


def columns_of(species: str, table: SpeciesTable | None) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the column and the fixed classes, () = all known labels, of each head in head order.

    Without a table a head's column has its name. `SettingsError` for an entry that makes no sense.
    """
    if table is None:
        return {feature: (feature.title(), ()) for feature in features_of(species)}
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for head, entry in table.items():
        match entry:
            case str(column) if head in FEATURES:
                found[head] = (column, ())
            case (str(column), [*classes]) if head in FEATURES and set(map(type, classes)) <= {str}:
                found[head] = (column, tuple(classes))
            case str(name) if head == "file" and re.fullmatch(r"[^/\\\0]+\.csv", name):
                pass
            case _:
                raise SettingsError(
                    f"SPECIES_CONFIG of {species}: {head!r}: {entry!r} is neither a column, or "
                    f'(column, classes), of {", ".join(FEATURES)} nor the .csv of "file"'
                )
    return {feature: found[feature] for feature in FEATURES if feature in found}


def with_columns(
    tables: Mapping[str, SpeciesTable], columns: Sequence[str]
) -> dict[str, SpeciesTable]:
    """Apply `columns`, each "species.head=column" or "species.file=name.csv", to the tables."""
    merged = dict(tables)
    for entry in columns:
        match = re.fullmatch(r"([^.=]+)\.([^.=]+)=(.+)", entry)
        if not match:
            raise SettingsError(f'COLUMNS has {entry!r}; write "cat.breed=Column of the breed"')
        species, head, column = (part.strip() for part in match.groups())
        own = merged.get(species, {f: f.title() for f in features_of(species)})
        merged[species] = {**own, head: column}
    for species, table in merged.items():
        columns_of(species, table)  # refused before anything is read
    return merged


def canonical_record(name: str) -> str:
    """Return the one name of a record: `7`, `7.0`, `000007` and ` 000007 ` are all `000007`.

    Names that are not whole numbers are kept in NFC, without the blanks around them.
    """
    name = normalize("NFC", name).strip()
    if _WHOLE_NUMBER.fullmatch(name):
        return f"{int(name.partition('.')[0]):06d}"
    return name


def is_unknown(label: str) -> bool:
    """Check whether a raw label means "not known"; only the whole cell counts."""
    return label.strip().lower() in UNKNOWN_TOKENS
