"""What a photo looks like, apart from its animal: whether it is a copy, and how sharp it is."""

from __future__ import annotations

import numpy as np

from petface.analysis import duplicates

_SIDE = duplicates.THUMBNAIL_PX


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


def sharpness_of(looks: np.ndarray) -> np.ndarray:
    """Return the sharpness (n,)."""
    return looks[:, 0]


def are_copies(looks: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Check which pairs (P,) are one photo, also resized, brightened, mirrored: (P,) bool."""
    small = np.nan_to_num(looks[:, 1:]).reshape(-1, _SIDE, _SIDE).astype(np.uint8)
    found = left == right
    for first in (small, small[:, :, ::-1]):
        bits = (
            duplicates.perceptual_hashes(first)[left] ^ duplicates.perceptual_hashes(small)[right]
        )
        near = np.flatnonzero(np.bitwise_count(bits) <= duplicates.MAX_HASH_DISTANCE)
        unlike = duplicates.thumbnail_difference(first[left[near]], small[right[near]])
        found[near[unlike <= duplicates.MAX_DIFFERENCE]] = True
    return found


def hash_embeddings(looks: np.ndarray) -> np.ndarray:
    """Turn perceptual hashes into unit vectors (n, 64): their product counts equal bits.

    A baseline that knows photos, not animals. NaN where there is no photo.
    """
    small = np.nan_to_num(looks[:, 1:]).reshape(-1, _SIDE, _SIDE).astype(np.uint8)
    bits = np.unpackbits(duplicates.perceptual_hashes(small)[:, None].view(np.uint8), axis=1)
    table = (bits.astype(np.float32) * 2 - 1) / 8
    table[np.isnan(looks[:, 0])] = np.nan
    return table
