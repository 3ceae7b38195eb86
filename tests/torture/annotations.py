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
from typing import Any

from petface.data.annotations import SpeciesAnnotations, read_species
from tests.torture.fuzz import Fuzzer, damaged, fuzz, judge_reading
from tests.torture.outcome import Outcome

SPECIES = "cat"
FEATURES = ("gender", "breed", "color1", "color2")  # of a cat, without what it has no column for
_HEADER = "Name,Gender,Breed,Color1,Color2"
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


def torture_csv(num_files: int, seed: int, place: Path, read: Reader = read_species) -> Outcome:
    """Read mutated annotation files with `read` and with a second reader."""
    path = place / f"{SPECIES}.csv"

    def judge(data: bytes) -> tuple[str, str]:
        try:
            expected: Labels | str = second_reader(data)
        except RefusedError as refusal:
            expected = str(refusal)
        return judge_reading(
            path,
            data,
            lambda path: _labels_of(read(path, SPECIES)),
            lambda message: _wrong_message(message, path, expected),
            lambda found: _difference(found, expected),
        )

    fuzzer = Fuzzer(_draw_mutated, judge)
    return fuzz(Outcome("csv", "mutated annotations"), fuzzer, num_files, seed)


def _wrong_message(message: str, path: Path, expected: Labels | str) -> str:
    if not isinstance(expected, str):
        return f"refused without need: {message}"
    names_place = str(path) in message and ("line " in message or "is empty" in message)
    is_good = names_place and "\n" not in message
    return "" if is_good else f"a message without file and line: {message!r}"


def _difference(found: Labels, expected: Labels | str) -> str:
    if isinstance(expected, str):
        return f"read, but {expected}"
    names = sorted(found.keys() | expected)
    apart = [name for name in names if found.get(name) != expected.get(name)]
    return "".join(f"{n}: {found.get(n)} instead of {expected.get(n)}" for n in apart[:1])


def _labels_of(table: SpeciesAnnotations) -> Labels:
    labels: Labels = {str(name): {} for name in table.records}
    for feature in table.features:
        for name, code in zip(table.records, table.labels[feature].tolist(), strict=True):
            if code >= 0:
                labels[str(name)][feature] = table.vocabularies[feature][code]
    return labels


def second_reader(data: bytes) -> Labels:
    """Read the known labels of every record; `RefusedError` where the file is not plain."""
    if b"\0" in data:
        raise RefusedError("it holds a NUL")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError("it is not UTF-8") from None
    text = text[1:] if text.startswith("\ufeff") else text
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise RefusedError(f"it is no CSV: {error}") from None
    width = next((len(row) for row in rows if any(cell.strip() for cell in row)), 0)
    # blank lines, and rows of as many blank cells as the header has
    rows = [
        row
        for row in rows
        if any(cell.strip() for cell in row) or (len(row) > 1 and len(row) != width)
    ]
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
        cells = dict(zip(header, row, strict=True))
        if not cells["name"].strip():
            raise RefusedError("a Name is empty")
        of_record = seen.setdefault(_record(cells["name"]), {})
        for feature in FEATURES:
            if feature in cells and (label := _known(feature, cells[feature])):
                of_record.setdefault(feature, set()).add(label)
    return {
        name: {feature: min(labels) for feature, labels in found.items() if len(labels) == 1}
        for name, found in seen.items()
    }


def _record(name: str) -> str:
    number = re.fullmatch(r"\+?([0-9]+)(\.0*)?", name.strip())
    return f"{int(number[1]):06d}" if number else name.strip()


def _known(feature: str, cell: str) -> str:
    label = cell.strip()
    if label.lower() in _UNKNOWN:
        return ""
    return _GENDERS.get(label.lower(), "") if feature == "gender" else label


def _draw_mutated(number: int, draw: random.Random) -> tuple[str, bytes]:
    mutation = _MUTATIONS[number % len(_MUTATIONS)]
    return mutation.__name__.strip("_"), mutation(_draw_file(draw), draw)


def _draw_file(draw: random.Random) -> bytes:
    """Draw a file as people write them: some with quotes, some without, some names twice."""
    breeds = _BREEDS if draw.random() < 0.6 else [name for name in _BREEDS if '"' not in name]
    rows = [_HEADER]
    for number in range(draw.randint(3, 14)):
        name = draw.choice([str(number), f"{number:06d}", f"{number}.0", f" {number} "])
        cells = [
            name,
            draw.choice(["Female", "Male", "F", "m", "unknown", "", "NaN", "neuter"]),
            draw.choice(breeds),
            draw.choice(["White", "Black", "unk", "Grau é"]),
            draw.choice(["Tabby", "", "N/A", "Seal"]),
        ]
        rows += [",".join(cells)] * (2 if draw.random() < 0.1 else 1)
    return ("\n".join(rows) + "\n").encode()


def _byte_replaced(data: bytes, draw: random.Random) -> bytes:
    """Put one of the bytes that mean something in place of another."""
    place = draw.randrange(len(data))
    return data[:place] + draw.choice([b",", b'"', b"\n", b"\r", b"\0", b";"]) + data[place + 1 :]


def _cut_line(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    number = draw.randrange(len(lines))
    lines[number] = lines[number][: draw.randrange(len(lines[number]) + 1)]
    return b"".join(lines)


def _quote(data: bytes, draw: random.Random) -> bytes:
    """Take a quote away, or put one in."""
    quotes = [place for place, byte in enumerate(data) if byte == ord('"')]
    if quotes and draw.random() < 0.5:
        place = draw.choice(quotes)
        return data[:place] + data[place + 1 :]
    place = draw.randrange(len(data))
    return data[:place] + draw.choice([b'"', b'""', b"'"]) + data[place:]


def _delimiter(data: bytes, draw: random.Random) -> bytes:
    """Separate with another sign: everywhere, in one line, or once."""
    sign = draw.choice([b";", b"\t", b"|", b",,", b"", b" "])
    kind = draw.random()
    if kind < 0.3:
        return data.replace(b",", sign)
    if kind < 0.6:
        lines = data.splitlines(keepends=True)
        number = draw.randrange(len(lines))
        lines[number] = lines[number].replace(b",", sign)
        return b"".join(lines)
    place = draw.choice([place for place, byte in enumerate(data) if byte == ord(",")])
    return data[:place] + sign + data[place + 1 :]


def _encoding(data: bytes, draw: random.Random) -> bytes:
    name = draw.choice(["latin-1", "utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8-sig", "cp037"])
    return data.decode().encode(name, "replace")


def _columns(data: bytes, draw: random.Random) -> bytes:
    """Name a column twice, otherwise, not at all, or swap two with their cells left alone."""
    head, _, rest = data.partition(b"\n")
    names = head.split(b",")
    number = draw.randrange(len(names))
    names[number] = draw.choice([names[draw.randrange(len(names))], b"", b"Weight", b" breed "])
    return b",".join(names) + b"\n" + rest


def _ragged(data: bytes, draw: random.Random) -> bytes:
    """Give a line a cell more or less at its end or in its middle."""
    lines = data.split(b"\n")
    number = draw.randrange(len(lines) - 1)
    cells = lines[number].split(b",")
    if draw.random() < 0.5:
        cells.insert(draw.randrange(len(cells) + 1), draw.choice([b"", b"x"]))
    else:
        del cells[draw.randrange(len(cells))]
    lines[number] = b",".join(cells)
    return b"\n".join(lines)


def _line_ends(data: bytes, draw: random.Random) -> bytes:
    end = draw.choice([b"\r\n", b"\r", b"\n\n", b"\n,,,,\n", b"\n \n", b"\xe2\x80\xa8", b"\x0b"])
    if draw.random() < 0.5:
        return data.replace(b"\n", end)
    return data.replace(b"\n", end, draw.randint(1, 4))


def _second_header(data: bytes, draw: random.Random) -> bytes:
    """Two files in one, or a mark in the middle."""
    other = draw.choice([data, b"\xef\xbb\xbf" + data, _draw_file(draw)])
    return data + other


_MUTATIONS: tuple[Any, ...] = (
    damaged, damaged, _byte_replaced, _byte_replaced, _cut_line, _quote, _quote, _delimiter,
    _encoding, _columns, _ragged, _line_ends, _second_header,
)  # fmt: skip
