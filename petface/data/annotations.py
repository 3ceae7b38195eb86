"""Read the labels of records from CSV files; a malformed line is an error that names the line."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petface.data.catalog import line_error, strict_rows, string_array
from petface.data.twins import spelling, spelling_twins
from petface.files import write_csv
from petface.taxonomy import (
    FEATURES,
    GENDER_MAP,
    GENDER_VOCABULARY,
    SPECIES_FEATURES,
    UNKNOWN,
    SpeciesTable,
    canonical_record,
    columns_of,
    is_unknown,
)

ALIAS_HEADER = ("species", "feature", "label", "alias_of")
Aliases = Mapping[str, Mapping[str, str]]  # feature -> raw label -> the label it is merged into
_LOOKS_UNKNOWN = {"none", "null", "nil", "-", "--", "?", "??", "???", ".", "n.a.", "#n/a", "tbd"}
_STRANGE = UNKNOWN - 1  # the code of a value that is none of the classes


@dataclass(frozen=True)
class Conflict:
    """Rows of one record that give different known values for one feature."""

    record: str
    feature: str
    values: tuple[str, ...]  # one per row
    lines: tuple[int, ...]  # on which each of those rows begins


@dataclass(frozen=True, eq=False)
class SpeciesAnnotations:
    """The labels of the R records in one annotation file, sorted by record."""

    species: str
    records: np.ndarray  # (R,) str, canonical, sorted, each once
    features: tuple[str, ...]  # heads of this species that have a column
    vocabularies: dict[str, tuple[str, ...]]  # sorted; () for a head without a known label
    labels: dict[str, np.ndarray]  # feature -> (R,) int32 into the vocabulary, -1 unknown
    conflicts: list[Conflict]
    notes: list[str]  # messages for the user
    reading: Mapping[str, Any]  # the arguments of `read_species`; a checkpoint keeps them

    @property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """Return the classes of each trainable head, which is one with a known label."""
        return {head: names for head, names in self.vocabularies.items() if names}

    def align(self, record_names: np.ndarray) -> dict[str, np.ndarray]:
        """Return the labels in the order of `record_names`, each (len,) int32; -1 if no row."""
        row = np.searchsorted(self.records, record_names)
        names = np.append(self.records, "")  # for names that sort after the last record
        row = np.where(names[row] == record_names, row, -1)
        padded = {f: np.append(v, np.int32(UNKNOWN)) for f, v in self.labels.items()}
        return {feature: labels[row] for feature, labels in padded.items()}  # -1 reads the last


def read_species(
    path: str | Path,
    species: str,
    aliases: Aliases | None = None,
    gender_map: Mapping[str, str] = GENDER_MAP,
    table: SpeciesTable | None = None,
) -> SpeciesAnnotations:
    """Read the annotation file of one species.

    `gender_map` maps a lower-case cell to its class. `table` maps heads to columns, see
    `taxonomy.columns_of`. Rows of one record are merged. If their known values for a feature
    disagree, that feature of the record becomes unknown and is listed in `conflicts`. Raises
    `UserError` with file and line unless the file is UTF-8 CSV with a `Name` column and rows as
    long as the header.
    """
    assert set(gender_map.values()) <= set(GENDER_VOCABULARY), gender_map
    rows = strict_rows(path)
    _, header = next(rows)
    columns = _find_columns(path, header)
    heads = {head: (c.strip().lower(), k) for head, (c, k) in columns_of(species, table).items()}
    features = tuple(head for head, (column, _) in heads.items() if column in columns)
    used = [heads[feature][0] for feature in features]
    notes = _header_notes(path, species, header, used, columns_of(species, table))
    aliases = aliases or {}
    codebooks = {f: _Codebook(f, aliases.get(f, {}), gender_map, heads[f][1]) for f in features}

    numbers: dict[str, int] = {}
    record_of_row, line_of_row = array("q"), array("q")
    name_column = columns["name"]
    cells_to_codes = [(columns[c], codebooks[f]) for c, f in zip(used, features, strict=True)]
    for line, cells in rows:
        if not cells[name_column].strip():
            raise line_error(path, line, "the Name cell is empty; every row must name its record")
        record = canonical_record(cells[name_column])
        record_of_row.append(numbers.setdefault(record, len(numbers)))
        line_of_row.append(line)
        for column, codebook in cells_to_codes:
            codebook.row_codes.append(codebook[cells[column]])

    records = string_array(list(numbers))
    order = np.argsort(records, kind="stable")
    row_record, row_line = np.asarray(record_of_row), np.asarray(line_of_row)
    labels, vocabularies = {}, {}
    conflicts: list[Conflict] = []
    for feature in features:
        codes, clash = _merge_rows(row_record, len(numbers), codebooks[feature])
        conflicts += _conflicts(list(numbers), row_record, row_line, clash, codebooks[feature])
        codes, vocabularies[feature] = _number_sorted(codes, codebooks[feature])
        labels[feature] = codes[order]
    conflicts.sort(key=lambda conflict: (conflict.record, FEATURES.index(conflict.feature)))
    notes += _label_notes(species, vocabularies, codebooks, conflicts)
    if not numbers:
        notes.append(f"{species}: {path} has a header but no rows")
    how = {"aliases": dict(aliases), "gender_map": dict(gender_map), "table": table and dict(table)}
    return SpeciesAnnotations(
        species, records[order], features, vocabularies, labels, conflicts, notes, how
    )


def stored_reading(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, kept in a checkpoint, that its labels were read with; {} if none."""
    stored = content.get("labels")
    items = stored.items() if isinstance(stored, dict) else ()
    found = {key: value for key, value in items if isinstance(value, dict)}
    if not all(name in GENDER_VOCABULARY for name in found.get("gender_map", {}).values()):
        del found["gender_map"]
    tables = [own if isinstance(own, dict) else {0: 0} for own in found.get("aliases", {}).values()]
    if any(type(text) is not str for own in tables for pair in own.items() for text in pair):
        del found["aliases"]
    return {key: found[key] for key in ("aliases", "gender_map", "table") if key in found}


def read_aliases(path: str | Path) -> dict[str, dict[str, dict[str, str]]]:
    """Read a CSV `species,feature,label,alias_of` into {species: {feature: {label: alias_of}}}.

    Raises `UserError` with the line for a different header, an unknown feature, the feature gender,
    an unknown token, a label given twice, or a chain of aliases.
    """
    rows = strict_rows(path)
    line, header = next(rows)
    if tuple(header) != ALIAS_HEADER:
        raise line_error(path, line, f"the header must be {','.join(ALIAS_HEADER)}, not {header}")
    aliases: dict[str, dict[str, dict[str, str]]] = {}
    lines: dict[tuple[str, str, str], int] = {}
    for line, row in rows:
        species, feature, label, target = (cell.strip() for cell in row)
        if feature not in FEATURES or feature == "gender":
            what = f"feature {feature!r} cannot have aliases; use one of {', '.join(FEATURES[:-1])}"
            raise line_error(path, line, what)
        if is_unknown(label) or is_unknown(target):
            raise line_error(path, line, "an unknown token cannot be or have an alias")
        if (species, feature, label) in lines:
            first = lines[species, feature, label]
            raise line_error(path, line, f"{label!r} already has an alias, on line {first}")
        lines[species, feature, label] = line
        aliases.setdefault(species, {}).setdefault(feature, {})[label] = target
    for (species, feature, label), line in lines.items():
        target = aliases[species][feature][label]
        if target in aliases[species][feature]:
            raise line_error(path, line, f"{target!r} is itself an alias; give the final label")
    return aliases


def write_conflicts(path: str | Path, annotations: Iterable[SpeciesAnnotations]) -> None:
    """Write label_conflicts.csv: one row per record and feature whose rows disagree."""
    rows = (
        (table.species, c.record, c.feature, " | ".join(c.values), " ".join(map(str, c.lines)))
        for table in annotations
        for c in table.conflicts
    )
    write_csv(path, ("species", "record", "feature", "values", "lines"), rows)


class _Codebook(dict[str, int]):
    """Map raw cells to codes; each distinct cell is processed once, however many rows have it."""

    def __init__(
        self,
        feature: str,
        aliases: Mapping[str, str],
        gender_map: Mapping[str, str],
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.feature, self.is_gender = feature, feature == "gender"
        self.aliases, self.gender_map = aliases, gender_map
        self.classes = classes  # () = every known label
        self.names: dict[str, int] = {}  # known label -> code
        self.strange: list[str] = []  # values that are none of the classes
        self.seen: set[str] = set()  # raw labels, to find aliases that match none
        self.row_codes = array("q")

    def __missing__(self, cell: str) -> int:
        label = cell.strip()
        self.seen.add(label)
        name = self.aliases.get(label, label)
        if self.is_gender:
            name = self.gender_map.get(label.lower(), "")
        if is_unknown(label):
            code = UNKNOWN
        elif not name or (self.classes and name not in self.classes):
            self.strange.append(label)
            code = _STRANGE
        else:
            code = self.names.setdefault(name, len(self.names))
        self[cell] = code
        return code


def _merge_rows(
    row_record: np.ndarray, num_records: int, codebook: _Codebook
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the rows of each record; a known value wins, different known values become unknown.

    Returns the codes (R,) and the numbers of the records whose rows disagree.
    """
    codes = np.asarray(codebook.row_codes)
    merged = np.full(num_records, UNKNOWN, dtype=np.int32)
    known = codes >= 0
    merged[row_record[known]] = codes[known]
    clash = np.unique(row_record[known & (codes != merged[row_record])])
    merged[clash] = UNKNOWN
    return merged, clash


def _conflicts(
    names: list[str],
    row_record: np.ndarray,
    row_line: np.ndarray,
    clash: np.ndarray,
    codebook: _Codebook,
) -> Iterator[Conflict]:
    """List the known values of each record in `clash`, with the lines on which its rows begin."""
    codes, texts = np.asarray(codebook.row_codes), list(codebook.names)
    rows = np.flatnonzero((codes >= 0) & np.isin(row_record, clash))
    rows = rows[np.argsort(row_record[rows], kind="stable")]
    for own in np.split(rows, np.flatnonzero(np.diff(row_record[rows])) + 1) if len(rows) else ():
        values = tuple(texts[code] for code in codes[own])
        lines = tuple(row_line[own].tolist())
        yield Conflict(names[row_record[own[0]]], codebook.feature, values, lines)


def _number_sorted(codes: np.ndarray, codebook: _Codebook) -> tuple[np.ndarray, tuple[str, ...]]:
    """Renumber codes by the sorted labels still in use; return them (R,) and the vocabulary."""
    texts = list(codebook.names)
    used = np.unique(codes[codes >= 0]).tolist()
    vocabulary = tuple(sorted(texts[code] for code in used))
    if codebook.feature == "gender" and vocabulary:
        vocabulary = GENDER_VOCABULARY
    elif codebook.classes and vocabulary:
        vocabulary = codebook.classes
    place = {label: number for number, label in enumerate(vocabulary)}
    renumber = np.array([place.get(text, UNKNOWN) for text in texts] + [UNKNOWN], dtype=np.int32)
    return renumber[codes], vocabulary  # code -1 indexes the last entry


def _find_columns(path: str | Path, header: list[str]) -> dict[str, int]:
    """Map lower-case header names to positions; raise `UserError` for a duplicate name."""
    columns: dict[str, int] = {}
    for position, cell in enumerate(header):
        name = cell.strip().lower()
        if name and name in columns:
            twice = f"column {cell.strip()!r} appears twice in the header {header}"
            raise line_error(path, 1, twice)
        columns[name] = position
    if "name" not in columns:
        hint = "; cells must be separated by commas" if len(header) == 1 else ""
        raise line_error(path, 1, f"no column Name in the header {header}{hint}")
    return columns


def _header_notes(
    path: str | Path,
    species: str,
    header: list[str],
    used: Collection[str],
    heads: Mapping[str, tuple[str, tuple[str, ...]]],
) -> list[str]:
    """List the heads without a column and the columns that are not used."""
    notes = []
    missing = {head: c for head, (c, _) in heads.items() if c.strip().lower() not in used}
    is_own = [*heads] == [*FEATURES] and species not in SPECIES_FEATURES
    if missing and not is_own:  # other species need not have every column
        lost, columns = ", ".join(missing), ", ".join(missing.values())
        notes.append(f"{species}: no column {columns} in {path}, so there is NO {lost} head")
    extra = [cell for cell in header if cell.strip().lower() not in ("name", *used)]
    if extra:
        notes.append(f"{species}: columns ignored in {path}: {', '.join(map(repr, extra))}")
    return notes


def _label_notes(
    species: str,
    vocabularies: Mapping[str, tuple[str, ...]],
    codebooks: Mapping[str, _Codebook],
    conflicts: list[Conflict],
) -> list[str]:
    """List what the user should know about the labels themselves."""
    notes = []
    if empty := [feature for feature in codebooks if not vocabularies[feature]]:
        listed = ", ".join(f"no known {feature}" for feature in empty)
        notes.append(f"{species}: {listed}; a head without classes is left out")
    for feature, codebook in codebooks.items():
        if twins := spelling_twins(vocabularies[feature]):
            shown = "; ".join(" and ".join(map(repr, group)) for group in twins[:3])
            notes.append(
                f"{species}: {len(twins)} groups of {feature} labels differ only in spelling: "
                f"{shown}; rows {','.join(ALIAS_HEADER)} in an ALIASES_FILE merge them"
            )
        if odd := [name for name in vocabularies[feature] if spelling(name) in _LOOKS_UNKNOWN]:
            shown = ", ".join(map(repr, odd))
            notes.append(
                f"{species}: {feature} {shown} counts as a class; leave unknown cells empty"
            )
        if codebook.strange:
            count = int(np.count_nonzero(np.asarray(codebook.row_codes) == _STRANGE))
            shown = ", ".join(map(repr, codebook.strange[:5]))
            notes.append(f"{species}: {count} {feature} cells count as unknown, such as {shown}")
        if unused := sorted(set(codebook.aliases) - codebook.seen):
            shown = ", ".join(map(repr, unused[:5]))
            notes.append(f"{species}: {len(unused)} {feature} aliases match no label: {shown}")
    if conflicts:
        count = len({conflict.record for conflict in conflicts})
        notes.append(
            f"{species}: {count} records have contradictory rows; the values they disagree on are "
            "treated as unknown and listed in label_conflicts.csv"
        )
    return notes
