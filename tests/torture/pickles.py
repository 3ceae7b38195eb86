"""Hostile pickles as checkpoints: none is executed, in whatever file and wherever in it they stand.

Each combines something that makes a file, a place in the content, and a kind of file; a fifth are
programs by hand, or of random instructions with names that state dictionaries are made of.
"""

from __future__ import annotations

import builtins
import collections
import gzip
import importlib
import io
import os
import pickle
import random
import runpy
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.torture.checkpoints import read_as_both, records_of, saved, zip_of
from tests.torture.fuzz import CANARY, Fuzzer, judge_reading

NAME = "cat_best.pt"
_ALLOWED = (
    *("collections OrderedDict", "builtins set", "torch Size", "torch FloatStorage"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch float32"),
)
_WEIGHTS = {"fc.weight": 0}
_PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda plant: plant,
    "as the model": lambda plant: {"model": plant},
    "a weight": lambda plant: {"model": {**_WEIGHTS, "fc.bias": plant}},
    "a key": lambda plant: {"model": _WEIGHTS, plant: 1},
    "a class": lambda plant: {"model": _WEIGHTS, "class_to_index": {"cat": plant}},
    "deep": lambda plant: {"model": _WEIGHTS, "history": [[({"a": [plant]},)] * 3]},
    "behind": lambda plant: [{"model": _WEIGHTS}, plant],
    "a member": lambda plant: {"model": collections.OrderedDict(a=(plant, plant))},
    "optimizer": lambda plant: {"model": _WEIGHTS, "optimizer": {"state": {0: plant}}},
}


def pickle_fuzzer(folder: Path) -> Fuzzer:
    """Plant something in a checkpoint, or beside it."""
    place, canary = folder / "pickles", str(folder / CANARY)
    plants, kinds, by_hand = planted(canary), _kinds(), _programs_by_hand(f"touch {canary}")

    def draw_file(number: int, draw: random.Random) -> tuple[str, Any]:
        kind, seat = [*kinds][number % len(kinds)], draw.choice([*_PLACES])
        if number % 5 == 4:
            name = draw.choice(["random", *by_hand])
            return f"{name} program", {NAME: kinds["zip"](by_hand.get(name) or _program(draw))}
        plant = [*plants][number // 5 % len(plants)]
        made = kinds[kind](pickle.dumps(_PLACES[seat](plants[plant]), protocol=draw.randrange(6)))
        return f"{plant}, {seat}, {kind}", made if isinstance(made, dict) else {NAME: made}

    def read(folder: Path) -> None:
        read_as_both(folder / NAME)

    return Fuzzer(draw_file, lambda files: judge_reading(place, files, read))


class _Calls:
    """What calls a function while it is unpickled, by `__reduce__` or with a state."""

    def __init__(self, function: Callable[..., object], *arguments: object, state: Any = None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def planted(canary: str) -> dict[str, _Calls]:
    """Return what makes the file `canary`, if one lets it."""
    touch, code = f"touch {canary}", f"open({canary!r}, 'w')"
    return {
        "os.system": _Calls(os.system, touch),
        "posix popen": _Calls(os.popen, touch),
        "subprocess": _Calls(subprocess.check_call, ["touch", canary]),
        "Popen": _Calls(subprocess.Popen, ["touch", canary]),
        "eval": _Calls(eval, code),
        "exec": _Calls(exec, code),
        "open": _Calls(open, canary, "w"),
        "mkfifo": _Calls(os.mkfifo, canary),
        "import": _Calls(builtins.__import__, "this"),
        "getattr": _Calls(getattr, _Calls(importlib.import_module, "os"), "system"),
        "runpy": _Calls(runpy.run_path, canary),
        "copy": _Calls(shutil.copyfile, __file__, canary),
        "torch.save": _Calls(torch.save, 0, canary),
        "torch.load": _Calls(torch.load, canary),
        "numpy": _Calls(np.save, canary, 1),
        "nested": _Calls(list, _Calls(map, _Calls(eval, "exec"), [code])),
        "counter": _Calls(collections.Counter, _Calls(eval, code)),
        "ordered": _Calls(collections.OrderedDict, [("a", _Calls(eval, code))]),
        "state": _Calls(collections.OrderedDict, state={"__class__": _Calls(eval, code)}),
    }


def _kinds() -> dict[str, Callable[[bytes], Any]]:
    """Return the kinds of files that a pickle may come in."""
    whole = records_of(saved({"model": {"fc.weight": torch.zeros(3, 512)}}))
    stem = next(iter(whole)).partition("/")[0]
    table = f"{stem}/data.pkl"
    others = {key: value for key, value in whole.items() if key != table}
    magic = b"".join(pickle.dumps(n, 2) for n in (0x1950A86A20F9469CFC6C, 1001, {"type_sizes": {}}))
    good = zip_of(whole.items())

    def zipped(content: bytes, name: str = "data.pkl", **more: bytes) -> bytes:
        more = {f"{stem}/{key}": value for key, value in more.items()}
        return zip_of({f"{stem}/{name}": content, **others, **more}.items())

    def tarred(content: bytes) -> bytes:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name in ("sys_info", "storages", "tensors", "pickle"):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return archive.getvalue()

    return {
        "zip": zipped,
        "pickle": lambda content: content,
        "legacy": lambda content: magic + content + pickle.dumps([], 2),
        "legacy in its head": lambda content: content + magic + content,
        "tar": tarred,
        "upper case": lambda content: zipped(content, "DATA.PKL"),
        "a second table": lambda content: zipped(whole[table], **{"x/data.pkl": content}),
        "deep table": lambda content: zipped(content, "a/b/data.pkl"),
        "TorchScript": lambda content: zipped(content, **{"constants.pkl": content}),
        "packed": lambda content: zip_of(
            [(table, content), (f"{stem}/data/0", bytes(10**8))], zipfile.ZIP_DEFLATED
        ),
        "gzip": gzip.compress,
        "zip behind a pickle": lambda content: content + good,
        "pickle behind a zip": lambda content: good + content,
        "a weight's bytes": lambda content: zipped(whole[table], **{"data/0x": content}),
        "sidecars": lambda content: {
            **dict.fromkeys(("cat_best.pkl", "data.pkl", f"{NAME}.index", "last.pt"), content),
            **{NAME: good, "cat_best.json": b"{}", "__init__.py": b"1/0", "torch.py": b"1/0"},
        },
        "a link": lambda content: {NAME: "sub/hidden.pt", "sub/hidden.pt": zipped(content)},
    }


def _programs_by_hand(command: str) -> dict[str, bytes]:
    """Write pickles as no pickler writes them."""
    quoted = command.encode()
    named = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(quoted)]) + quoted
    return {
        "global and reduce": b"cposix\nsystem\n(S'" + quoted + b"'\ntR.",
        "inst": b"(S'" + quoted + b"'\niposix\nsystem\n.",
        "obj": b"(cposix\nsystem\nS'" + quoted + b"'\no.",
        "stack global": named + b"\x85R.",
        "getattr": b"c__builtin__\ngetattr\n(cos\nS'system'\ntR.",
        "build on a tensor class": b"ctorch\nTensor\n(dS'__class__'\ncos\nsystem\nsb.",
        "rebuild with nonsense": b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
        "endless nesting": b"(" * 100_000 + b".",
        "memo from nowhere": b"h\x05.",
        "a set of lists": b"\x80\x04\x8f(]\x90.",
        "no stop": b"\x80\x02}",
        "a number": b"I1\n.",
    }


def _program(draw: random.Random) -> bytes:
    """Write random instructions: nothing but what a state dictionary is made of, in any order."""
    steps = [
        b")", b"]", b"}", b"(", b"t", b"R", b"b", b"a", b"s", b"u", b"e", b"N", b"0", b"2", b"Q",
        b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
        b"q\0", b"h\0", b"X\3\0\0\0cpu", b"X\7\0\0\0storage", b"M\xff\xff",
        *(b"c" + name.replace(" ", "\n").encode() + b"\n" for name in _ALLOWED),
    ]  # fmt: skip
    return b"\x80\x02" + b"".join(draw.choices(steps, k=draw.randrange(3, 60))) + b"."
