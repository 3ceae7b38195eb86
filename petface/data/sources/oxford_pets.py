"""Read Oxford-IIIT Pets: 37 breeds of cats and dogs, about 200 photos each, with official lists.

O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar: Cats and Dogs, CVPR 2012.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from petface.data.catalog import line_error
from petface.data.sources.layout import Entry, Found
from petface.data.sources.petface import not_an_image, sorted_entries
from petface.errors import UserError
from petface.files import network_patience

HOME = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
PUBLISHED = {"trainval.txt": 3680, "test.txt": 3669}  # photos
DOWNLOADED = "oxford-iiit-pet"  # the folder that torchvision makes
SPECIES = {"1": "cat", "2": "dog"}
STAGES = ("one", "two")
_LISTS = {"trainval.txt": "train", "test.txt": "test"}
_ROW = re.compile(r"([^\s./\\\0][^\s/\\\0]*_\d+)\s+(\d+)\s+(\d+)\s+\d+")


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
        path, num_before = root / "annotations" / file_name, len(seen)
        for line, image, class_id, species in _rows(path):
            breed = image.rpartition("_")[0]
            if image in seen:
                what = f"{image} is listed already, in {seen[image]}; remove one of the two"
                raise line_error(path, line, what)
            kind = kinds.setdefault(breed, (class_id, species))
            if kind != (class_id, species):
                what = (
                    f"{image} has class {class_id} and species {species}, other photos of its "
                    f"breed have {kind[0]} and {kind[1]}; fetch the list again from {HOME}"
                )
                raise line_error(path, line, what)
            seen[image] = f"{file_name} line {line}"
            photo = photos.pop(image, None)
            if photo is None:
                found.leave_out(f"{image}.jpg", f"in {file_name}, and no such photo")
            elif stages == "one":
                found.entries.append(Entry(breed, image, photo, photo, part))
            else:
                found.entries.append(Entry(species, image, photo, photo, part, breed))
        num_listed = len(seen) - num_before
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
    """Download the 800 MB into `source` with torchvision, unless they are there.

    Raises `UserError` that says how to do it by hand where there is no network.
    """
    try:
        from torchvision.datasets import OxfordIIITPet

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
    for entry in sorted_entries(os.fsencode(folder)):
        stem = Path(os.fsdecode(entry.name)).stem
        if reason := not_an_image(entry):
            reason = "a folder among the photos" if entry.is_dir() else reason
            found.leave_out(b"images/" + entry.name, reason)
        elif stem in photos:
            found.leave_out(b"images/" + entry.name, "a second photo of that name")
        else:
            photos[stem] = os.fsdecode(entry.path)
    return photos


def _rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield line, image, class id and species of each `<image> <class id> <species> <breed id>`."""
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
        cells = _ROW.fullmatch(row.strip())
        if not cells:
            what = f"{row!r} is not '<breed>_<number> <class id> <species> <breed id>'"
            raise line_error(path, line, what)
        image, class_id, species = cells.groups()
        if species not in SPECIES:
            raise line_error(path, line, f"species {species!r} is neither 1 (cat) nor 2 (dog)")
        yield line, image, class_id, SPECIES[species]
