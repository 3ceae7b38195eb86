"""Faults that are planted where `make torture` looks, in processes of their own."""

from __future__ import annotations

import os
import time

import numpy as np


def hang(_data: bytes) -> np.ndarray:
    """Decode nothing, for ever."""
    while True:
        time.sleep(1)


def crash(_data: bytes) -> np.ndarray:
    """Die as a decoder in C does."""
    os.abort()


def swallow(_data: bytes) -> np.ndarray:
    """Give grey where nothing could be read."""
    return np.zeros((4, 4), np.uint8)


def hoard(_data: bytes) -> np.ndarray:
    """Take more memory than there is."""
    from petface.data.images import ImageError

    try:
        return np.zeros((50_000, 50_000, 3), np.uint8)
    except MemoryError as error:
        raise ImageError("no memory") from error
