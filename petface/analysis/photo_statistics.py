"""What a photo itself tells about how hard it is: light, sharpness, black borders, size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from tqdm import tqdm

from petface.analysis import duplicates
from petface.analysis.audit_photos import in_processes, in_tasks
from petface.data import images
from petface.data.catalog import Catalog
from petface.data.images import ImageError
from petface.data.loading import OK, STATUS_NAMES

STATISTICS: Final = {  # name -> unit
    "brightness": "mean grey level, 0-255",
    "contrast": "standard deviation of the grey levels",
    "sharpness": "variance of the Laplacian",
    "black_border": "%",
    "aspect_ratio": "width / height",
    "short_side": "px",
}
MEASURED: Final = np.dtype([("status", np.uint8), *((name, np.float32) for name in STATISTICS)])
SHARPNESS_PX: Final = 128  # sharpness depends on the size at which it is measured
NEAR_BLACK: Final = 8  # highest level of any channel: JPEG black is not 0, black fur is lighter
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def measure_photos(catalog: Catalog, places: np.ndarray, workers: int) -> np.ndarray:
    """Decode the photos at `places` (M,) and measure them: (M,) of `MEASURED`; a bar shows photos
    per second.

    Those that cannot be read have another status than `OK` and NaN. `workers` processes; 0 = in
    this one.
    """
    found = [np.zeros(0, MEASURED)]
    with tqdm(total=len(places), desc="photos", unit=" img", mininterval=1, disable=None) as bar:
        for part in in_processes(measure_paths, catalog, in_tasks(places), workers):
            found.append(part)
            bar.update(len(part))
    result = np.concatenate(found)
    assert len(result) == len(places), "every photo has one row"
    return result


def measure_paths(paths: Sequence[str]) -> np.ndarray:
    """Measure a few files: (n,) of `MEASURED`."""
    found = np.zeros(len(paths), MEASURED)
    for name in STATISTICS:
        found[name] = np.nan
    for row, path in enumerate(paths):
        try:
            found[row] = (OK, *measure(images.decode(path)).values())
        except (ImageError, OSError) as error:  # OSError: removed or locked a moment ago
            found["status"][row] = STATUS_NAMES.index(getattr(error, "reason", "unreadable"))
    return found


def measure(pixels: np.ndarray) -> dict[str, float]:
    """Measure (H, W, 3) uint8; the units are those of `STATISTICS`.

    Brightness and contrast are those of the audit: mean and standard deviation of the 32x32 grey
    thumbnail.
    """
    height, width = pixels.shape[:2]
    grey = duplicates.thumbnail(pixels)
    return {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "sharpness": sharpness(pixels),
        "black_border": black_border_frac(pixels) * 100,
        "aspect_ratio": width / height,
        "short_side": min(height, width),
    }


def sharpness(pixels: np.ndarray) -> float:
    """Give the variance of the Laplacian of the grey photo at 128x128; a blurred photo has little.

    The Laplacian is 4 g(y, x) minus the four neighbours, without the outermost pixels. Edges of a
    black border and noise count as sharp; enlarged photos as blurred. Source: Pech-Pacheco et al.
    2000, Diatom autofocusing in brightfield microscopy, ICPR, section 3 (LAPV).
    """
    g = images.resize(pixels, SHARPNESS_PX, "stretch").astype(np.float32) @ _LUMA
    around = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:]
    return float((4 * g[1:-1, 1:-1] - around).var())


def black_border_frac(pixels: np.ndarray) -> float:
    """Give the share of (H, W, 3) uint8 that is black border.

    A pixel is border where it and all pixels on the straight way to one of the four edges are
    nearly black: whole black rows and columns, and the black corners that turning a photo leaves.
    """
    black = pixels.max(axis=2) <= NEAR_BLACK
    border = np.zeros_like(black)
    for axis in (0, 1):
        border |= np.logical_and.accumulate(black, axis=axis)
        border |= np.flip(np.logical_and.accumulate(np.flip(black, axis), axis=axis), axis)
    return float(border.mean())
