"""One split of the records into train, val and test for the whole system, created once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final
from unicodedata import normalize

import numpy as np

from petface import files
from petface.data.catalog import line_error, strict_rows
from petface.errors import UserError
from petface.taxonomy import canonical_record

SPLITS: Final = ("train", "val", "test")
TRAIN, VAL, TEST = range(len(SPLITS))
FORMAT = 1
FRACTIONS: Final = (0.8, 0.1, 0.1)
MIN_RECORDS_FOR_TEST = 3  # a class with fewer keeps all its records in train
MIN_RECORDS_FOR_VAL = 4
_CSV_HEADER = ("species", "record", "split")
_MAX_DISTORTION = 0.5  # how far a stratum may deviate to correct the species' total
_OFFICIAL_FILES = (  # file, split, whether required; the first two share individuals
    ("train.csv", TRAIN, True),
    ("reidentification.csv", TRAIN, False),
    ("val.txt", VAL, True),
    ("test.txt", TEST, True),
)


def make_splits(
    species: np.ndarray,
    records: np.ndarray,
    strata: np.ndarray,
    *,
    seed: int,
    fractions: Sequence[float] = FRACTIONS,
    first: np.ndarray | None = None,
) -> np.ndarray:
    """Assign each record to a split, stratified within its species: (R,) int8 into `SPLITS`.

    `strata` are class indices within a species; -1 is a stratum like any other. The split of a
    record depends only on the seed and on its own species, not on the order given. A stratum of at
    least three records has one or more in test, and of at least four one or more in val. Records
    with the same value of `first` (R,) stay together, see `catalog.identical_records`.
    """
    assert len(fractions) == len(SPLITS) and fractions[TRAIN] > 0 and min(fractions) >= 0, fractions
    assert math.isclose(sum(fractions), 1, abs_tol=1e-6), fractions
    if first is not None:
        _, k, of_all = np.unique(first, return_index=True, return_inverse=True)
        chosen = make_splits(species[k], records[k], strata[k], seed=seed, fractions=fractions)
        return chosen[of_all]
    species, strata = np.asarray(species), np.asarray(strata)
    order = draw_order(species, records, strata, seed=seed)
    result = np.full(len(order), TRAIN, dtype=np.int8)
    for rows in _runs(order, species):
        # small strata first, so that the large ones can correct the total
        groups = sorted(_runs(rows, strata), key=len)
        sizes = [len(group) for group in groups]
        for_val = [int(size >= MIN_RECORDS_FOR_VAL and fractions[VAL] > 0) for size in sizes]
        tests = _apportion(sizes, for_val, fractions[TEST], MIN_RECORDS_FOR_TEST)
        vals = _apportion(sizes, tests, fractions[VAL], MIN_RECORDS_FOR_VAL)
        for group, num_test, num_val in zip(groups, tests, vals, strict=True):
            result[group[:num_test]] = TEST
            result[group[num_test : num_test + num_val]] = VAL
    return result


def make_folds(
    species: np.ndarray,
    records: np.ndarray,
    strata: np.ndarray,
    *,
    num_folds: int,
    seed: int,
    first: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Return one split per fold, each (R,) int8; every record is in the test split of exactly one.

    Within each species the strata are dealt out in turn, so each class is spread over the folds as
    evenly as possible. A tenth of all records becomes the validation split of each fold. Records
    with the same value of `first` stay together, as in `make_splits`.
    """
    if first is not None:
        _, k, of_all = np.unique(first, return_index=True, return_inverse=True)
        splits = make_folds(species[k], records[k], strata[k], num_folds=num_folds, seed=seed)
        return [split[of_all] for split in splits]
    if not 2 <= num_folds <= len(records):
        raise UserError(f"FOLDS must lie between 2 and the {len(records)} records, not {num_folds}")
    fold_of = np.empty(len(records), np.int64)
    fold_of[draw_order(species, records, strata, seed=seed)] = np.arange(len(records)) % num_folds
    val_frac = FRACTIONS[VAL] * num_folds / (num_folds - 1)
    fractions = (1 - val_frac, val_frac, 0.0)
    found = np.full((num_folds, len(records)), TEST, np.int8)
    for fold, result in enumerate(found):
        rest = np.flatnonzero(fold_of != fold)
        result[rest] = make_splits(
            species[rest], records[rest], strata[rest], seed=seed, fractions=fractions
        )
    return list(found)


def draw_order(
    species: np.ndarray, records: np.ndarray, strata: np.ndarray, *, seed: int
) -> np.ndarray:
    """Order (R,) records by species, then stratum, then at random, for splits and folds.

    The random key is a hash of seed, species and record, equal on every machine and version.
    """
    pairs = list(zip(np.asarray(species).tolist(), np.asarray(records).tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "a record appears twice"
    assert len(strata) == len(pairs)
    texts = (f"{seed}\n{name}\n{record}".encode() for name, record in pairs)
    lots = np.array([hashlib.sha256(text).hexdigest() for text in texts], dtype="S64")
    return np.lexsort((lots, strata, np.asarray(species)))


def _runs(order: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """Split ordered rows into one array per key."""
    ordered = keys[order]
    return np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1) if len(order) else []


def untestable_classes(labels: np.ndarray, vocabulary: Sequence[str]) -> list[tuple[str, int]]:
    """List (class, records) of the classes with too few records to keep one for testing."""
    known = np.asarray(labels)[np.asarray(labels) >= 0]
    counts = np.bincount(known, minlength=len(vocabulary)).tolist()
    pairs = zip(vocabulary, counts, strict=True)
    return [(name, count) for name, count in pairs if count < MIN_RECORDS_FOR_TEST]


def shuffled_by_class(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle the rows of each class and concatenate the classes.

    Return the order, (N,) rows, and the number of earlier rows of the same class, (N,).
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, begins, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return order, np.arange(len(order)) - np.repeat(begins, counts)


def sample_evenly(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Draw at most `most` rows, as evenly over the classes of `labels` (N,) as possible, sorted.

    Rare classes are used up before a frequent one contributes more rows.
    """
    order, num_before = shuffled_by_class(labels, seed)
    return np.sort(order[np.argsort(num_before, kind="stable")[:most]])


def side_file(path: str | Path) -> Path:
    """Return the path of the JSON file with a split file's hash and how it was made."""
    return Path(path).with_suffix(".json")


def write_splits(
    path: str | Path,
    species: np.ndarray,
    records: np.ndarray,
    record_split: np.ndarray,
    *,
    seed: int,
    fractions: Sequence[float] = FRACTIONS,
    origin: str = "",
    first: np.ndarray | None = None,
) -> None:
    """Write `splits.csv` (species, record, split) and its side file, each atomically.

    A split that another process has written meanwhile is kept. `origin` names the source of a split
    that was not drawn. `first` (R,) is the first of the records that share files, see
    `catalog.identical_records`.
    """
    path = Path(path)
    assert side_file(path) != path, "a split file ends in .csv"
    texts = zip(species.tolist(), records.tolist(), record_split.tolist(), strict=True)
    rows = sorted((name, record, SPLITS[split]) for name, record, split in texts)
    per_species = {
        name: {
            "records": len(ids),
            "sha256_of_records": hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest(),
        }
        for name, ids in _group(rows).items()
    }
    cells = ([files.safe_cell(cell) for cell in row] for row in rows)
    table = "".join(map(files.csv_line, [_CSV_HEADER, *cells])).encode("utf-8", "backslashreplace")
    counts = np.bincount(first, minlength=1) if first is not None else ()
    facts = {
        "format": FORMAT,
        "seed": seed,
        "fractions": list(fractions),
        **({"origin": origin} if origin else {}),
        **({} if first is None else {"num_sharing_files": int((counts[first] > 1).sum())}),
        "sha256_of_csv": hashlib.sha256(table).hexdigest(),
        "species": per_species,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.turn_in(path.parent):
            if path.exists():
                return
            # first, so that a table always has its side file
            files.write_json(side_file(path), facts)
            with files.atomic_write(path) as handle:
                handle.write(table)
    except (OSError, UserError) as error:
        what = error if isinstance(error, UserError) else files.write_error(path, error)
        raise UserError(f"{what}; set SPLITS_FILE to another path") from error


def read_side_file(path: str | Path) -> dict[str, Any]:
    """Check the split file at `path` and read how it was made (`seed`, `fractions` ...)."""
    side = side_file(path)
    try:
        text = files.patiently(side.read_bytes, side) if side.is_file() else b""
        facts = json.loads(text.decode())
        if facts["format"] > FORMAT:
            raise UserError(f"{side} is of format {facts['format']}, newer than this version reads")
        expected, _, _ = facts["sha256_of_csv"], facts["seed"], facts["fractions"]
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        what = f"{side}, the side file of {path}, cannot be read"
        raise UserError(f"{what}. {_way_out(path)}") from error
    if files.patiently(lambda: files.sha256_of_file(path), path) != expected:
        raise UserError(f"{path} was edited since it was made: its hash differs. {_way_out(path)}")
    return facts


def read_splits(path: str | Path, species: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Read the split of each given record: (R,) int8 into `SPLITS`.

    The file may hold more species than given. Each given species must have exactly the records it
    had when the file was made. Raises `UserError` for an edited file and for changed data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"split file {path} does not exist{files.dead_link(path)}")
    read_side_file(path)
    codes = {name: code for code, name in enumerate(SPLITS)}
    in_file: dict[str, dict[str, int]] = {}
    for line, (name, record, split) in _rows(path, _CSV_HEADER):
        name, record = (normalize("NFC", files.plain_cell(cell)) for cell in (name, record))
        if split not in codes or record in in_file.setdefault(name, {}):
            raise line_error(path, line, f"{name},{record},{split} is not a record and its split")
        in_file[name][record] = codes[split]
    names, ids = np.asarray(species).tolist(), np.asarray(records).tolist()
    changes = []
    for name, now in _group(zip(names, ids, strict=True)).items():
        before = in_file.get(name, {})
        for what, change in (("new", now - before.keys()), ("gone", before.keys() - now)):
            some = ", ".join(sorted(change)[:3]) + ", ..." * (len(change) > 3)
            changes += [f"{name}: {len(change)} records ({some}) {what}"] * bool(change)
    if changes:
        what = f"the data changed since {path} was made ({'; '.join(changes)})"
        raise UserError(f"{what}. {_way_out(path)}")
    pairs = zip(names, ids, strict=True)
    return np.array([in_file[name][record] for name, record in pairs], dtype=np.int8)


def read_official(
    folder: str | Path, species: np.ndarray, records: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Read PetFace's own lists, `folder/<species>/{train.csv, val.txt, test.txt, ...}`.

    Returns (R,) int8 into `SPLITS` and notes. A record in no list goes into train, with a note. A
    record in two splits raises `UserError`.
    """
    result = np.full(len(records), TRAIN, dtype=np.int8)
    notes = []
    for name in sorted(set(np.asarray(species).tolist())):
        sides: dict[str, tuple[int, str]] = {}
        for file_name, side, needed in _OFFICIAL_FILES:
            path = Path(folder) / name / file_name
            if not needed and not path.exists():
                continue
            for line, ((record, _),), _ in official_rows(path, name):
                where = f"{file_name} line {line}"
                first_side, first_where = sides.setdefault(record, (side, where))
                if first_side != side:
                    what = f"record {record} is in {SPLITS[side]} and, in {first_where}, in "
                    raise line_error(path, line, f"{what}{SPLITS[first_side]}")
        unlisted = 0
        for row in np.flatnonzero(np.asarray(species) == name).tolist():
            result[row], where = sides.pop(str(records[row]), (TRAIN, ""))
            unlisted += not where
        if unlisted:
            notes.append(f"{name}: {unlisted} records are in no official list and go into train")
        if sides:
            notes.append(f"{name}: {len(sides)} records in the official lists have no image")
    return result, notes


def official_rows(
    path: Path, species: str, num_photos: int = 1
) -> Iterator[tuple[int, list[tuple[str, str]], str]]:
    """Yield line, (record, file name) of each `<species>/<record>/<image>` there, the last cell.

    A CSV of one photo a row has the header filename,label; that of pairs is not looked at.
    """
    columns = ("filename", "label") if num_photos == 1 else ()
    header = columns if path.suffix == ".csv" else None
    for line, cells in _rows(path, header):
        photos = []
        for cell in cells[:num_photos]:
            parts = PurePosixPath(cell.strip()).parts
            if len(parts) < 3 or normalize("NFC", parts[-3]) != species:
                raise line_error(path, line, f"{cell!r} is not {species}/<record>/<image>")
            photos.append((canonical_record(parts[-2]), parts[-1]))
        yield line, photos, cells[-1]


def _rows(path: Path, header: tuple[str, ...] | None) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows below `header`, () = any; with None the first row is data already."""
    rows = strict_rows(path)
    if header is not None:
        line, cells = next(rows)
        if header and tuple(cells) != header:
            raise line_error(path, line, f"the header must be {','.join(header)}, not {cells}")
    yield from rows


def _apportion(sizes: list[int], taken: list[int], frac: float, minimum: int) -> list[int]:
    """Apportion about `frac` of each size in whole numbers whose sum is about `frac` of the total.

    Later, larger strata make up for the rounding of small ones. A stratum smaller than `minimum`
    gets 0, any other at least 1. At least one record stays for train.
    """
    target, left = frac * sum(sizes), sum(sizes)
    counts = []
    for size, used in zip(sizes, taken, strict=True):
        share = min(max(target / left, frac * (1 - _MAX_DISTORTION)), frac * (1 + _MAX_DISTORTION))
        count = math.floor(size * share + 0.5)
        fits = size >= minimum and frac > 0
        count = max(1, min(count, size - used - 1)) if fits else 0
        counts.append(count)
        target, left = target - count, left - size
    return counts


def _group(rows: Iterable[tuple[str, ...]]) -> dict[str, set[str]]:
    """Group the second column by the first."""
    groups: dict[str, set[str]] = {}
    for name, record, *_ in rows:
        groups.setdefault(name, set()).add(record)
    return groups


def _way_out(path: str | Path) -> str:
    return (
        f"Restore the files, or delete {path} and {side_file(path)} to create a new split. Models "
        "and metrics of the old split are then not comparable"
    )
