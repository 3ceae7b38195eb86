"""Made-up sources of photos: class folders, an Oxford-like folder, iNaturalist-like JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

OXFORD_BREEDS = {  # name: class id, species (1 cat, 2 dog), photos in trainval, in test
    "Abyssinian": (1, 1, 12, 5),
    "american_bulldog": (2, 2, 10, 6),
    "Egyptian_Mau": (3, 1, 3, 2),
}


def photo(path: Path, colour: Sequence[int] = (200, 80, 40), side: int = 24) -> Path:
    """Draw one photo: a colour with noise that differs from path to path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(list(path.name.encode("utf-8", "surrogateescape")))
    pixels = np.asarray(colour) + draw.normal(0, 15, (side, side, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def tree(root: Path, *paths: str | bytes) -> Path:
    """Make small files that differ and are no photos; a name need not be UTF-8."""
    for path in paths:
        full = root / os.fsdecode(path)
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(os.fsencode(path))
    return root


def files_of(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything below a folder, to see that nothing was touched."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(root))] = (status.st_size, status.st_mtime_ns)
    return found


def oxford(root: Path, *, draw_photos: bool = False) -> Path:
    """Make a small folder of Oxford-IIIT Pets as its archives unpack."""
    lists: dict[str, list[str]] = {"trainval.txt": ["#Image CLASS-ID SPECIES BREED ID"]}
    lists["test.txt"] = list(lists["trainval.txt"])
    for breed, (class_id, species, num_train, num_test) in OXFORD_BREEDS.items():
        names = [f"{breed}_{number}" for number in range(1, num_train + num_test + 1)]
        for name in names:
            if draw_photos:
                photo(root / f"images/{name}.jpg", (80 * class_id, 250 - 70 * class_id, 120))
            else:
                tree(root, f"images/{name}.jpg")
        rows = [f"{name} {class_id} {species} 1" for name in names]
        lists["trainval.txt"] += rows[:num_train]
        lists["test.txt"] += rows[num_train:]
    tree(root, "images/Abyssinian_100.mat", "images/._Abyssinian_1.jpg", "images/Bengal_7.jpg")
    (root / "annotations").mkdir()
    for name, lines in lists.items():
        (root / "annotations" / name).write_text("\n".join(lines) + "\n")
    return root


def inat(path: Path, names: Iterable[object]) -> Path:
    """Write a JSON that lists `names`."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    path.write_text(json.dumps({"info": {}, "images": images}))
    return path
