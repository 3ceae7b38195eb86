"""What every source of photos is read into: who is on each photo and in which part it belongs."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from petface.data.sources.petface import check_species_name
from petface.errors import UserError
from petface.taxonomy import canonical_record, is_unknown

PARTS = ("train", "val", "test")
_MAX_CLASS_BYTES, _MAX_NAME_BYTES = 200, 80  # a file system takes 255
_UNSAFE = re.compile(r"[^\w-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Entry:
    """One photo of a source."""

    species: str  # its class in stage 1, as `class_name` gives it
    record: str  # what the source calls the animal: the name of its folder derives from it
    animal: str  # photos of one species and part that share it show one animal
    path: str  # absolute; bytes that are no UTF-8 are surrogate escapes
    part: str = ""  # of `PARTS`; "" where the source does not say
    breed: str = ""


@dataclass
class Found:
    """What a source holds: its photos in a fixed order, and everything that is left out."""

    kind: str  # such as "image_folder"
    source: Path
    entries: list[Entry] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # what, reason
    notes: list[str] = field(default_factory=list)  # lines that the user should read

    @property
    def parts(self) -> set[str]:
        """Name the parts that have a photo; empty where the source has no parts."""
        return {entry.part for entry in self.entries} - {""}

    @property
    def classes(self) -> list[str]:
        """Name the classes that have a photo, sorted."""
        return sorted({entry.species for entry in self.entries})

    def leave_out(self, what: str | bytes, reason: str) -> None:
        """Note something that is not used, as text that any file can hold."""
        raw = what if isinstance(what, bytes) else what.encode("utf-8", "surrogateescape")
        self.left_out.append((raw.decode("utf-8", "backslashreplace"), reason))

    def reasons(self) -> Counter[str]:
        """Count what is left out by reason."""
        return Counter(reason for _, reason in self.left_out)


def class_name(text: str) -> str:
    """Give the one spelling of a class: Unicode's composed form, without the blanks around it.

    Raises `UserError` with the reason for what cannot be the name of a class and of a folder.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if _CONTROL.search(name):
        raise UserError("a class name with a control character")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise UserError("a class name that is not UTF-8") from error
    if is_unknown(name):
        raise UserError("a class name that means not known; rename it to use it")
    if size > _MAX_CLASS_BYTES:
        raise UserError(f"a class name longer than {_MAX_CLASS_BYTES} bytes")
    try:
        check_species_name(name)
    except UserError as error:
        raise UserError("not usable as a class name") from error
    return name


def safe_name(text: str) -> str:
    """Make a name for a record or an image: letters, digits, `_` and `-`, 80 bytes at most.

    A record of this name is canonical and is never taken for an unknown label.
    """
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", text)).strip("_-")
    name = name.encode("utf-8")[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
    name = canonical_record(name)
    return f"{name}_photo".lstrip("_") if is_unknown(name) else name


class UniqueNames:
    """Names that stay apart on any file system: `cat`, `cat_2` ..., whatever their case."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def take(self, wanted: str) -> str:
        """Give `wanted`, or the first of `wanted_2`, `wanted_3` ... that is free."""
        name, number = wanted, self._next.get(_folded(wanted), 1)
        while _folded(name) in self._next:
            number += 1
            name = f"{wanted}_{number}"
        self._next[_folded(wanted)] = number
        self._next.setdefault(_folded(name), 1)
        return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
