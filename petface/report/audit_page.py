"""An audit of a dataset as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from petface.report import charts, photos
from petface.report.folders import rows
from petface.report.page import Metric, Page, Strip, render, table

if TYPE_CHECKING:
    from petface.analysis.audit import Audit
    from petface.data.dataset import Dataset

_SPECIES_COLUMNS = (
    "species photos records records_per_split.train records_per_split.val records_per_split.test "
    "unreadable too_large mean_brightness"
)
_MAX_PAIRS, _MAX_EXAMPLES, _MAX_ISSUES, _MAX_LISTED = 8, 4, 5, 100  # the CSV files hold all


def audit_page(audit: Audit, dataset: Dataset, title: str, *, with_photos: bool) -> str:
    """Return the page; photos stand in it `with_photos`, and always where they are made up."""
    from petface.analysis.audit import MIN_RECORDS, is_across_splits

    summary, pairs = audit.summary, audit.duplicates
    leaks = int(is_across_splits(pairs).sum())
    bad = summary["unreadable"] + summary["too_large"]
    classes = audit.classes.assign(testable=audit.classes["test"] > 0)
    listed = classes[(classes["records"] < MIN_RECORDS) | ~classes["testable"]]
    listed = listed.sort_values(["testable", "records"], kind="stable")
    untestable = (~classes["testable"]).sum()
    told = f"{leaks:,} pairs of duplicates lie in different parts of the split."
    notes = [told] if leaks else []
    if summary["duplicates"]["crowded"]:
        notes.append("Some hashes are so common that not all their pairs were compared.")
    page = Page(
        title,
        "Data audit",
        f"{summary['looked_at']:,} of {summary['photos']:,} photos were read for the counts of "
        "sizes, brightness and duplicates.",
        notes,
        {},
        [
            Metric("photos", f"{summary['photos']:,}", [f"{summary['records']:,} animals"]),
            Metric("species", f"{summary['species']:,}", [f"{len(audit.classes):,} classes"]),
            Metric("unusable", f"{bad:,}", [f"of {summary['looked_at']:,} read"]),
            Metric("duplicate pairs", f"{len(pairs):,}", [f"{leaks:,} across the split"]),
            Metric("untestable classes", f"{untestable:,}", ["without a test record"]),
        ],
        {
            "Issues (all in issues.csv)": [table(_issues(audit))],
            **_photos(audit, dataset, Path(title), with_photos=with_photos),
            "Species": [table(rows(summary, "per_species.{species}"), _SPECIES_COLUMNS)],
            "Sizes and brightness": [Strip(_charts(summary))],
        },
        {
            "Duplicates (all in duplicates.csv)": [
                table(_first(pairs), "kind path_a split_a path_b split_b difference")
            ],
            "Attributes": [table(rows(summary, "heads.{species}.{attribute}"))],
            "Rare and untestable classes (all in classes.csv)": [
                table(_first(listed), "species feature class records train val test")
            ],
            "Notes from reading the data": [table({"note": note} for note in summary["notes"])],
        },
    )
    return render(page)


def _photos(
    audit: Audit, dataset: Dataset, root: Path, *, with_photos: bool
) -> dict[str, list[Strip]]:
    from petface.analysis.audit import path_text

    if not with_photos and not photos.are_made_up(root):
        return {}
    first = np.unique(dataset.catalog.class_index, return_index=True)[1].tolist()
    shown: dict[str, list[tuple[str, str, str]]] = {  # path, words, their mark
        "Duplicates under two records": [
            (pair[f"path_{side}"], f"{pair['kind']}, {pair[f'split_{side}']}",
             "pale" if pair["split_a"] == pair["split_b"] else "wrong")
            for pair in _first(audit.duplicates, _MAX_PAIRS)
            for side in "ab"
        ],
        "Odd photos": [
            (path_text(dataset, place), kind, "wrong")
            for kind, places in audit.examples.items()
            for place in places[:_MAX_EXAMPLES]
        ],
        "One photo of each species": [(path_text(dataset, place), "", "") for place in first],
    }  # fmt: skip
    return {
        title: [Strip([photos.photo(root, p, (w, m), (p, "pale")) for p, w, m in own], "photos")]
        for title, own in shown.items()
    }


def _charts(summary: dict[str, Any]) -> list[Any]:
    levels, step = summary["brightness_histogram"], 256 // len(summary["brightness_histogram"])
    grey = {f"{k * step}-{k * step + step - 1}": num for k, num in enumerate(levels)}
    return [
        charts.bars("Photos per record", summary["photos_per_record"], "records", "photos"),
        charts.bars("Mean grey level", grey, "photos", "0 black to 255 white"),
        charts.bars("Most common sizes", summary["sizes"], "photos", "pixels"),
    ]


def _issues(audit: Audit) -> list[dict[Any, Any]]:
    """List the first issues of each kind, with how many there are of it."""
    return [
        {"issue": f"{str(kind).replace('_', ' ')} ({len(found):,})", **row}
        for kind, found in audit.issues.groupby("kind", sort=False)
        for row in _first(found.drop(columns="kind"), _MAX_ISSUES)
    ]


def _first(found: pd.DataFrame, num: int = _MAX_LISTED) -> list[dict[Any, Any]]:
    return found.head(num).to_dict("records")
