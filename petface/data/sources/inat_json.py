"""Read iNaturalist's competition files: JSON with `images[].file_name`, the class in the path."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from petface.data.encoded import not_a_photo_name
from petface.data.sources.layout import Entry, Found, class_name
from petface.errors import UserError
from petface.files import dead_link
from petface.progress import progress

EXPECTED = (
    "file_name must be train_val/<class>/<image> or train_val2018/<group>/<class>/<image>, below "
    "--source"
)


def read_inat_json(source: str | Path, train: str | Path, val: str | Path | None = None) -> Found:
    """List the photos that one or two JSON files name; the class is the folder of the photo.

    A JSON may be named by its place inside `source`. Where `annotations` and `categories` give all
    photos of a folder one category, its name is the class instead. With `val` the entries have
    parts. Each photo is a record. Raises `UserError` for a file that is not such JSON, a path that
    leads out of `source`, and a photo in both files.
    """
    root = Path(os.path.abspath(source))
    if not root.is_dir():
        raise UserError(f"--source {root} is not a folder: give the one that {EXPECTED}")
    found = Found("inat_json", root)
    named = {"": train} if val is None else {"train": train, "val": val}
    part_of: dict[str, str] = {}  # file_name -> part
    categories: dict[str, set[str]] = defaultdict(set)  # folder -> what the JSON calls its photos
    num_repeated = 0
    for part, file in named.items():
        path = Path(file)
        path = root / path if not path.exists() and (root / path).exists() else path
        content = _read(path)
        for number, name in _file_names(path, content):
            num_repeated += name in part_of
            if part_of.setdefault(name, part) != part:
                what = f"{path}, images[{number}]: {name!r} is in {train} too"
                raise UserError(f"{what}: a photo can be in one part only")
        _add_categories(content, categories)
    if num_repeated:
        found.notes.append(f"{num_repeated} photos are listed twice, and used once")
    bar = progress(sorted(part_of.items()), desc="find", leave=False)
    for name, part in bar:
        place = os.path.join(root, name)  # noqa: PTH118 (hot)
        try:
            species = _class_of(os.path.dirname(name), categories)  # noqa: PTH120 (hot)
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
        raise UserError(f"none of the {len(part_of)} photos of {train} is below {root}: {EXPECTED}")
    return found


def _add_categories(content: Mapping[str, Any], categories: dict[str, set[str]]) -> None:
    """Read `annotations` and `categories`; what does not fit is as if it were not there."""
    with suppress(KeyError, TypeError, AttributeError):
        name_of = {row["id"]: str(row["name"]) for row in content["categories"]}
        folders = {row["id"]: row["file_name"].rpartition("/")[0] for row in content["images"]}
        for row in content["annotations"]:
            categories[folders[row["image_id"]]].add(name_of[row["category_id"]])


def _class_of(folder: str, categories: Mapping[str, set[str]]) -> str:
    """Return the class of a folder's photos; `UserError` where its name cannot be one."""
    names = categories.get(folder, ())
    if len(names) == 1:
        with suppress(UserError):  # a category that cannot be a folder leaves the folder's name
            return class_name(*names)
    return class_name(folder.rpartition("/")[2])


def _read(path: Path) -> dict[str, Any]:
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
