"""Read folders of classes: `<class>/<image>` or `<class>/<record>/<image>`, alone or below train,
val and test.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from petface.data.sources.entries import Entry, Found, class_name
from petface.data.sources.petface import not_a_folder, not_an_image
from petface.errors import UserError
from petface.taxonomy import canonical_record

EXPECTED = """the expected tree is
    <source>/<class>/<image>            or  <source>/<class>/<record>/<image>
or the same below train, val and test:
    <source>/train/<class>/<image>          val (or valid, validation) and test may be missing"""
PART_OF = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
NO_FOLDER = "a file where a class folder belongs"


def read_image_folder(source: str | Path) -> Found:
    """List the photos of a tree of class folders; each photo is a record of its own unless it lies
    in a folder inside its class.

    Raises `UserError` where the folder is missing, holds no class with a photo, or has two folders
    for one part. No file is opened.
    """
    root = Path(os.path.abspath(source))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"--source {root} {what}\n{EXPECTED}")
    found = Found("image_folder", root)
    reader = _Reader(found)
    parts = _part_folders(root, reader.entries(os.fsencode(root)))
    for part, folder in parts.items():
        reader.read_part(os.fsencode(folder), part)
    if parts:
        for entry in reader.entries(os.fsencode(root)):
            if not_a_folder(entry) or os.fsdecode(entry.name).lower() not in PART_OF:
                reason = not_a_folder(entry) or "a folder beside train, val and test"
                found.leave_out(entry.name, reason)
    else:
        reader.read_part(os.fsencode(root), "")
    reader.finish()
    if not found.entries:
        what = "holds photos and no class folders" if reader.loose_photos else "holds no photo"
        raise UserError(f"--source {root} {what} where one belongs\n{EXPECTED}")
    return found


class _Reader:
    """The walk over one tree, and what it has met so far."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.root = os.fsencode(found.source)
        self.loose_photos = 0  # where a class folder belongs
        self.folders_of: dict[tuple[str, str], list[str]] = defaultdict(list)  # part, class
        self.parts_of: dict[tuple[str, str], set[str]] = defaultdict(set)  # class, record folder
        self.num_photos: dict[str, int] = defaultdict(int)  # of each class, in all parts

    def entries(self, folder: bytes) -> list[os.DirEntry[bytes]]:
        """List a folder in a fixed order; `UserError` where it cannot be read."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot read {os.fsdecode(folder)}: {error.strerror}") from error

    def relative(self, path: bytes) -> bytes:
        return os.path.relpath(path, self.root)

    def read_part(self, folder: bytes, part: str) -> None:
        """Read every class folder of one part."""
        for entry in self.entries(folder):
            if reason := not_a_folder(entry):
                self.loose_photos += not_an_image(entry) is None
                known = {"a file where a folder belongs": NO_FOLDER}
                self.found.leave_out(self.relative(entry.path), known.get(reason, reason))
                continue
            try:
                name = class_name(os.fsdecode(entry.name))
            except UserError as error:
                self.found.leave_out(self.relative(entry.path), str(error))
                continue
            self.folders_of[part, name].append(os.fsdecode(self.relative(entry.path)))
            self.read_class(entry.path, name, part)

    def read_class(self, folder: bytes, species: str, part: str) -> None:
        """Read the photos of one class, and of the record folders in it."""
        self.num_photos[species] += 0
        for entry in self.entries(folder):
            if not not_a_folder(entry):
                self.read_record(entry.path, species, part)
            elif reason := not_an_image(entry):
                self.found.leave_out(self.relative(entry.path), reason)
            else:
                self.add(entry, species, part, Path(os.fsdecode(entry.name)).stem, "")

    def read_record(self, folder: bytes, species: str, part: str) -> None:
        """Read the photos of one animal."""
        name = canonical_record(os.fsdecode(os.path.basename(folder)))
        entries, any_photo = self.entries(folder), False
        for entry in entries:
            if reason := not_an_image(entry):
                self.found.leave_out(self.relative(entry.path), reason)
                continue
            any_photo = True
            self.add(entry, species, part, name, f"folder {name}")
        if any_photo:
            self.parts_of[species, name].add(part)
        else:
            self.found.leave_out(self.relative(folder), "a record folder without a photo")

    def add(
        self, entry: os.DirEntry[bytes], species: str, part: str, record: str, animal: str
    ) -> None:
        path = os.fsdecode(entry.path)
        self.num_photos[species] += 1
        self.found.entries.append(Entry(species, record, animal or path, path, part))

    def finish(self) -> None:
        """Say what concerns more than one folder."""
        for name, num in sorted(self.num_photos.items()):
            if not num:
                self.found.leave_out(name, "a class folder without a photo")
        for folders in self.folders_of.values():
            if len(folders) > 1:
                listed = " and ".join(map(repr, folders))
                self.found.notes.append(f"{listed} are spellings of one name: one class")
        self.found.notes += case_notes(self.num_photos)
        shared = [key for key, parts in self.parts_of.items() if len(parts) > 1]
        if shared:
            species, record = min(shared)
            self.found.notes.append(
                f"{len(shared)} record folders have their name in more than one part, such as "
                f"{species}/{record}: they are taken for different animals. If they are the same, "
                "the test photos are not of unseen animals"
            )


def case_notes(classes: Mapping[str, object]) -> list[str]:
    """Name the classes that differ only in case: likely one class, and kept apart."""
    by_folded: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        by_folded[name.casefold()].append(name)
    return [
        f"classes that differ only in case stay different classes: {', '.join(names)}"
        for names in by_folded.values()
        if len(names) > 1
    ]


def _part_folders(root: Path, entries: list[os.DirEntry[bytes]]) -> dict[str, Path]:
    """Find the folders of the parts; none where the tree has class folders at its top."""
    found: dict[str, Path] = {}
    for entry in entries:
        name = os.fsdecode(entry.name)
        part = PART_OF.get(name.lower())
        if part is None or not_a_folder(entry):
            continue
        if part in found:
            raise UserError(
                f"--source {root} has two folders for the {part} part, {found[part].name} and "
                f"{name}: move one of them away"
            )
        found[part] = root / name
    return {part: found[part] for part in PART_OF.values() if part in found}
