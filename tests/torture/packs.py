"""Damaged packs of decoded images: refused, with the way out, or read with the very same pixels."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from petface.data.catalog import Catalog
from petface.data.images import Preprocessing
from petface.data.pack import ENTRY, MAGIC, TAIL, PackedImages, head_length, make_pack
from petface.data.sources.petface import scan
from tests.torture.fuzz import Fuzzer, damaged, judge_reading

_RULE = Preprocessing(16)
_ODD = (None, -1, 0, 1.5, 2**70, "", "x" * 9999, [], {}, True, float("inf"))
_NUM_PHOTOS = 24  # the last of each class cannot be read
Opener = Callable[..., PackedImages]


def damaged_fuzzer(place: Path, open_pack: Opener = PackedImages) -> Fuzzer:
    """Open damaged packs with `open_pack` and read all of their images."""
    path, catalog, whole = _made_pack(place, "pack.bin")
    head, text = head_length(whole[:64]), len(whole[: head_length(whole[:64])].rstrip(b"\0"))
    index_at, tail = TAIL.unpack(whole[-TAIL.size :])[0], len(whole) - TAIL.size
    assert (tail - index_at) // ENTRY.itemsize == _NUM_PHOTOS
    edges = {
        "magic": 0, "length of the header": len(MAGIC), "header": len(MAGIC) + 8, "padding": text,
        "pixels": head, "list of images": index_at, "place of the list": tail,
        "checksum": tail + 8, "end": tail + 40, "": len(whole),
    }  # fmt: skip
    names, places = [*edges], [*edges.values()]

    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        decoded = open_pack(path, catalog, _RULE).read(np.arange(len(catalog)))
        return decoded.arrays[0].numpy(), decoded.status

    expected = read(path)

    def draw_file(number: int, draw: random.Random) -> tuple[str, bytes]:
        number %= len(names) - 1
        return names[number], damaged(whole, draw, *places[number : number + 2])

    def difference(found: tuple[np.ndarray, np.ndarray]) -> str:
        same = all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
        return "" if same else "read with other pixels"

    def wrong_message(message: str) -> str:
        is_good = message.startswith(f"pack {path}: ") and "tools.pack_images" in message
        return "" if is_good else f"message {message!r}"

    return Fuzzer(
        draw_file, lambda data: judge_reading(path, data, read, wrong_message, difference)
    )


def sealed_fuzzer(place: Path) -> Fuzzer:
    """Open packs whose header or list says something odd, with the checksum in order."""
    path, catalog, whole = _made_pack(place, "sealed.bin")
    index_at, _, _ = TAIL.unpack(whole[-TAIL.size :])
    head, index = whole[: head_length(whole[:4096])], whole[index_at : -TAIL.size]
    header = json.loads(head[len(MAGIC) + 8 :].rstrip(b"\0"))

    def draw_file(number: int, draw: random.Random) -> tuple[str, bytes]:
        table, entries, odd = dict(header), np.frombuffer(index, ENTRY).copy(), draw.choice(_ODD)
        name = [*header, "text", *ENTRY.names, "fewer", "more", "place"][number % 12]
        text = None
        if name in header:
            own = [*header["classes"][0][:1], odd, odd]
            table[name] = draw.choice([odd, [odd], [[odd] * 3], [own]])
        elif name in ENTRY.names:
            most = np.iinfo(ENTRY[name]).max
            entries[name][draw.randrange(len(entries))] = draw.choice([0, 1, 7, most, most // 2])
        elif name == "text":
            text = draw.choice([b"[]", b"{", b"1", b"[" * 9999, b"\xff", b'{"classes": NaN}'])
        elif name in ("fewer", "more"):
            entries = entries[:-3] if name == "fewer" else np.concatenate([entries, entries])
        text = json.dumps(table).encode() if text is None else text
        length = -(-(len(MAGIC) + 8 + len(text)) // 4096) * 4096
        front = (MAGIC + length.to_bytes(8, "little") + text).ljust(length, b"\0")
        at = len(front) + index_at - len(head)
        if name == "place":
            at = draw.choice([0, 2**63, len(whole)])
        packed = entries.tobytes()
        tail = TAIL.pack(at, hashlib.sha256(front + packed).digest(), MAGIC)
        return name, front + whole[len(head) : index_at] + packed + tail

    def wrong_message(message: str) -> str:
        is_good = message.startswith(f"pack {path}: ") and len(message) < 2000
        return "" if is_good else f"message {message!r}"

    return Fuzzer(
        draw_file,
        lambda data: judge_reading(
            path, data, lambda path: PackedImages(path, catalog, _RULE).check(), wrong_message
        ),
        100_000_000,  # for a file of 30 kB
    )


def _made_pack(place: Path, name: str) -> tuple[Path, Catalog, bytes]:
    """Draw photos, and pack them."""
    draw, images, path = np.random.default_rng(0), place / "pack_photos", place / name
    for number in range(_NUM_PHOTOS):
        folder = images / ("cat" if number % 2 else "dog") / f"{number:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (16, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "00.png")
        if number >= _NUM_PHOTOS - 2:
            (folder / "00.png").write_bytes(b"<html>")
    catalog = scan(images).catalog
    path.unlink(missing_ok=True)  # what an earlier process left damaged
    make_pack(path, catalog, _RULE)
    return path, catalog, path.read_bytes()
