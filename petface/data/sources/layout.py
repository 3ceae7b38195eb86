"""Lay photos out as `images/<species>/<record>/<image>`, as links or copies, in a new folder."""

from __future__ import annotations

import errno
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from petface import files
from petface.data.sources.entries import Entry, Found, UniqueNames, safe_name
from petface.errors import UserError

LINKS = ("symbolic", "hard", "copy")
MARKER = "prepared.json"
_NO_LINKS = {
    errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV,
    errno.EMLINK, errno.EINVAL,
}  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """An entry and its place in the tree, `images/<species>/<record>/<image>`."""

    entry: Entry
    record: str  # canonical, unique in its species
    image: str  # unique in its record


def name_photos(entries: Sequence[Entry]) -> list[Photo]:
    """Give each entry its record and image name; animals of different parts never share one."""
    records: dict[tuple[str, str, str], str] = {}
    names: dict[str, UniqueNames] = defaultdict(UniqueNames)  # of the records of a species
    images: dict[tuple[str, str], UniqueNames] = defaultdict(UniqueNames)  # of a record
    photos = []
    for entry in entries:
        key = entry.species, entry.part, entry.animal
        if key not in records:
            records[key] = names[entry.species].take(safe_name(entry.record))
        path = Path(entry.path)
        stem = images[entry.species, records[key]].take(safe_name(path.stem))
        photos.append(Photo(entry, records[key], stem + path.suffix.lower()))
    return photos


def check_out(out: Path, source: Path) -> None:
    """Refuse a folder that exists, or that lies in the source (`UserError`)."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        what = "holds a prepared tree already" if (out / MARKER).exists() else "exists already"
        raise UserError(f"--out {out} {what}: use it, delete it yourself, or name another --out")
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"--out {out} lies in the source {source}, which stays as it is: name another --out"
        )


def place_photos(found: Found, photos: Sequence[Photo], folder: Path, link: str) -> None:
    """Put every photo into `folder/images`, by one of `LINKS`; `found.notes` says where it copies
    because links are not possible.
    """
    assert link in LINKS, link
    made: set[Path] = set()
    bar = tqdm(photos, desc=link, unit="img", mininterval=0.5, leave=False, disable=None)
    for photo in bar:
        species = folder / "images" / photo.entry.species
        for parent in (species, species / photo.record):
            if parent not in made:
                made.add(parent)
                try:
                    parent.mkdir(parents=parent is species)
                except FileExistsError as error:
                    raise UserError(
                        f"{parent.name!r} and another class differ only in case, and {folder} "
                        "cannot hold both: rename one, or choose another --out"
                    ) from error
        place = species / photo.record / photo.image
        if link != "copy":
            try:
                _link(photo.entry.path, place, link)
                continue
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                found.notes.append(
                    f"{link} links are not possible in {folder.parent} ({error.strerror}): photos "
                    "are copied instead"
                )
                link = "copy"
        _copy(photo.entry.path, place)


def _link(source: str, place: Path, link: str) -> None:
    if link == "symbolic":
        place.symlink_to(source)
    else:  # to the file itself, where the source is a link
        os.link(os.path.realpath(source), place)


def _copy(source: str, place: Path) -> None:
    try:
        shutil.copyfile(source, place)
    except OSError as error:
        if error.filename != source:
            raise
        raise UserError(f"cannot read {source}: {error.strerror}") from error


def write_annotations(folder: Path, photos: Sequence[Photo]) -> None:
    """Write `<species>.csv` (Name, Breed) for each species with breeds, spelt as they are."""
    folder.mkdir()
    breeds: dict[str, dict[str, str]] = defaultdict(dict)
    for photo in photos:
        if photo.entry.breed:
            breeds[photo.entry.species][photo.record] = photo.entry.breed
    for species, rows in breeds.items():
        with files.atomic_write(folder / f"{species}.csv", "w") as handle:
            handle.write(files.csv_line(("Name", "Breed")))
            handle.writelines(map(files.csv_line, sorted(rows.items())))


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out` that takes its name at the end.

    Where it comes to no end, the next start empties it. `UserError` where another process is
    writing it, or where it is somebody else's.
    """
    folder = out.with_name(f"{out.name}.unfinished")
    marker = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.write_error(out, error) from error
    with files.turn_in(folder, wait=False):
        left = sorted(folder.iterdir(), key=lambda path: path.name.startswith(MARKER))
        if left and not left[-1].name.startswith(MARKER):
            raise UserError(f"{folder} is in the way, and not of this tool: move it away")
        try:
            for path in left:  # the marker last, so that a kill leaves it
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            files.write_json(marker, {"finished": False})
            yield folder
            folder.rename(out)
        except OSError as error:
            raise files.write_error(error.filename or out, error) from error
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
