"""Crafted checkpoints: what a stranger declares, with every checksum in order.

Each is refused in one line, or read; none crashes, hangs or takes all memory.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from petface.models import checkpoints
from tests import reference_networks as reference
from tests.torture.fuzz import Fuzzer, fuzz_apart, judge_reading, one_line
from tests.torture.outcome import Outcome


def torture_crafted(num_files: int, seed: int, place: Path) -> Outcome:
    """Read crafted checkpoints in processes of their own."""
    outcome, fuzzer = Outcome("crafted", "crafted checkpoints"), f"{__name__}:checkpoint_fuzzer"
    return fuzz_apart(outcome, fuzzer, str(place), num_files, seed, 60.0, 12 * 10**9)


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def with_pickle(whole: bytes, program: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
        for info in old.infolist():
            is_it = info.filename.endswith("/data.pkl")
            new.writestr(info.filename, program if is_it else old.read(info))
    return stream.getvalue()


# ---- Checkpoints ----


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _called(module: str, name: str, arguments: bytes) -> bytes:
    """Return a pickle that calls something: `arguments` is the program of a tuple's content."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + arguments + b"tR."


def _doubled(times: int) -> bytes:
    """Return a pickle of lists that each hold the one before twice."""
    steps = (b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(times))
    return b"\x80\x02}" + _text("model") + b"]q\0" + b"".join(steps) + b"s."


_HUGE = b"\x8a\x06" + (10**13).to_bytes(6, "little")


def programs() -> dict[str, bytes]:
    """Pickles that torch's reader would carry out, or choke on."""
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
    tensor = storage + _HUGE + b"tQK\0" + _HUGE + b"\x85K\x01\x85\x89N"
    calls = {
        "bytearray": ("builtins", "bytearray", _HUGE),
        "a tensor of terabytes": ("torch", "Tensor", _HUGE),
        "a storage of terabytes": ("torch", "FloatStorage", _HUGE),
        "an untyped storage": ("torch.storage", "UntypedStorage", _HUGE),
        "text that doubles": ("_codecs", "encode", _text("a" * 999) + _text("hex")),
        "a counter": ("collections", "Counter", _text("aaab")),
        "meta": ("torch._utils", "_rebuild_meta_tensor_no_storage", b"cos\nsystem\nNNN"),
        "a record that declares terabytes": ("torch._utils", "_rebuild_tensor_v2", tensor),
    }
    found = {name: _called(*call) for name, call in calls.items()}
    found |= {f"doubled {n}": _doubled(n) for n in (20, 60, 200)}
    found |= {
        "nested": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "9 million lists": b"\x80\x02(" + b"]" * 9_000_000 + b"l.",
        "4 million lists": b"\x80\x02(" + b"]" * 4_500_000 + b"l.",
        "a text of 5 MB": b"\x80\x02}" + _text("format") + _text("9" * 5_000_000) + b"s.",
    }
    return found


_NUMBERS = (0, -1, 1.5, 2**31, 10**6, 2**70, 10**4000, True, None, "32", float("nan"), [], {})
_FIELDS = (
    *("format", "backbone", "architecture", "species", "preprocessing", "calibration", "data"),
    *("class_to_index", "head_vocabs", "feature_infos", "heads_meta", "vocabs", "model"),
    *("architecture bodies", "architecture hidden", "architecture dropout", "breed_vocab"),
    *("preprocessing size_px", "preprocessing mean", "preprocessing std", "calibration species"),
)


def odd_tensors() -> dict[str, Any]:
    sparse = torch.sparse_coo_tensor([[0], [0]], [1.0], (10**7, 10**7))
    return {
        "expanded": torch.zeros(1).expand(10**6, 10**6),
        "sparse": sparse,
        "meta": torch.empty(10**9, device="meta"),
        "complex": torch.zeros(3, 512, dtype=torch.complex64),
        "NaN": torch.full((3, 512), float("nan")),
        "quantised": torch.quantize_per_tensor(torch.zeros(3, 512), 0.1, 0, torch.quint8),
        "another shape": torch.zeros(512, 3),
        "a number": torch.zeros(()),
        "none": torch.zeros(0, 512),
    }


def checkpoint_fuzzer(folder: str) -> Fuzzer:
    """Draw checkpoints of stage 1 and of a specialist, read by what inference reads them with."""
    place = Path(folder)
    weight, bias = reference.linear_heads(fc=3)["fc"]
    stage1 = {
        "model": {**reference.resnet18_body(), "fc.weight": weight, "fc.bias": bias},
        "class_to_index": {"cat": 0, "dog": 1, "yak": 2},
        "preprocessing": {"size_px": 32, "resize": "stretch", "mean": None, "std": None},
        "calibration": {"species": {"temperature": 1.0}},
        "architecture": {"bodies": 1, "hidden": 0, "dropout": 0.0, "backbone": "resnet18"},
    }
    whole, told, odd = _saved({"model": {}}), programs(), odd_tensors()

    def draw_file(number: int, draw: random.Random) -> tuple[str, bytes]:
        kind = number % 3
        if kind == 0:
            name = list(told)[number // 3 % len(told)]
            return name, with_pickle(whole, told[name])
        content = {"format": draw.choice([0, 1]), **stage1}
        if kind == 1:
            name = list(odd)[number // 3 % len(odd)]
            key = draw.choice(["fc.weight", "conv1.weight", "bn1.running_mean"])
            content["model"] = {**stage1["model"], key: odd[name]}
            return f"{name} as {key}", _saved(content)
        name, value = _FIELDS[number // 3 % len(_FIELDS)], draw.choice(_NUMBERS)
        table, _, field = name.partition(" ")
        content[table] = {**content[table], field: value} if field else value
        if name == "class_to_index" and draw.random() < 0.5:
            content[table] = {f"class {n}": n for n in range(10**6)}
        return f"{name} = {str(value)[:20] if value != 10**4000 else 'huge'}", _saved(content)

    path = place / "cat_best.pt"
    return Fuzzer(
        draw_file,
        lambda data: judge_reading(path, data, read_as_both, partial(one_line, name=place)),
    )


def read_as_both(path: Path) -> None:
    """Read a checkpoint as stage 1 and as a specialist; the last refusal of the two."""
    last = None
    for one in (checkpoints.read_stage1, lambda path: checkpoints.read_stage2(path, "cat")):
        try:
            one(path)
        except checkpoints.CheckpointError as error:
            last = error
    if last:
        raise last
