"""An audit of a dataset as one page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petface.report import charts, photos
from petface.report import folders as read
from petface.report.page import Metric, Page, Photo, Section, Strip, render, table

if TYPE_CHECKING:
    from petface.analysis.audit import Audit
    from petface.data.dataset import Dataset

_SPECIES_KEYS = (
    "species photos records records_per_split.train records_per_split.val records_per_split.test "
    "unreadable too_large mean_brightness"
)
_MAX_PAIRS, _MAX_EXAMPLES, _MAX_LISTED = 8, 4, 100  # the CSV files hold all


def audit_page(audit: Audit, dataset: Dataset, title: str, *, with_photos: bool) -> str:
    """Return the page; photos stand in it `with_photos`, and always where they are made up."""
    summary, pairs = audit.summary, audit.duplicates
    leaks = sum(pair.across_splits for pair in pairs)
    looked = f"{summary['looked_at']:,} of {summary['photos']:,} photos looked at"
    page = Page(title, "Data audit", f"{looked}; sizes, brightness and duplicates speak of these.")
    if leaks:
        page.notes.append(f"{leaks:,} pairs of equal photos lie in different parts of the split.")
    if summary["duplicates"]["crowded"]:
        page.notes.append("Some hashes are so common that not all their pairs were compared.")
    root = Path(title)
    if with_photos or photos.are_made_up(root):
        copies = _pair_photos(audit, root)
        odd = [
            photo
            for kind, places in audit.examples.items()
            for photo in _photos(dataset, root, places[:_MAX_EXAMPLES], kind)
        ]
        first = np.unique(dataset.catalog.class_index, return_index=True)[1].tolist()
        page.photos = [
            Section("One photo of each species", [Strip(_photos(dataset, root, first), "photos")]),
            Section("Duplicates under two records", [Strip([*copies], "photos")]),
            Section("Odd photos", [Strip(odd, "photos")]),
        ]
    bad = summary["unreadable"] + summary["too_large"]
    untestable = sum(c.is_untestable for c in audit.classes)
    page.metrics = [
        Metric("photos", f"{summary['photos']:,}", [f"{summary['records']:,} records (animals)"]),
        Metric("species", f"{summary['species']:,}", [f"{len(audit.classes):,} attribute classes"]),
        Metric("cannot be used", f"{bad:,}", [f"of {summary['looked_at']:,} looked at"]),
        Metric("duplicate pairs", f"{len(pairs):,}", [f"{leaks:,} across the parts of the split"]),
        Metric("classes without a test record", f"{untestable:,}", ["no metric tells of them"]),
    ]
    page.sections = [
        Section("Species", [table(read.rows(summary["per_species"], "species"), _SPECIES_KEYS)]),
        Section("What the photos are like", [Strip(_charts(summary))]),
    ]
    page.folded = [
        *_issues(audit),
        Section("Duplicates (duplicates.csv holds all)", [table(_pairs(audit))]),
        Section("Attributes", [table(read.rows(summary["heads"], "species", "attribute"))]),
        Section("Rare and untestable classes (classes.csv holds all)", [table(_classes(audit))]),
        Section("Notes of the readers", [table({"note": note} for note in summary["notes"])]),
    ]
    return render(page)


def _pair_photos(audit: Audit, root: Path) -> Iterator[Photo]:
    for pair in audit.duplicates[:_MAX_PAIRS]:
        for path, split in ((pair.path_a, pair.split_a), (pair.path_b, pair.split_b)):
            kind = "wrong" if pair.across_splits else "pale"
            yield photos.photo(root, path, (f"{pair.kind}, {split}", kind), (path, "pale"))


def _photos(dataset: Dataset, root: Path, places: list[int], kind: str = "") -> list[Photo]:
    from petface.analysis.audit import path_text

    paths = [path_text(dataset, place) for place in places]
    lines = [(kind, "wrong")] if kind else []
    return [photos.photo(root, path, *lines, (path, "pale")) for path in paths]


def _charts(summary: dict[str, Any]) -> list[Any]:
    levels, step = summary["brightness_histogram"], 256 // len(summary["brightness_histogram"])
    grey = {f"{k * step}-{k * step + step - 1}": num for k, num in enumerate(levels)}
    return [
        charts.bars("Photos per record", summary["photos_per_record"], "records"),
        charts.bars("Mean grey level, 0 black to 255 white", grey, "photos"),
        charts.bars("Most common sizes, pixels", summary["sizes"], "photos"),
    ]


def _classes(audit: Audit) -> list[dict[str, Any]]:
    found = [c for c in audit.classes if c.is_rare or c.is_untestable]
    found.sort(key=lambda c: (not c.is_untestable, c.records))
    return [
        {"species": c.species, "attribute": c.feature, "class": c.name, "records": c.records,
         **dict(zip(("train", "val", "test"), c.by_split, strict=True))}
        for c in found[:_MAX_LISTED]
    ]  # fmt: skip


def _pairs(audit: Audit) -> list[dict[str, Any]]:
    return [
        {"kind": p.kind, "photo": p.path_a, "part": p.split_a, "other photo": p.path_b,
         "other part": p.split_b, "difference": p.difference}
        for p in audit.duplicates[:_MAX_LISTED]
    ]  # fmt: skip


def _issues(audit: Audit) -> Iterator[Section]:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for issue in audit.issues:
        row = {"path or record": issue.where, "detail": issue.detail}
        by_kind.setdefault(issue.kind, []).append(row)
    for kind, rows in by_kind.items():
        title = f"{kind.replace('_', ' ')}: {len(rows):,} (issues.csv holds all)"
        yield Section(title, [table(rows[:_MAX_LISTED])])
