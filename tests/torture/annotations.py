"""Mutated annotation files: read as a second reader reads them, or refused with file and line.

The second reader is `csv` in its strict mode and the rules of the README, written anew.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable
from pathlib import Path

from petface.data.annotations import SpeciesAnnotations, read_species
from tests.torture.fuzz import Fuzzer, damaged, judge_reading

FEATURES = ("gender", "breed", "color1", "color2")  # of a cat, without what it has no column for
_UNKNOWN = {"", "unknown", "unk", "na", "n/a", "nan"}
_GENDERS = {"f": "female", "female": "female", "m": "male", "male": "male"}
_BREEDS = (
    "Domestic Short Hair", '"Bulldog, Olde mix"', '"a ""b"" c"', "P. t. verus", "🐈", "unknown",
    "", "=1+1", '"two\nlines"', "Sphynx", " Manx ",
)  # fmt: skip
Labels = dict[str, dict[str, str]]  # record -> feature -> known label
Reader = Callable[[Path, str], SpeciesAnnotations]


class RefusedError(Exception):
    """The second reader cannot read a file."""


def csv_fuzzer(place: Path, read: Reader = read_species) -> Fuzzer:
    """Read mutated annotation files with `read` and with a second reader."""
    path = place / "cat.csv"

    def judge(data: bytes) -> tuple[str, str]:
        try:
            expected, refusal = second_reader(data), ""
        except RefusedError as error:
            expected, refusal = {}, str(error)

        def wrong_message(message: str) -> str:
            if not refusal:
                return f"refused without need: {message}"
            names_place = str(path) in message and ("line " in message or "is empty" in message)
            is_good = names_place and "\n" not in message
            return "" if is_good else f"a message without file and line: {message!r}"

        def difference(table: SpeciesAnnotations) -> str:
            if refusal:
                return f"read, but {refusal}"
            found: Labels = {str(name): {} for name in table.records}
            for feature in table.features:
                for name, code in zip(table.records, table.labels[feature].tolist(), strict=True):
                    if code >= 0:
                        found[str(name)][feature] = table.vocabularies[feature][code]
            names = sorted(found.keys() | expected)
            apart = [name for name in names if found.get(name) != expected.get(name)]
            return "".join(f"{n}: {found.get(n)}, not {expected.get(n)}" for n in apart[:1])

        return judge_reading(path, data, lambda path: read(path, "cat"), wrong_message, difference)

    return Fuzzer(_draw_mutated, judge)


def second_reader(data: bytes) -> Labels:
    """Read the known labels of every record; `RefusedError` where the file is not plain."""
    if b"\0" in data:
        raise RefusedError("it holds a NUL")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except UnicodeDecodeError:
        raise RefusedError("it is not UTF-8") from None
    except csv.Error as error:
        raise RefusedError(f"it is no CSV: {error}") from None
    width = next((len(row) for row in rows if any(cell.strip() for cell in row)), 0)
    # blank lines, and rows of as many blank cells as the header has
    rows = [r for r in rows if any(c.strip() for c in r) or (len(r) > 1 and len(r) != width)]
    if not rows:
        raise RefusedError("it is empty")
    header = [cell.strip().lower() for cell in rows[0]]
    named = [name for name in header if name]
    if "name" not in header or len(set(named)) != len(named):
        raise RefusedError("it has no column Name, or a column twice")
    if any(len(row) != len(header) for row in rows):
        raise RefusedError("a row is longer or shorter than the header")
    seen: dict[str, dict[str, set[str]]] = {}
    for row in rows[1:]:
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        if not cells["name"]:
            raise RefusedError("a Name is empty")
        number = re.fullmatch(r"\+?([0-9]+)(\.0*)?", cells["name"])
        of_record = seen.setdefault(f"{int(number[1]):06d}" if number else cells["name"], {})
        for feature in FEATURES:
            label = cells.get(feature, "")
            if feature == "gender":
                label = _GENDERS.get(label.lower(), "")
            if label.lower() not in _UNKNOWN:
                of_record.setdefault(feature, set()).add(label)
    return {
        name: {feature: min(labels) for feature, labels in found.items() if len(labels) == 1}
        for name, found in seen.items()
    }


def _draw_file(draw: random.Random) -> bytes:
    """Draw a file as people write them: some with quotes, some without, some names twice."""
    breeds = _BREEDS if draw.random() < 0.6 else [name for name in _BREEDS if '"' not in name]
    rows = ["Name,Gender,Breed,Color1,Color2"]
    for number in range(draw.randint(3, 14)):
        cells = [
            draw.choice([str(number), f"{number:06d}", f"{number}.0", f" {number} "]),
            draw.choice(["Female", "Male", "F", "m", "unknown", "", "NaN", "neuter"]),
            draw.choice(breeds),
            draw.choice(["White", "Black", "unk", "Grau é"]),
            draw.choice(["Tabby", "", "N/A", "Seal"]),
        ]
        rows += [",".join(cells)] * (2 if draw.random() < 0.1 else 1)
    return ("\n".join(rows) + "\n").encode()


def _draw_mutated(number: int, draw: random.Random) -> tuple[str, bytes]:
    """Draw a file, and change it in one of the ways in turn."""
    data = _draw_file(draw)
    place, odd = draw.randrange(len(data)), draw.random() < 0.5
    lines = data.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    line, names = lines[at], lines[0].rstrip(b"\n").split(b",")
    cells = line.rstrip(b"\n").split(b",")
    cell, sign = draw.randrange(len(cells)), draw.choice([b";", b"\t", b"|", b",,", b"", b" "])
    other = draw.choice([*names, b"", b"Weight", b" breed "])
    end = draw.choice([b"\r\n", b"\r", b"\n\n", b"\n,,,,\n", b"\n \n", b"\xe2\x80\xa8", b"\x0b"])
    coding = draw.choice(
        ["latin-1", "utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8-sig", "cp037"]
    )

    def with_line(new: bytes) -> bytes:
        return b"".join([*lines[:at], new, *lines[at + 1 :]])

    def put(new: bytes, place: int = place, width: int = 1) -> bytes:
        return data[:place] + new + data[place + width :]

    ways: dict[str, Callable[[], bytes]] = {
        "damaged": lambda: damaged(data, draw),
        "damaged again": lambda: damaged(data, draw),
        "byte": lambda: put(draw.choice([b",", b'"', b"\n", b"\r", b"\0", b";"])),
        "byte again": lambda: put(draw.choice([b",", b'"', b"\n", b"\r", b"\0", b";"])),
        "cut line": lambda: with_line(line[: draw.randrange(len(line))]),
        "quote gone": lambda: put(b"", data.find(b'"')) if b'"' in data else put(b'"', width=0),
        "quote": lambda: put(draw.choice([b'"', b'""', b"'"]), width=0),
        "delimiter": lambda: data.replace(b",", sign) if odd else put(sign, data.find(b",", place)),
        "delimiter of a line": lambda: with_line(line.replace(b",", sign)),
        "encoding": lambda: data.decode().encode(coding, "replace"),
        "columns": lambda: data.replace(draw.choice(names), other, 1),
        "ragged": lambda: with_line(b",".join([*cells[:cell], *cells[cell + 1 :]]) + b"\n"),
        "more cells": lambda: with_line(b",".join([*cells[:cell], b"x", *cells[cell:]]) + b"\n"),
        "line ends": lambda: data.replace(b"\n", end, -1 if odd else draw.randint(1, 4)),
        "two files": lambda: data + draw.choice([data, b"\xef\xbb\xbf" + data, _draw_file(draw)]),
    }
    kind = [*ways][number % len(ways)]
    return kind, ways[kind]()
