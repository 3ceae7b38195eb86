"""Damaged packs of decoded images: refused, with the way out, or read with the very same pixels."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from petface.data.catalog import Catalog
from petface.data.images import Preprocessing
from petface.data.pack import ENTRY, MAGIC, TAIL, PackedImages, head_length, make_pack
from petface.data.sources.petface import scan
from petface.errors import UserError
from tests.torture.damage import DAMAGES
from tests.torture.outcome import Outcome

_RULE = Preprocessing(16)
_NUM_PHOTOS = 24  # the last of each class cannot be read
Opener = Callable[..., PackedImages]


def torture_packs(
    num_files: int, seed: int, place: Path, open_pack: Opener = PackedImages
) -> Outcome:
    """Open damaged packs with `open_pack` and read all of their images."""
    begun, outcome = time.monotonic(), Outcome("packs", "damaged packs")
    catalog = _draw_tree(place / "pack_photos")
    results: Counter[str] = Counter()
    path = place / "pack.bin"
    make_pack(path, catalog, _RULE)
    whole, expected = path.read_bytes(), _read(open_pack(path, catalog, _RULE))
    regions = list(_regions(whole).items())
    for number in range(num_files):
        draw = random.Random(f"{seed} {number}")
        name, (begin, end) = regions[number % len(regions)]
        damage = draw.choice(DAMAGES)
        path.write_bytes(damage(whole, begin, end, draw))
        which = f"{name}, {damage.__name__}, file {number}"
        try:
            found = _read(open_pack(path, catalog, _RULE))
        except UserError as error:
            result = "refused"
            if not str(error).startswith(f"pack {path}: ") or "tools.pack_images" not in str(error):
                result = "wrong"
                outcome.failures.append(f"{which}: message {str(error)!r}")
        except BaseException as error:
            result = "wrong"
            outcome.failures.append(f"{which}: {type(error).__name__}: {error}")
        else:
            same = all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
            result = "identical" if same else "altered"
            if not same:
                outcome.failures.append(f"{which}: read with other pixels")
        results[result] += 1
    outcome.counts = {name: results[name] for name in ("refused", "identical", "altered", "wrong")}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _read(pack: PackedImages) -> tuple[np.ndarray, np.ndarray]:
    decoded = pack.read(np.arange(len(pack.catalog)))
    return decoded.arrays[0].numpy(), decoded.status


def _draw_tree(images: Path) -> Catalog:
    draw = np.random.default_rng(0)
    for number in range(_NUM_PHOTOS):
        folder = images / ("cat" if number % 2 else "dog") / f"{number:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (16, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "00.png")
        if number >= _NUM_PHOTOS - 2:
            (folder / "00.png").write_bytes(b"<html>")
    return scan(images).catalog


def _regions(data: bytes) -> dict[str, tuple[int, int]]:
    """Name the parts of a pack: begin and end of each."""
    head = head_length(data[:64])
    text = len(data[:head].rstrip(b"\0"))
    index_at, _, _ = TAIL.unpack(data[-TAIL.size :])
    tail = len(data) - TAIL.size
    assert (tail - index_at) // ENTRY.itemsize == _NUM_PHOTOS
    return {
        "magic": (0, len(MAGIC)),
        "length of the header": (len(MAGIC), len(MAGIC) + 8),
        "header": (len(MAGIC) + 8, text),
        "padding": (text, head),
        "pixels": (head, index_at),
        "list of images": (index_at, tail),
        "place of the list": (tail, tail + 8),
        "checksum": (tail + 8, tail + 40),
        "end": (tail + 40, len(data)),
    }
