"""Whether two runs have the same results: to the last bit, but for durations and own names."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from petface.data import pack
from petface.data.catalog import strict_rows
from petface.files import TEMPORARY_SUFFIX
from petface.models import checkpoints
from tests.naive import rows_of

_TIMINGS = frozenset({"train_images_per_s", "train_s", "train_minutes", "seconds", "time"})
_CHARTS = frozenset({"curves.png", "confidence.png"})  # of the tables; a fork draws none
_OWN = frozenset({"run.lock", "environment.json", "settings.toml", "report.html"})  # name the run
_UNFINISHED = ".unfinished"


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Name the places where two values of plain types and tensors differ in any bit."""
    if type(one) is not type(other):
        return [path or "the type"]
    if isinstance(one, dict):
        apart = [f"{path}.{key}" for key in one.keys() ^ other.keys() if key not in _TIMINGS]
        both = [key for key in one if key in other and key not in _TIMINGS]
        return apart + [
            d for key in both for d in differences(one[key], other[key], f"{path}.{key}")
        ]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"the length of {path}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for number, pair in pairs for d in differences(*pair, f"{path}[{number}]")]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        bits = same and (  # an empty one has no bytes to look at
            not one.numel()
            or torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
        )
        return [] if bits else [path]
    return [] if one == other or (one != one and other != other) else [path]


def run_differences(straight: Path, other: Path) -> list[str]:
    """Name the files in which a finished run differs from the undisturbed one."""
    found = []
    for path in sorted(p for p in straight.rglob("*") if p.is_file() and p.name not in _OWN):
        name = path.relative_to(straight)
        if not (other / name).is_file():
            found.append(f"{name} is missing")
        else:
            found += [f"{name} {where}" for where in file_differences(path, other / name)]
    return found


def assert_same(straight: Path, other: Path) -> None:
    """Check that a finished run has the files of the undisturbed one, all of them alike."""
    assert run_differences(straight, other) == []
    assert stale_files(straight, other) == []


def file_differences(straight: Path, other: Path) -> list[str]:
    """Name the places where two files differ; durations and the folders' names do not count."""
    if straight.suffix == ".pt":
        return differences(*(checkpoints.load(path) for path in (straight, other)))
    if straight.name == "metrics.csv":
        return differences(rows_of(straight), rows_of(other))
    if straight.name in _CHARTS:
        return []
    one, two = (p.read_bytes().replace(bytes(p.parent), b"FOLDER") for p in (straight, other))
    if straight.name == "final.json":
        return differences(json.loads(one), json.loads(two))
    return [] if one == two else ["differs in its bytes"]


def stale_files(straight: Path, other: Path) -> list[str]:
    """Name the files of a finished run that the undisturbed one does not have."""
    names = {path.relative_to(straight) for path in straight.rglob("*")}
    return sorted(
        str(path.relative_to(other))
        for path in other.rglob("*")
        if path.relative_to(other) not in names
    )


def num_being_written(folders: Sequence[Path]) -> int:
    """Count the files that are half-written: temporaries, tables and packs that end in between."""
    num = 0
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.name.endswith(TEMPORARY_SUFFIX):
            num += 1
        elif path.name.endswith(".csv" + _UNFINISHED):
            num += not path.read_bytes().endswith(b"\n")
        elif path.name.endswith(".bin" + _UNFINISHED):
            index = path.with_name(path.name + ".index")
            listed = index.read_bytes() if index.exists() else b""
            is_whole = len(listed) % pack.ENTRY.itemsize == 0
            lengths = np.frombuffer(listed, pack.ENTRY)["length"] if is_whole else np.zeros(1)
            with path.open("rb") as handle:
                head = pack.head_length(handle.read(64))
            num += not is_whole or path.stat().st_size != head + int(lengths.sum())
    return num


def broken_files(folder: Path) -> list[str]:
    """Name the files under a folder that have their final name and are not whole."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            _read_whole(path)
        except Exception as error:  # whatever a half-written file makes its reader raise
            found.append(f"{path.relative_to(folder)} is not whole: {error}")
    return found


def _read_whole(path: Path) -> None:
    if path.suffix == ".pt":
        checkpoints.load(path)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".toml":
        tomllib.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".csv":
        list(strict_rows(path))
        if not path.read_bytes().endswith(b"\n"):
            raise ValueError("its last line has no end")
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".html" and "</html>" not in path.read_text(encoding="utf-8"):
        raise ValueError("its end is missing")
