"""What a photo looks like, apart from its animal: whether it is a copy, and how sharp it is."""

from __future__ import annotations

import numpy as np

from petface.analysis import duplicates

_SIDE = duplicates.THUMBNAIL_PX
SIZE = 1 + _SIDE**2  # numbers of a look


def look_at(pixels: np.ndarray) -> np.ndarray:
    """Reduce (B, S, S, 3) uint8 to (B, 1 + 32 * 32): sharpness, and the grey thumbnail.

    Sharpness is the variance of the Laplacian (Pech-Pacheco et al. 2000), in grey levels squared.
    """
    grey = pixels @ duplicates.LUMA
    edges = 4 * grey[:, 1:-1, 1:-1]
    edges -= grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    small = np.stack([duplicates.thumbnail(one) for one in pixels])
    sharpness = edges.var(axis=(1, 2))[:, None]
    return np.concatenate([sharpness, small.reshape(len(small), -1)], axis=1, dtype=np.float32)


def are_copies(looks: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Check which pairs (P,) are one photo, also resized, brightened, mirrored: (P,) bool."""
    small, found = _thumbnails(looks), left == right
    hashes, mirrored = _hashes(small), small[:, :, ::-1]
    for first, own in ((small, hashes), (mirrored, _hashes(mirrored))):
        bits = own[left] ^ hashes[right]
        near = np.flatnonzero(np.bitwise_count(bits) <= duplicates.MAX_HASH_DISTANCE)
        for part in _pieces(near):
            unlike = duplicates.thumbnail_difference(first[left[part]], small[right[part]])
            found[part[unlike <= duplicates.MAX_DIFFERENCE]] = True
    return found


def _pieces(rows: np.ndarray) -> list[np.ndarray]:
    """Cut rows (n, ...) so that their thumbnails fit into memory as float32."""
    return np.array_split(rows, len(rows) // 10_000 + 1)


def _thumbnails(looks: np.ndarray) -> np.ndarray:
    parts = [np.nan_to_num(part[:, 1:]).astype(np.uint8) for part in _pieces(looks)]
    return np.concatenate(parts).reshape(-1, _SIDE, _SIDE)


def _hashes(thumbnails: np.ndarray) -> np.ndarray:
    return np.concatenate([duplicates.perceptual_hashes(part) for part in _pieces(thumbnails)])


def hash_embeddings(looks: np.ndarray) -> np.ndarray:
    """Turn perceptual hashes into unit vectors (n, 64): their product counts equal bits.

    A baseline that knows photos, not animals. NaN where there is no photo.
    """
    bits = np.unpackbits(_hashes(_thumbnails(looks))[:, None].view(np.uint8), axis=1)
    table = (bits.astype(np.float32) * 2 - 1) / 8
    table[np.isnan(looks[:, 0])] = np.nan
    return table
