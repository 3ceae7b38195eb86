"""Packs: images decoded and resized once into one file that is only read afterwards.

Layout: `head_bytes`; the pixels of each readable image, (size, size, 3) uint8; one element of
`ENTRY` per image of the catalog; `TAIL`. Packs are read with pread instead of a memory map, which
is as fast. If the file shrinks during training, that is an error with a name, not a signal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import weakref
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from petface import distributed, files
from petface.data import images
from petface.data.catalog import Catalog
from petface.data.images import Preprocessing
from petface.data.loading import (
    OK,
    Decoded,
    FileImages,
    check_place,
    even_slices,
    read_ahead,
    worker_count,
)
from petface.data.sources.petface import scan
from petface.devices import num_cores
from petface.errors import UserError
from petface.progress import progress

MAGIC = b"PETFACE PACK 1\r\n"
ENTRY = np.dtype(
    [
        ("status", "u1"),
        ("crc32", "<u4"),  # of the pixels
        ("length", "<u4"),  # bytes; 0 for an image that cannot be read
        ("file_bytes", "<i8"),  # of the image file when it was packed, to detect changes
        ("file_mtime_ns", "<i8"),
    ]
)
TAIL = struct.Struct("<Q32s16s")  # offset of the entries, SHA-256 of header and entries, MAGIC
IMAGES_PER_SLICE = 64
SAMPLE = 1000  # files compared with their stamps on opening; packed images checked on resuming
_MOST_THREADS, _BYTES_PER_THREAD = 8, 1 << 20  # for less a thread does not pay
_LENGTH = struct.Struct("<Q")
_ALIGN = 4096


def pack_path(images_root: str | Path, rule: Preprocessing) -> Path:
    """Return the path of a tree's pack: beside the images folder, named after size and rule."""
    return Path(images_root).absolute().parent / f"pack_{rule.size_px}_{rule.resize}.bin"


def image_source(
    catalog: Catalog, pack: str, *rules: Preprocessing, together: bool = True
) -> FileImages | PackedImages:
    """Return the reader of the images of `catalog` for `rules`.

    `pack` is "" for the image files, the path of a pack, or "auto" for the pack beside the images
    folder, which is built if missing. The first of several processes builds it; they must call this
    function `together`.
    """
    if not pack:
        return FileImages(catalog, *rules)
    if pack != "auto":
        return PackedImages(pack, catalog, *rules)
    root = os.fsdecode(catalog.root)
    path = pack_path(root, rules[0])
    with distributed.main_first() if together else nullcontext():
        if not path.exists():
            whole = scan(root).catalog  # in use or not
            make_pack(path, whole, rules[0], num_workers=worker_count(-1))
    return PackedImages(path, catalog, *rules)


class PackedImages:
    """Images read from a pack, in place of `FileImages`.

    Raises `UserError` if the file is damaged or was built from other images or by another rule. The
    checksum of an image is verified when it is first read.
    """

    decodes = False

    def __init__(self, path: str | Path, catalog: Catalog, *rules: Preprocessing) -> None:
        self.path, self.catalog, self.rules = Path(path), catalog, rules
        try:
            self._file = files.patiently(lambda: FileIO(self.path), self.path)
        except OSError as error:
            self._refuse(str(error))
        self._read_index()
        for rule in rules:
            held = (self.header["size_px"], self.header["resize"])
            if (rule.size_px, rule.resize) != held:
                self._refuse(f"holds {held} (size in px, rule), not {(rule.size_px, rule.resize)}")
        self._is_checked = np.zeros(len(catalog), bool)
        cores = num_cores() // distributed.local_world_size()
        self._num_threads = min(_MOST_THREADS, cores // 2)  # the others compute
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="pack")
        self._kept: list[np.ndarray] = []  # memory of pixels that nobody needs any more
        sample = np.linspace(0, len(catalog) - 1, min(SAMPLE, len(catalog))).astype(np.int64)
        self._refuse_changed(sample)

    def _read_index(self) -> None:
        """Read the header, the entry of every image of the catalog, and where its pixels begin."""
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size

        def pread(length: int, begin: int) -> bytes:
            return files.patiently(lambda: os.pread(descriptor, length, begin), self.path)

        tail = pread(TAIL.size, max(size - TAIL.size, 0))
        if len(tail) != TAIL.size or not tail.endswith(MAGIC):
            self._refuse("is not a pack, or its end is missing")
        index_at, digest, _ = TAIL.unpack(tail)
        length = size - TAIL.size - index_at
        if length < 0 or length % ENTRY.itemsize:
            self._refuse("its list of images is damaged")
        data_at = head_length(pread(_ALIGN, 0))
        head, index = pread(data_at, 0), pread(length, index_at)
        entries = np.frombuffer(index, ENTRY, len(index) // ENTRY.itemsize)
        lengths = entries["length"].astype(np.int64)
        is_same = hashlib.sha256(head + index).digest() == digest
        if not is_same or data_at + int(lengths.sum()) != index_at:
            self._refuse("its list of images is damaged")
        try:
            self.header = json.loads(head[len(MAGIC) + _LENGTH.size :].rstrip(b"\0"))
            held = [tuple(entry) for entry in self.header["classes"]]
            ends = np.cumsum([0, *(num for _, num, _ in held)])
            is_ours = self.header["resize"] in images.RESIZE_RULES and ends[-1] == len(entries)
            is_ours &= self.header["size_px"] > 0 and self.header["compression"] == "none"
            starts = dict(zip(held, ends.tolist(), strict=False))
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            is_ours = False
        if not is_ours:
            self._refuse("its header was not written by this version")
        places = []
        for own in class_digests(self.catalog):
            if own not in starts:
                self._refuse(
                    f"holds other images of {own[0]} than {os.fsdecode(self.catalog.root)}"
                )
            places.append(starts[own] + np.arange(own[1]))
        place = np.concatenate(places)
        self._entries = entries[place]
        self._begins = (data_at + np.cumsum(lengths) - lengths)[place]

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(
            f"pack {self.path}: {why}; delete it and build it again: python -m tools.pack_images"
        )

    def _refuse_changed(self, places: np.ndarray) -> None:
        changed = _has_changed(self.catalog, places, self._entries[places])
        for place in places[changed].tolist():
            path = self.catalog.path(place)
            if not Path(path).exists():
                check_place(self.catalog, place)
            self._refuse(f"{path} changed since the pack was built")

    @property
    def num_unreadable(self) -> int:
        """Count the images that could not be read when the pack was built."""
        return int((self._entries["status"] != OK).sum())

    def read(self, indices: np.ndarray) -> Decoded:
        """Read the images at `indices` (n,) of the catalog as `FileImages.read` does."""
        status = self._entries["status"][indices]
        size_px, wanted = self.header["size_px"], indices[status == OK]
        pixels = self._room(len(wanted), 3 * size_px**2)
        num = max(1, min(self._num_threads, pixels.numel() // _BYTES_PER_THREAD))
        places, rows = np.array_split(wanted, num), np.array_split(pixels.numpy(), num)
        others = [self._threads.submit(self._fetch, places[k], rows[k]) for k in range(1, num)]
        try:
            self._fetch(places[0], rows[0])
        finally:
            wait(others)  # what they write into is used again
        for part in others:
            part.result()
        failures = []
        for place in indices[status != OK].tolist():  # the pack does not hold why
            path = self.catalog.path(place)
            try:
                images.decode(path)
                failures.append((place, f"{path}: could not be read when the pack was built"))
            except UserError as error:
                failures.append((place, str(error)))
        shaped = pixels.view(-1, size_px, size_px, 3)
        return Decoded((shaped,) * max(len(self.rules), 1), status, failures)

    def _room(self, num: int, num_bytes: int) -> Tensor:
        """Return (num, num_bytes) uint8 in memory that is kept: new pages take as long as reading.

        Where a GPU is in use it is pinned, and torch keeps it until it is uploaded.
        """
        if torch.cuda.is_initialized():
            return torch.empty((num, num_bytes), dtype=torch.uint8, pin_memory=True)
        kept = self._kept.pop() if self._kept else np.empty(0, np.uint8)
        if len(kept) < num * num_bytes:
            kept = np.empty(num * num_bytes, np.uint8)
        rows = kept[: num * num_bytes].reshape(num, num_bytes)
        weakref.finalize(rows, self._kept.append, kept).atexit = False  # when no tensor has it
        return torch.from_numpy(rows)

    def _fetch(self, places: np.ndarray, rows: np.ndarray) -> None:
        """Read the pixels of images into (n, bytes); verify their checksums the first time."""
        descriptor, entries = self._file.fileno(), self._entries[places]
        wanted = (places, self._begins[places], entries["length"], entries["crc32"])
        checked = self._is_checked[places].tolist()

        def read() -> None:
            for row, is_checked, index, begin, length, crc32 in zip(
                rows, checked, *map(np.ndarray.tolist, wanted), strict=True
            ):
                is_whole = os.preadv(descriptor, [row], begin) == length
                if not is_whole or not (is_checked or zlib.crc32(row) == crc32):
                    self._refuse(f"the copy of {self.catalog.path(index)} is damaged")

        files.patiently(read, self.path)
        self._is_checked[places] = True

    def check(self) -> None:
        """Verify every checksum and file stamp; raise `UserError` at the first mismatch."""
        everything = np.arange(len(self.catalog))
        self._refuse_changed(everything)
        with progress(total=len(everything), desc="check") as bar:
            for part in even_slices(everything, IMAGES_PER_SLICE):
                self.read(part)
                bar.update(len(part))


def make_pack(
    path: str | Path, catalog: Catalog, rule: Preprocessing, *, num_workers: int = 0
) -> None:
    """Decode every image of `catalog` into a pack; resume an interrupted build.

    Raises `UserError` if the disk is too small, before filling it, or if another process builds the
    same pack. The file takes its final name only when it is complete.
    """
    path = Path(path)
    header = {
        "classes": class_digests(catalog),
        "size_px": rule.size_px,
        "resize": rule.resize,
        "compression": "none",  # readers of this format expect it
    }
    bytes_per_image = 3 * rule.size_px**2
    with _unfinished(path) as (data, index):
        kept = _keep(data, index, header, catalog)
        left = np.arange(kept, len(catalog))
        needed, free = len(left) * bytes_per_image, shutil.disk_usage(path.parent).free
        text = f"{path}: {len(left):,} images to pack, {needed / 1e9:.2f} GB; {free / 1e9:.2f} GB "
        if needed > free:
            raise UserError(f"{text}are free; use another disk")
        print(f"{text}are free", flush=True)
        slices = even_slices(left, IMAGES_PER_SLICE)
        decoded = read_ahead(FileImages(catalog, rule), slices, num_workers)
        with progress(total=len(catalog), desc="pack") as bar:
            bar.update(kept)
            for part, item in zip(slices, decoded, strict=True):
                pixels, is_ok = item.arrays[0].numpy(), item.status == OK
                rows = np.zeros(len(part), ENTRY)
                rows["file_bytes"], rows["file_mtime_ns"] = catalog.stamps(part).T
                rows["status"] = item.status
                rows["crc32"][is_ok] = [zlib.crc32(image) for image in pixels]
                rows["length"][is_ok] = bytes_per_image
                _append(path, data, pixels.tobytes())
                _append(path, index, rows.tobytes())
                bar.update(len(part))
        index.seek(0)
        entries = index.read()
        digest = hashlib.sha256(head_bytes(header) + entries).digest()
        tail = TAIL.pack(os.fstat(data.fileno()).st_size, digest, MAGIC)
        _append(path, data, entries + tail)
        os.fsync(data.fileno())
        os.replace(str(data.name), path)
        Path(str(index.name)).unlink()


@contextmanager
def _unfinished(path: Path) -> Iterator[tuple[FileIO, FileIO]]:
    """Open data and index of an unfinished pack; raise `UserError` if another process has them."""
    name, index_name = (path.with_name(f"{path.name}.unfinished{end}") for end in ("", ".index"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = FileIO(name, "a+")
    except OSError as error:
        raise files.write_error(name, error) from error
    with data:
        if holder := files.take(data):
            raise UserError(f"{name} is being written by {holder}")
        if path.exists():
            name.unlink()
            index_name.unlink(missing_ok=True)
            raise UserError(f"{path} already exists; delete it to build it again")
        with FileIO(index_name, "a+") as index:
            yield data, index


def _keep(data: FileIO, index: FileIO, header: dict[str, Any], catalog: Catalog) -> int:
    """Truncate both files to the whole images of the same build; return their number."""
    head = head_bytes(header)
    data.seek(0)
    index.seek(0)
    is_same = data.read(len(head)) == head
    listed = index.read() if is_same else b""
    entries = np.frombuffer(listed[: len(listed) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)
    ends = len(head) + np.cumsum(entries["length"], dtype=np.int64)
    kept = int(np.searchsorted(ends, os.fstat(data.fileno()).st_size, side="right"))
    changed = _has_changed(catalog, np.arange(kept), entries[:kept])
    kept = int(np.append(changed, True).argmax())
    for place in range(max(kept - SAMPLE, 0), kept):  # a power cut may have left these incomplete
        data.seek(int(ends[place]) - int(entries["length"][place]))
        stored = data.read(int(entries["length"][place]))
        if zlib.crc32(stored) != entries["crc32"][place] and entries["status"][place] == OK:
            kept = place
            break
    data.truncate(int(ends[kept - 1]) if kept else 0)
    index.truncate(kept * ENTRY.itemsize)
    if not kept:
        _append(Path(str(data.name)), data, head)
    return kept


def _append(path: Path, handle: FileIO, content: bytes) -> None:
    left = memoryview(content)
    try:
        while left:
            left = left[handle.write(left) :]
    except OSError as error:
        raise files.write_error(path, error) from error


def class_digests(catalog: Catalog) -> list[tuple[str, int, str]]:
    """Return name, number of images and hex SHA-256 of the paths in order, for each class."""
    limits = np.searchsorted(catalog.class_index, np.arange(len(catalog.classes) + 1)).tolist()
    found = []
    for name, first, end in zip(catalog.classes, limits, limits[1:], strict=False):
        offsets = catalog.path_offsets[first : end + 1]
        digest = hashlib.sha256(catalog.path_bytes[offsets[0] : offsets[-1]].tobytes())
        digest.update((offsets - offsets[0]).tobytes())  # to delimit the paths
        found.append((name, end - first, digest.hexdigest()))
    return found


def head_bytes(header: dict[str, Any]) -> bytes:
    """Return the header: `MAGIC`, its length as 8 bytes, JSON, zeros up to a multiple of 4096."""
    text = json.dumps(header, sort_keys=True).encode()
    length = -(-(len(MAGIC) + _LENGTH.size + len(text)) // _ALIGN) * _ALIGN
    return (MAGIC + _LENGTH.pack(length) + text).ljust(length, b"\0")


def head_length(begin: bytes) -> int:
    """Return the header length from the first bytes of a pack; 0 if they are not a pack's."""
    if not begin.startswith(MAGIC) or len(begin) < len(MAGIC) + _LENGTH.size:
        return 0
    (length,) = _LENGTH.unpack_from(begin, len(MAGIC))
    return int(length) if length < 1 << 30 else 0


def _has_changed(catalog: Catalog, places: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Compare the files at `places` (n,) with their stamps in `entries` (n,): (n,) bool."""
    stamps = np.stack([entries["file_bytes"], entries["file_mtime_ns"]], axis=1)
    return (catalog.stamps(places) != stamps).any(axis=1)
