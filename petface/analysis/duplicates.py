"""Look at many photos: what can be read, sizes, light; and find those that are nearly the same.

Exact: the same pixels. Near: two 64-bit perceptual hashes differ in at most `MAX_HASH_DISTANCE`
bits, and the 32x32 grey thumbnails, brought to one brightness and contrast, differ by at most
`MAX_DIFFERENCE`, as they are or one of them mirrored. That finds copies that were re-encoded,
resized, brightened or mirrored, and only some of the cropped ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from scipy.fft import dctn

from petface.data import images
from petface.data.catalog import Catalog
from petface.data.loading import OK, STATUS_NAMES, Decoded, decode_listed, even_slices, read_ahead
from petface.devices import num_cores
from petface.progress import progress

THUMBNAIL_PX: Final = 32
MAX_HASH_DISTANCE: Final = 6  # bits; measured: copies up to 4, strangers from 8 on
# Of thumbnails, in standard deviations; copies reach 0.2, crops by 5 % 0.4. Strangers from 0.30 on
# were met among pairs of any hash; of those within the bits none of 300 photos was a false alarm.
MAX_DIFFERENCE: Final = 0.4
MIN_CONTRAST: Final = 4.0  # grey levels; the hash of a flatter photo is noise
LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601

_WINDOW = 100  # neighbours that a hash is compared with in each sorted order
_MAX_CANDIDATES = 4_000_000  # 100 MB while they are merged
# What is kept of a photo, 41 bytes; zeros where it cannot be read.
SEEN: Final = np.dtype(
    [
        ("status", "u1"),  # OK, UNREADABLE, TOO_LARGE
        ("width_px", "i4"),  # as it is shown, after EXIF rotation
        ("height_px", "i4"),
        ("digest", "u8"),  # of the decoded pixels
        ("hash", "u8"),  # perceptual
        ("mirrored", "u8"),  # the same of the mirrored photo
        ("brightness", "f4"),  # mean grey level of the thumbnail, 0..255
        ("contrast", "f4"),  # standard deviation of its grey levels
    ]
)
_PHOTOS_PER_TASK = 32


# ---- Looking at photos ----


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
            except images.ImageError as error:
                status[row] = STATUS_NAMES.index(error.reason)
                shown = images.name_of(self.catalog.path(place))
                failures.append((place, str(error).removeprefix(shown + ": ")))
        kept = torch.from_numpy(found.view(np.uint8).reshape(len(found), -1))
        return Decoded((kept,), status, failures)

    def _look(self, place: int) -> tuple[Any, ...]:
        """Return the fields of `SEEN`; the status is OK."""
        pixels = decode_listed(self.catalog, place)
        height, width, _ = pixels.shape
        grey = thumbnail(pixels)
        both = perceptual_hashes(np.stack((grey, grey[:, ::-1])))
        return OK, width, height, pixel_digest(pixels), *both, grey.mean(), grey.std()


# ---- What is alike ----


class NearPairs(NamedTuple):
    """P pairs of places; `distance` in bits. Complete up to `radius` bits, but for `crowded`."""

    pairs: np.ndarray  # (P, 2) int64, the smaller place first
    distance: np.ndarray  # (P,) uint8
    radius: int  # below the one asked for where there were too many candidates
    crowded: int  # most hashes in one bucket beyond the window; 0 = the search was exhaustive


def pixel_digest(pixels: np.ndarray) -> int:
    """Return 64 bits that are equal for the same pixels in the same shape."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest(), "little")


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Reduce (H, W, 3) uint8 to grey (32, 32) uint8, each value the mean of the area it covers."""
    rows, columns = (_area_weights(side) for side in pixels.shape[:2])
    return np.rint(rows @ (pixels @ LUMA) @ columns.T).astype(np.uint8)


@lru_cache(maxsize=256)
def _area_weights(length: int) -> np.ndarray:
    """Share of each of `length` pixels in each of the 32 equal stretches: (32, length) float32."""
    edges, pixels = np.linspace(0, length, THUMBNAIL_PX + 1)[:, None], np.arange(length)
    covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    covered = np.clip(covered, 0, None)
    return (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Hash (n, 32, 32) grey to (n,) uint64: which of the 8x8 lowest DCT terms exceed their median.

    The pHash of C. Zauner, "Implementation and benchmarking of perceptual image hash functions",
    2010.
    """
    terms = dctn(thumbnails.astype(np.float32), axes=(1, 2))[:, :8, :8].reshape(-1, 64)
    bits = terms > np.median(terms, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def thumbnail_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compare thumbnails (P, 32, 32) pair by pair: (P,) float32, the mean absolute difference.

    In standard deviations, after each was brought to mean 0 and standard deviation 1: equal photos
    give 0, unrelated ones about 1.1.
    """
    a, b = (x.reshape(len(x), THUMBNAIL_PX**2).astype(np.float32) for x in (first, second))
    for flat in (a, b):
        flat -= flat.mean(axis=1, keepdims=True)
        flat /= np.maximum(flat.std(axis=1, keepdims=True), 1.0)
    return np.abs(a - b).mean(axis=1)


def exact_pairs(digests: np.ndarray, records: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Chain the records that share pixels: (P, 2) int64 places, one pair fewer than records.

    In the chain the splits come one after the other, so that a group that spans splits has a pair
    that does.
    """
    order = np.lexsort((records, splits, digests))
    before, after = order[:-1], order[1:]
    links = (digests[before] == digests[after]) & (records[before] != records[after])
    return np.sort(np.stack((before[links], after[links]), axis=1), axis=1)


def near_pairs(hashes: np.ndarray, mirrored: np.ndarray, records: np.ndarray) -> NearPairs:
    """Find the pairs of different records whose hashes differ in few bits, as they are or one
    photo mirrored; of the two ways the nearer one counts.

    `hashes` (n,) uint64, `mirrored` (n,) those of the mirrored thumbnails. Two hashes within 6 bits
    agree in two whole bytes of eight (pigeonhole). So for each two of the bytes the hashes are
    sorted with these in front, and each is compared with those that follow it with the same two:
    n log n, in memory a few times that of the hashes. A bucket beyond the window is not searched
    whole; its neighbours agree in the next bytes too.
    """
    num, radius, crowded = max(len(hashes), 1), MAX_HASH_DISTANCE, 0
    # (first * num + second, bits) of the pairs met so far
    found = [(np.empty(0, np.int64), np.empty(0, np.uint8))]
    table = np.append(hashes, mirrored).astype("<u8").view(np.uint8).reshape(-1, 8)
    for front in combinations(range(8), 2):
        rest = [band for band in range(8) if band not in front]
        turned = np.ascontiguousarray(table[:, [*rest, *front]]).view("<u8")[:, 0]  # front highest
        order = np.argsort(turned, kind="stable")
        turned, buckets = turned[order], turned[order] >> np.uint64(48)
        ends = np.searchsorted(buckets, buckets, side="right")
        crowded = max(crowded, int((ends - np.arange(len(ends))).max(initial=0)) - _WINDOW - 1)
        active = np.arange(len(turned))
        for offset in range(1, _WINDOW + 1):
            active = active[active + offset < ends[active]]
            if not len(active):
                break
            bits = np.bitwise_count(turned[active] ^ turned[active + offset])
            near = active[bits <= radius]
            pairs = np.sort(order[np.stack((near, near + offset))] % num, axis=0)
            other = records[pairs[0]] != records[pairs[1]]
            found.append(((pairs[0] * num + pairs[1])[other], bits[bits <= radius][other]))
            if sum(len(codes) for codes, _ in found) > 2 * _MAX_CANDIDATES:
                found, radius = _merge(found, radius)
    ((codes, distance),), radius = _merge(found, radius)
    return NearPairs(np.stack(np.divmod(codes, num), axis=1), distance, radius, crowded)


def _merge(
    found: list[tuple[np.ndarray, np.ndarray]], radius: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """Keep each pair once, the nearer way, and shrink the radius where they would be too many."""
    codes, distance = map(np.concatenate, zip(*found, strict=True))
    order = np.argsort(distance, kind="stable")
    codes, first = np.unique(codes[order], return_index=True)
    distance = distance[order][first]
    while len(codes) > _MAX_CANDIDATES and radius > 0:
        radius -= 1
        codes, distance = codes[distance <= radius], distance[distance <= radius]
    return [(codes, distance)], radius
