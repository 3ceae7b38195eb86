"""What an audit of a dataset finds: every figure and every issue, as JSON, CSV files and text."""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from petface import files
from petface.analysis import duplicates
from petface.analysis.audit_figures import (
    ClassCount,
    count_classes,
    head_figures,
    photo_figures,
    photos_per_record,
    species_figures,
)
from petface.analysis.audit_photos import Photos, sample_evenly
from petface.data import images
from petface.data.dataset import Dataset
from petface.data.loading import OK, TOO_LARGE
from petface.data.sources.petface import Scan
from petface.data.splits import SPLITS

SMALL_PX, ELONGATED = 32, 3.0  # a side shorter than this; one side this many times the other
DARK, BRIGHT = 10.0, 245.0  # mean grey level of a photo that shows next to nothing
QUICK_LIMIT_S = 1.2  # `quick_audit_line` stops looking at photos then


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


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything found; `summary` is ready for JSON."""

    summary: dict[str, Any]
    issues: list[Issue]
    duplicates: list[DuplicatePair]
    classes: list[ClassCount]
    examples: dict[str, list[int]] = field(default_factory=dict)  # kind -> places of photos


def make_audit(dataset: Dataset, scan: Scan, photos: Photos) -> Audit:
    """Bring together what the tree, the labels and the photos show."""
    classes = list(count_classes(dataset))
    pairs, search = find_duplicates(dataset, photos)
    odd = _odd_photos(photos)
    issues = [
        *_unusable(dataset, photos),
        *_tree_issues(scan),
        *_label_issues(dataset),
        *(
            Issue(kind, path_text(dataset, int(photos.places[row])), detail)
            for kind, found in odd.items()
            for row, detail in found
        ),
    ]
    summary = {
        "photos": len(dataset.catalog),
        "records": dataset.catalog.num_records,
        "species": len(dataset.catalog.classes),
        "looked_at": len(photos.places),
        **photo_figures(photos),
        "strays": dict(sorted(scan.stray_counts.items())),
        "issues": dict(sorted(Counter(issue.kind for issue in issues).items())),
        "duplicates": {
            **{
                name: sum(pair.kind == kind and pair.across_splits >= across for pair in pairs)
                for kind in ("exact", "near")
                for name, across in ((kind, False), (f"{kind}_across_splits", True))
            },
            **search,
        },
        "per_species": species_figures(dataset, photos),
        "photos_per_record": photos_per_record(dataset),
        "heads": head_figures(dataset, classes),
        "notes": list(dataset.notes),
    }
    examples = {k: [int(photos.places[row]) for row, _ in found] for k, found in odd.items()}
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
    """Give a photo's path below the images folder; bytes that are not UTF-8 are shown escaped."""
    return dataset.catalog.relative_path(place).decode("utf-8", "backslashreplace")


def find_duplicates(dataset: Dataset, photos: Photos) -> tuple[list[DuplicatePair], dict[str, int]]:
    """List pairs of different records, those across splits first, and how thorough the search was.

    Photos of next to one colour, whose hash is noise, are left out of the search for near ones.
    """
    usable = np.flatnonzero(photos.status == OK)
    records = dataset.catalog.record_index[photos.places[usable]]
    splits = dataset.record_split[records]
    exact = usable[duplicates.exact_pairs(photos.digest[usable], records, splits)]
    _, first = np.unique(photos.digest[usable], return_index=True)  # copies are found already
    shown = first[photos.contrast[usable[first]] >= duplicates.MIN_CONTRAST]
    near = duplicates.near_pairs(photos.hashes[usable[shown]], records[shown])
    rows = usable[shown[near.pairs]].reshape(-1, 2)
    difference = duplicates.thumbnail_difference(photos.thumbnails, rows)
    alike = difference <= duplicates.MAX_DIFFERENCE
    found = [
        *(_pair(dataset, photos, "exact", pair, 0, 0.0) for pair in exact.tolist()),
        *(
            _pair(dataset, photos, "near", pair, int(bits), round(float(by), 3))
            for pair, bits, by in zip(
                rows[alike].tolist(), near.distance[alike], difference[alike], strict=True
            )
        ),
    ]
    found.sort(key=lambda p: (not p.across_splits, p.kind, p.difference, p.path_a, p.path_b))
    return found, {"candidates": len(rows), "radius_bits": near.radius, "crowded": near.crowded}


def quick_audit_line(
    dataset: Dataset, sample: int = 500, seed: int = 0, *, annotations_root: str | Path = ""
) -> str:
    """Say in one line, in under two seconds, what a first look at the data shows.

    Photos are looked at in random order until there were `sample` of them or time is up.
    """
    start = time.perf_counter()
    catalog = dataset.catalog
    untestable = sum(found.is_untestable for found in count_classes(dataset))
    places = np.random.default_rng(seed).permutation(sample_evenly(catalog, sample, seed))
    looked_at = bad = 0
    for place in places.tolist():
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
    strays = [note for note in dataset.notes if " entries of the tree are no image" in note]
    return (
        f"data: {catalog.num_records:,} records, {len(catalog):,} photos, "
        f"{int(strays[0].split()[0]) if strays else 0:,} strays; "
        f"{bad:,} of {looked_at:,} sampled photos cannot be read; "
        f"{untestable:,} classes have no test record; "
        f"full audit: python -m tools.audit --all {flags}"
    )


def _pair(
    dataset: Dataset, photos: Photos, kind: str, rows: list[int], distance: int, difference: float
) -> DuplicatePair:
    a, b = (int(photos.places[row]) for row in rows)
    split_a, split_b = (
        SPLITS[dataset.record_split[dataset.catalog.record_index[p]]] for p in (a, b)
    )
    path_a, path_b = path_text(dataset, a), path_text(dataset, b)
    return DuplicatePair(kind, path_a, split_a, path_b, split_b, distance, difference, (a, b))


def _unusable(dataset: Dataset, photos: Photos) -> Iterator[Issue]:
    for row, why in photos.failures:
        kind = "too_large" if photos.status[row] == TOO_LARGE else "unreadable"
        yield Issue(kind, path_text(dataset, int(photos.places[row])), why)


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


def _odd_photos(photos: Photos) -> dict[str, list[tuple[int, str]]]:
    """Find readable photos that look wrong: kind -> (row, detail)."""
    ok = photos.status == OK
    width, height = photos.width_px, photos.height_px
    short, long = np.minimum(width, height), np.maximum(width, height)
    found = {
        "small": ok & (short < SMALL_PX),
        "elongated": ok & (long >= ELONGATED * short),
        "dark": ok & (photos.brightness < DARK),
        "bright": ok & (photos.brightness > BRIGHT),
        "flat": ok & (photos.contrast < duplicates.MIN_CONTRAST),
    }

    def detail(kind: str, row: int) -> str:
        if kind in ("small", "elongated"):
            return f"{width[row]}x{height[row]}"
        if kind == "flat":
            return f"grey levels vary by {photos.contrast[row]:.1f} (standard deviation)"
        return f"mean grey level {photos.brightness[row]:.1f}"

    return {
        kind: [(row, detail(kind, row)) for row in np.flatnonzero(mask).tolist()]
        for kind, mask in found.items()
    }
