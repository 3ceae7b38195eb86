"""Look at many photos with worker processes: what can be read, sizes, brightness, hashes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from petface.analysis import duplicates
from petface.data import images
from petface.data.catalog import Catalog
from petface.data.images import ImageError
from petface.data.loading import STATUS_NAMES
from petface.devices import num_cores
from petface.errors import UserError

_PHOTOS_PER_TASK = 32
_TASKS_PER_WORKER = 4  # under way at once: memory stays flat
_MAX_IN_MEMORY = 50_000  # thumbnails, 51 MB; more of them go into a temporary file
Result = TypeVar("Result")
_THUMBNAIL = (duplicates.THUMBNAIL_PX, duplicates.THUMBNAIL_PX)


@dataclass(frozen=True, eq=False)
class Photos:
    """M photos that were looked at; the columns of those that cannot be read hold zeros."""

    places: np.ndarray  # (M,) int64 into the catalog, ascending
    status: np.ndarray  # (M,) uint8: OK, UNREADABLE, TOO_LARGE
    width_px: np.ndarray  # (M,) int32, as the file says, before EXIF rotation
    height_px: np.ndarray  # (M,) int32
    mode: np.ndarray  # (M,) int16 into `modes`
    modes: list[str]  # Pillow's names of pixel layouts: RGB, L, I;16, P ...
    digest: np.ndarray  # (M,) uint64 of the decoded pixels
    hashes: np.ndarray  # (M,) uint64, perceptual
    brightness: np.ndarray  # (M,) float32, mean grey level 0..255
    contrast: np.ndarray  # (M,) float32, standard deviation of the 32x32 thumbnail's grey levels
    thumbnails: np.ndarray  # (M, 32, 32) uint8
    failures: list[tuple[int, str]] = field(default_factory=list)  # (row, why it cannot be read)


def inspect(path: str) -> tuple[int, int, str]:
    """Read width, height and pixel layout from the header of a file that `images.decode` took."""
    with Image.open(path) as image:  # decode has refused unknown formats and huge sizes
        return image.width, image.height, image.mode


def sample_evenly(catalog: Catalog, num: int, seed: int) -> np.ndarray:
    """Draw `num` photos, as many of each class as its size allows: (num,) int64, ascending.

    Rare classes are seen too; 0 takes all.
    """
    if num == 0 or num >= len(catalog):
        return np.arange(len(catalog))
    generator = np.random.default_rng(seed)
    sizes = np.bincount(catalog.class_index, minlength=len(catalog.classes))
    starts = np.cumsum(sizes) - sizes
    chosen, left = [], num
    for position, number in enumerate(np.argsort(sizes, kind="stable").tolist()):
        share = min(int(sizes[number]), left // (len(sizes) - position))
        drawn = generator.choice(int(sizes[number]), share, replace=False)
        chosen.append(starts[number] + drawn)
        left -= share
    return np.sort(np.concatenate(chosen))


def look_at(catalog: Catalog, places: np.ndarray, workers: int, scratch: Path) -> Photos:
    """Decode the photos at `places` and keep what `Photos` lists; a bar shows photos per second.

    `workers` processes; 0 = in this one. Many thumbnails lie in a nameless file in `scratch`.
    """
    num = len(places)
    photos = Photos(
        places, np.zeros(num, np.uint8), np.zeros(num, np.int32), np.zeros(num, np.int32),
        np.zeros(num, np.int16), [], np.zeros(num, np.uint64), np.zeros(num, np.uint64),
        np.zeros(num, np.float32), np.zeros(num, np.float32), _thumbnail_store(num, scratch),
    )  # fmt: skip
    tasks = in_tasks(places)
    start = 0
    with tqdm(total=num, desc="photos", unit=" img", mininterval=1, disable=None) as bar:
        for seen in in_processes(_look, catalog, tasks, workers):
            _store(photos, start, seen)
            start += len(seen.status)
            bar.update(len(seen.status))
    assert start == num, "every photo has one row"
    return photos


def in_tasks(places: np.ndarray) -> list[np.ndarray]:
    """Cut (M,) places into tasks of a few dozen photos."""
    return np.array_split(places, max(1, -(-len(places) // _PHOTOS_PER_TASK)))


def worker_count(wanted: int) -> int:
    """Resolve -1 to one process per core, at most 16."""
    if wanted >= 0:
        return wanted
    return min(16, num_cores())


def _name(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass
class _Seen:
    """What became of one task's photos, in their order."""

    status: np.ndarray
    sizes: list[tuple[int, int]]
    modes: list[str]
    digests: np.ndarray
    thumbnails: np.ndarray
    failures: list[tuple[int, str]]


def _look(paths: Sequence[str]) -> _Seen:
    num = len(paths)
    seen = _Seen(np.zeros(num, np.uint8), [], [], np.zeros(num, np.uint64),
                 np.zeros((num, *_THUMBNAIL), np.uint8), [])  # fmt: skip
    for row, path in enumerate(paths):
        width, height, mode = 0, 0, ""
        try:
            pixels = images.decode(path)
            width, height, mode = inspect(path)
            seen.digests[row] = duplicates.pixel_digest(pixels)
            seen.thumbnails[row] = duplicates.thumbnail(pixels)
        except (ImageError, OSError) as error:  # OSError: removed or locked a moment ago
            seen.status[row] = STATUS_NAMES.index(getattr(error, "reason", "unreadable"))
            seen.failures.append((row, str(error).removeprefix(_name(path) + ": ")))
        seen.sizes.append((width, height))
        seen.modes.append(mode)
    return seen


def _store(photos: Photos, start: int, seen: _Seen) -> None:
    """Copy one task's results into its rows."""
    rows = slice(start, start + len(seen.status))
    photos.status[rows], photos.digest[rows] = seen.status, seen.digests
    if seen.sizes:
        photos.width_px[rows], photos.height_px[rows] = np.array(seen.sizes).T
    for mode in sorted(set(seen.modes) - set(photos.modes)):
        photos.modes.append(mode)
    photos.mode[rows] = [photos.modes.index(mode) for mode in seen.modes]
    photos.thumbnails[rows] = seen.thumbnails
    photos.hashes[rows] = duplicates.perceptual_hashes(seen.thumbnails)
    photos.brightness[rows] = seen.thumbnails.mean(axis=(1, 2))
    photos.contrast[rows] = seen.thumbnails.std(axis=(1, 2))
    photos.failures.extend((start + row, why) for row, why in seen.failures)


def in_processes(
    work: Callable[[Sequence[str]], Result],
    catalog: Catalog,
    tasks: Iterable[np.ndarray],
    workers: int,
) -> Iterator[Result]:
    """Yield `work(paths)` for the catalog places of each task, in the order of the tasks.

    `work` must be a function of a module, and what it gives must be picklable. `workers` processes;
    0 = in this one.
    """
    paths = ([catalog.path(place) for place in places.tolist()] for places in tasks)
    if workers == 0:
        yield from map(work, paths)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks held by threads
    pool = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    waiting: deque[Future[Result]] = deque()
    try:
        for part in paths:
            waiting.append(pool.submit(work, part))
            if len(waiting) >= workers * _TASKS_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a decoding process ended before its work was done (too little memory?); "
            "try fewer with --workers, or --workers 0"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _thumbnail_store(num: int, scratch: Path) -> np.ndarray:
    """Make room for thumbnails: (num, 32, 32) uint8 in memory or, for many, in a nameless file."""
    shape = (num, *_THUMBNAIL)
    if num <= _MAX_IN_MEMORY:
        return np.zeros(shape, np.uint8)
    num_bytes = int(np.prod(shape))
    free = shutil.disk_usage(scratch).free
    if free < num_bytes:  # a full disk under a mapped file would kill the process without a word
        raise UserError(
            f"{scratch} has {free:,} bytes free and the audit needs {num_bytes:,} for a while; "
            "set OUT to another disk or look at a smaller SAMPLE"
        )
    return np.memmap(tempfile.TemporaryFile(dir=scratch), np.uint8, "w+", shape=shape)
