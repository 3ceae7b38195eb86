"""A bound on the pixels that the threads of a process hold decoded at the same time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Semaphore
from typing import Final

from petface.data.images import MAX_PIXELS, ImageSource, num_pixels

SMALL_PIXELS: Final = 1_000_000  # smaller photos do not wait for room

_turn: Lock
_room: Semaphore


def _make_room() -> None:
    global _turn, _room
    _turn, _room = Lock(), Semaphore(MAX_PIXELS // SMALL_PIXELS)


_make_room()
os.register_at_fork(after_in_child=_make_room)  # what other threads hold would never be given back


@contextmanager
def room_for(source: ImageSource) -> Iterator[None]:
    """Wait until there is room to decode and resize a photo; free it at the end of the block.

    Within such blocks, the threads of this process hold at most `MAX_PIXELS` decoded, not counting
    small photos, which never wait.
    """
    num = min(num_pixels(source), MAX_PIXELS) // SMALL_PIXELS
    if num:
        with _turn:  # nobody overtakes a large photo that waits
            for _ in range(num):
                _room.acquire()
    try:
        yield
    finally:
        if num:
            _room.release(num)
