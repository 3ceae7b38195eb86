"""Look at many photos with worker processes: what can be read, sizes, light, hashes, sharpness."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from petface.analysis import duplicates
from petface.data import images
from petface.data.catalog import Catalog
from petface.data.images import ImageError
from petface.data.loading import OK, STATUS_NAMES
from petface.devices import num_cores
from petface.errors import UserError

# What an audit keeps of a photo; zeros where it cannot be read. 1 kB a photo, 1.1 GB for PetFace.
AUDITED: Final = np.dtype(
    [
        ("status", "u1"),  # OK, UNREADABLE, TOO_LARGE
        ("width_px", "i4"),  # as the file says, before EXIF rotation
        ("height_px", "i4"),
        ("mode", "U8"),  # Pillow's name of the pixel layout: RGB, L, I;16, P ...
        ("digest", "u8"),  # of the decoded pixels
        ("hash", "u8"),  # perceptual
        ("thumbnail", "u1", (duplicates.THUMBNAIL_PX, duplicates.THUMBNAIL_PX)),  # grey
        ("brightness", "f4"),  # mean grey level of the thumbnail, 0..255
        ("contrast", "f4"),  # standard deviation of its grey levels
    ]
)
STATISTICS: Final = {  # what may make a photo hard: name -> unit
    "brightness": "mean grey level, 0-255",
    "sharpness": "variance of the Laplacian",
    "short_side": "px",
}
MEASURED: Final = np.dtype([("status", "u1"), *((name, "f4") for name in STATISTICS)])
SHARPNESS_PX: Final = 128  # sharpness depends on the size at which it is measured
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_PHOTOS_PER_TASK = 32


class Photos(NamedTuple):
    """M photos that were looked at."""

    places: np.ndarray  # (M,) int64 into the catalog, ascending
    seen: np.ndarray  # (M,) of `AUDITED`
    failures: dict[int, str]  # row -> why it cannot be read


def look_at(catalog: Catalog, places: np.ndarray, workers: int) -> Photos:
    """Decode the photos at `places` (M,) for an audit; a bar shows photos per second.

    `workers` processes; 0 = in this one.
    """
    return Photos(places, *_scan(catalog, places, workers, AUDITED, audit_photo))


def measure_photos(catalog: Catalog, places: np.ndarray, workers: int) -> np.ndarray:
    """Decode the photos at `places` (M,) and measure how hard they are: (M,) of `MEASURED`.

    NaN for those that cannot be read. A bar shows photos per second.
    """
    found, _ = _scan(catalog, places, workers, MEASURED, measure)
    for name in STATISTICS:
        found[name][found["status"] != OK] = np.nan
    return found


def worker_count(wanted: int) -> int:
    """Resolve -1 to one process per core, at most 16."""
    return wanted if wanted >= 0 else min(16, num_cores())


def _scan(
    catalog: Catalog, places: np.ndarray, workers: int, dtype: np.dtype[Any],
    look: Callable[[str, np.ndarray], tuple[Any, ...]],
) -> tuple[np.ndarray, dict[int, str]]:  # fmt: skip
    """Decode photos in tasks of a few dozen: (M,) of `dtype`, and why some cannot be read."""
    found, failures, start = np.zeros(len(places), dtype), dict[int, str](), 0
    tasks = np.array_split(places, max(1, -(-len(places) // _PHOTOS_PER_TASK)))
    paths = ([catalog.path(place) for place in task.tolist()] for task in tasks)
    work = partial(_look_at_files, dtype=dtype, look=look)
    with tqdm(total=len(places), desc="photos", unit=" img", mininterval=1, disable=None) as bar:
        for part, why in _in_processes(work, paths, workers):
            found[start : start + len(part)] = part
            failures |= {start + row: reason for row, reason in why.items()}
            start += len(part)
            bar.update(len(part))
    assert start == len(places), "every photo has one row"
    return found, failures


def _in_processes(
    work: Callable[[list[str]], Any], tasks: Iterator[list[str]], workers: int
) -> Iterator[Any]:
    """Yield `work(paths)` of each task, in their order; `work` must be picklable."""
    if workers == 0:
        yield from map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks held by threads
    stay = signal.signal, (signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(workers, context, *stay) as pool:
            yield from pool.map(work, tasks)
    except BrokenProcessPool as error:
        raise UserError(
            "a decoding process ended before its work was done (too little memory?); "
            "try fewer with --workers, or --workers 0"
        ) from error


def _look_at_files(
    paths: Sequence[str], dtype: np.dtype[Any], look: Callable[[str, np.ndarray], tuple[Any, ...]]
) -> tuple[np.ndarray, dict[int, str]]:
    found, failures = np.zeros(len(paths), dtype), {}
    for row, path in enumerate(paths):
        try:
            found[row] = (OK, *look(path, images.decode(path)))
        except (ImageError, OSError) as error:  # OSError: removed or locked a moment ago
            found["status"][row] = STATUS_NAMES.index(getattr(error, "reason", "unreadable"))
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            failures[row] = str(error).removeprefix(shown + ": ")
    return found, failures


def audit_photo(path: str, pixels: np.ndarray) -> tuple[Any, ...]:
    """Return the fields of `AUDITED` after the status."""
    with Image.open(path) as image:  # decode has refused unknown formats and huge sizes
        header = image.width, image.height, image.mode
    grey = duplicates.thumbnail(pixels)
    digest, (hash_of,) = duplicates.pixel_digest(pixels), duplicates.perceptual_hashes(grey[None])
    return *header, digest, hash_of, grey, grey.mean(), grey.std()


def measure(_path: str, pixels: np.ndarray) -> tuple[float, ...]:
    """Measure (H, W, 3) uint8 in the order and units of `STATISTICS`."""
    brightness = float(duplicates.thumbnail(pixels).mean())
    return brightness, sharpness(pixels), min(pixels.shape[:2])


def sharpness(pixels: np.ndarray) -> float:
    """Return the variance of the Laplacian of the grey photo at 128x128; blur lowers it.

    The Laplacian is 4 g(y, x) minus the four neighbours, without the outermost pixels. Edges of a
    black border and noise count as sharp; enlarged photos as blurred. Source: Pech-Pacheco et al.
    2000, Diatom autofocusing in brightfield microscopy, ICPR, section 3 (LAPV).
    """
    g = images.resize(pixels, SHARPNESS_PX, "stretch").astype(np.float32) @ _LUMA
    around = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:]
    return float((4 * g[1:-1, 1:-1] - around).var())
