"""Pre-decoded images in one file: decoded and resized once, then only read.

Layout: `head_bytes`; the pixels of one readable image after the other, (size, size, 3) uint8 each,
raw or compressed; one element of `ENTRY` per image of the catalog; `TAIL`. Read with pread and not
through a memory map: as fast, and a file that shrinks under a running training is an error with a
name instead of a signal.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from petface.data import images
from petface.data.catalog import Catalog
from petface.data.images import ImageError, Preprocessing
from petface.data.loading import OK, Decoded, even_slices
from petface.devices import num_cores
from petface.errors import UserError

Compression = Literal["none", "zlib"]
MAGIC = b"PETFACE PACK 1\r\n"
_ALIGN = 4096
ENTRY = np.dtype(
    [
        ("status", "u1"),
        ("crc32", "<u4"),  # of the bytes as they are stored
        ("length", "<u4"),  # bytes; 0 for an image that cannot be read
        ("file_bytes", "<i8"),  # of the image file when it was packed, to see that it changed
        ("file_mtime_ns", "<i8"),
    ]
)
TAIL = struct.Struct("<Q32s16s")  # where the entries begin, SHA-256 of header and entries, MAGIC
_LENGTH = struct.Struct("<Q")
IMAGES_PER_SLICE = 64
SAMPLE = 1000  # files compared with their stamps when a pack is opened; kept images when resumed
_LEVEL = 1  # of zlib


def pack_path(images_root: str | Path, rule: Preprocessing) -> Path:
    """Give the place of a tree's pack: beside the images folder, named after size and rule."""
    return Path(images_root).absolute().parent / f"pack_{rule.size_px}_{rule.resize}.bin"


class PackedImages:
    """Images read from a pack, in place of `batches.FileImages`.

    Raises `UserError` where the file is damaged, was made of other images or by another rule. The
    checksum of an image is compared when it is first read; `check` compares everything at once.
    """

    decodes = False

    def __init__(self, path: str | Path, catalog: Catalog, *rules: Preprocessing) -> None:
        self.path, self.catalog, self.rules = Path(path), catalog, rules
        try:
            self._file = FileIO(self.path)
        except OSError as error:
            self._refuse(str(error))
        self.header, entries, begins = self._read_index()
        places = self._find(catalog)
        self._entries, self._begins = entries[places], begins[places]
        for rule in rules:
            held = (self.header["size_px"], self.header["resize"])
            if (rule.size_px, rule.resize) != held:
                self._refuse(f"holds {held} px and rule, not {(rule.size_px, rule.resize)}")
        self._is_checked = np.zeros(len(catalog), bool)
        self._messages: dict[int, str] = {}
        self._pool = ThreadPoolExecutor(num_cores())
        sample = np.linspace(0, len(catalog) - 1, min(SAMPLE, len(catalog))).astype(np.int64)
        self._refuse_changed(sample)

    def _read_index(self) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Give the header, and of every image its entry and where its bytes begin."""
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, TAIL.size, max(size - TAIL.size, 0))
        if len(tail) != TAIL.size or not tail.endswith(MAGIC):
            self._refuse("is no pack, or its end is missing")
        index_at, digest, _ = TAIL.unpack(tail)
        length = size - TAIL.size - index_at
        if length < 0 or length % ENTRY.itemsize:
            self._refuse("its list of images is damaged")
        data_at = head_length(os.pread(descriptor, _ALIGN, 0))
        head, index = os.pread(descriptor, data_at, 0), os.pread(descriptor, length, index_at)
        if hashlib.sha256(head + index).digest() != digest:
            self._refuse("its list of images is damaged")
        entries = np.frombuffer(index, ENTRY)
        lengths = entries["length"].astype(np.int64)
        if data_at + int(lengths.sum()) != index_at:
            self._refuse("its list of images is damaged")
        text = head[len(MAGIC) + _LENGTH.size :].rstrip(b"\0")
        return json.loads(text), entries, data_at + np.cumsum(lengths) - lengths

    def _find(self, catalog: Catalog) -> np.ndarray:
        """Give the place in the pack of each image of a catalog of some of its classes."""
        starts, first = {}, 0
        for name, num, digest in self.header["classes"]:
            starts[name, num, digest] = first
            first += num
        places = []
        for name, num, digest in class_digests(catalog):
            if (name, num, digest) not in starts:
                self._refuse(f"holds other images of {name} than {os.fsdecode(catalog.root)}")
            places.append(starts[name, num, digest] + np.arange(num))
        return np.concatenate(places)

    def _refuse(self, why: str) -> None:
        raise UserError(
            f"pack {self.path}: {why}; delete it and make it again: python -m tools.pack_images"
        )

    def _refuse_changed(self, places: np.ndarray) -> None:
        now, then = stamps(self.catalog, places), self._entries[places]
        changed = (now["file_bytes"] != then["file_bytes"]) | (
            now["file_mtime_ns"] != then["file_mtime_ns"]
        )
        if changed.any():
            self._refuse(f"{self.catalog.path(int(places[changed][0]))} changed since it was made")

    @property
    def num_unreadable(self) -> int:
        """Count the images that could not be read when the pack was made."""
        return int((self._entries["status"] != OK).sum())

    def read(self, indices: np.ndarray) -> Decoded:
        """Give the images at `indices` (n,) of the catalog as `FileImages.read` does."""
        status = self._entries["status"][indices]
        size_px, wanted = self.header["size_px"], indices[status == OK].tolist()
        pixels = np.empty((len(wanted), size_px, size_px, 3), np.uint8)
        if self.header["compression"] == "none":
            for row, index in enumerate(wanted):
                self._fetch(index, pixels[row].reshape(-1).data)
        else:
            list(self._pool.map(self._expand, wanted, pixels))
        failures = [(place, self._why(place)) for place in indices[status != OK].tolist()]
        return Decoded((torch.from_numpy(pixels),) * max(len(self.rules), 1), status, failures)

    def _fetch(self, index: int, out: memoryview | bytearray) -> None:
        """Read the stored bytes of an image, compared with their checksum once."""
        num_read = os.preadv(self._file.fileno(), [out], int(self._begins[index]))
        is_whole = num_read == len(out) == self._entries["length"][index]
        if not is_whole or not self._is_checked[index]:
            if not is_whole or zlib.crc32(out) != self._entries["crc32"][index]:
                self._refuse(f"the copy of {self.catalog.path(index)} is damaged")
            self._is_checked[index] = True

    def _expand(self, index: int, out: np.ndarray) -> None:
        stored = bytearray(int(self._entries["length"][index]))
        self._fetch(index, stored)
        rows = np.frombuffer(zlib.decompress(stored), np.uint8)
        np.cumsum(rows.reshape(out.shape), axis=0, dtype=np.uint8, out=out)

    def _why(self, index: int) -> str:
        """Say why an image cannot be read, in the words of the decoder."""
        if index not in self._messages:
            path = self.catalog.path(index)
            self._messages[index] = f"{path}: could not be read when the pack was made"
            try:
                images.decode(path)
            except ImageError as error:
                self._messages[index] = str(error)
        return self._messages[index]

    def check(self) -> None:
        """Compare every checksum and the stamp of every file; `UserError` at the first damage."""
        everything = np.arange(len(self.catalog))
        self._refuse_changed(everything)
        with tqdm(total=len(everything), desc="check", unit="img", mininterval=0.5) as bar:
            for part in even_slices(everything, IMAGES_PER_SLICE):
                self.read(part)
                bar.update(len(part))


def class_digests(catalog: Catalog) -> list[tuple[str, int, str]]:
    """Give name, number of images and a hex SHA-256 of the paths in their order, per class."""
    limits = np.searchsorted(catalog.class_index, np.arange(len(catalog.classes) + 1)).tolist()
    found = []
    for name, first, end in zip(catalog.classes, limits, limits[1:], strict=False):
        offsets = catalog.path_offsets[first : end + 1]
        digest = hashlib.sha256(catalog.path_bytes[offsets[0] : offsets[-1]].tobytes())
        digest.update((offsets - offsets[0]).tobytes())
        found.append((name, end - first, digest.hexdigest()))
    return found


def head_bytes(header: dict[str, Any]) -> bytes:
    """Lay out the header: `MAGIC`, its whole length as 8 bytes, JSON, zeros up to a multiple of
    4096.
    """
    text = json.dumps(header, sort_keys=True).encode()
    length = -(-(len(MAGIC) + _LENGTH.size + len(text)) // _ALIGN) * _ALIGN
    return (MAGIC + _LENGTH.pack(length) + text).ljust(length, b"\0")


def head_length(begin: bytes) -> int:
    """Read the length of the header from the first bytes of a pack; 0 if it is none."""
    end = len(MAGIC) + _LENGTH.size
    if not begin.startswith(MAGIC) or len(begin) < end:
        return 0
    (length,) = _LENGTH.unpack(begin[len(MAGIC) : end])
    return int(length) if length < 1 << 30 else 0


def stamps(catalog: Catalog, places: np.ndarray) -> np.ndarray:
    """Give (n,) of `ENTRY` with size and time of the files at `places`; -1 for missing ones."""
    rows = np.zeros(len(places), ENTRY)
    for row, place in enumerate(places.tolist()):
        try:
            found = os.stat(catalog.path(place))  # noqa: PTH116 (hot)
            rows["file_bytes"][row], rows["file_mtime_ns"][row] = found.st_size, found.st_mtime_ns
        except OSError:
            rows["file_bytes"][row] = -1
    return rows


def _raw(pixels: np.ndarray) -> bytes:
    return pixels.tobytes()


def _delta_zlib(pixels: np.ndarray) -> bytes:
    """Compress the differences of each row of pixels to the one above, modulo 256."""
    delta = pixels.copy()
    delta[1:] -= pixels[:-1]
    return zlib.compress(delta.tobytes(), _LEVEL)


SQUEEZE = {"none": _raw, "zlib": _delta_zlib}
