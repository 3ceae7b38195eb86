"""Mutated presets and split files: read, or refused in one line that names the file.

What one of them says is never another program: nothing of it is carried out.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import inference_engine
import stage2_resnet_multi
import train_resnet_minority_aug_dynamic
from petface.data.dataset import load_dataset, species_of_records
from petface.settings import read_settings
from tests.conftest import make_tree
from tests.scripts import REPOSITORY
from tests.torture.fuzz import Fuzzer, damaged, fuzz, judge_reading
from tests.torture.outcome import Outcome

SCRIPTS = (train_resnet_minority_aug_dynamic, stage2_resnet_multi, inference_engine)
_ODD = (
    *("9" * 5000, "-9" * 99, "1e999", "nan", "inf", "0x7fffffffffffffff", "2_0", "1979-05-27"),
    *('"\\u0000"', "'''\n'''", "[" * 5000 + "]" * 5000, "{ a = 1 }", "[1, 'a', true]", "true"),
    *('"../../etc/passwd"', '"' + "x" * 100_000 + '"', "[" + "1," * 50_000 + "]", '"\udc80"'),
)


def torture_settings(num_files: int, seed: int, place: Path) -> Outcome:
    """Read mutated presets as each script does."""
    path = place / "preset.toml"
    presets = sorted((REPOSITORY / "configs").glob("*/*.toml"))
    names = {m: read_settings(m, []).as_dict() for m in SCRIPTS}

    def draw_file(number: int, draw: random.Random) -> tuple[str, bytes]:
        name = draw.choice([*names[SCRIPTS[number % 3]]])
        whole = draw.choice(presets).read_bytes()
        other = "".join(draw.sample(name, len(name)))
        ways: dict[str, Callable[[], bytes]] = {
            "damaged": lambda: damaged(whole, draw),
            "odd value": lambda: f"{name} = {draw.choice(_ODD)}\n".encode("utf-8", "surrogatepass"),
            "nearly a name": lambda: f"{name[:-1]} = 1\n{other} = 2\n".encode(),
            "twice": lambda: f"{name} = 1\n{name} = 2\n".encode(),
            "table": lambda: f"[{name}]\nx = 1\n".encode() + b"[a.b.c]\n" * 50,
            "nested": lambda: f"{name} = {'{a=' * 3000}1{'}' * 3000}\n".encode(),
            "another coding": lambda: whole.decode().encode(draw.choice(["utf-16", "utf-32"])),
            "marked": lambda: b"\xef\xbb\xbf" + whole,
            "zeros": lambda: whole.replace(b"\n", b"\0", 2),
            "carriage returns": lambda: whole.replace(b"\n", draw.choice([b"\r\n", b"\r"])),
            "large": lambda: b"# " + b"x" * 30_000_000 + b"\n" + whole,
        }
        kind = [*ways][number // 3 % len(ways)]
        return f"{SCRIPTS[number % 3].__name__}, {kind}", ways[kind]()

    def judge(data: bytes, module: Any) -> tuple[str, str]:
        return judge_reading(
            path,
            data,
            lambda path: read_settings(module, ["--config", str(path)]),
            lambda told: "" if _is_line(told, path.name) else f"says {told[:300]!r}",
            lambda found: "" if found.as_dict().keys() == names[module].keys() else "other names",
        )

    turn = iter(range(num_files))  # a preset is for every script in turn
    fuzzer = Fuzzer(draw_file, lambda data: judge(data, SCRIPTS[next(turn) % 3]))
    return fuzz(Outcome("settings", "mutated presets"), fuzzer, num_files, seed)


def _is_line(told: str, name: str) -> bool:
    return name in told and "\n" not in told and len(told) < 2000


def torture_splits(num_files: int, seed: int, place: Path) -> Outcome:
    """Load a tree by mutated split files, its own and official ones."""
    tree = make_tree(place / "split_tree")
    before = load_dataset(tree.images, tree.annotations)
    path, official = tree.root / "splits.csv", place / "official"
    side = path.with_suffix(".json")
    whole, kept = path.read_bytes(), side.read_bytes()
    names = species_of_records(before.catalog)
    lists = {}
    for species in np.unique(names).tolist():
        for code, file in enumerate(("train.csv", "val.txt", "test.txt")):
            own = before.catalog.record_names[(names == species) & (before.record_split == code)]
            rows = [f"{species}/{record}/00.png" for record in own]
            rows = ["filename,label", *(f"{row},1" for row in rows)] if not code else rows
            lists[f"{species}/{file}"] = "\n".join([*rows, ""]).encode()
        lists[f"{species}/reidentification.csv"] = b"filename,label\n"
    ways: dict[str, Callable[[bytes, random.Random], bytes]] = {
        "damaged": damaged,
        "marked": lambda data, _: b"\xef\xbb\xbf" + data,
        "carriage returns": lambda data, _: data.replace(b"\n", b"\r\n"),
        "a line twice": lambda data, _: data + data.splitlines()[-1] + b"\n",
        "in two parts": lambda data, _: data + data.splitlines()[-1].replace(b"train", b"test"),
        "unknown part": lambda data, _: data.replace(b"val", b"valid", 1),
        "unknown record": lambda data, _: data + b"\ncat,999999,train\ncat/999999/00.png\n",
        "a record less": lambda data, _: data.rpartition(b"\n")[0].rpartition(b"\n")[0],
        "another spelling": lambda data, _: data.replace(b"cat", b"Cat"),
        "zeros": lambda data, draw: data.replace(b"0", b"\0", draw.randrange(1, 9)),
        "quotes": lambda data, _: data.replace(b",", b',"', 1),
        "latin": lambda data, _: data + b"\ncat,\xe9,train",
    }

    def draw_file(number: int, draw: random.Random) -> tuple[str, bytes]:
        kind = [*ways][number // 4 % len(ways)]
        if number % 4 == 3:
            name = draw.choice([*lists])
            return f"{name}, {kind}", name.encode() + b"\n\n" + ways[kind](lists[name], draw)
        if number % 4 == 2:
            return "side file", b"side\n\n" + damaged(kept, draw)
        return kind, b"\n\n" + ways[kind](whole, draw)

    def judge(data: bytes) -> tuple[str, str]:
        name, _, content = data.partition(b"\n\n")
        path.write_bytes(content if not name else whole)
        side.write_bytes(content if name == b"side" else kept)
        for file, text in lists.items() if name not in (b"", b"side") else ():
            (official / file).parent.mkdir(parents=True, exist_ok=True)
            (official / file).write_bytes(content if file.encode() == name else text)
        how = {"splits_file": official} if official.exists() and name not in (b"", b"side") else {}
        load = functools.partial(load_dataset, tree.images, tree.annotations, **how)

        def difference(found: Any) -> str:
            is_whole = len(found.record_split) == before.catalog.num_records
            return "" if is_whole and set(found.record_split) <= {0, 1, 2} else "records are lost"

        return judge_reading(
            place / "file.csv",
            content,
            lambda _: load(),
            lambda told: "" if len(told) < 2000 and "/" in told else f"says {told[:300]!r}",
            difference,
        )

    return fuzz(Outcome("splits", "mutated splits"), Fuzzer(draw_file, judge), num_files, seed)
