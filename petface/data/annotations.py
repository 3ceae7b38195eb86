"""Read the labels of records from CSV files; a malformed line is an error that names the line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np

from petface.data.catalog import line_error, strict_rows, string_array
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

if TYPE_CHECKING:  # a server does not read annotations
    import pandas

ALIAS_HEADER = ("species", "feature", "label", "alias_of")
Aliases = Mapping[str, Mapping[str, str]]  # feature -> raw label -> the label it is merged into
_LOOKS_UNKNOWN = {"none", "null", "nil", "-", "--", "?", "??", "???", ".", "n.a.", "#n/a", "tbd"}


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
    import pandas

    assert set(gender_map.values()) <= set(GENDER_VOCABULARY), gender_map
    rows = strict_rows(path)
    _, header = next(rows)
    columns = _find_columns(path, header)
    heads = columns_of(species, table)
    place_of = {
        head: columns[column.strip().lower()]
        for head, (column, _) in heads.items()
        if column.strip().lower() in columns
    }
    features = tuple(place_of)
    notes = _header_notes(path, species, header, features, heads)

    names, lines, content = [], [], []
    for line, cells in rows:
        if not cells[columns["name"]].strip():
            raise line_error(path, line, "the Name cell is empty; every row must name its record")
        names.append(canonical_record(cells[columns["name"]]))
        lines.append(line)
        content.append(cells)
    records = string_array(sorted(set(names)))
    number = {name: place for place, name in enumerate(records.tolist())}
    table_rows = pandas.DataFrame({"record": [number[name] for name in names], "line": lines})

    aliases = aliases or {}
    labels, vocabularies = {}, {}
    conflicts: list[Conflict] = []
    label_notes: list[str] = []
    for feature in features:
        values = [cells[place_of[feature]].strip() for cells in content]
        readings = gender_map if feature == "gender" else aliases.get(feature, {})
        labels[feature], vocabulary, found, strange = _read_feature(
            table_rows, values, feature, readings, heads[feature][1], records
        )
        vocabularies[feature] = vocabulary
        conflicts += found
        unused = sorted({*aliases.get(feature, {})} - {*values})
        label_notes += _label_notes(species, feature, vocabulary, strange, unused)
    conflicts.sort(key=lambda conflict: (conflict.record, FEATURES.index(conflict.feature)))
    if empty := [f"no known {feature}" for feature in features if not vocabularies[feature]]:
        notes.append(f"{species}: {', '.join(empty)}; a head without classes is left out")
    notes += label_notes
    if conflicts:
        notes.append(
            f"{species}: {len({found.record for found in conflicts})} records have contradictory "
            "rows; the values they disagree on are treated as unknown and listed in "
            "label_conflicts.csv"
        )
    if not names:
        notes.append(f"{species}: {path} has a header but no rows")
    how = {"aliases": dict(aliases), "gender_map": dict(gender_map), "table": table and dict(table)}
    return SpeciesAnnotations(
        species, records, features, vocabularies, labels, conflicts, notes, how
    )


def _class_of(value: str, feature: str, readings: Mapping[str, str], classes: Sequence[str]) -> str:
    """Return the class of a cell, "" if it is unknown or none of the fixed `classes`, () = any."""
    is_gender = feature == "gender"
    name = readings.get(value.lower(), "") if is_gender else readings.get(value, value)
    return "" if is_unknown(value) or (classes and name not in classes) else name


def _read_feature(
    rows: pandas.DataFrame,
    values: Sequence[str],
    feature: str,
    readings: Mapping[str, str],
    classes: tuple[str, ...],
    records: np.ndarray,
) -> tuple[np.ndarray, tuple[str, ...], list[Conflict], list[str]]:
    """Read the labels of R records from `values`, one of each of the `rows` (record, line).

    Returns the labels (R,) int32, -1 unknown, their classes, the records whose rows disagree, and
    the values that are none of the classes.
    """
    class_of = {v: _class_of(v, feature, readings, classes) for v in dict.fromkeys(values)}
    names = sorted({*class_of.values()} - {""})
    code_of = {"": UNKNOWN} | {name: code for code, name in enumerate(names)}
    coded = rows.assign(code=[code_of[class_of[value]] for value in values])
    known = coded[coded["code"] >= 0]
    limits = known.groupby("record")["code"].agg(["min", "max"])
    is_clash = limits["min"] != limits["max"]
    conflicts = []
    for _, own in known[known["record"].isin(limits.index[is_clash])].groupby("record"):
        record, found = str(records[own["record"].iloc[0]]), [names[code] for code in own["code"]]
        conflicts.append(Conflict(record, feature, tuple(found), tuple(own["line"])))
    merged = limits["min"][~is_clash]
    vocabulary = tuple(names[code] for code in np.unique(merged))
    if vocabulary:
        vocabulary = GENDER_VOCABULARY if feature == "gender" else classes or vocabulary
    number = {name: place for place, name in enumerate(vocabulary)}
    labels = np.full(len(records), UNKNOWN, np.int32)
    labels[merged.index] = [number[names[code]] for code in merged]
    strange = [value for value in values if not class_of[value] and not is_unknown(value)]
    return labels, vocabulary, conflicts, strange


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
    features: Collection[str],
    heads: Mapping[str, tuple[str, tuple[str, ...]]],
) -> list[str]:
    """List the heads without a column and the columns that are not used."""
    notes = []
    missing = {head: column for head, (column, _) in heads.items() if head not in features}
    is_own = [*heads] == [*FEATURES] and species not in SPECIES_FEATURES
    if missing and not is_own:  # other species need not have every column
        lost, columns = ", ".join(missing), ", ".join(missing.values())
        notes.append(f"{species}: no column {columns} in {path}, so there is NO {lost} head")
    used = {"name", *(heads[feature][0].strip().lower() for feature in features)}
    if extra := [cell for cell in header if cell.strip().lower() not in used]:
        notes.append(f"{species}: columns ignored in {path}: {', '.join(map(repr, extra))}")
    return notes


def _label_notes(
    species: str, feature: str, vocabulary: Sequence[str], strange: list[str], unused: list[str]
) -> list[str]:
    """List what the user should know about the labels of one feature.

    `strange` has one value per row that is none of the classes, `unused` the aliases of no label.
    """
    notes = []
    if twins := spelling_twins(vocabulary):
        notes.append(
            f"{species}: {len(twins)} groups of {feature} labels differ only in spelling: "
            f"{shown_twins(twins)}; rows {','.join(ALIAS_HEADER)} in an ALIASES_FILE merge them"
        )
    if odd := [name for name in vocabulary if spelling(name) in _LOOKS_UNKNOWN]:
        shown = ", ".join(map(repr, odd))
        notes.append(f"{species}: {feature} {shown} counts as a class; leave unknown cells empty")
    if strange:
        shown = ", ".join(map(repr, list(dict.fromkeys(strange))[:5]))
        notes.append(f"{species}: {len(strange)} {feature} cells count as unknown, such as {shown}")
    if unused:
        shown = ", ".join(map(repr, unused[:5]))
        notes.append(f"{species}: {len(unused)} {feature} aliases match no label: {shown}")
    return notes


def spelling(name: str) -> str:
    """Normalise a name so that case, blanks, width and composition do not matter."""
    return " ".join(normalize("NFKC", name).casefold().split())


def spelling_twins(names: Iterable[str]) -> list[list[str]]:
    """Group the names that differ only in spelling."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(spelling(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def shown_twins(groups: list[list[str]]) -> str:
    """Format the first groups of names that differ only in spelling."""
    return "; ".join(" and ".join(map(repr, group)) for group in groups[:3])
