"""What an audit of a dataset finds: counts and issues as JSON, CSV files and text."""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from petface import files
from petface.analysis import duplicates
from petface.analysis.photos import Photos
from petface.data import images
from petface.data.dataset import Dataset
from petface.data.loading import OK, TOO_LARGE, UNREADABLE
from petface.data.sample import sample_evenly
from petface.data.sources.petface import Scan
from petface.data.splits import SPLITS, TEST

MIN_RECORDS = 10  # a class with fewer is rare
BRIGHTNESS_BINS = 16
SMALL_PX, ELONGATED = 32, 3.0  # a side shorter than this; one side this many times the other
DARK, BRIGHT = 10.0, 245.0  # mean grey level of a photo that shows next to nothing
QUICK_LIMIT_S = 1.2  # `quick_audit_line` stops looking at photos then
_MANY_PHOTOS = 12  # records with more are counted together
_MOST_SIZES = 12


@dataclass(frozen=True)
class Issue:
    """One thing to look at: `where` is a path below the images folder, or species/record."""

    kind: str
    where: str
    detail: str


@dataclass(frozen=True)
class DuplicatePair:
    """Two photos of different records; `distance` in bits, `difference` between thumbnails."""

    kind: str  # exact, near
    path_a: str
    split_a: str
    path_b: str
    split_b: str
    distance: int
    difference: float
    places: tuple[int, int]  # in the catalog

    @property
    def across_splits(self) -> bool:
        return self.split_a != self.split_b


@dataclass(frozen=True)
class ClassCount:
    """Records with photos of one class, in all and in train, val and test."""

    species: str
    feature: str
    name: str
    records: int
    by_split: tuple[int, ...]

    @property
    def is_rare(self) -> bool:
        return self.records < MIN_RECORDS

    @property
    def is_untestable(self) -> bool:
        return self.by_split[TEST] == 0


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything found; `summary` is ready for JSON."""

    summary: dict[str, Any]
    issues: list[Issue]
    duplicates: list[DuplicatePair]
    classes: list[ClassCount]
    examples: dict[str, list[int]] = field(default_factory=dict)  # kind -> places of photos


def make_audit(dataset: Dataset, scan: Scan, photos: Photos) -> Audit:
    """Return what the tree, the labels and the photos show."""
    classes = list(count_classes(dataset))
    pairs, search = find_duplicates(dataset, photos)
    odd = _odd_photos(photos)
    issues = [
        *(
            Issue("too_large" if photos.seen["status"][row] == TOO_LARGE else "unreadable",
                  path_text(dataset, photos.places[row]), why)
            for row, why in photos.failures.items()
        ),
        *_tree_issues(scan),
        *_label_issues(dataset),
        *(
            Issue(kind, path_text(dataset, photos.places[row]), detail)
            for kind, found in odd.items()
            for row, detail in found.items()
        ),
    ]  # fmt: skip
    kinds = [(p.kind + "_across_splits" * across, p) for p in pairs for across in (0, 1)]
    counts = Counter(name for name, p in kinds if p.across_splits or name == p.kind)
    names = ("exact", "exact_across_splits", "near", "near_across_splits")
    summary = {
        "photos": len(dataset.catalog),
        "records": dataset.catalog.num_records,
        "species": len(dataset.catalog.classes),
        "looked_at": len(photos.places),
        **_photo_summary(photos.seen),
        "strays": dict(sorted(scan.stray_counts.items())),
        "issues": dict(sorted(Counter(issue.kind for issue in issues).items())),
        "duplicates": {**{name: counts[name] for name in names}, **search},
        "per_species": _species_summary(dataset, photos),
        "photos_per_record": photos_per_record(dataset),
        "heads": head_figures(dataset, classes),
        "notes": list(dataset.notes),
    }
    examples = {kind: photos.places[list(found)].tolist() for kind, found in odd.items()}
    return Audit(summary, issues, pairs, classes, examples)


def write_audit(folder: Path, audit: Audit) -> None:
    """Write audit.json, issues.csv, duplicates.csv and classes.csv."""
    files.write_json(folder / "audit.json", audit.summary)
    rows = ((issue.kind, issue.where, issue.detail) for issue in audit.issues)
    files.write_csv(folder / "issues.csv", ("kind", "path_or_record", "detail"), rows)
    columns = ("kind", "path_a", "split_a", "path_b", "split_b", "distance", "difference")
    pairs = ([getattr(pair, column) for column in columns] for pair in audit.duplicates)
    files.write_csv(folder / "duplicates.csv", columns, pairs)
    header = ("species", "feature", "class", "records", *SPLITS)
    counts = ((c.species, c.feature, c.name, c.records, *c.by_split) for c in audit.classes)
    files.write_csv(folder / "classes.csv", header, counts)


def path_text(dataset: Dataset, place: int) -> str:
    """Return a photo's path below the images folder; bytes that are not UTF-8 are shown escaped."""
    return dataset.catalog.relative_path(int(place)).decode("utf-8", "backslashreplace")


def find_duplicates(dataset: Dataset, photos: Photos) -> tuple[list[DuplicatePair], dict[str, int]]:
    """List pairs of different records, those across splits first, and how thorough the search was.

    Photos of next to one colour, whose hash is noise, are left out of the search for near ones.
    """
    seen = photos.seen
    usable = np.flatnonzero(seen["status"] == OK)
    records = dataset.catalog.record_index[photos.places[usable]]
    digests = seen["digest"][usable]
    exact = usable[duplicates.exact_pairs(digests, records, dataset.record_split[records])]
    _, first = np.unique(digests, return_index=True)  # copies are found already
    shown = first[seen["contrast"][usable[first]] >= duplicates.MIN_CONTRAST]
    near = duplicates.near_pairs(seen["hash"][usable[shown]], records[shown])
    rows = usable[shown[near.pairs]].reshape(-1, 2)
    difference = duplicates.thumbnail_difference(seen["thumbnail"], rows)
    alike = difference <= duplicates.MAX_DIFFERENCE

    def pair(kind: str, rows: list[int], distance: int, difference: float) -> DuplicatePair:
        places = a, b = (int(photos.places[rows[0]]), int(photos.places[rows[1]]))
        paths = [path_text(dataset, place) for place in places]
        splits = [SPLITS[k] for k in dataset.image_split[list(places)]]
        return DuplicatePair(
            kind, paths[0], splits[0], paths[1], splits[1], distance, round(difference, 3), (a, b)
        )

    found = [pair("exact", two, 0, 0.0) for two in exact.tolist()]
    kept = zip(
        rows[alike].tolist(), near.distance[alike].tolist(), difference[alike].tolist(), strict=True
    )
    found += [pair("near", *near_one) for near_one in kept]
    found.sort(key=lambda p: (not p.across_splits, p.kind, p.difference, p.path_a, p.path_b))
    return found, {"candidates": len(rows), "radius_bits": near.radius, "crowded": near.crowded}


def quick_audit_line(
    dataset: Dataset, sample: int = 500, seed: int = 0, *, annotations_root: str | Path = ""
) -> str:
    """Return in one line, in under two seconds, what a first look at the data shows.

    Photos are looked at in random order until there were `sample` of them or time is up.
    """
    start, looked_at, bad, catalog = time.perf_counter(), 0, 0, dataset.catalog
    places = sample_evenly(catalog.class_index, sample, seed)
    for place in np.random.default_rng(seed).permutation(places).tolist():
        if looked_at and time.perf_counter() - start > QUICK_LIMIT_S:
            break
        looked_at += 1
        try:
            images.decode(catalog.path(place))
        except images.ImageError:
            bad += 1
    root = Path(os.fsdecode(catalog.root))
    labels = annotations_root or root.parent / "annotations"
    flags = f"--images-root {shlex.quote(str(root))} --annotations-root {shlex.quote(str(labels))}"
    strays = [note.split()[0] for note in dataset.notes if " entries of the tree are no " in note]
    untestable = sum(found.is_untestable for found in count_classes(dataset))
    return (
        f"data: {catalog.num_records:,} records, {len(catalog):,} photos, "
        f"{strays[0] if strays else 0} strays; "
        f"{bad:,} of {looked_at:,} sampled photos cannot be read; "
        f"{untestable:,} classes have no test record; "
        f"full audit: python -m tools.audit --all {flags}"
    )


def _tree_issues(scan: Scan) -> Iterator[Issue]:
    for path, reason in scan.strays:
        yield Issue("stray", path.decode("utf-8", "backslashreplace"), reason)
    if scan.num_strays > len(scan.strays):
        more = f"{scan.num_strays - len(scan.strays):,} more are counted and not listed"
        yield Issue("stray", "", more)
    for name in scan.empty_species:
        yield Issue("empty_species", name, "a species folder without an image")
    for folder in scan.empty_records:
        where = folder.decode("utf-8", "backslashreplace")
        yield Issue("empty_record", where, "a record folder without an image")


def _label_issues(dataset: Dataset) -> Iterator[Issue]:
    for species in dataset.catalog.classes:
        if species not in dataset.annotations:
            yield Issue("no_annotation_file", species, "trains in stage 1, has no specialist")
            continue
        no_row, no_photo = dataset.unmatched(species)
        for record in no_row:
            yield Issue("record_without_row", f"{species}/{record}", "all its labels are unknown")
        for record in no_photo:
            yield Issue("row_without_photo", f"{species}/{record}", "the row is not used")
        for conflict in dataset.annotations[species].conflicts:
            values, lines = " | ".join(conflict.values), ", ".join(map(str, conflict.lines))
            where = f"{species}/{conflict.record}"
            yield Issue("label_conflict", where, f"{conflict.feature}: {values} (lines {lines})")


def _odd_photos(photos: Photos) -> dict[str, dict[int, str]]:
    """Find readable photos that look wrong: kind -> row -> detail."""
    seen = photos.seen
    sides = np.stack((seen["width_px"], seen["height_px"]))
    size, short, long = "{0[width_px]}x{0[height_px]}", sides.min(axis=0), sides.max(axis=0)
    light, flat = "mean grey level {0[brightness]:.1f}", seen["contrast"] < duplicates.MIN_CONTRAST
    found = {
        "small": (short < SMALL_PX, size),
        "elongated": (long >= ELONGATED * short, size),
        "dark": (seen["brightness"] < DARK, light),
        "bright": (seen["brightness"] > BRIGHT, light),
        "flat": (flat, "grey levels vary by {0[contrast]:.1f} (standard deviation)"),
    }
    return {
        kind: {
            row: form.format(seen[row])
            for row in np.flatnonzero(mask & (seen["status"] == OK)).tolist()
        }
        for kind, (mask, form) in found.items()
    }


def count_classes(dataset: Dataset) -> Iterator[ClassCount]:
    """Count the records with photos of every class, in the order of species, heads and names."""
    catalog = dataset.catalog
    for number, species in enumerate(catalog.classes):
        if species not in dataset.annotations:
            continue
        table = dataset.annotations[species]
        own = catalog.record_class == number
        split = dataset.record_split[own].astype(np.int64)
        for feature, labels in table.align(catalog.record_names[own]).items():
            counts = np.zeros((len(table.vocabularies[feature]), len(SPLITS)), np.int64)
            np.add.at(counts, (labels[labels >= 0], split[labels >= 0]), 1)
            for name, row in zip(table.vocabularies[feature], counts.tolist(), strict=True):
                yield ClassCount(species, feature, name, sum(row), tuple(row))


def _species_summary(dataset: Dataset, photos: Photos) -> dict[str, dict[str, Any]]:
    """Count photos and records of each species, and what was seen of its photos."""
    catalog = dataset.catalog
    seen_class = catalog.class_index[photos.places]
    found = {}
    for number, name in enumerate(catalog.classes):
        own, seen = catalog.record_class == number, photos.seen[seen_class == number]
        split = np.bincount(dataset.record_split[own], minlength=len(SPLITS)).tolist()
        found[name] = {
            "photos": int((catalog.class_index == number).sum()),
            "records": int(own.sum()),
            "records_per_split": dict(zip(SPLITS, split, strict=True)),
            "has_annotations": name in dataset.annotations,
            "looked_at": len(seen),
            **_brightness_and_failures(seen),
        }
    return found


def _photo_summary(seen: np.ndarray) -> dict[str, Any]:
    """Describe the readable ones of the photos that were looked at: sizes, modes, brightness."""
    own = seen[seen["status"] == OK]
    sizes, counts = np.unique(own[["width_px", "height_px"]], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_SIZES]
    modes = Counter(own["mode"].tolist())
    bins, _ = np.histogram(own["brightness"], BRIGHTNESS_BINS, range=(0, 256))
    counted = _brightness_and_failures(seen)
    mean_brightness = counted.pop("mean_brightness")
    return {
        **counted,
        "num_sizes": len(sizes),
        "sizes": {f"{sizes[k][0]}x{sizes[k][1]}": int(counts[k]) for k in order},
        "modes": dict(sorted(modes.items(), key=lambda item: (-item[1], item[0]))),
        "brightness_histogram": bins.tolist(),
        "mean_brightness": mean_brightness,
    }


def _brightness_and_failures(seen: np.ndarray) -> dict[str, Any]:
    light = seen["brightness"][seen["status"] == OK]
    return {
        "unreadable": int((seen["status"] == UNREADABLE).sum()),
        "too_large": int((seen["status"] == TOO_LARGE).sum()),
        "mean_brightness": round(float(light.mean()), 1) if len(light) else None,
    }


def photos_per_record(dataset: Dataset) -> dict[str, int]:
    """Count the records with 1, 2, 3 ... photos; those with many stand together."""
    num_photos = np.bincount(dataset.catalog.record_index, minlength=dataset.catalog.num_records)
    counts = np.bincount(np.minimum(num_photos, _MANY_PHOTOS + 1))
    names = [*map(str, range(_MANY_PHOTOS + 1)), f"{_MANY_PHOTOS + 1}+"]
    return {names[n]: num for n, num in enumerate(counts.tolist()) if n}


def head_figures(
    dataset: Dataset, classes: Iterable[ClassCount]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Count classes, rare and untestable ones and unknown labels of each head of each species."""
    classes, catalog = list(classes), dataset.catalog
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for species, table in sorted(dataset.annotations.items()):
        records = int((catalog.record_class == catalog.classes.index(species)).sum())
        found[species] = {}
        for feature in table.features:
            own = [c for c in classes if (c.species, c.feature) == (species, feature)]
            known = sum(c.records for c in own)
            found[species][feature] = {
                "classes": len(own),
                "records_known": known,
                "unknown_frac": round(1 - known / records, 4),
                "rare_classes": sum(c.is_rare for c in own),
                "untestable_classes": sum(c.is_untestable for c in own),
            }
    return found


def describe_audit(summary: dict[str, Any]) -> str:
    """Format the main counts as the text that an audit prints."""
    species = pd.json_normalize(list(summary["per_species"].values())).assign(
        species=list(summary["per_species"])
    )
    species.columns = species.columns.str.removeprefix("records_per_split.")
    shown = ["records", "photos", *SPLITS, "looked_at", "unreadable", "too_large"]
    lines = [species.set_index("species")[shown].to_string()]
    heads = {
        f"{name} {feature}": {key.removesuffix("_classes"): value for key, value in own.items()}
        for name, features in summary["heads"].items()
        for feature, own in features.items()
    }
    if heads:
        lines += ["", pd.DataFrame.from_dict(heads, orient="index").to_string()]
    for key in ("sizes", "modes"):
        listed = ", ".join(f"{name} ({num:,})" for name, num in list(summary[key].items())[:5])
        lines.append(f"{key}: {listed}")
    lines += [*(f"note: {note}" for note in summary["notes"]), ""]
    lines += [f"{name}: {value}" for name, value in headline(summary).items()]
    return "\n".join(lines)


def headline(summary: dict[str, Any]) -> dict[str, str]:
    """Return the counts that decide whether the data can be used, most general first."""
    heads = [own for per_head in summary["heads"].values() for own in per_head.values()]
    pairs = summary["duplicates"]
    counts = {
        **{k: summary[k] for k in ("records", "photos", "looked_at", "unreadable", "too_large")},
        "strays": sum(summary["strays"].values()),
        "label_conflicts": summary["issues"].get("label_conflict", 0),
        "rare_classes": sum(own["rare_classes"] for own in heads),
        "untestable_classes": sum(own["untestable_classes"] for own in heads),
        "exact_duplicates_across_splits": pairs["exact_across_splits"],
        "exact_duplicates": pairs["exact"],
        "near_duplicates_across_splits": pairs["near_across_splits"],
        "near_duplicates": pairs["near"],
    }
    return {name: f"{num:,}" for name, num in counts.items()}
