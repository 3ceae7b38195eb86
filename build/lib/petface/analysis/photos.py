"""Look at many photos with worker processes: what can be read, sizes, light, hashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from petface.analysis import duplicates
from petface.data import images
from petface.data.catalog import Catalog
from petface.data.images import ImageError
from petface.data.loading import (
    OK,
    STATUS_NAMES,
    Decoded,
    decode_listed,
    even_slices,
    read_ahead,
)
from petface.devices import num_cores
from petface.progress import progress

# What is kept of a photo, 73 bytes; zeros where it cannot be read.
SEEN: Final = np.dtype(
    [
        ("status", "u1"),  # OK, UNREADABLE, TOO_LARGE
        ("width_px", "i4"),  # as the file says, before EXIF rotation
        ("height_px", "i4"),
        ("mode", "U8"),  # Pillow's name of the pixel layout: RGB, L, I;16, P ...
        ("digest", "u8"),  # of the decoded pixels
        ("hash", "u8"),  # perceptual
        ("mirrored", "u8"),  # the same of the mirrored photo
        ("brightness", "f4"),  # mean grey level of the thumbnail, 0..255
        ("contrast", "f4"),  # standard deviation of its grey levels
    ]
)
_PHOTOS_PER_TASK = 32


class Photos(NamedTuple):
    """M photos that were looked at."""

    places: np.ndarray  # (M,) int64 into the catalog, ascending
    seen: np.ndarray  # (M,) of `SEEN`
    failures: list[str]  # why each of those that are not OK cannot be read, in their order


def look_at(catalog: Catalog, places: np.ndarray, workers: int) -> Photos:
    """Decode the photos at `places` (M,) and describe them; a bar shows photos per second.

    `workers` processes; 0 = a thread of this one, -1 = one per core, at most 16: unlike in training
    nothing else wants the cores.
    """
    workers = workers if workers >= 0 else min(16, num_cores())
    seen, failures = [np.empty(0, SEEN)], list[str]()
    tasks = even_slices(places, _PHOTOS_PER_TASK)
    with progress(total=len(places), desc="photos") as bar:
        for item in read_ahead(_Looked(catalog), tasks, workers):
            own = item.arrays[0].numpy().view(SEEN)[:, 0].copy()
            own["status"] = item.status
            seen.append(own)
            failures += [why for _, why in item.failures]
            bar.update(len(own))
    return Photos(places, np.concatenate(seen), failures)


@dataclass(eq=False)
class _Looked:
    """Photos as `read_ahead` reads them: not their pixels but what is kept of them."""

    catalog: Catalog
    decodes = True

    def read(self, indices: np.ndarray) -> Decoded:
        """Look at the photos at `indices` (n,): (n, bytes of `SEEN`) uint8, zeros of bad ones."""
        found, status = np.zeros(len(indices), SEEN), np.zeros(len(indices), np.uint8)
        failures = []
        for row, place in enumerate(indices.tolist()):
            try:
                found[row] = self._look(place)
            except ImageError as error:
                status[row] = STATUS_NAMES.index(error.reason)
                shown = images.name_of(self.catalog.path(place))
                failures.append((place, str(error).removeprefix(shown + ": ")))
        kept = torch.from_numpy(found.view(np.uint8).reshape(len(found), -1))
        return Decoded((kept,), status, failures)

    def _look(self, place: int) -> tuple[Any, ...]:
        """Return the fields of `SEEN`; the status is OK."""
        pixels = decode_listed(self.catalog, place)
        header = images.read_header(self.catalog.path(place))
        grey = duplicates.thumbnail(pixels)
        both = duplicates.perceptual_hashes(np.stack((grey, grey[:, ::-1])))
        hashes = duplicates.pixel_digest(pixels), *both
        return OK, *header, *hashes, grey.mean(), grey.std()
