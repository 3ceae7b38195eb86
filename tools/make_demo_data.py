"""Draw a synthetic PetFace: the tree, the annotation files and the label traps of the real one.

    python -m tools.make_demo_data --out data/demo --records 900 --size 64 --seed 0

About 3,500 photos in 7 s on two cores. The tree depends on --records, --size, --seed,
--no-odd-files and --mislabelled alone.
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from petface.errors import UserError, run_script  # isort: split

import numpy as np
from PIL import Image

from petface.files import read_json, write_csv, write_error, write_json
from petface.progress import progress
from petface.settings import Fraction, NonNegative, Range, Seed, read_settings
from petface.taxonomy import FEATURES, SPECIES_FEATURES
from tools.demo_animals import BREEDS, COLOURS, REAL
from tools.demo_faces import draw_individual, draw_photo

# ---- What is drawn ----
RECORDS: Annotated[int, Range(60, 257_484)] = 900  # animals
SIZE: Annotated[int, Range(32, 224)] = 64  # side of a photo, pixels
SEED: Seed = 0  # another one, other animals
MISLABELLED: Fraction = 0.05  # animals that look like another class than their label says

# ---- Where, and how ----
OUT: str = "data/demo"
WORKERS: NonNegative = 0  # processes; 0 = one per core

MARKER = "demo.json"
SPECIES = tuple(REAL)
UNKNOWN_FRAC = 0.05  # of breeds and colours
PHOTOS, PHOTOS_P = (2, 3, 4, 5, 6), (0.12, 0.25, 0.33, 0.20, 0.10)  # a record; mean 3.91
TOKENS = ("", "unknown", "Unknown", "unk", "UNK", "NA", "n/a", "N/A", "nan", "NaN")
SPARROW_COLOR1 = {"Normal": "Gray", "Silver": "Gray", "White": "White", "Cinnamon": "Brown"}
NO_VALID_COLOR2 = ("ferret", "hedgehog")


@dataclass(frozen=True)
class Record:
    """One animal: what it looks like and what its row says."""

    species: str
    number: int
    num_photos: int
    look: tuple[str, str, str, str]  # breed, colour, pattern, gender
    cells: tuple[str, ...]  # in the order of `columns_of`, without Name


def apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Share `total` out in proportion to `weights` by the largest remainder: whole, exact sum."""
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def record_counts(records: int) -> dict[str, int]:
    """Share `records` out among the species, to none less than 22, or a thirtieth of small sets.

    By the real shares to a power that rises with log(records) from 0.5 (up to 1,000 records) to 1
    (the real 257,484).
    """
    real = np.array([records for records, _ in REAL.values()], float)
    rise = math.log(records / 1000) / math.log(real.sum() / 1000)
    counts = apportion(real ** (0.5 + 0.5 * min(max(rise, 0.0), 1.0)), records)
    while counts.min() < min(22, records // 30):
        counts[counts.argmin()] += 1
        counts[counts.argmax()] -= 1
    return dict(zip(SPECIES, counts.tolist(), strict=True))


def long_tailed(
    names: Sequence[str], count: int, exponent: float, rng: np.random.Generator
) -> np.ndarray:
    """Assign shuffled classes to `count` animals; class i is as frequent as (i + 1)^-exponent.

    As many classes as keep 7 animals each, but two where there are eight animals.
    """
    least = 2 if count >= 8 else 1
    for num_classes in range(len(names), 0, -1):
        counts = apportion(np.arange(1, num_classes + 1) ** -exponent, count)
        if counts.min() >= 7 or num_classes <= least:
            break
    return rng.permutation(np.repeat(np.array(names[:num_classes], dtype=object), counts))


def columns_of(species: str) -> tuple[str, ...]:
    """Return the header of a species' annotation file."""
    features = SPECIES_FEATURES[species] + ("color2",) * (species in NO_VALID_COLOR2)
    return ("Name", "Gender", *(f.title() for f in FEATURES if f in features and f != "gender"))


def plan_species(species: str, count: int, seed: int, mislabelled: float) -> list[Record]:
    """Decide labels, looks and number of photos of all records of one species."""
    # No record has this number, so the stream is none of theirs.
    rng = np.random.default_rng([seed, SPECIES.index(species), 1 << 32])
    breeds = long_tailed(list(BREEDS.get(species, [""])), count, 1.2, rng)
    colours = long_tailed(list(COLOURS.get(species, [""])), count, 0.9, rng)
    patterns = np.full(count, "", dtype=object)
    for colour, names in COLOURS.get(species, {}).items():
        if names and (rows := np.flatnonzero(colours == colour)).size:
            patterns[rows] = long_tailed(names, rows.size, 0.9, rng)
    genders = rng.permutation(np.array(["Female", "Male"] * count, dtype=object)[:count])
    photos = rng.choice(PHOTOS, count, p=PHOTOS_P)
    color1 = np.array([SPARROW_COLOR1.get(name, name) for name in colours], dtype=object)
    labels = {"Gender": genders, "Breed": breeds, "Color": colours}
    labels["Color1"] = color1 if species == "javasparrow" else colours
    cells = draw_cells(species, labels, patterns, rng)
    records = []
    for row in range(count):
        other, another = rng.integers(count, size=2)
        breed = breeds[other if rng.random() < mislabelled else row]
        coat = another if rng.random() < mislabelled else row
        look = (breed, colours[coat], patterns[coat], genders[row].lower())
        texts = tuple(cells[title][row] for title in columns_of(species)[1:])
        records.append(Record(species, row, int(photos[row]), look, texts))
    return records


def draw_cells(
    species: str, labels: dict[str, np.ndarray], patterns: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Turn the true labels into what the CSV has, unknown tokens put in: column -> (records,)."""
    count = len(patterns)
    cells = {}
    for title, values in labels.items():
        frac = REAL[species][1] if title == "Gender" else UNKNOWN_FRAC
        cells[title] = values.copy()
        cells[title][rng.permutation(count)[: round(frac * count)]] = ""
    short = rng.random(count) < 0.03
    cells["Gender"][short] = [value[:1] for value in cells["Gender"][short]]
    cells["Color2"] = np.where(cells["Color1"] == "", "", patterns)
    cells["Color2"][rng.random(count) < UNKNOWN_FRAC] = ""
    for values in cells.values():
        unknown = np.flatnonzero(values == "")
        drawn = rng.integers(len(TOKENS), size=unknown.size)
        values[unknown] = np.array(TOKENS, dtype=object)[drawn]
    return cells


def plan(records: int, seed: int, mislabelled: float = MISLABELLED) -> dict[str, list[Record]]:
    """Plan the whole tree: species -> records."""
    counts = record_counts(records)
    return {name: plan_species(name, num, seed, mislabelled) for name, num in counts.items()}


def num_photos(tree: dict[str, list[Record]]) -> int:
    return sum(record.num_photos for records in tree.values() for record in records)


def annotation_rows(records: list[Record]) -> list[tuple[str, ...]]:
    """Return the rows of one species' file, with the oddities of cat and dog.

    Cat: names written `7` and `11.0`, an equal duplicate, a row without a folder. Dog: a name
    written `7.0`, a contradictory duplicate, a folder without a row.
    """
    species = records[0].species
    spelling = {"cat": {7: "7", 11: "11.0"}, "dog": {7: "7.0"}}.get(species, {})
    rows = [(spelling.get(r.number, f"{r.number:06d}"), *r.cells) for r in records]
    if species == "cat":
        rows += [rows[3], (f"{len(records) + 1:06d}", *rows[0][1:])]
    if species == "dog":
        rows.pop()
        name, _, *rest = next(row for row in rows if row[1] == "Female")
        rows.append((name, "Male", *rest))
    return rows


def draw_record(images: Path, size_px: int, seed: int, record: Record) -> int:
    """Draw the photos of one animal; return their number. Runs in a worker process."""
    rng = np.random.default_rng([seed, SPECIES.index(record.species), record.number])
    who = draw_individual(record.species, *record.look, rng)
    folder = images / record.species / f"{record.number:06d}"
    folder.mkdir(parents=True)
    for photo in range(record.num_photos):
        draw_photo(who, size_px, rng).save(folder / f"{photo:02d}.png", compress_level=4)
    return record.num_photos


def draw_tree(
    out: Path, tree: dict[str, list[Record]], size_px: int, seed: int, workers: int
) -> None:
    """Draw all photos with a progress bar and write the annotation files, one a species."""
    everyone = [record for records in tree.values() for record in records]
    draw = partial(draw_record, out / "images", size_px, seed)
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        progress(total=num_photos(tree), unit="photo", desc="drawing") as bar,
    ):
        each = map if workers == 1 else partial(pool.map, chunksize=12)
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # by the workers, from their start on
        drawn = each(draw, everyone)
        signal.signal(signal.SIGINT, heard)  # Ctrl-C is for this process, which ends them
        for num in drawn:  # what ends the loop early cancels the rest
            bar.update(num)
    for species, records in tree.items():
        path = out / "annotations" / f"{species}.csv"
        write_csv(path, columns_of(species), annotation_rows(records))


def plant_odd_files(images: Path, num_cats: int) -> None:
    """Put one of each odd file of real trees into the two largest species."""
    cat, dog = images / "cat", images / "dog"
    (images / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    (cat / "000001/._00.png").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    (dog / "000001/Thumbs.db").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1"))
    (dog / "notes.txt").write_text("not a photo\n", encoding="utf-8")
    (cat / f"{num_cats:06d}").mkdir()
    (cat / "000002/nested").mkdir()
    shutil.copyfile(cat / "000002/00.png", cat / "000002/nested/00.png")
    (cat / "000003/00.png").write_bytes(b"")
    whole = (dog / "000002/00.png").read_bytes()
    (dog / "000002/00.png").write_bytes(whole[: len(whole) // 2])
    grey = np.asarray(Image.open(cat / "000004/00.png").convert("L"), np.uint16) * 257
    Image.fromarray(grey).save(cat / "000004/00.png")
    clear = Image.open(cat / "000005/00.png").convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(cat / "000005/00.png")
    renamed = Image.open(dog / "000003/00.png").convert("RGB")
    renamed.save(dog / "000003/00.png", format="JPEG", quality=92)


def is_there(out: Path, marker: dict[str, object], *, force: bool) -> bool:
    """Return whether `out` holds the tree of `marker` already; one that lost a part does not count.

    Raises `UserError` for a folder that is no demo, and for another demo without `force`.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = dict[str, object]()
    with suppress(OSError, UserError):
        found = read_json(out / MARKER)
    if found.get("tool") != marker["tool"]:
        raise UserError(
            f"{out} is not empty and has no {MARKER} of this tool, so it is left alone, --force or "
            "not: choose another --out or delete it yourself"
        )
    if force or not all((out / part).is_dir() for part in ("images", "annotations")):
        return False
    if not marker.items() <= found.items():
        what = f"{out} holds a demo drawn with {found.get('arguments')}"
        raise UserError(f"{what}: give --force to replace it or choose another --out")
    return True


def main(argv: Sequence[str] | None = None) -> None:
    switches = {"force": "draw anew over an older demo"}
    switches["no_odd_files"] = "no broken and foreign files in the tree"
    s = read_settings(sys.modules[__name__], argv, switches=switches)
    start, out, is_plain = time.perf_counter(), Path(s.OUT), "no_odd_files" in s.switches
    tree = plan(s.RECORDS, s.SEED, s.MISLABELLED)
    arguments = {"records": s.RECORDS, "size": s.SIZE, "seed": s.SEED}
    arguments |= {"no_odd_files": is_plain, "mislabelled": s.MISLABELLED}
    # "format" is raised when the same arguments would draw another tree
    marker = {"tool": "tools.make_demo_data", "format": 1, "arguments": arguments}
    try:
        if not (there := is_there(out, marker, force="force" in s.switches)):
            out.parent.mkdir(parents=True, exist_ok=True)
            from petface.devices import num_cores  # loads torch, which the workers do without

            with TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.unfinished-") as folder:
                draw_tree(Path(folder), tree, s.SIZE, s.SEED, s.WORKERS or num_cores())
                if not is_plain:
                    plant_odd_files(Path(folder, "images"), len(tree["cat"]))
                write_json(out / MARKER, marker)
                for part in ("images", "annotations"):
                    shutil.rmtree(out / part, ignore_errors=True)  # of an older demo, nothing else
                    Path(folder, part).rename(out / part)
    except OSError as error:
        raise write_error(error.filename or out, error) from error
    print(f"folder: {out}{' (already there)' if there else ''}\nrecords: {s.RECORDS}")
    print(f"photos: {num_photos(tree)}\nseconds: {time.perf_counter() - start:.1f}")


if __name__ == "__main__":
    run_script(main)
