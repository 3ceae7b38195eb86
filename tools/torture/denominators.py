"""Every denominator of an evaluation against a plain count over its CSV and the files.

One photo in a hundred is broken, annotation rows are missing, and species have no specialist.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from petface.files import plain_cell
from tools.torture import scripts
from tools.torture.outcome import Outcome
from tools.torture.workshop import Workshop

BROKEN_FRAC = 0.01  # of the photos
MISSING_ROWS_FRAC = 0.1  # of the annotation rows
_PARTS = ("train", "val", "test", "all")
_HEADS = ("breed", "color", "color1", "color2", "gender")
_UNKNOWN = {"", "unknown", "unk", "na", "n/a", "nan"}
_GENDERS = {"f": "female", "female": "female", "m": "male", "male": "male"}
Row = dict[str, str]


def torture_denominators(workshop: Workshop, seed: int) -> Outcome:
    """Evaluate a damaged tree; compare every count with a plain one."""
    workshop.straight("stage2")
    begun, outcome = time.monotonic(), Outcome("denominators", "damaged tree")
    place = workshop.place / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    bad = damage_tree(workshop.data, place / "data", random.Random(seed))
    specialists = place / "specialists"
    for species in workshop.species[:1]:  # the others have none
        shutil.copytree(workshop.straight("stage2") / species, specialists / species)
    out = place / "out"
    command = workshop.command("evaluate", out, place / "data")
    command = command.with_flags("--stage2-folder", specialists)
    done = scripts.run(command.script, command.arguments, workshop.scratch("streams"))
    if done.code != 0:
        outcome.failures.append(f"the evaluation failed, {done.last_words()}")
        return outcome
    with (out / "petface_eval_per_image.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    summary = json.loads((out / "petface_eval_summary.json").read_text(encoding="utf-8"))
    outcome.failures = wrong_rows(rows, place / "data", bad)
    num, wrong = wrong_counts(summary, rows, specialists)
    outcome.failures += wrong
    outcome.counts = {"photos": len(rows), "broken": len(bad), "counts compared": num}
    outcome.seconds = time.monotonic() - begun
    return outcome


def damage_tree(data: Path, copy: Path, draw: random.Random) -> dict[str, str]:
    """Copy a tree and damage it; give the status of each photo that cannot be read."""
    shutil.copytree(data, copy)
    photos = sorted((copy / "images").glob("*/[0-9]*/*.png"))
    ways = [_empty, _web_page, _cut_short, _bomb]
    bad = {}
    for number, path in enumerate(draw.sample(photos, max(4, round(BROKEN_FRAC * len(photos))))):
        ways[number % len(ways)](path)
    for path in photos:
        name = str(path.relative_to(copy / "images"))
        if path.read_bytes()[16:24] == _BOMB_SIZE:
            bad[name] = "too_large"
            continue
        try:
            Image.open(path).load()
        except Exception:  # whatever it is that Pillow raises
            bad[name] = "unreadable"
    for path in sorted((copy / "annotations").glob("*.csv")):
        header, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [row for row in rows if draw.random() >= MISSING_ROWS_FRAC]
        rows.append(f"999999{header.count(',') * ',Male'}\n")  # of an animal without a photo
        path.write_text("".join([header, *rows]), encoding="utf-8")
    return bad


_BOMB_SIZE = struct.pack(">II", 30_000, 30_000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _web_page(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html>404</html>")


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bomb(path: Path) -> None:
    """Write a PNG of a few bytes whose header promises 900 million pixels."""
    parts = [(b"IHDR", _BOMB_SIZE + bytes([8, 2, 0, 0, 0])), (b"IDAT", zlib.compress(bytes(64)))]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*parts, (b"IEND", b"")]
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def wrong_rows(rows: list[Row], data: Path, bad: dict[str, str]) -> list[str]:
    """Compare photos, statuses and true labels of the table with the files."""
    wrong = []
    listed = sorted(
        str(path.relative_to(data / "images"))
        for path in (data / "images").glob("*/*/*.png")
        if path.is_file() and not path.name.startswith(".")
    )
    if [plain_cell(row["image"]) for row in rows] != listed:
        wrong.append(f"{len(rows)} rows, {len(listed)} photo files, or another order")
    truth = _labels(data / "annotations")
    for row in rows:
        name = plain_cell(row["image"])
        status = row["status"] if row["status"] in ("unreadable", "too_large") else ""
        if status != bad.get(name, ""):
            wrong.append(f"{name} is {row['status']}, not {bad.get(name, 'readable')}")
        known = truth.get((row["species"], row["record"]), {})
        wrong += [
            f"{name}: {head} is {row[f'{head}_true']!r}, not {known.get(head, '')!r}"
            for head in _HEADS
            if plain_cell(row[f"{head}_true"]) != known.get(head, "")
        ]
    return wrong


def _labels(annotations: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Read the known labels of each animal; those that contradict each other are unknown."""
    seen: dict[tuple[str, str], dict[str, set[str]]] = {}
    for path in annotations.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                cells = {name.lower(): cell.strip() for name, cell in row.items()}
                found = seen.setdefault((path.stem, f"{int(float(cells.pop('name'))):06d}"), {})
                if "gender" in cells:
                    cells["gender"] = _GENDERS.get(cells["gender"].lower(), "")
                for head, cell in cells.items():
                    if cell.lower() not in _UNKNOWN:
                        found.setdefault(head, set()).add(cell)
    return {
        animal: {head: min(labels) for head, labels in found.items() if len(labels) == 1}
        for animal, found in seen.items()
    }


def wrong_counts(
    summary: dict[str, Any], rows: list[Row], specialists: Path
) -> tuple[int, list[str]]:
    """Count how many numbers of the summary were compared; name those that differ."""
    num, wrong = 0, []
    for name, expected in _expected(rows, specialists):
        found: Any = summary
        for key in name:
            found = found.get(key) if isinstance(found, dict) else None
        num += 1
        if found != expected:
            wrong.append(f"{'.'.join(name)} is {found}, not {expected}")
    return num, wrong


def _expected(rows: list[Row], specialists: Path) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give every count that the summary should hold, by its place."""
    yield ("num_images",), len(rows)
    statuses = [row["status"] for row in rows]
    yield ("status_counts",), {name: statuses.count(name) for name in sorted(set(statuses))}
    heads = _heads_of(specialists)
    species = sorted({row["species"] for row in rows})
    for part in _PARTS:
        own = [row for row in rows if part in ("all", row["split"])]
        where = () if part == "all" else ("splits", part)
        if part != "all":
            yield (*where, "num_images"), len(own)
        yield (*where, "stage1", "overall"), _figure(own, "species")
        for head in _HEADS:
            yield (*where, "stage2", "per_feature", head), _figure(own, head)
        answered = [row for row in own if row["species_pred"]]
        yield ("figures", part, "species", "num"), len(answered)
        yield ("per_record", part, "species", "num_records"), len(_animals(answered))
        for name in species:
            of_species = [row for row in own if row["species"] == name]
            if of_species:
                yield (*where, "stage1", "per_species", name), _figure(of_species, "species")
            for head in _HEADS:
                figure = _figure(of_species, head)
                if figure["num"]:
                    yield (*where, "stage2", "per_species", name, head), figure
        for head in _HEADS:
            known = [
                row for row in answered if row[f"{head}_true"] and head in heads[row["species"]]
            ]
            asked = [row for row in known if row[f"{head}_pred"]]
            if not known:
                yield ("figures", part, head), None
                continue
            yield ("figures", part, head, "num"), len(asked)
            yield ("figures", part, head, "end_to_end", "num"), len(known)
            yield ("per_record", part, head, "num_records"), len(_animals(asked))
            if part == "test":
                yield ("test", "features", head, "conditional", "num"), len(asked)
                yield ("test", "features", head, "end_to_end", "num"), len(known)
                yield ("test", "features", head, "per_record", "num"), len(_animals(asked))
            for name in sorted({row["species"] for row in known}):
                of_species = [row for row in known if row["species"] == name]
                num = sum(row[f"{head}_pred"] != "" for row in of_species)
                yield ("per_species", part, name, head, "num"), num
                yield ("per_species", part, name, head, "end_to_end", "num"), len(of_species)
        if part == "test":
            yield ("test", "species", "num"), len(answered)
            yield ("test", "species", "per_record", "num"), len(_animals(answered))


def _figure(rows: list[Row], head: str) -> dict[str, Any]:
    cells = [row[f"{head}_correct"] for row in rows if row[f"{head}_correct"] != ""]
    right = cells.count("1")
    accuracy = right / len(cells) if cells else None
    return {"num": len(cells), "correct": right, "accuracy": accuracy}


def _animals(rows: list[Row]) -> set[tuple[str, str]]:
    return {(row["species"], row["record"]) for row in rows}


class _HeadsOf(dict[str, set[str]]):
    def __missing__(self, species: str) -> set[str]:
        return set()  # no specialist


def _heads_of(specialists: Path) -> _HeadsOf:
    """Give the heads of each specialist, as its checkpoint says."""
    found = _HeadsOf()
    for path in specialists.glob("*/*_best.pt"):
        content = torch.load(path, map_location="cpu", weights_only=True)
        found[path.parent.name] = set(content["head_vocabs"])
    return found
