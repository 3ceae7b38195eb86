"""Ways to damage the bytes of a file between two places, the same for the same draw."""

from __future__ import annotations

import random

SPANS = 1, 2, 8, 300  # bytes that are damaged together


def flipped_bit(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    place = draw.randrange(begin, end)
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def overwritten(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    place, span = draw.randrange(begin, end), draw.choice(SPANS)
    content = draw.choice([bytes(span), b"\xff" * span, draw.randbytes(span)])
    return data[:place] + content + data[place + span :]


def block_gone(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    place = draw.randrange(begin, end)
    return data[:place] + data[place + draw.choice(SPANS) :]


def block_more(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    place = draw.randrange(begin, end)
    return data[:place] + draw.randbytes(draw.choice(SPANS)) + data[place:]


def cut_short(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    return data[: draw.randrange(begin, end)]


DAMAGES = (flipped_bit, overwritten, block_gone, block_more, cut_short)
