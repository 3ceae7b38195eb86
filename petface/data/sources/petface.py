"""Read a PetFace tree, `images_root/<species>/<record>/<image>`, into a catalog."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from unicodedata import normalize

from tqdm import tqdm

from petface import files
from petface.data.catalog import Catalog, build_catalog
from petface.data.encoded import not_a_photo_name
from petface.errors import MachineError, UserError
from petface.progress import progress
from petface.taxonomy import canonical_record

EXPECTED_TREE = """the expected tree is
    data/PetFace/
      images/<species>/<record>/<image>.png    e.g. images/cat/000000/00.png
      annotations/<species>.csv
      split/<species>/...                      only for the official split"""
_NO_IMAGE = "holds no image at the expected depth"
_ROOT_NAMES = ("images", "PetFace/images", "PetFace")
NESTED = "a folder inside a record folder"
DEAD = "broken link"
_A_FILE = "a file where a folder belongs"
_ENTRIES_LOOKED_AT = 1000  # while guessing the intended folder


@dataclass
class Scan:
    """The contents of a tree: its images, and everything that is not an image."""

    catalog: Catalog
    strays: list[tuple[bytes, str]] = field(default_factory=list)  # path, reason
    empty_species: list[str] = field(default_factory=list)  # folders without images: no class
    empty_records: list[bytes] = field(default_factory=list)  # relative to the root
    num_merged_folders: int = 0  # record folders whose canonical name another folder has, too

    @property
    def stray_counts(self) -> Counter[str]:
        """Count the strays by reason."""
        return Counter(reason for _, reason in self.strays)

    def stray_text(self) -> str:
        """Describe how many entries are not images, and why, with an example; "" if none."""
        if not self.strays:
            return ""
        example = files.readable_name(self.strays[0][0])
        if dead := [path for path, reason in self.strays if reason == DEAD]:
            example = link_text(os.path.join(self.catalog.root, dead[0]))
        text = f"{len(self.strays)} entries of the tree are no image"
        return f"{text} ({reasons_text(self.stray_counts)}): {example}"


def scan(images_root: str | Path, species: str | Sequence[str] | None = None) -> Scan:
    """List every regular image file of the tree, in the same order on every file system.

    `species` restricts the scan to those folders. Raises `UserError` for an unknown species, and if
    the folder is missing, at the wrong level, or without images. No file is opened, so a FIFO or a
    broken image cannot stop the scan.
    """
    root = Path(os.path.abspath(images_root))
    wanted = [species] if isinstance(species, str) else species or ()
    wanted = sorted({normalize("NFC", name) for name in wanted})
    for name in wanted:
        check_species_name(name)
    if not files.patiently(root.is_dir, root):
        what = "is not a folder" if root.exists() else f"does not exist{files.dead_link(root)}"
        raise _wrong_root(root, what)
    result = Scan(build_catalog(root, []))  # empty until the walk ends
    folders = _species_folders(os.fsencode(root), result)
    chosen = sorted(folders) if species is None else wanted
    if unknown := [name for name in chosen if name not in folders]:
        if not _holds_images(root, depth=3) and _other_root(root) is not None:
            raise _wrong_root(root, _NO_IMAGE)
        where = f" in {root}{files.dead_link(root / unknown[0])}"
        raise unknown_species(unknown[0], sorted(folders), where)
    bar = progress(desc="scan", unit=" records", delay=2.0, leave=False)
    with bar:
        records = (row for name in chosen for row in _records(name, folders[name], result, bar))
        result.catalog = build_catalog(root, records)
    if species is not None and result.empty_species and _holds_images(root, depth=3):
        what = f"species {result.empty_species[0]!r} in {root} has no image"
        raise UserError("; ".join(filter(None, (what, result.stray_text()))))
    num_images = len(result.catalog)
    is_nested = result.stray_counts[NESTED] > num_images
    if num_images == 0 or (is_nested and any(_holds_images(root / n, 3) for n in _ROOT_NAMES)):
        raise _wrong_root(root, "; ".join(filter(None, (_NO_IMAGE, result.stray_text()))))
    return result


def check_species_name(name: str) -> None:
    """Raise `UserError` for a species name that could lead out of the data folder."""
    if name in ("", ".", "..") or name.startswith(".") or any(sign in name for sign in "/\\\0"):
        raise UserError(
            f"species name {name!r} is refused: use the plain name of a folder, such as 'cat'"
        )


def _species_folders(root: bytes, found: Scan) -> dict[str, list[bytes]]:
    """Map species in NFC to their folders of the root; record the rest as strays."""
    folders: dict[str, list[bytes]] = {}
    for entry in sorted_entries(root):
        if reason := not_a_folder(entry):
            found.strays.append((entry.name, reason))
            continue
        try:
            name = normalize("NFC", entry.name.decode("utf-8"))
            check_species_name(name)
            folders.setdefault(name, []).append(entry.name)
        except ValueError:  # covers UnicodeDecodeError and UserError
            found.strays.append((entry.name, "not a usable species name"))
    return folders


def _records(
    species: str, species_folders: list[bytes], found: Scan, bar: tqdm
) -> Iterator[tuple[str, str, list[bytes]]]:
    """Yield species, name and relative image paths of every record, in order."""
    folders: dict[str, list[bytes]] = {}  # record -> its folders
    for prefix in species_folders:
        for entry in sorted_entries(os.path.join(found.catalog.root, prefix)):
            path = prefix + b"/" + entry.name
            if reason := not_a_folder(entry):
                found.strays.append((path, reason))
            else:  # bytes that are not UTF-8 are escaped in the name, not in the path
                text = entry.name.decode("utf-8", "backslashreplace")
                folders.setdefault(canonical_record(text), []).append(path)
    any_image = False
    for record, names in sorted(folders.items()):
        paths = sorted(path for name in names for path in _images_of(name, found))
        found.num_merged_folders += len(names) - 1
        any_image |= bool(paths)
        bar.update(len(names))
        yield species, record, paths
    if not any_image:
        found.empty_species.append(species)


def _images_of(folder: bytes, found: Scan) -> list[bytes]:
    """List the image files of one record folder as relative paths."""
    try:
        entries = sorted_entries(os.path.join(found.catalog.root, folder))
    except MachineError:
        raise
    except UserError as error:
        reason = str(error).rpartition(": ")[2]
        found.strays.append((folder, f"record folder cannot be read: {reason}"))
        return []
    images = []
    for entry in entries:
        path = folder + b"/" + entry.name
        if why := not_an_image(entry):
            found.strays.append((path, why))
        else:
            images.append(path)
    if not images:
        found.empty_records.append(folder)
    return images


def sorted_entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    """List a folder in the same order on every file system.

    Raises `UserError` if it is missing or not readable, `MachineError` if the disk fails.
    """

    def listed() -> list[os.DirEntry[bytes]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if files.is_of_machine(error) and not isinstance(error, PermissionError):
                raise
            what = f"cannot read folder {files.readable_name(folder)}: {error.strerror}"
            raise UserError(what) from error

    return files.patiently(listed, folder)


def link_text(path: bytes) -> str:
    """Format a link with its target."""
    return f"{files.readable_name(path)} -> {files.readable_name(os.readlink(path))}"


def reasons_text(counts: Counter[str]) -> str:
    """Format how often each reason occurred."""
    return ", ".join(f"{count} {why}" for why, count in sorted(counts.items()))


def not_an_image(entry: os.DirEntry[bytes]) -> str | None:
    """Return why an entry of a record folder is not an image, or None if it is one."""
    if not (reason := not_a_folder(entry)):
        return NESTED
    if reason != _A_FILE:
        return reason
    return not_a_photo_name(entry.name) if entry.is_file() else "not a regular file"


def not_a_folder(entry: os.DirEntry[bytes]) -> str | None:
    """Return why an entry above the record level is not a species or record, or None if it is."""
    if entry.name.startswith(b"."):
        return "hidden"
    try:
        if files.patiently(entry.is_dir, entry.path):
            return None
        # Taken from the folder listing: no stat, except for links.
        return DEAD if entry.is_symlink() and not entry.is_file() else _A_FILE
    except OSError as error:
        return f"cannot be followed: {error.strerror}"


def unknown_species(name: str, known: Sequence[str], where: str = "") -> UserError:
    """Return the error for an unknown species, with the nearest name."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    listed = ", ".join(known) or "no species folders"
    return UserError(f"no species {name!r}{where}{hint}; there are: {listed}")


def _wrong_root(root: Path, what: str) -> UserError:
    other = _other_root(root)
    advice = f"use this folder instead: {other}\n" if other else ""
    return UserError(f"images folder {root} {what}\n{advice}{EXPECTED_TREE}")


def _other_root(root: Path) -> Path | None:
    """Find a folder, one or two levels up or down, that has the expected layout."""
    bases = root, root.parent, root.parent.parent
    candidates = [base / name for base in bases for name in _ROOT_NAMES]
    if not root.exists() or _holds_images(root, depth=2):  # such as images/cat
        candidates.append(root.parent)
    if _holds_images(root, depth=1):  # such as images/cat/000000
        candidates.append(root.parent.parent)
    return next((c for c in candidates if c != root and _holds_images(c, depth=3)), None)


def _holds_images(root: Path, depth: int) -> bool:
    """Check whether one of some entries exactly `depth` levels down is an image."""
    some = islice(root.glob("/".join(["[!.]*"] * depth)), _ENTRIES_LOOKED_AT)
    return any(not not_a_photo_name(path.name) and path.is_file() for path in some)
