"""Read iNaturalist's competition files: JSON with `images[].file_name`, the class in the path."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from petface.data.images import IMAGE_SUFFIXES
from petface.data.sources.entries import Entry, Found, class_name
from petface.errors import UserError

EXPECTED = (
    "file_name must be train_val/<class>/<image> or train_val2018/<group>/<class>/<image>, below "
    "--source"
)


def read_inat_json(source: str | Path, train: str | Path, val: str | Path | None = None) -> Found:
    """List the photos that one or two JSON files name; the class is the folder of the photo.

    Where `annotations` and `categories` are there and fit the folders one to one, the class has
    the category's name instead. With `val` the entries have parts. Each photo is a record. Raises
    `UserError` for a file that is not such JSON, a path that leads out of `source`, and a photo
    that both files name.
    """
    root = Path(os.path.abspath(source))
    if not root.is_dir():
        raise UserError(f"--source {root} is not a folder: give the one that {EXPECTED}")
    found = Found("inat_json", root)
    files = {"train": Path(train)} | ({} if val is None else {"val": Path(val)})
    listed: dict[str, tuple[str, Path]] = {}  # file_name -> part, JSON file
    names = _CategoryNames()
    repeated = 0
    for part, path in files.items():
        content = _read(path)
        for number, name in _file_names(path, content):
            first = listed.setdefault(name, (part, path))
            if first[0] != part:
                raise UserError(
                    f"{path}, images[{number}]: {name!r} is in {first[1]} too: a photo can be in "
                    "one part only"
                )
            repeated += name in names.folder_of
            names.folder_of[name] = name.rpartition("/")[0]
        names.add(content)
    if repeated:
        found.notes.append(f"{repeated} photos are listed twice, and used once")
    classes = names.classes(found)
    for name, (part, _) in tqdm(
        sorted(listed.items()), desc="find", unit="img", mininterval=0.5, leave=False, disable=None
    ):
        folder = names.folder_of[name]
        place = os.path.join(root, name)  # noqa: PTH118 (hot)
        if isinstance(classes[folder], UserError):
            found.leave_out(name, str(classes[folder]))
        elif os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
            found.leave_out(name, "not an image suffix")
        elif not os.path.isfile(place):
            found.leave_out(name, "in the JSON, and no such photo")
        else:
            part = part if val is not None else ""
            stem = Path(name).stem
            found.entries.append(Entry(str(classes[folder]), stem, place, place, part))
    if not found.entries:
        raise UserError(f"none of the {len(listed)} photos of {train} is below {root}: {EXPECTED}")
    return found


class _CategoryNames:
    """What the JSON says the folders show."""

    def __init__(self) -> None:
        self.folder_of: dict[str, str] = {}  # file_name -> its folder
        self.seen: dict[str, Counter[str]] = defaultdict(Counter)  # folder -> category names

    def add(self, content: Mapping[str, Any]) -> None:
        """Read `annotations` and `categories`; what does not fit is as if it were not there."""
        with suppress(KeyError, TypeError, AttributeError):
            name_of = {row["id"]: str(row["name"]) for row in content["categories"]}
            folders = {row["id"]: self.folder_of[row["file_name"]] for row in content["images"]}
            for row in content["annotations"]:
                self.seen[folders[row["image_id"]]][name_of[row["category_id"]]] += 1

    def classes(self, found: Found) -> dict[str, str | UserError]:
        """Name the class of each folder, or say why it cannot be one."""
        folders = sorted(set(self.folder_of.values()))
        last = {folder: folder.rpartition("/")[2] for folder in folders}
        category = {f: next(iter(self.seen[f])) for f in folders if len(self.seen[f]) == 1}
        mixed = [folder for folder in folders if len(self.seen[folder]) > 1]
        one_to_one = len(set(category.values())) == len(folders)
        if mixed:
            found.notes.append(
                f"{len(mixed)} folders hold photos of several categories, such as {mixed[0]}: "
                "folder names are used for all classes"
            )
        elif category and not one_to_one:
            found.notes.append(
                "categories and folders are not one to one: folder names are used for all classes"
            )
        chosen = category if one_to_one and not mixed else last
        if chosen is last and len(set(last.values())) < len(folders):
            merged = len(folders) - len(set(last.values()))
            found.notes.append(f"{merged} folders have the name of another one: one class")
        return {folder: _usable(chosen[folder], last[folder]) for folder in folders}


def _usable(name: str, folder: str) -> str | UserError:
    """Give the name as a class, else that of the folder, else what is wrong with it."""
    with suppress(UserError):
        return class_name(name)
    try:
        return class_name(folder)
    except UserError as error:
        return error


def _read(path: Path) -> dict[str, Any]:
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
    return content


def _file_names(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield (place in the list, `file_name`) of each photo, checked."""
    for number, image in enumerate(content["images"]):
        name = image.get("file_name") if isinstance(image, dict) else None
        where = f"{path}, images[{number}]"
        if not isinstance(name, str):
            raise UserError(f"{where}: no file_name, but {image!r:.80}")
        parts = name.split("/")
        if {"..", ".", ""} & set(parts) or set("\\\0") & set(name):
            raise UserError(f"{where}: file_name {name!r} is refused; {EXPECTED}")
        if len(parts) < 3:
            raise UserError(f"{where}: file_name {name!r} names no class; {EXPECTED}")
        yield number, name
