"""Make a pack of images, and choose between a pack and the files themselves."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from petface import distributed, files
from petface.data.catalog import Catalog
from petface.data.images import Preprocessing
from petface.data.loading import OK, FileImages, even_slices, read_ahead, worker_count
from petface.data.pack import (
    ENTRY,
    IMAGES_PER_SLICE,
    MAGIC,
    SAMPLE,
    SQUEEZE,
    TAIL,
    Compression,
    PackedImages,
    class_digests,
    head_bytes,
    pack_path,
    stamps,
)
from petface.data.sources.petface import scan
from petface.devices import num_cores
from petface.errors import UserError


def image_source(
    catalog: Catalog, pack: str, *rules: Preprocessing, num_workers: int = -1, together: bool = True
) -> FileImages | PackedImages:
    """Give what reads the images of `catalog` for `rules`.

    `pack` is "" for the files themselves, "auto" for the pack beside the images folder, made now
    where there is none, or a pack's path. Of several processes the first makes it; they must ask
    `together` then.
    """
    if not pack:
        return FileImages(catalog, *rules)
    path = pack_path(os.fsdecode(catalog.root), rules[0]) if pack == "auto" else Path(pack)
    if pack == "auto":
        with distributed.main_first() if together else nullcontext():
            if not path.exists():
                whole = scan(os.fsdecode(catalog.root)).catalog  # all classes, whichever are asked
                make_pack(path, whole, rules[0], num_workers=worker_count(num_workers))
    return PackedImages(path, catalog, *rules)


def make_pack(
    path: str | Path,
    catalog: Catalog,
    rule: Preprocessing,
    *,
    compression: Compression = "none",
    num_workers: int = 0,
) -> None:
    """Decode every image of `catalog` into a pack; goes on where an earlier start was stopped.

    Images that cannot be read keep their status. Raises `UserError` where the disk is too small,
    before it is filled, and where another process makes the same pack. The file has its final name
    only when it is whole.
    """
    path = Path(path)
    header = {
        "classes": class_digests(catalog),
        "size_px": rule.size_px,
        "resize": rule.resize,
        "compression": compression,
    }
    source = FileImages(catalog, rule)
    with _unfinished(path) as (data, index):
        kept = _keep(data, index, header, catalog)
        left = np.arange(kept, len(catalog))
        print(_need(path, source, left, compression), flush=True)
        slices = even_slices(left, IMAGES_PER_SLICE)
        with (
            ThreadPoolExecutor(num_cores()) as pool,
            tqdm(total=len(catalog), desc="pack", unit="img", mininterval=0.5) as bar,
        ):
            bar.update(kept)
            for part, item in zip(slices, read_ahead(source, slices, num_workers), strict=True):
                blobs = list(pool.map(SQUEEZE[compression], item.arrays[0].numpy()))
                rows = stamps(catalog, part)
                rows["status"] = item.status
                rows["crc32"][item.status == OK] = [zlib.crc32(blob) for blob in blobs]
                rows["length"][item.status == OK] = [len(blob) for blob in blobs]
                _append(path, data, b"".join(blobs))
                _append(path, index, rows.tobytes())
                bar.update(len(part))
        _finish(path, data, index, head_bytes(header))


@contextmanager
def _unfinished(path: Path) -> Iterator[tuple[FileIO, FileIO]]:
    """Open data and list of an unfinished pack; `UserError` where another process has them."""
    name = path.with_name(path.name + ".unfinished")
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
            name.with_name(name.name + ".index").unlink(missing_ok=True)
            raise UserError(f"{path} is there already; delete it to make it again")
        with FileIO(name.with_name(name.name + ".index"), "a+") as index:
            yield data, index


def _keep(data: FileIO, index: FileIO, header: dict[str, Any], catalog: Catalog) -> int:
    """Cut both files back to whole images of the same making; count them."""
    head = head_bytes(header)
    data.seek(0)
    index.seek(0)
    is_same = data.read(len(head)) == head
    listed = index.read() if is_same else b""
    entries = np.frombuffer(listed[: len(listed) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)
    ends = len(head) + np.cumsum(entries["length"], dtype=np.int64)
    kept = int(np.searchsorted(ends, os.fstat(data.fileno()).st_size, side="right"))
    now = stamps(catalog, np.arange(kept))
    for name in ("file_bytes", "file_mtime_ns"):
        kept = int(np.append(now[name][:kept] != entries[name][:kept], True).argmax())
    for place in range(max(kept - SAMPLE, 0), kept):  # what a power cut may have left half done
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


def _need(path: Path, source: FileImages, left: np.ndarray, compression: Compression) -> str:
    """Say how many bytes the pack will take and how many are free; `UserError` if too few."""
    sample = source.read(left[np.linspace(0, len(left) - 1, min(32, len(left))).astype(int)])
    blobs = [len(SQUEEZE[compression](image)) for image in sample.arrays[0].numpy()]
    need = int(np.mean(blobs) * len(left)) if blobs else 0
    free = shutil.disk_usage(path.parent).free
    text = (
        f"{path}: {len(left):,} images to pack, {need / 1e9:.2f} GB; {free / 1e9:.2f} GB are free"
    )
    if need > free:
        raise UserError(text + '; take another disk or compression "zlib"')
    return text


def _append(path: Path, handle: FileIO, content: bytes) -> None:
    left = memoryview(content)
    try:
        while left:
            left = left[handle.write(left) :]
    except OSError as error:
        raise files.write_error(path, error) from error


def _finish(path: Path, data: FileIO, index: FileIO, head: bytes) -> None:
    index.seek(0)
    entries = index.read()
    tail = TAIL.pack(
        os.fstat(data.fileno()).st_size, hashlib.sha256(head + entries).digest(), MAGIC
    )
    _append(path, data, entries + tail)
    os.fsync(data.fileno())
    os.replace(str(data.name), path)
    Path(str(index.name)).unlink()
