"""One dataset as one object: images, labels and the split."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from petface import distributed, files
from petface.data.annotations import (
    SpeciesAnnotations,
    read_aliases,
    read_species,
    shown_twins,
    spelling,
    spelling_twins,
)
from petface.data.catalog import Catalog, identical_records
from petface.data.sources.petface import EXPECTED_TREE, Scan, scan, unknown_species
from petface.data.splits import (
    SPLITS,
    make_folds,
    make_splits,
    read_official,
    read_side_file,
    read_splits,
    sample_evenly,
    untestable_classes,
    write_splits,
)
from petface.errors import UserError
from petface.taxonomy import GENDER_MAP, PRIMARY_ATTR_PRIORITY, UNKNOWN

Reading = Callable[[str], Mapping[str, Any]]  # species -> arguments of `read_species`
_MISSING_SHOWN = 13  # species without annotations named in a note, as many as PetFace has


@dataclass(frozen=True, eq=False)
class Dataset:
    """N images of R records, the labels of each species and the split of every record."""

    catalog: Catalog
    annotations: dict[str, SpeciesAnnotations]  # has no species without an annotation file
    record_split: np.ndarray  # (R,) int8 into `splits.SPLITS`
    notes: list[str]  # messages for the user

    @property
    def image_split(self) -> np.ndarray:
        """Return the split of each image, which is that of its record: (N,) int8."""
        return self.record_split[self.catalog.record_index]

    def image_labels(self, species: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return a species' images, (n,) int64 into the catalog, and their labels, each (n,) int32.

        The labels are empty for a species without an annotation file.
        """
        catalog = self.catalog
        if species not in catalog.classes:
            raise unknown_species(species, catalog.classes)
        images = np.flatnonzero(catalog.class_index == catalog.classes.index(species))
        if species not in self.annotations:
            return images, {}
        records = catalog.record_index[images]
        records = records - records[0]  # the records of a class are consecutive
        aligned = self.annotations[species].align(catalog.records_of(species))
        return images, {feature: labels[records] for feature, labels in aligned.items()}

    def fingerprint(self) -> str:
        """Return a hex SHA-256 of images, records, labels and split."""
        catalog = self.catalog
        digest = hashlib.sha256(repr(catalog.classes).encode())
        for column in (catalog.path_bytes, catalog.path_offsets, catalog.record_index):
            digest.update(column.tobytes())
        digest.update(self.record_split.tobytes())
        for species, table in sorted(self.annotations.items()):
            digest.update(repr((species, table.vocabularies)).encode())
            for _, labels in sorted(self.image_labels(species)[1].items()):
                digest.update(labels.tobytes())
        return digest.hexdigest()

    def unmatched(self, species: str) -> tuple[list[str], list[str]]:
        """List the records without a row, and the rows without a record that has images."""
        records = self.catalog.records_of(species)
        table = self.annotations.get(species)
        named = table.records if table else records[:0]
        no_row, no_record = ~np.isin(records, named), ~np.isin(named, records)
        return records[no_row].tolist(), named[no_record].tolist()


def load_dataset(
    images_root: str | Path,
    annotations_root: str | Path,
    *,
    splits_file: str | Path = "",
    seed: int = 0,
    species: str | Sequence[str] | None = None,
    aliases_file: str | Path = "",
    gender_map: Mapping[str, str] = GENDER_MAP,
    reading_of: Reading = lambda _: {},
) -> Dataset:
    """Scan the images, read the labels, and read the split or create it once.

    `reading_of(species)` returns arguments of `read_species` that override `aliases_file` and
    `gender_map`. Its `table` may name the annotation file.

    `splits_file` defaults to `splits.csv` beside `images_root`; a folder holds official lists. A
    missing file is created with `seed` from the whole tree, even if `species` restricts what is
    loaded. Raises `UserError` for problems that the user can fix.
    """
    found = scan(images_root, species)
    read = aliases_file, gender_map, reading_of
    annotations, notes = _read_annotations(annotations_root, found.catalog, *read)
    catalog = found.catalog
    path = Path(splits_file) if splits_file else Path(images_root).absolute().parent / "splits.csv"
    if path.is_dir():
        species_of = species_of_records(catalog)
        record_split, split_notes = read_official(path, species_of, catalog.record_names)
    else:
        with distributed.main_first():
            if not (path.exists() or path.is_symlink()):  # the target of a dead link may come back
                if path.suffix != ".csv":
                    what = "neither a folder of official lists nor a file name ending in .csv"
                    raise UserError(f"SPLITS_FILE {path} is {what}")
                whole, tables = catalog, annotations
                if species is not None:
                    whole = scan(images_root).catalog
                    tables, _ = _read_annotations(annotations_root, whole, *read)
                names, records = species_of_records(whole), whole.record_names
                strata = strata_of_records(whole, tables)
                how: dict[str, Any] = {"seed": seed, "first": identical_records(whole)}
                drawn = make_splits(names, records, strata, **how)
                write_splits(path, names, records, drawn, **how)
        record_split = read_splits(path, species_of_records(catalog), catalog.record_names)
        split_notes = _provenance_notes(path, seed)
    assert len(record_split) == catalog.num_records, "every record is in exactly one split"
    dataset = Dataset(catalog, annotations, record_split, notes)
    notes[:0] = _scan_notes(found)
    notes += [*split_notes, *_label_notes(dataset)]
    return dataset


def fold_files(
    images_root: str | Path,
    annotations_root: str | Path,
    folder: Path,
    *,
    num_folds: int,
    seed: int,
    splits_file: str | Path = "",
) -> list[Path]:
    """Write one split file per fold of the whole tree into `folder`, unless it exists.

    See `make_folds` for the folds; `splits_file` is the dataset's own split, see `load_dataset`.
    """
    paths = [
        folder / f"fold{number}_of_{num_folds}_seed{seed}.csv" for number in range(1, num_folds + 1)
    ]
    dataset = load_dataset(images_root, annotations_root, splits_file=splits_file)
    if all(path.exists() for path in paths):
        return paths
    names, records = species_of_records(dataset.catalog), dataset.catalog.record_names
    strata = strata_of_records(dataset.catalog, dataset.annotations)
    how: dict[str, Any] = {"seed": seed, "first": identical_records(dataset.catalog)}
    splits = make_folds(names, records, strata, num_folds=num_folds, **how)
    for path, split in zip(paths, splits, strict=True):
        write_splits(path, names, records, split, **how)
    return paths


def _read_annotations(
    annotations_root: str | Path,
    catalog: Catalog,
    aliases_file: str | Path,
    gender_map: Mapping[str, str],
    reading_of: Reading,
) -> tuple[dict[str, SpeciesAnnotations], list[str]]:
    """Read the annotation file of every species that has one."""
    root = Path(annotations_root)
    if not str(annotations_root) or not root.is_dir():
        what = f"annotations folder {str(annotations_root)!r} not found{files.dead_link(root)}"
        raise UserError(f"{what}\n{EXPECTED_TREE}")
    aliases = read_aliases(aliases_file) if aliases_file else {}
    tables = {normalize("NFC", path.stem): path for path in sorted(root.glob("*.csv"))}
    annotations, notes, missing = {}, [], []
    if not tables:  # photos by class alone
        notes = [f"{root}: no table of labels, so every class trains in stage 1 alone"]
    for name in catalog.classes if tables else ():
        how = {"aliases": aliases.get(name), "gender_map": gender_map, **reading_of(name)}
        path = root / (how.get("table") or {}).get("file", f"{name}.csv")
        path = path if path.exists() else tables.get(normalize("NFC", path.stem), path)
        if path.exists():
            annotations[name] = read_species(path, name, **how)
            notes += annotations[name].notes
        else:
            alike = {spelling(s): found.name for s, found in tables.items() if found.exists()}
            near = difflib.get_close_matches(spelling(name), list(alike), n=1, cutoff=0.8)
            hint = f" (there is {alike[near[0]]}: rename it if it belongs here)" if near else ""
            what = f"{name}: no {path}{files.dead_link(path)}{hint}"
            missing.append(f"{what}; it is trained in stage 1 but has NO specialist")
    notes += missing[:_MISSING_SHOWN]
    if (more := len(missing) - _MISSING_SHOWN) > 0:
        notes.append(f"... and the same for {more} more species")
    if not annotations and (root / "annotations").is_dir():
        raise UserError(f"{root} holds no annotation file; use {root / 'annotations'} instead")
    return annotations, notes


def strata_of_records(catalog: Catalog, annotations: dict[str, SpeciesAnnotations]) -> np.ndarray:
    """Return the class of each record's primary attribute, -1 if unknown: (R,) int32."""
    strata = np.full(catalog.num_records, UNKNOWN, dtype=np.int32)
    for name, table in annotations.items():
        if feature := primary_attribute(table):
            own = catalog.record_class == catalog.classes.index(name)
            strata[own] = table.align(catalog.record_names[own])[feature]
    return strata


def primary_attribute(table: SpeciesAnnotations) -> str | None:
    """Return the first feature, in the order of `PRIMARY_ATTR_PRIORITY`, with a known class."""
    ranked = (feature for feature in PRIMARY_ATTR_PRIORITY if table.vocabularies.get(feature))
    return next(ranked, None)


def sample_places(dataset: Dataset, part: str, species: str | None, num: int) -> np.ndarray:
    """Draw at most `num` images of a split, (M,) places in the catalog, sorted; deterministic.

    The strata contribute equally: species, or the primary attribute's classes of one species.
    """
    catalog, is_wanted = dataset.catalog, dataset.image_split == SPLITS.index(part)
    strata = catalog.class_index
    if species is not None:
        is_wanted &= catalog.class_index == catalog.classes.index(species)
        strata = strata_of_records(catalog, dataset.annotations)[catalog.record_index]
    places = np.flatnonzero(is_wanted)
    return places[sample_evenly(strata[places], num)]


def _scan_notes(found: Scan) -> list[str]:
    notes = [found.stray_text()] if found.strays else []
    if found.empty_species:
        notes.append(f"species folders without images: {', '.join(found.empty_species)}")
    if found.empty_records:
        notes.append(f"{len(found.empty_records)} record folders without images")
    if found.num_merged_folders:
        notes.append(f"{found.num_merged_folders} record folders share a record with another one")
    return notes


def _provenance_notes(path: Path, seed: int) -> list[str]:
    """Describe an existing split file made with another seed, or from a source."""
    made = read_side_file(path)
    if made.get("origin"):
        return [f"the split in {path} was taken from {made['origin']}"]
    notes = []
    if num := made.get("num_sharing_files"):
        what = "records share a photo with another record: the split keeps them together"
        notes = [f"{num} {what}"]
    if made["seed"] != seed:
        notes.append(f"the split in {path} was made with seed {made['seed']} and is kept")
    return notes


def _label_notes(dataset: Dataset) -> list[str]:
    """List records and rows without a counterpart, and classes with too few records to test."""
    notes, few_notes = [], []
    for name in dataset.catalog.classes:
        if twins := spelling_twins(dataset.catalog.records_of(name).tolist()):
            what = "records differ from another only in the spelling of the name"
            notes.append(f"{name}: {sum(map(len, twins))} {what}: {shown_twins(twins)}")
    for name, table in dataset.annotations.items():
        no_row, no_record = dataset.unmatched(name)
        if no_row:
            notes.append(f"{name}: {len(no_row)} records have no row; all their labels are unknown")
        if no_record:
            notes.append(f"{name}: {len(no_record)} rows have no record with images: unused")
        if not (feature := primary_attribute(table)):
            continue
        own, vocabulary = dataset.catalog.records_of(name), table.vocabularies[feature]
        if few := untestable_classes(table.align(own)[feature], vocabulary):
            shown = ", ".join(repr(label) for label, _ in few[:3]) + ", ..." * (len(few) > 3)
            what = f"{len(few)} of {len(vocabulary)} {feature} classes"
            few_notes.append(f"{name}: {what} have too few records to be tested: {shown}")
    return notes + few_notes


def species_of_records(catalog: Catalog) -> np.ndarray:
    """Return the species of each record: (R,) str."""
    return np.array(catalog.classes)[catalog.record_class]


def choose_species(
    dataset: Dataset, wanted: str | Sequence[str], annotations_root: str
) -> tuple[list[str], list[str]]:
    """List the species that can have a specialist: "all", or one or several by name.

    With "all", species without a known label are skipped with a note. A named species without one
    raises `UserError`, and so does an empty result.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    is_all = names == ["all"]
    chosen, notes = [], []
    for species in dataset.catalog.classes if is_all else names:
        annotations = dataset.annotations.get(species)
        if annotations is not None and any(annotations.vocabularies.values()):
            chosen.append(species)
            continue
        reason = f"{species}: no known label in {annotations_root}; no specialist can be trained"
        if not is_all:
            known = ", ".join(dataset.catalog.classes)
            raise UserError(f"SPECIES {reason} (species found: {known})")
        notes.append(reason)
    if not chosen:
        raise UserError(f"{annotations_root}: no species has a known label, nothing to train")
    return chosen, notes
