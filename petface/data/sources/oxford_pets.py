"""Read Oxford-IIIT Pets: 37 breeds of cats and dogs, about 200 photos each, with official lists.

O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar: Cats and Dogs, CVPR 2012.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from petface.data.catalog import line_error
from petface.data.sources.entries import Entry, Found
from petface.data.sources.petface import not_an_image
from petface.errors import UserError

HOME = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
PUBLISHED = {"trainval.txt": 3680, "test.txt": 3669}  # photos
DOWNLOADED = "oxford-iiit-pet"  # the folder that torchvision makes
SPECIES = {"1": "cat", "2": "dog"}
STAGES = ("one", "two")
_LISTS = {"trainval.txt": "train", "test.txt": "test"}


@dataclass(frozen=True)
class _Row:
    """One line of a list."""

    line: int
    image: str  # without its suffix
    breed: str
    class_id: str
    species: str


def read_oxford_pets(source: str | Path, stages: str) -> Found:
    """List the photos of the official lists; trainval.txt becomes the train part.

    With `stages` "one" the 37 breeds are the classes of stage 1; with "two" they are cat and dog,
    and the breed is an attribute. Each photo is a record. Raises `UserError` where the folder is
    not the data set, and with file and line for a list that makes no sense.
    """
    assert stages in STAGES, stages
    root = _find(Path(os.path.abspath(source)))
    found = Found("oxford_pets", root)
    photos = _photos_in(root / "images", found)
    seen: dict[str, str] = {}  # image -> file and line
    kinds: dict[str, tuple[str, str]] = {}  # breed -> class id and species
    for file_name, part in _LISTS.items():
        path, num_listed = root / "annotations" / file_name, 0
        for row in _rows(path):
            where = f"{file_name} line {row.line}"
            if row.image in seen:
                what = f"{row.image} is listed already, in {seen[row.image]}; remove one of the two"
                raise line_error(path, row.line, what)
            kind = row.class_id, row.species
            if kinds.setdefault(row.breed, kind) != kind:
                what = (
                    f"{row.image} has class {kind[0]} and species {kind[1]}, other photos of its "
                    f"breed have {kinds[row.breed][0]} and {kinds[row.breed][1]}; fetch the list "
                    f"again from {HOME}"
                )
                raise line_error(path, row.line, what)
            seen[row.image] = where
            num_listed += 1
            photo = photos.pop(row.image, None)
            if photo is None:
                found.leave_out(f"{row.image}.jpg", f"in {file_name}, and no such photo")
            elif stages == "one":
                found.entries.append(Entry(row.breed, row.image, photo, photo, part))
            else:
                found.entries.append(Entry(row.species, row.image, photo, photo, part, row.breed))
        if num_listed != PUBLISHED[file_name]:
            published = f"the published list has {PUBLISHED[file_name]:,}"
            found.notes.append(f"{file_name} lists {num_listed:,} photos; {published}")
    for photo in photos.values():
        found.leave_out(os.path.relpath(photo, root), "a photo in no official list")
    for file_name, part in _LISTS.items():
        if part not in found.parts:
            what = f"{root / 'images'} holds no photo of {file_name}"
            raise UserError(f"{what}\n{_by_hand(root)}")
    return found


def download_oxford_pets(source: str | Path) -> None:
    """Let torchvision fetch the 800 MB into `source`, unless they are there.

    Raises `UserError` that says how to do it by hand where there is no network.
    """
    try:
        from torchvision.datasets import OxfordIIITPet

        from petface.files import network_patience

        with network_patience(20.0):
            OxfordIIITPet(str(source), download=True)
    except Exception as error:  # network, archive and disk raise a dozen types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"Oxford-IIIT Pets could not be downloaded ({reason})\n{_by_hand(Path(source))}"
        ) from error


def _by_hand(root: Path) -> str:
    return (
        f"fetch images.tar.gz and annotations.tar.gz from {HOME}\n"
        f"and unpack both in {root}, so that these are there:\n"
        f"    {root}/images/Abyssinian_1.jpg ...\n"
        f"    {root}/annotations/trainval.txt and test.txt"
    )


def _find(source: Path) -> Path:
    """Find the folder that holds images and annotations: `source`, or the one torchvision made."""
    for root in (source, source / DOWNLOADED):
        if (root / "images").is_dir() and (root / "annotations").is_dir():
            return root
    what = "is not Oxford-IIIT Pets" if source.exists() else "does not exist"
    way_out = "where a network is, give --download true; elsewhere"
    raise UserError(f"--source {source} {what}; {way_out}\n{_by_hand(source)}")


def _photos_in(folder: Path, found: Found) -> dict[str, str]:
    """Map the name of each photo, without its suffix, to its path."""
    photos: dict[str, str] = {}
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = Path(os.fsdecode(entry.name))
                if reason := not_an_image(entry):
                    reason = "a folder among the photos" if entry.is_dir() else reason
                    found.leave_out(b"images/" + entry.name, reason)
                elif name.stem in photos:
                    found.leave_out(b"images/" + entry.name, "a second photo of that name")
                else:
                    photos[name.stem] = os.fsdecode(entry.path)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    return photos


def _rows(path: Path) -> Iterator[_Row]:
    """Yield the lines `<image> <class id> <species> <breed id>` of an official list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        root = path.parent.parent
        raise UserError(f"cannot read {path}: {error.strerror}\n{_by_hand(root)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; fetch it again from {HOME}") from error
    for line, row in enumerate(text.splitlines(), start=1):
        if not row.strip() or row.lstrip().startswith("#"):
            continue
        cells = row.split()
        breed, underscore, number = cells[0].rpartition("_")
        is_plain = not set(cells[0]) & set("/\\\0") and not breed.startswith(".")
        usable = len(cells) == 4 and all(cell.isdecimal() for cell in cells[1:])
        if not (usable and breed and underscore and number.isdecimal() and is_plain):
            what = f"{row!r} is not '<breed>_<number> <class id> <species> <breed id>'"
            raise line_error(path, line, what)
        if cells[2] not in SPECIES:
            raise line_error(path, line, f"species {cells[2]!r} is neither 1 (cat) nor 2 (dog)")
        yield _Row(line, cells[0], breed, cells[1], SPECIES[cells[2]])
