"""Mutated presets and split files: read, or refused in one line that names the file.

What one of them says is never another program: nothing of it is carried out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

import inference_engine
import stage2_resnet_multi
import train_resnet_minority_aug_dynamic
from petface.data.dataset import load_dataset, species_of_records
from petface.settings import Settings, read_settings
from tests.conftest import Tree, make_tree
from tests.scripts import REPOSITORY
from tests.serving.made_server import photo
from tests.torture.fuzz import ODD_FILES, Content, Fuzzer, damaged, judge_reading, one_line

SCRIPTS = (train_resnet_minority_aug_dynamic, stage2_resnet_multi, inference_engine)
_ODD = (
    *("9" * 5000, "-9" * 99, "1e999", "nan", "inf", "0x7fffffffffffffff", "2_0", "1979-05-27"),
    *('"\\u0000"', "'''\n'''", "[" * 5000 + "]" * 5000, "{ a = 1 }", "[1, 'a', true]", "true"),
    *('"../../etc/passwd"', '"' + "x" * 100_000 + '"', "[" + "1," * 50_000 + "]", '"\udc80"'),
)
_CODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-7", "utf-8-sig")
PRESET = "preset.toml"
CEILING_BYTES = 200_000_000  # for a preset of at most a megabyte that is read


def preset_fuzzer(folder: Path) -> Fuzzer:
    """Mutate a preset, or put something else in its place; it is for every script in turn."""
    place = folder / "presets"
    folders = [REPOSITORY / "configs" / kind for kind in ("stage1", "stage2", "eval")]
    presets = [sorted(folder.glob("*.toml")) for folder in folders]
    names = [[*read_settings(script, []).as_dict()] for script in SCRIPTS]

    def draw_file(number: int, draw: random.Random) -> tuple[str, Any]:
        script, name = SCRIPTS[number % 3], draw.choice(names[number % 3])
        whole = draw.choice(presets[number % 3]).read_bytes()
        other = "".join(draw.sample(name, len(name)))
        nearly = draw.choice([name[:-1], name.lower(), name + "S", f" {name}", f'"{name} "', other])
        deep = draw.choice([100, 3000, 100_000])
        ways: dict[str, Callable[[], Content]] = {
            "damaged": lambda: damaged(whole, draw),
            "odd value": lambda: f"{name} = {draw.choice(_ODD)}\n".encode("utf-8", "surrogatepass"),
            "nearly a name": lambda: f"{nearly} = 1\n{other} = 2\n".encode(),
            "twice": lambda: f"{name} = 1\n{name} = 2\n".encode(),
            "table": lambda: f"[{name}]\nx = 1\n".encode() + b"[a.b.c]\n" * 50,
            "deep tables": lambda: f"{name} = {'{a=' * deep}1{'}' * deep}\n".encode(),
            "deep lists": lambda: f"{name} = {'[' * deep}{']' * deep}\n".encode(),
            "deep names": lambda: f"{name}{'.a' * deep} = 1\n[{'b.' * deep}b]\n".encode(),
            "another coding": lambda: whole.decode().encode(draw.choice(_CODINGS)),
            "marked": lambda: b"\xef\xbb\xbf" * draw.randrange(1, 3) + whole,
            "zeros": lambda: whole.replace(b"\n", b"\0", 2),
            "carriage returns": lambda: whole.replace(b"\n", draw.choice([b"\r\n", b"\r"])),
            "large": lambda: b"# " + b"x" * draw.choice([10**6, 3 * 10**7]) + b"\n" + whole,
            "many": lambda: b"".join(b"a%d = 1\n" % number for number in range(60_000)),
        } | {f"odd file {odd}": lambda odd=odd: odd for odd in ODD_FILES}
        kind = [*ways][number // 3 % len(ways)]
        return f"{script.__name__}, {kind}", (script, {PRESET: ways[kind]()})

    def judge(drawn: Any) -> tuple[str, str]:
        script, files = drawn

        def difference(found: Settings) -> str:
            """Compare with what the run's own settings.toml gives back."""
            written = place / "settings.toml"
            written.write_text(found.as_toml())
            again = read_settings(script, ["--config", str(written)])
            written.unlink()
            return "" if again == found else "its own settings.toml gives other values"

        def read(place: Path) -> Settings:
            return read_settings(script, ["--config", str(place / PRESET)])

        return judge_reading(place, files, read, lambda text: one_line(text, PRESET), difference)

    return Fuzzer(draw_file, judge, CEILING_BYTES)


def split_fuzzer(folder: Path) -> Fuzzer:
    """Mutate one of the files of a split: sealed, with its side file in order, or as it is."""
    tree, place = Tree(folder / "tree"), folder / "splits"
    if not tree.root.exists():
        make_tree(tree.root)
        for species, record in (("cat", "Mu\u0308tze"), ("cat", "a,b"), ("yak", "=1")):
            (tree.images / species / record).mkdir()
            (tree.images / species / record / "00.png").write_bytes(photo())
    before = load_dataset(tree.images, tree.annotations)
    names = zip(species_of_records(before.catalog), before.catalog.record_names, strict=True)
    records = [(str(species), str(record)) for species, record in names]
    codes = dict(zip(records, before.record_split, strict=True))
    made = {name: (tree.root / name).read_bytes() for name in ("splits.csv", "splits.json")}
    lists = {"official/empty": b""}
    for species in sorted({name for name, _ in codes}):
        for code, file in enumerate(("train.csv", "val.txt", "test.txt")):
            own = [name for (s, name), c in codes.items() if s == species and c == code]
            rows = [f'"{species}/{record}/00.png"' + ",1" * (code == 0) for record in own]
            text = "\n".join([*["filename,label"] * (code == 0), *rows, ""])
            lists[f"official/{species}/{file}"] = text.encode()
        lists[f"official/{species}/reidentification.csv"] = b"filename,label\n"

    ways: dict[str, Callable[[bytes, random.Random], Content]] = {
        "damaged": damaged,
        "marked": lambda data, _: b"\xef\xbb\xbf" + data,
        "carriage returns": lambda data, _: data.replace(b"\n", b"\r\n"),
        "a line twice": lambda data, _: data + data.splitlines()[-1] + b"\n",
        "in two parts": lambda data, _: data + b"cat,000001,val\ncat/000001/00.png\n",
        "unknown part": lambda data, _: data.replace(b"val", b"valid", 1),
        "unknown record": lambda data, _: data + b"cat,999999,train\n",
        "an unknown photo": lambda data, _: data + b"cat/999999/00.png\n",
        "a record less": lambda data, _: data.rstrip(b"\n").rpartition(b"\n")[0] + b"\n",
        "cut short": lambda data, draw: data[: draw.randrange(len(data))],
        "another spelling": lambda data, _: data.replace(b"cat", b"Cat"),
        "taken apart": lambda data, _: normalize("NFD", data.decode()).encode(),
        "zeros": lambda data, draw: data.replace(b"0", b"\0", draw.randrange(1, 9)),
        "quotes": lambda data, _: data.replace(b",", b',"', 1),
        "latin": lambda data, _: data + b"cat,\xe9,train\n",
        "another coding": lambda data, draw: data.decode().encode(draw.choice(_CODINGS)),
        "other columns": lambda data, _: data.replace(b",", b";"),
        "upwards": lambda data, _: data + b'"cat/../../../secret/00.png",1\n',
    } | {f"odd file {odd}": lambda *_, odd=odd: odd for odd in ODD_FILES}

    def draw_file(number: int, draw: random.Random) -> tuple[str, dict[str, Content]]:
        kind, is_official = [*ways][number // 4 % len(ways)], number % 4 == 3
        files: dict[str, Content] = {**made, **(lists if is_official else {})}
        own = "splits.csv", "splits.csv", "splits.json", draw.choice([*lists][1:])
        name = own[number % 4]
        files[name] = content = ways[kind]({**made, **lists}[name], draw)
        if number % 4 == 1 and isinstance(content, bytes):
            facts = json.loads(made["splits.json"])
            facts["sha256_of_csv"] = hashlib.sha256(content).hexdigest()
            files["splits.json"] = json.dumps(facts).encode()
        return f"{name}, {kind}", files

    def judge(files: dict[str, Content]) -> tuple[str, str]:
        source = place / ("official" if "official/empty" in files else "splits.csv")

        def read(_: Path) -> Any:
            return load_dataset(tree.images, tree.annotations, splits_file=source)

        def difference(found: Any) -> str:
            expected = second_reader(files, codes, source.name == "official")
            now = dict(zip(codes, found.record_split.tolist(), strict=True))
            apart = [name for name in codes if now[name] != expected.get(name)]
            return "".join(f"{n} is in {now[n]}, not {expected.get(n)}" for n in apart[:1])

        return judge_reading(place, files, read, difference=difference)

    return Fuzzer(draw_file, judge, CEILING_BYTES)


def second_reader(
    files: Mapping[str, Content], codes: Mapping[tuple[str, str], int], is_official: bool
) -> dict[tuple[str, str], int]:
    """Read where each record belongs, with `csv` alone."""
    sides, found = ("train", "val", "test"), dict.fromkeys(codes, 0) if is_official else {}
    for path, content in files.items():
        is_listed = path.endswith((".csv", ".txt")) and path.startswith("official") == is_official
        if not is_listed or not isinstance(content, bytes):
            continue
        text = normalize("NFC", content.decode("utf-8-sig"))
        for cells in csv.reader(io.StringIO(text, newline=""), strict=True):
            if is_official and "/" in cells[0]:
                species, record, _ = cells[0].rsplit("/", 2)
                side = Path(path).stem.replace("reidentification", "train")
                found[species, record] = sides.index(side)
            elif len(cells) == 3 and cells[2] in sides:
                found[cells[0], cells[1].removeprefix("'")] = sides.index(cells[2])
    return found
