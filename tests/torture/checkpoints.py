"""Damaged and crafted checkpoints: refused as such in one line, or read with the content they had.

What is crafted has every checksum in order; none crashes, hangs or takes all memory.
"""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from petface.models import checkpoints, layouts
from tests import reference_networks as reference
from tests.sameness import differences
from tests.torture.fuzz import Fuzzer, damaged, judge_reading

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
Loader = Callable[[Path], dict[str, Any]]


def zip_of(records: Iterable[tuple[str, bytes]], way: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", way) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return stream.getvalue()


def records_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


# ---- Damaged ----


def damaged_fuzzer(place: Path, load: Loader = checkpoints.load) -> Fuzzer:
    """Damage a checkpoint, and read it with `load`."""
    path = place / "cat_best.pt"
    checkpoints.save(path, _CONTENT)
    whole, expected = path.read_bytes(), {"format": checkpoints.FORMAT, **_CONTENT}
    warnings.simplefilter("ignore")  # zipfile and torch comment on what is done here

    def wrong_message(message: str) -> str:
        is_good = message.startswith(f"{path}: ") and "\n" not in message
        return "" if is_good else f"message {message!r}"

    def difference(found: dict[str, Any]) -> str:
        return "".join(f"read, but {where} differs" for where in differences(expected, found)[:1])

    return Fuzzer(
        lambda number, draw: _damage(whole, number, draw),
        lambda data: judge_reading(path, data, load, wrong_message, difference),
        50_000_000,  # what a small file may take while it is refused
    )


def _damage(data: bytes, number: int, draw: random.Random) -> tuple[str, bytes]:
    """Damage an archive in one of the ways in turn."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos, directory = archive.infolist(), archive.start_dir
    bodies = []  # heads and bytes of the records, directory, end: any alike, however small it is
    for info in infos:
        name_length, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
        bodies.append(info.header_offset + 30 + name_length + extra)
    edges = [info.header_offset for info in infos] + bodies
    edges = sorted({*edges, directory, len(data) - 22, len(data)})
    place = draw.randrange(len(edges) - 1)
    largest = max(range(len(infos)), key=lambda n: infos[n].compress_size)
    begin = bodies[largest]
    flipped = bytearray(data)
    flipped[draw.randrange(begin, begin + infos[largest].compress_size)] ^= 1
    mended = bytearray(flipped)  # the checksum beside it, but not the directory's
    crc = zlib.crc32(mended[begin : begin + infos[largest].compress_size])
    struct.pack_into("<I", mended, infos[largest].header_offset + 14, crc)

    def entry() -> bytes:
        """Put an extreme number into a field of the directory: sizes, places, checksums, ways."""
        starts = [at for at in range(directory, len(data)) if data.startswith(b"PK\1\2", at)]
        field, size = draw.choice([(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)])
        value = draw.choice([0, 1, 8, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, draw.getrandbits(32)])
        at, new = draw.choice(starts) + field, value & (256**size - 1)
        return data[:at] + new.to_bytes(size, "little") + data[at + size :]

    def mixed() -> bytes:
        """Write the archive anew with a record missing, twice, renamed, or cut."""
        records = [*records_of(data).items()]
        name, content = record = records.pop(draw.randrange(len(records)))
        renamed = (name + draw.choice(["x", "/", "/../../x"]), content)
        cut = (name, content[: len(content) // 2])
        return zip_of(records + draw.choice([[], [record, (name, b"x")], [renamed], [cut]]))

    more = draw.choice([draw.randbytes(draw.randint(1, 99)), bytes(70_000), data])
    html = b"<!DOCTYPE html><html>404</html>"
    else_ = [b"", html, bytes(len(data)), draw.randbytes(5000), b"PK\3\4", data[::-1]]
    ways: dict[str, Callable[[], bytes]] = {
        **{f"region {n}": lambda: damaged(data, draw, *edges[place : place + 2]) for n in range(5)},
        "weight": lambda: bytes(flipped),
        "bytes around": lambda: draw.choice([data + more, more + data]),
        "directory": entry,
        "directory again": entry,
        "records": mixed,
        "checksum, too": lambda: bytes(mended),
        "something else": lambda: draw.choice(else_),
    }
    kind = [*ways][number % len(ways)]
    return kind, ways[kind]()


# ---- Crafted ----


def with_pickle(whole: bytes, program: bytes) -> bytes:
    records = records_of(whole)
    table = next(name for name in records if name.endswith("/data.pkl"))
    return zip_of({**records, table: program}.items())


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _doubled(times: int) -> bytes:
    """Return a pickle of lists that each hold the one before twice."""
    steps = (b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(times))
    return b"\x80\x02}" + _text("model") + b"]q\0" + b"".join(steps) + b"s."


def programs() -> dict[str, bytes]:
    """Pickles that torch's reader would carry out, or choke on."""
    huge = b"\x8a\x06" + (10**13).to_bytes(6, "little")
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
    tensor = storage + huge + b"tQK\0" + huge + b"\x85K\x01\x85\x89N"
    calls = {  # what is called, and the program of a tuple's content
        "bytearray": ("builtins\nbytearray", huge),
        "a tensor of terabytes": ("torch\nTensor", huge),
        "a storage of terabytes": ("torch\nFloatStorage", huge),
        "an untyped storage": ("torch.storage\nUntypedStorage", huge),
        "text that doubles": ("_codecs\nencode", _text("a" * 999) + _text("hex")),
        "a counter": ("collections\nCounter", _text("aaab")),
        "meta": ("torch._utils\n_rebuild_meta_tensor_no_storage", b"cos\nsystem\nNNN"),
        "a record that declares terabytes": ("torch._utils\n_rebuild_tensor_v2", tensor),
    }
    found = {key: f"\x02c{n}\n(".encode() + a + b"tR." for key, (n, a) in calls.items()}
    found = {key: b"\x80" + program for key, program in found.items()}
    return found | {f"doubled {n}": _doubled(n) for n in (20, 60, 200)} | {
        "nested": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "9 million lists": b"\x80\x02(" + b"]" * 9_000_000 + b"l.",
        "4 million lists": b"\x80\x02(" + b"]" * 4_500_000 + b"l.",
        "a text of 5 MB": b"\x80\x02}" + _text("format") + _text("9" * 5_000_000) + b"s.",
    }  # fmt: skip


_NUMBERS = (0, -1, 1.5, 2**31, 10**6, 2**70, 10**4000, True, None, "32", float("nan"), [], {})
_FIELDS = (
    *("format", "backbone", "architecture", "species", "preprocessing", "calibration", "data"),
    *("class_to_index", "head_vocabs", "feature_infos", "heads_meta", "vocabs", "model"),
    *("architecture bodies", "architecture hidden", "architecture dropout", "breed_vocab"),
    *("preprocessing size_px", "preprocessing mean", "preprocessing std", "calibration species"),
)


def odd_tensors() -> dict[str, Any]:
    return {
        "expanded": torch.zeros(1).expand(10**6, 10**6),
        "sparse": torch.sparse_coo_tensor([[0], [0]], [1.0], (10**7, 10**7)),
        "meta": torch.empty(10**9, device="meta"),
        "complex": torch.zeros(3, 512, dtype=torch.complex64),
        "NaN": torch.full((3, 512), float("nan")),
        "quantised": torch.quantize_per_tensor(torch.zeros(3, 512), 0.1, 0, torch.quint8),
        "another shape": torch.zeros(512, 3),
        "a number": torch.zeros(()),
        "none": torch.zeros(0, 512),
    }


def crafted_fuzzer(place: Path) -> Fuzzer:
    """Draw checkpoints of stage 1 and of a specialist, read by what inference reads them with."""
    weight, bias = reference.linear_heads(fc=3)["fc"]
    stage1 = {
        "model": {**reference.resnet18_body(), "fc.weight": weight, "fc.bias": bias},
        "class_to_index": {"cat": 0, "dog": 1, "yak": 2},
        "preprocessing": {"size_px": 32, "resize": "stretch", "mean": None, "std": None},
        "calibration": {"species": {"temperature": 1.0}},
        "architecture": {"bodies": 1, "hidden": 0, "dropout": 0.0, "backbone": "resnet18"},
    }
    whole, told, odd = saved({"model": {}}), programs(), odd_tensors()

    def draw_file(number: int, draw: random.Random) -> tuple[str, bytes]:
        number, kind = divmod(number, 3)
        if kind == 0:
            name = [*told][number % len(told)]
            return name, with_pickle(whole, told[name])
        content = {"format": draw.choice([0, 1]), **stage1}
        if kind == 1:
            name = [*odd][number % len(odd)]
            key = draw.choice(["fc.weight", "conv1.weight", "bn1.running_mean"])
            content["model"] = {**stage1["model"], key: odd[name]}
            return f"{name} as {key}", saved(content)
        name, value = _FIELDS[number % len(_FIELDS)], draw.choice(_NUMBERS)
        table, _, field = name.partition(" ")
        content[table] = {**content[table], field: value} if field else value
        if name == "class_to_index" and draw.random() < 0.5:
            content[table] = {f"class {n}": n for n in range(10**6)}
        return f"{name} = {str(value)[:20] if value != 10**4000 else 'huge'}", saved(content)

    path = place / "cat_best.pt"
    return Fuzzer(draw_file, lambda data: judge_reading(path, data, read_as_both))


def read_as_both(path: Path) -> None:
    """Read a checkpoint as stage 1 and as a specialist; the last refusal of the two."""
    last = None
    for one in (checkpoints.read_stage1, lambda path: layouts.read_stage2(path, "cat")):
        try:
            one(path)
        except checkpoints.CheckpointError as error:
            last = error
    if last:
        raise last
