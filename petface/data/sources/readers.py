"""Read the photos of other sources.

- Class folders, `<class>/<image>` or `<class>/<record>/<image>`, at the top level or in train, val
  and test.
- iNaturalist's JSON files, which list photos in class folders.
- Oxford-IIIT Pets: 37 breeds of cats and dogs, about 200 photos each, with official lists (Parkhi,
  Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012).
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pandas

from petface.data.encoded import not_a_photo_name
from petface.data.sources.layout import Entry, Found, class_name
from petface.data.sources.petface import NESTED, not_a_folder, not_an_image, sorted_entries
from petface.errors import UserError
from petface.files import dead_link, network_patience
from petface.progress import progress
from petface.taxonomy import canonical_record

EXPECTED = """the expected tree is
    <source>/<class>/<image>            or  <source>/<class>/<record>/<image>
or the same below train, val and test:
    <source>/train/<class>/<image>          val (or valid, validation) and test may be missing"""
EXPECTED_NAME = (
    "file_name must be train_val/<class>/<image> or train_val2018/<group>/<class>/<image>, below "
    "--source"
)
PART_OF = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
HOME = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
SPECIES = {"1": "cat", "2": "dog"}
_LISTS = {"trainval.txt": "train", "test.txt": "test"}
_AGAIN = f"download the list again from {HOME}"


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
    parts = _part_folders(root)
    in_order = {part: parts[part] for part in dict.fromkeys(PART_OF.values()) if part in parts}
    loose_photos = 0  # in place of a class folder
    for part, folder in (in_order or {"": root}).items():
        for entry in sorted_entries(os.fsencode(folder)):
            if reason := not_a_folder(entry):
                loose_photos += not_an_image(entry) is None
                found.leave_out(entry.path, reason)
                continue
            try:
                name = class_name(os.fsdecode(entry.name))
            except UserError as error:
                found.leave_out(entry.path, str(error))
            else:
                _read_photos(found, entry.path, name, part)
    for entry in sorted_entries(os.fsencode(root)) if parts else ():
        reason = not_a_folder(entry)
        if reason or os.fsdecode(entry.name).lower() not in PART_OF:
            found.leave_out(entry.path, reason or "a folder beside train, val and test")
    if not found.entries:
        what = "holds photos and no class folders" if loose_photos else "holds no photo"
        raise UserError(f"--source {root} {what} where one belongs\n{EXPECTED}")
    parts_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for photo in found.entries:
        if photo.animal != photo.path:
            parts_of[photo.species, photo.record].add(photo.part)
    if shared := [key for key, parts in parts_of.items() if len(parts) > 1]:
        found.notes.append(
            f"{len(shared)} record folders have the same name in more than one split, such as "
            f"{'/'.join(min(shared))}: they count as different animals. If they are the same, the "
            "test photos do not show unseen animals"
        )
    return found


def _read_photos(found: Found, folder: bytes, species: str, part: str, record: str = "") -> None:
    """Read the photos of a class and of its record folders, or the photos of one record."""
    num_before = len(found.entries)
    for entry in sorted_entries(folder):
        reason, path = not_an_image(entry), os.fsdecode(entry.path)
        if reason == NESTED and not record:
            name = canonical_record(os.fsdecode(entry.name))
            _read_photos(found, entry.path, species, part, name)
        elif reason:
            found.leave_out(entry.path, reason)
        else:
            name, animal = record or Path(path).stem, f"folder {record}" if record else path
            found.entries.append(Entry(species, name, animal, path, part))
    if len(found.entries) == num_before:
        found.leave_out(folder, f"a {'record' if record else 'class'} folder without a photo")


def _part_folders(root: Path) -> dict[str, Path]:
    """Find the folders of the splits; none if the tree has class folders at its top level."""
    found: dict[str, Path] = {}
    for entry in sorted_entries(os.fsencode(root)):
        name = os.fsdecode(entry.name)
        part = PART_OF.get(name.lower())
        if part is None or not_a_folder(entry):
            continue
        if part in found:
            both = f"{found[part].name} and {name}: move one of them away"
            raise UserError(f"--source {root} has two folders for the {part} split, {both}")
        found[part] = root / name
    return found


def read_inat_json(source: str | Path, train: str | Path, val: str | Path | None = None) -> Found:
    """List the photos that one or two JSON files name; the class is the folder of the photo.

    A JSON may be named by its place inside `source`. With `val` the entries have parts. Each photo
    is a record. Raises `UserError` for a file that is not such JSON, a path that leads out of
    `source`, and a photo in both files.
    """
    root = Path(os.path.abspath(source))
    if not root.is_dir():
        raise UserError(f"--source {root} is not a folder: give the one that {EXPECTED_NAME}")
    found = Found("inat_json", root)
    named = {"": train} if val is None else {"train": train, "val": val}
    part_of: dict[str, str] = {}  # file_name -> part
    num_repeated = 0
    for part, file in named.items():
        path = Path(file)
        path = root / path if not path.exists() and (root / path).exists() else path
        for number, name in enumerate(_file_names(path)):
            num_repeated += name in part_of
            if part_of.setdefault(name, part) != part:
                what = f"{path}, images[{number}]: {name!r} is in {train} too"
                raise UserError(f"{what}: a photo can be in one part only")
    if num_repeated:
        found.notes.append(f"{num_repeated} photos are listed twice, and used once")
    for name, part in progress(sorted(part_of.items()), desc="find", leave=False):
        place = os.path.join(root, name)  # noqa: PTH118 (hot)
        try:
            species = class_name(name.split("/")[-2])
        except UserError as error:
            found.leave_out(name, str(error))
            continue
        if why := not_a_photo_name(name):
            found.leave_out(name, why)
        elif not os.path.isfile(place):
            found.leave_out(name, f"in the JSON, and no such photo{dead_link(place)}")
        else:
            found.entries.append(Entry(species, Path(name).stem, place, place, part))
    if not found.entries:
        what = f"none of the {len(part_of)} photos of {train} is below {root}"
        raise UserError(f"{what}: {EXPECTED_NAME}")
    return found


def _file_names(path: Path) -> list[str]:
    """Read the `file_name` of each photo in a JSON, checked."""
    if path.exists() and not path.is_file():  # a pipe or a device may have no end
        raise UserError(f"cannot read {path}: it is not a regular file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f'{path} has no list "images": is it a file of iNaturalist\'s?')
    names = []
    for number, image in enumerate(content["images"]):
        name = image.get("file_name") if isinstance(image, dict) else None
        where = f"{path}, images[{number}]"
        if not isinstance(name, str):
            raise UserError(f"{where}: no file_name, but {image!r:.80}")
        parts = name.split("/")
        if len(parts) < 3 or {"..", ".", ""} & set(parts) or set("\\\0") & set(name):
            raise UserError(f"{where}: file_name {name!r} is refused; {EXPECTED_NAME}")
        names.append(name)
    return names


def read_oxford_pets(source: str | Path, stages: str) -> Found:
    """List the photos of the official lists; trainval.txt becomes the train split.

    With `stages` "one", the 37 breeds are the classes of stage 1. With "two", the classes are cat
    and dog, and the breed is an attribute. Each photo is its own record. Raises `UserError` if the
    folder is not the dataset or a list is malformed.
    """
    assert stages in ("one", "two"), stages
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
    for root in (source, source / "oxford-iiit-pet"):
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
