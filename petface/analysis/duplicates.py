"""Find photos that are the same, or nearly so: hashes of decoded pixels and the search over them.

Exact: the same pixels. Near: two 64-bit perceptual hashes differ in at most `MAX_HASH_DISTANCE`
bits, and the 32x32 grey thumbnails, brought to one brightness and contrast, differ by at most
`MAX_DIFFERENCE`. That finds copies that were re-encoded, resized or brightened; not mirrored ones,
and only some of the cropped ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Final

import numpy as np

THUMBNAIL_PX: Final = 32
MAX_HASH_DISTANCE: Final = 6  # bits; measured: copies up to 4, strangers from 8 on
# Of thumbnails, in standard deviations; measured: copies up to 0.20, strangers from 0.30.
MAX_DIFFERENCE: Final = 0.2
MIN_CONTRAST: Final = 4.0  # grey levels; the hash of a flatter photo is noise

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_NUM_BANDS, _BAND_BITS = 8, 8
_WINDOW = 100  # neighbours that a hash is compared with in each sorted order
_MAX_CANDIDATES = 4_000_000  # 100 MB while they are merged
_PAIRS_AT_ONCE = 8192  # 64 MB as float32 thumbnails


@dataclass(frozen=True, eq=False)
class NearPairs:
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
    height, width = pixels.shape[:2]
    rows, columns = _area_weights(height), _area_weights(width)
    return np.rint(rows @ (pixels @ _LUMA) @ columns.T).astype(np.uint8)


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Hash (n, 32, 32) grey to (n,) uint64: which of the 8x8 lowest DCT terms exceed their median.

    The pHash of C. Zauner, "Implementation and benchmarking of perceptual image hash functions",
    2010.
    """
    basis = _cosines()
    terms = (basis @ thumbnails.astype(np.float32) @ basis.T).reshape(len(thumbnails), 64)
    bits = terms > np.median(terms, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def exact_pairs(digests: np.ndarray, records: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Chain the records that share pixels: (P, 2) int64 places, one pair fewer than records.

    In the chain the splits come one after the other, so that a group that spans splits has a pair
    that does.
    """
    order = np.lexsort((records, splits, digests))
    same = digests[order[1:]] == digests[order[:-1]]
    other = records[order[1:]] != records[order[:-1]]
    links = np.flatnonzero(same & other)
    return np.sort(np.stack((order[links], order[links + 1]), axis=1), axis=1)


def near_pairs(
    hashes: np.ndarray, records: np.ndarray, max_distance: int = MAX_HASH_DISTANCE
) -> NearPairs:
    """Find the pairs of different records whose (n,) uint64 hashes differ in few bits.

    Two hashes within 6 bits agree in two whole bytes of eight (pigeonhole). So for each two of the
    bytes the hashes are sorted with these in front, and each is compared with those that follow
    it with the same two: n log n, in memory a few times that of the hashes. A bucket beyond the
    window is not searched whole; its neighbours agree in the next bytes too.
    """
    assert 0 <= max_distance <= _NUM_BANDS - 2, max_distance
    num, radius, crowded = max(len(hashes), 1), max_distance, 0
    # (first * num + second, bits) of the pairs met so far
    found = [(np.empty(0, np.int64), np.empty(0, np.uint8))]
    for front in combinations(range(_NUM_BANDS), 2):
        turned = _turn(hashes, front)
        order = np.argsort(turned, kind="stable")
        turned = turned[order]
        ends = _bucket_ends(turned >> np.uint64(64 - 2 * _BAND_BITS))
        active = np.arange(len(hashes))
        for offset in range(1, _WINDOW + 1):
            active = active[active + offset < ends[active]]
            if not len(active):
                break
            bits = np.bitwise_count(turned[active] ^ turned[active + offset])
            near = active[bits <= radius]
            pairs = np.sort(order[np.stack((near, near + offset))], axis=0)
            other = records[pairs[0]] != records[pairs[1]]
            found.append(((pairs[0] * num + pairs[1])[other], bits[bits <= radius][other]))
            if sum(len(codes) for codes, _ in found) > 2 * _MAX_CANDIDATES:
                found, radius = _merge(found, radius)
        else:
            sizes = np.diff(np.flatnonzero(np.diff(ends, prepend=-1)), append=len(ends))
            crowded = max(crowded, int(sizes.max(initial=0)) - _WINDOW - 1)
    ((codes, distance),), radius = _merge(found, radius)
    return NearPairs(np.stack(np.divmod(codes, num), axis=1), distance, radius, crowded)


def _merge(
    found: list[tuple[np.ndarray, np.ndarray]], radius: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """Keep each pair once, and shrink the radius where they would be too many."""
    codes, rows = np.unique(np.concatenate([codes for codes, _ in found]), return_index=True)
    distance = np.concatenate([bits for _, bits in found])[rows]
    while len(codes) > _MAX_CANDIDATES and radius > 0:
        radius -= 1
        codes, distance = codes[distance <= radius], distance[distance <= radius]
    return [(codes, distance)], radius


def thumbnail_difference(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Compare two thumbnails of each pair: (P,) float32, the mean absolute difference.

    In standard deviations, after each was brought to mean 0 and standard deviation 1: equal photos
    give 0, unrelated ones about 1.1.
    """
    result = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        first, second = (_standardised(thumbnails[part[:, side]]) for side in (0, 1))
        result[start : start + len(part)] = np.abs(first - second).mean(axis=1)
    return result


def _turn(hashes: np.ndarray, front: tuple[int, ...]) -> np.ndarray:
    """Reorder the bytes of (n,) uint64 so that those in `front` become the highest."""
    rest = [band for band in range(_NUM_BANDS) if band not in front]
    highest_last = [*rest, *front]
    table = np.ascontiguousarray(hashes.astype("<u8")).view(np.uint8).reshape(-1, _NUM_BANDS)
    return np.ascontiguousarray(table[:, highest_last]).view("<u8")[:, 0].astype(np.uint64)


def _bucket_ends(buckets: np.ndarray) -> np.ndarray:
    """Return, for each place of a sorted array, where its run of equal values ends: (n,) int64."""
    ends = np.append(np.flatnonzero(buckets[1:] != buckets[:-1]) + 1, len(buckets))
    return np.repeat(ends, np.diff(ends, prepend=0))


def _standardised(thumbnails: np.ndarray) -> np.ndarray:
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(flat.std(axis=1, keepdims=True), 1.0)


@lru_cache(maxsize=256)
def _area_weights(length: int) -> np.ndarray:
    """Share of each of `length` pixels in each of the 32 equal stretches: (32, length) float32."""
    edges = np.linspace(0, length, THUMBNAIL_PX + 1)
    pixels = np.arange(length)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    covered = np.clip(covered, 0, None)
    return (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """The first 8 rows of the 32-point DCT-II: (8, 32) float32; scale is of no account."""
    places = np.arange(THUMBNAIL_PX) + 0.5
    return np.cos(np.pi / THUMBNAIL_PX * np.arange(8)[:, None] * places).astype(np.float32)
