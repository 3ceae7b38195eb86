"""Read Oxford-IIIT Pets: 37 breeds of cats and dogs, about 200 photos each, with official lists.

O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar: Cats and Dogs, CVPR 2012.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pandas

from petface.data.sources.layout import Entry, Found
from petface.data.sources.petface import not_an_image, sorted_entries
from petface.errors import UserError
from petface.files import network_patience

HOME = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
DOWNLOADED = "oxford-iiit-pet"  # the folder that torchvision makes
SPECIES = {"1": "cat", "2": "dog"}
STAGES = ("one", "two")
_LISTS = {"trainval.txt": "train", "test.txt": "test"}
_AGAIN = f"download the list again from {HOME}"


def read_oxford_pets(source: str | Path, stages: str) -> Found:
    """List the photos of the official lists; trainval.txt becomes the train split.

    With `stages` "one", the 37 breeds are the classes of stage 1. With "two", the classes are cat
    and dog, and the breed is an attribute. Each photo is its own record. Raises `UserError` if the
    folder is not the dataset or a list is malformed.
    """
    assert stages in STAGES, stages
    root = _find(Path(os.path.abspath(source)))
    found = Found("oxford_pets", root)
    photos = _photos_in(root / "images", found)
    rows = [(*row, name) for name in _LISTS for row in _read_list(root / "annotations" / name)]
    repeated = [image for image, num in Counter(row[0] for row in rows).items() if num > 1]
    if repeated:
        raise UserError(f"{root / 'annotations'} lists {repeated[0]} twice; {_AGAIN}")
    for image, species, file_name in rows:
        photo, breed = photos.pop(image, None), image.rpartition("_")[0]
        if photo is None:
            found.leave_out(f"{image}.jpg", f"in {file_name}, and no such photo")
        elif stages == "one":
            found.entries.append(Entry(breed, image, photo, photo, _LISTS[file_name]))
        else:
            found.entries.append(Entry(species, image, photo, photo, _LISTS[file_name], breed))
    for photo in photos.values():
        found.leave_out(photo, "a photo in no official list")
    for file_name, part in _LISTS.items():
        if part not in found.parts:
            raise UserError(f"{root / 'images'} holds no photo of {file_name}\n{_by_hand(root)}")
    return found


def download_oxford_pets(source: str | Path) -> None:
    """Download the dataset (800 MB) into `source` with torchvision, unless it exists.

    Without a network, raises `UserError` with instructions for a manual download.
    """
    try:
        from torchvision.datasets import OxfordIIITPet

        with network_patience(20.0):
            OxfordIIITPet(str(source), download=True)
    except Exception as error:  # network, archive and disk raise a dozen types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"Oxford-IIIT Pets could not be downloaded ({reason})"
        raise UserError(f"{what}\n{_by_hand(Path(source))}") from error


def _by_hand(root: Path) -> str:
    return (
        f"download images.tar.gz and annotations.tar.gz from {HOME}\n"
        f"and unpack both in {root}, which then holds:\n"
        f"    {root}/images/Abyssinian_1.jpg ...\n"
        f"    {root}/annotations/trainval.txt and test.txt"
    )


def _find(source: Path) -> Path:
    """Find the folder with images and annotations: `source`, or the one torchvision creates."""
    for root in (source, source / DOWNLOADED):
        if (root / "images").is_dir() and (root / "annotations").is_dir():
            return root
    what = "is not Oxford-IIIT Pets" if source.exists() else "does not exist"
    way_out = "with a network, add --download true; without one"
    raise UserError(f"--source {source} {what}; {way_out}\n{_by_hand(source)}")


def _photos_in(folder: Path, found: Found) -> dict[str, str]:
    """Map the name of each photo, without its suffix, to its path."""
    photos: dict[str, str] = {}
    for entry in sorted_entries(os.fsencode(folder)):
        stem = Path(os.fsdecode(entry.name)).stem
        if reason := not_an_image(entry):
            found.leave_out(entry.path, reason)
        elif stem in photos:
            found.leave_out(entry.path, "a second photo of the same name")
        else:
            photos[stem] = os.fsdecode(entry.path)
    return photos


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Read image and species of each row `<image> <class id> <species> <breed id>`."""
    columns = ["image", "class_id", "species", "breed_id"]
    try:
        table = pandas.read_csv(path, sep=r"\s+", comment="#", names=columns, dtype=str)
    except OSError as error:
        root = path.parent.parent
        raise UserError(f"cannot read {path}: {error.strerror}\n{_by_hand(root)}") from error
    except ValueError as error:  # not UTF-8, rows of other lengths
        raise UserError(f"{path}: {str(error).strip()}; {_AGAIN}") from error
    odd = ~table["image"].str.contains("_", na=False) | ~table["species"].isin(list(SPECIES))
    if odd.any():
        row = " ".join(map(str, table[odd].iloc[0]))
        raise UserError(f"{path}: {row!r} is no photo of a cat (1) or a dog (2); {_AGAIN}")
    return list(zip(table["image"], table["species"].map(SPECIES), strict=True))
