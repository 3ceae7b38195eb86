"""Labels of records, from a strictly read CSV: an odd line is named, never shifted."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petface.data.catalog import line_error, strict_rows, string_array
from petface.files import write_csv
from petface.taxonomy import (
    FEATURES,
    GENDER_MAP,
    GENDER_VOCABULARY,
    SPECIES_FEATURES,
    UNKNOWN,
    canonical_record,
    features_of,
    is_unknown,
)

ALIAS_HEADER = ("species", "feature", "label", "alias_of")
Aliases = Mapping[str, Mapping[str, str]]  # feature -> raw label -> the label it is merged into
_STRANGE = UNKNOWN - 1  # codes from here down number gender values that mean nothing known


@dataclass(frozen=True)
class Conflict:
    """Rows of one record that name different known values for one feature."""

    record: str
    feature: str
    values: tuple[str, ...]  # one per row
    lines: tuple[int, ...]  # where those rows begin


@dataclass(frozen=True, eq=False)
class SpeciesAnnotations:
    """The labels of the R records in one annotation file, sorted by record."""

    species: str
    records: np.ndarray  # (R,) str, canonical, sorted, each once
    features: tuple[str, ...]  # heads of this species that have a column
    vocabularies: dict[str, tuple[str, ...]]  # sorted; () for a head without a known label
    labels: dict[str, np.ndarray]  # feature -> (R,) int32 into the vocabulary, -1 unknown
    conflicts: list[Conflict]
    notes: list[str]  # lines that the user should read

    def align(self, record_names: np.ndarray) -> dict[str, np.ndarray]:
        """Return the labels in the order of `record_names`, -1 without a row. Each (len,) int32."""
        row = np.searchsorted(self.records, record_names)
        names = np.append(self.records, "")  # for what sorts behind the last record
        row = np.where(names[row] == record_names, row, -1)
        padded = {f: np.append(v, np.int32(UNKNOWN)) for f, v in self.labels.items()}
        return {feature: labels[row] for feature, labels in padded.items()}  # -1 reads the last


def read_species(
    path: str | Path,
    species: str,
    aliases: Aliases | None = None,
    gender_map: Mapping[str, str] = GENDER_MAP,
) -> SpeciesAnnotations:
    """Read the annotation file of one species; `gender_map` names the class of a lower-case cell.

    Equal rows of a record merge; where known values disagree, that feature of that record becomes
    unknown and is listed in `conflicts`. Raises `UserError` with file and line for anything that is
    not plain UTF-8 CSV with a `Name` column and rows as long as the header.
    """
    assert set(gender_map.values()) <= set(GENDER_VOCABULARY), gender_map
    rows = strict_rows(path)
    _, header = next(rows)
    columns = _find_columns(path, header)
    features = features_of(species, tuple(columns))
    notes = _header_notes(path, species, header, features)
    aliases = aliases or {}
    codebooks = {f: _Codebook(f, aliases.get(f, {}), gender_map) for f in features}

    numbers: dict[str, int] = {}
    record_of_row, line_of_row = array("q"), array("q")
    name_column = columns["name"]
    cells_to_codes = [(columns[feature], codebooks[feature]) for feature in features]
    for line, cells in rows:
        if not cells[name_column].strip():
            raise line_error(path, line, "the Name cell is empty; every row needs its record")
        record = canonical_record(cells[name_column])
        record_of_row.append(numbers.setdefault(record, len(numbers)))
        line_of_row.append(line)
        for column, codebook in cells_to_codes:
            codebook.row_codes.append(codebook[cells[column]])

    records = string_array(list(numbers))
    order = np.argsort(records, kind="stable")
    rows_seen = _Rows(list(numbers), np.asarray(record_of_row), np.asarray(line_of_row))
    labels, vocabularies, conflicts = {}, {}, []
    for feature in features:
        codes, found = _merge_rows(rows_seen, codebooks[feature])
        codes, vocabularies[feature] = _number_sorted(codes, codebooks[feature])
        labels[feature] = codes[order]
        conflicts += found
    conflicts.sort(key=lambda conflict: (conflict.record, FEATURES.index(conflict.feature)))
    notes += _label_notes(species, vocabularies, codebooks, conflicts)
    if not numbers:
        notes.append(f"{species}: {path} has a header and no row")
    return SpeciesAnnotations(
        species, records[order], features, vocabularies, labels, conflicts, notes
    )


def read_aliases(path: str | Path) -> dict[str, dict[str, dict[str, str]]]:
    """Read a CSV `species,feature,label,alias_of` into {species: {feature: {label: alias_of}}}.

    Raises `UserError` with the line for another header, an unknown feature, gender, an unknown
    token, a label given twice and a chain of aliases.
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
            choices = ", ".join(FEATURES[:-1])
            raise line_error(
                path, line, f"feature {feature!r} cannot have aliases; one of {choices}"
            )
        if is_unknown(label) or is_unknown(target):
            raise line_error(path, line, "an unknown token cannot be or have an alias")
        if (species, feature, label) in lines:
            first = lines[species, feature, label]
            raise line_error(path, line, f"{label!r} has an alias already, on line {first}")
        lines[species, feature, label] = line
        aliases.setdefault(species, {}).setdefault(feature, {})[label] = target
    for (species, feature, label), line in lines.items():
        target = aliases[species][feature][label]
        if target in aliases[species][feature]:
            raise line_error(path, line, f"{target!r} is an alias itself; name the final label")
    return aliases


def write_conflicts(path: str | Path, annotations: Iterable[SpeciesAnnotations]) -> None:
    """Write label_conflicts.csv: one row per record and feature whose rows disagree."""
    rows = (
        (
            table.species,
            conflict.record,
            conflict.feature,
            " | ".join(conflict.values),
            " ".join(map(str, conflict.lines)),
        )
        for table in annotations
        for conflict in table.conflicts
    )
    write_csv(path, ("species", "record", "feature", "values", "lines"), rows)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Which record each row of the file is about, and on which line it begins."""

    names: list[str]
    record: np.ndarray  # (rows,) into names
    line: np.ndarray  # (rows,)


class _Codebook(dict[str, int]):
    """From a raw cell to a number: each distinct cell is looked at once, however many rows."""

    def __init__(
        self, feature: str, aliases: Mapping[str, str], gender_map: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.feature = feature
        self.aliases, self.gender_map = aliases, gender_map
        self.names: dict[str, int] = {}  # known label -> code
        self.strange: list[str] = []  # gender values that mean nothing known
        self.seen: set[str] = set()  # raw labels, for aliases that meet nothing
        self.row_codes = array("q")

    def __missing__(self, cell: str) -> int:
        label = cell.strip()
        self.seen.add(label)
        if is_unknown(label):
            code = UNKNOWN
        elif self.feature == "gender" and label.lower() not in self.gender_map:
            self.strange.append(label)
            code = _STRANGE
        else:
            gender = self.feature == "gender"
            label = self.gender_map[label.lower()] if gender else self.aliases.get(label, label)
            code = self.names.setdefault(label, len(self.names))
        self[cell] = code
        return code


def _merge_rows(rows: _Rows, codebook: _Codebook) -> tuple[np.ndarray, list[Conflict]]:
    """Reduce rows to records: known wins over unknown, different known values are a conflict."""
    codes = np.asarray(codebook.row_codes)
    merged = np.full(len(rows.names), UNKNOWN, dtype=np.int32)
    known = codes >= 0
    merged[rows.record[known]] = codes[known]
    clash = np.unique(rows.record[known & (codes != merged[rows.record])])
    merged[clash] = UNKNOWN
    involved: dict[int, list[int]] = {}
    for row in np.flatnonzero(known & np.isin(rows.record, clash)).tolist():
        involved.setdefault(int(rows.record[row]), []).append(row)
    texts = list(codebook.names)
    conflicts = [
        Conflict(
            record=rows.names[record],
            feature=codebook.feature,
            values=tuple(texts[codes[row]] for row in its_rows),
            lines=tuple(int(rows.line[row]) for row in its_rows),
        )
        for record, its_rows in involved.items()
    ]
    return merged, conflicts


def _number_sorted(codes: np.ndarray, codebook: _Codebook) -> tuple[np.ndarray, tuple[str, ...]]:
    """Renumber codes by the sorted labels that are still in use: (R,) int32 and the vocabulary."""
    texts = list(codebook.names)
    used = np.unique(codes[codes >= 0]).tolist()
    vocabulary = tuple(sorted(texts[code] for code in used))
    if codebook.feature == "gender" and vocabulary:
        vocabulary = GENDER_VOCABULARY
    place = {label: number for number, label in enumerate(vocabulary)}
    renumber = np.array([place.get(text, UNKNOWN) for text in texts] + [UNKNOWN], dtype=np.int32)
    return renumber[codes], vocabulary  # code -1 reads the last entry


def _find_columns(path: str | Path, header: list[str]) -> dict[str, int]:
    """Map lower-case header names to positions; refuse a name that stands twice."""
    columns: dict[str, int] = {}
    for position, cell in enumerate(header):
        name = cell.strip().lower()
        if name and name in columns:
            raise line_error(
                path, 1, f"column {cell.strip()!r} stands twice in the header {header}"
            )
        columns[name] = position
    if "name" not in columns:
        hint = "; cells must be separated by commas" if len(header) == 1 else ""
        raise line_error(path, 1, f"no column Name in the header {header}{hint}")
    return columns


def _header_notes(
    path: str | Path, species: str, header: list[str], features: tuple[str, ...]
) -> list[str]:
    """Note which heads lack a column and which columns are of no use."""
    notes = []
    missing = [feature for feature in features_of(species) if feature not in features]
    if missing and species in SPECIES_FEATURES:  # other species have the columns that they have
        titles = ", ".join(feature.capitalize() for feature in missing)
        heads = ", ".join(missing)
        notes.append(f"{species}: no column {titles} in {path}, so there is NO {heads} head")
    extra = [cell for cell in header if cell.strip().lower() not in ("name", *features)]
    if extra:
        notes.append(f"{species}: columns ignored in {path}: {', '.join(map(repr, extra))}")
    return notes


def _label_notes(
    species: str,
    vocabularies: Mapping[str, tuple[str, ...]],
    codebooks: Mapping[str, _Codebook],
    conflicts: list[Conflict],
) -> list[str]:
    """Note what the labels themselves hold that the user should know."""
    notes = []
    empty = [feature for feature in codebooks if not vocabularies[feature]]
    if empty:
        listed = ", ".join(f"no known {feature} at all" for feature in empty)
        notes.append(f"{species}: {listed}; such a head has no class and is left out")
    for feature, codebook in codebooks.items():
        if codebook.strange:
            count = int(np.count_nonzero(np.asarray(codebook.row_codes) == _STRANGE))
            shown = ", ".join(map(repr, codebook.strange[:5]))
            notes.append(f"{species}: {count} gender cells count as unknown, such as {shown}")
        if unused := sorted(set(codebook.aliases) - codebook.seen):
            shown = ", ".join(map(repr, unused[:5]))
            notes.append(f"{species}: {len(unused)} {feature} aliases meet no label: {shown}")
    if conflicts:
        count = len({conflict.record for conflict in conflicts})
        notes.append(
            f"{species}: {count} records have contradictory rows; what they disagree on counts as "
            "unknown and is listed in label_conflicts.csv"
        )
    return notes
