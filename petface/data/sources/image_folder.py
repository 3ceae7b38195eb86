"""Read class folders, `<class>/<image>` or `<class>/<record>/<image>`, at the top level or in
train, val and test.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from petface.data.sources.layout import Entry, Found, class_name
from petface.data.sources.petface import not_a_folder, not_an_image, sorted_entries
from petface.errors import UserError
from petface.taxonomy import canonical_record

EXPECTED = """the expected tree is
    <source>/<class>/<image>            or  <source>/<class>/<record>/<image>
or the same below train, val and test:
    <source>/train/<class>/<image>          val (or valid, validation) and test may be missing"""
PART_OF = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip


def read_image_folder(source: str | Path) -> Found:
    """List the photos of a tree of class folders.

    Each photo is its own record unless it lies in a folder inside its class. Raises `UserError` if
    the folder is missing, has no class with a photo, or has two folders for one split. No file is
    opened.
    """
    root = Path(os.path.abspath(source))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"--source {root} {what}\n{EXPECTED}")
    found = Found("image_folder", root)
    reader = _Reader(found)
    parts = _part_folders(root)
    for part in [part for part in dict.fromkeys(PART_OF.values()) if part in parts]:
        reader.read_part(os.fsencode(parts[part]), part)
    if parts:
        for entry in sorted_entries(os.fsencode(root)):
            if not_a_folder(entry) or os.fsdecode(entry.name).lower() not in PART_OF:
                reason = not_a_folder(entry) or "a folder beside train, val and test"
                found.leave_out(entry.name, reason)
    else:
        reader.read_part(os.fsencode(root), "")
    reader.add_notes()
    if not found.entries:
        what = "holds photos and no class folders" if reader.loose_photos else "holds no photo"
        raise UserError(f"--source {root} {what} where one belongs\n{EXPECTED}")
    return found


class _Reader:
    """The walk over one tree, and its results so far."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.loose_photos = 0  # in place of a class folder
        self.parts_of: dict[tuple[str, str], set[str]] = defaultdict(set)  # class, record folder

    def leave_out(self, path: bytes, reason: str) -> None:
        self.found.leave_out(os.path.relpath(path, os.fsencode(self.found.source)), reason)

    def read_part(self, folder: bytes, part: str) -> None:
        """Read every class folder of one split."""
        for entry in sorted_entries(folder):
            if reason := not_a_folder(entry):
                self.loose_photos += not_an_image(entry) is None
                self.leave_out(entry.path, reason)
                continue
            try:
                name = class_name(os.fsdecode(entry.name))
            except UserError as error:
                self.leave_out(entry.path, str(error))
                continue
            self.read_photos(entry.path, name, part, record="")

    def read_photos(self, folder: bytes, species: str, part: str, record: str) -> None:
        """Read the photos of a class and of its record folders, or the photos of one record."""
        num_before = len(self.found.entries)
        for entry in sorted_entries(folder):
            reason, path = not_an_image(entry), os.fsdecode(entry.path)
            if not record and not not_a_folder(entry):
                name = canonical_record(os.fsdecode(entry.name))
                self.read_photos(entry.path, species, part, name)
            elif reason:
                self.leave_out(entry.path, reason)
            else:
                name, animal = record or Path(path).stem, f"folder {record}" if record else path
                self.found.entries.append(Entry(species, name, animal, path, part))
        if len(self.found.entries) == num_before:
            self.leave_out(folder, f"a {'record' if record else 'class'} folder without a photo")
        elif record:
            self.parts_of[species, record].add(part)

    def add_notes(self) -> None:
        """Add a note about record folders that occur in more than one split."""
        if shared := [key for key, parts in self.parts_of.items() if len(parts) > 1]:
            species, record = min(shared)
            self.found.notes.append(
                f"{len(shared)} record folders have the same name in more than one split, such as "
                f"{species}/{record}: they count as different animals. If they are the same, "
                "the test photos do not show unseen animals"
            )


def _part_folders(root: Path) -> dict[str, Path]:
    """Find the folders of the splits; none if the tree has class folders at its top level."""
    found: dict[str, Path] = {}
    for entry in sorted_entries(os.fsencode(root)):
        name = os.fsdecode(entry.name)
        part = PART_OF.get(name.lower())
        if part is None or not_a_folder(entry):
            continue
        if part in found:
            raise UserError(
                f"--source {root} has two folders for the {part} split, {found[part].name} and "
                f"{name}: move one of them away"
            )
        found[part] = root / name
    return found
