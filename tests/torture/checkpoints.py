"""Damaged checkpoints: refused as such, or read with the very content they had."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from petface.models import checkpoints
from tests.sameness import differences
from tests.torture.fuzz import Fuzzer, damaged, flipped_bit, fuzz, judge_reading
from tests.torture.outcome import Outcome

_CONTENT = {
    "model": {
        "heads.gender.weight": torch.linspace(-1, 1, 1024).reshape(2, 512),
        "heads.gender.bias": torch.tensor([0.25, 0.5]),
        "body.counter": torch.tensor(7),
    },
    "head_vocabs": {"gender": ["female", "male"]},
    "species": "cat",
    "backbone": "resnet18",
    "history": [{"epoch": 1, "val_loss": 0.5, "val_accuracy_frac": None}],
}
_CEILING_BYTES = 50_000_000  # what a small file may take while it is refused
Loader = Callable[[Path], dict[str, Any]]


def torture_checkpoints(
    num_files: int, seed: int, place: Path, load: Loader = checkpoints.load
) -> Outcome:
    """Read damaged checkpoints with `load`."""
    path = place / "cat_best.pt"
    checkpoints.save(path, _CONTENT)
    whole, expected = path.read_bytes(), {"format": checkpoints.FORMAT, **_CONTENT}
    warnings.simplefilter("ignore")  # zipfile and torch comment on what is done here

    def draw_file(number: int, draw: random.Random) -> tuple[str, bytes]:
        damage = _DAMAGES[number % len(_DAMAGES)]
        return damage.__name__.strip("_"), damage(whole, draw)

    def wrong_message(message: str) -> str:
        is_good = message.startswith(f"{path}: ") and "\n" not in message
        return "" if is_good else f"message {message!r}"

    def difference(found: dict[str, Any]) -> str:
        return "".join(f"read, but {where} differs" for where in differences(expected, found)[:1])

    fuzzer = Fuzzer(
        draw_file, lambda data: judge_reading(path, data, load, wrong_message, difference)
    )
    outcome = Outcome("checkpoints", "damaged checkpoints")
    return fuzz(outcome, fuzzer, num_files, seed, _CEILING_BYTES)


def programs_by_hand(command: str) -> dict[str, bytes]:
    """Write pickles by hand, as no pickler writes them."""
    quoted = command.encode()
    return {
        "global and reduce": b"cposix\nsystem\n(S'" + quoted + b"'\ntR.",
        "inst": b"(S'" + quoted + b"'\niposix\nsystem\n.",
        "obj": b"(cposix\nsystem\nS'" + quoted + b"'\no.",
        "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c"
        + bytes([len(quoted)])
        + quoted
        + b"\x85R.",
        "getattr": b"c__builtin__\ngetattr\n(cos\nS'system'\ntR.",
        "build on a tensor class": b"ctorch\nTensor\n(dS'__class__'\ncos\nsystem\nsb.",
        "rebuild with nonsense": b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
        "endless nesting": b"(" * 100_000 + b".",
        "memo from nowhere": b"h\x05.",
        "a set of lists": b"\x80\x04\x8f(]\x90.",
        "no stop": b"\x80\x02}",
        "a number": b"I1\n.",
    }


def _regions(data: bytes) -> list[tuple[int, int]]:
    """Cut an archive into its parts: heads and bytes of the records, directory, end."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos, directory = archive.infolist(), archive.start_dir
    parts = []
    for info in infos:
        name_length, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
        begin = info.header_offset + 30 + name_length + extra
        parts += [(info.header_offset, begin), (begin, begin + info.compress_size)]
    return [*parts, (directory, len(data) - 22), (len(data) - 22, len(data))]


def _largest(data: bytes) -> tuple[int, int]:
    return max(_regions(data), key=lambda part: part[1] - part[0])


def _any_region(data: bytes, draw: random.Random) -> bytes:
    """Damage any region alike, however small it is."""
    begin, end = draw.choice([part for part in _regions(data) if part[1] > part[0]])
    return damaged(data, draw, begin, end)


def _flipped_weight(data: bytes, draw: random.Random) -> bytes:
    """Flip a bit in the largest record."""
    return flipped_bit(data, draw.randrange(*_largest(data)), draw)


def _bytes_around(data: bytes, draw: random.Random) -> bytes:
    other = draw.choice([draw.randbytes(draw.randint(1, 99)), bytes(70_000), data])
    return data + other if draw.random() < 0.5 else other + data


def _directory_entry(data: bytes, draw: random.Random) -> bytes:
    """Put an extreme number into a field of the directory: sizes, places, checksums, ways."""
    starts = [place for place in range(len(data)) if data.startswith(b"PK\1\2", place)]
    field, size = draw.choice(
        [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)]
    )
    value = draw.choice([0, 1, 8, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, draw.getrandbits(32)])
    place = draw.choice(starts) + field
    return data[:place] + (value & (256**size - 1)).to_bytes(size, "little") + data[place + size :]


def _records_mixed(data: bytes, draw: random.Random) -> bytes:
    """Write the archive anew with a record missing, twice, renamed or in another's place."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = draw.randrange(len(records))
    name, content = records[number]
    kind = draw.randrange(4)
    if kind == 0:
        del records[number]
    elif kind == 1:
        records.append((name, content[:-1] + bytes([content[-1] ^ 1]) if content else b"x"))
    elif kind == 2:
        records[number] = (name + draw.choice(["x", "/", "/../../x"]), content)
    else:
        records[number] = (name, content[: len(content) // 2])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for one in records:
            archive.writestr(*one)
    return stream.getvalue()


def _checksum_too(data: bytes, draw: random.Random) -> bytes:
    """Flip a bit of a record and mend the checksum beside it, but not the directory's."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = max(archive.infolist(), key=lambda one: one.compress_size)
    begin, end = _largest(data)
    changed = bytearray(data)
    changed[draw.randrange(begin, end)] ^= 1
    struct.pack_into("<I", changed, info.header_offset + 14, zlib.crc32(changed[begin:end]))
    return bytes(changed)


def _something_else(data: bytes, draw: random.Random) -> bytes:
    html = b"<!DOCTYPE html><html>404</html>"
    return draw.choice([b"", html, bytes(len(data)), draw.randbytes(5000), b"PK\3\4", data[::-1]])


_DAMAGES = (
    *[_any_region] * 5, _flipped_weight, _bytes_around, _directory_entry, _directory_entry,
    _records_mixed, _checksum_too, _something_else,
)  # fmt: skip
