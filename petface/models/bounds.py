"""What a file of a stranger may declare: checked before anything of that size is built.

torch's own reader executes nothing, but builds what a file describes: `bytearray(10**11)`, a sparse
tensor, one number expanded to terabytes. Here a pickle is read as a list of instructions first.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

MAX_PICKLE_BYTES: Final = 4_000_000  # 0.1 in a run of eight ResNet-50 bodies
MAX_ITEMS: Final = 4_000_000  # keys and values of all tables and lists, counted as often as met
MAX_DEPTH: Final = 50  # of tables in tables
MAX_TEXT: Final = 1_000_000  # characters of one text
MAX_SIZE_PX: Final = 2048  # of the images that a network takes
# What state dictionaries and plain values are made of. The others that torch lets pass allocate
# what they are told to, or have no values at all.
_GLOBALS = re.compile(
    r"collections OrderedDict|(builtins|__builtin__) set|"
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch (Size|device|u?int\d+|b?float\d+|bool|"
    r"(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage)"
)
_DTYPES = {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8}
_DTYPES |= {torch.int8, torch.int16, torch.int32, torch.int64}


class TooLargeError(ValueError):
    """A table that declares more than any checkpoint does."""


def is_program(path: Path) -> bool:
    """Return whether an archive is a TorchScript program."""
    with zipfile.ZipFile(path) as archive:
        return any(name.lower().endswith("/constants.pkl") for name in archive.namelist())


def forbidden_instruction(path: Path) -> str:
    """Return what in the pickle of a checkpoint could do more than name tensors; "" if nothing.

    `ValueError` for bytes that are no pickle, `TooLargeError` for too many.
    """
    with path.open("rb") as handle:  # torch goes by the first bytes, too
        is_archive = handle.read(4) == b"PK\3\4"
        handle.seek(0)
        # before torch 1.6: magic number, version, machine, content, storages
        pickles = [io.BytesIO(handle.read(0 if is_archive else MAX_PICKLE_BYTES))] * 5
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            records = [(one.filename.lower(), one) for one in archive.infolist()]  # as torch does
            tables = [one for name, one in records if name.endswith("/data.pkl")]
            if any(one.file_size > MAX_PICKLE_BYTES for one in tables):
                raise TooLargeError(f"its table is larger than {MAX_PICKLE_BYTES:,} bytes")
            pickles = [io.BytesIO(archive.read(one)) for one in tables]
    for stream in pickles:
        for instruction, argument, _ in pickletools.genops(stream):
            name = str(argument)
            if instruction.name in ("GLOBAL", "INST") and not _GLOBALS.fullmatch(name):
                return f"GLOBAL {name.replace(' ', '.'):.60}"
            if instruction.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                return f"GLOBAL by {instruction.name}"
    return ""


def oddity(content: Any, num_bytes: int) -> str:
    """Return what no checkpoint holds although torch reads it; "" where there is nothing.

    `num_bytes` is the size of the file: no tensor can have more.
    """
    todo, num = [(content, 0)], 0
    while todo:
        value, depth = todo.pop()
        num += 1
        if num + len(todo) > MAX_ITEMS or depth > MAX_DEPTH:
            return f"more than {MAX_ITEMS:,} entries, or tables {MAX_DEPTH} deep in each other"
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                return f"a tensor without plain values ({value.layout}, {value.device})"
            declared, size = value.numel() * value.itemsize, value.untyped_storage().nbytes()
            if value.dtype not in _DTYPES or not declared <= size <= num_bytes:
                what = f"{list(value.shape)} {value.dtype}"
                return f"a tensor that declares {what}, not what is there"
        elif isinstance(value, dict):
            todo += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, (list, tuple, set)):
            todo += [(part, depth + 1) for part in value]
        elif isinstance(value, (str, bytes)) and len(value) > MAX_TEXT:
            return f"a text of {len(value):,} characters"
        elif isinstance(value, int) and value.bit_length() > 4096:
            return f"a number of {value.bit_length():,} bits"
    return ""
