"""An audit as one HTML page: no script, nothing from the network, every text escaped."""

from __future__ import annotations

import base64
import io
from typing import Any, Final

import numpy as np
from PIL import Image

from petface.analysis.audit import (
    BRIGHTNESS_BINS,
    MIN_RECORDS,
    Audit,
    Issue,
    headline,
    path_text,
)
from petface.data import images
from petface.data.dataset import Dataset
from petface.report.page import bars, page, table, text

PHOTO_PX: Final = 112
MAX_PAIRS, MAX_CLASSES, MAX_ISSUES, MAX_EXAMPLES = 100, 100, 25, 8  # shown; the CSVs hold all
_BAD = ("unreadable", "too_large", "label_conflicts", "exact_duplicates_across_splits",
        "near_duplicates_across_splits")  # fmt: skip
_DOUBTFUL = ("strays", "rare_classes", "untestable_classes", "exact_duplicates", "near_duplicates")
_KINDS = {
    "unreadable": "photos that cannot be read",
    "too_large": "photos refused for their size",
    "stray": "entries of the tree that are no image",
    "empty_species": "species folders without an image",
    "empty_record": "record folders without an image",
    "no_annotation_file": "species without an annotation file",
    "record_without_row": "records without a row: their labels are unknown",
    "row_without_photo": "rows without a photo: not used",
    "label_conflict": "rows of one record that contradict each other",
    "small": "photos with a very short side",
    "elongated": "photos much longer than wide, or wider than long",
    "dark": "photos that are nearly black",
    "bright": "photos that are nearly white",
    "flat": "photos of next to one colour",
}


def audit_page(audit: Audit, dataset: Dataset, title: str, *, with_photos: bool) -> str:
    """Lay the audit out as a page; photos stand in it only `with_photos`, as small JPEG copies."""
    summary = audit.summary
    looked = f"{summary['looked_at']:,} of {summary['photos']:,} photos were looked at"
    body = [
        f"<h1>Data audit</h1><p class=pale><bdi>{text(title)}</bdi><br>{looked}.",
        "Sizes, brightness and duplicates speak of these alone."
        if summary["looked_at"] < summary["photos"]
        else "",
        f"</p>{_tiles(headline(summary))}",
        _duplicates(audit, dataset, with_photos),
        _species(summary),
        _photo_sections(summary),
        _heads(summary),
        _classes(audit),
        _issues(audit, dataset, with_photos),
        "<h2>Notes of the readers</h2>",
        "".join(f"<p><bdi>{text(note)}</bdi></p>" for note in summary["notes"]) or "<p>None.</p>",
    ]
    return page("Data audit", body)


def _tiles(figures: dict[str, str]) -> str:
    tiles = []
    for name, value in figures.items():
        kind = "bad" if name in _BAD else "doubt" if name in _DOUBTFUL else ""
        kind = "good" if kind and value == "0" else kind
        label = name.replace("_", " ")
        tiles.append(f'<div class="tile {kind}"><b>{value}</b><span>{label}</span></div>')
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _species(summary: dict[str, Any]) -> str:
    header = ("species", "records", "photos", "per record", "train", "val", "test",
              "looked at", "unreadable", "too large", "brightness")  # fmt: skip
    rows = [
        (
            name,
            own["records"],
            own["photos"],
            round(own["photos"] / own["records"], 2),
            *own["records_per_split"].values(),
            own["looked_at"],
            own["unreadable"],
            own["too_large"],
            own["mean_brightness"] if own["mean_brightness"] is not None else "",
        )
        for name, own in summary["per_species"].items()
    ]
    note = "<p class=pale>Train, val and test in records; brightness is the mean grey level.</p>"
    return f"<h2>Species</h2>{note}{table(header, 1, rows)}"


def _photo_sections(summary: dict[str, Any]) -> str:
    step = 256 // BRIGHTNESS_BINS
    levels = summary["brightness_histogram"]
    brightness = {f"{i * step}-{i * step + step - 1}": num for i, num in enumerate(levels)}
    sizes = dict(summary["sizes"])
    if rest := sum(summary["modes"].values()) - sum(sizes.values()):
        sizes[f"{summary['num_sizes'] - len(sizes):,} other sizes"] = rest
    parts = {
        "Photos per record": bars(summary["photos_per_record"]),
        "Mean grey level of a photo": bars(brightness),
        "Sizes in pixels": bars(sizes),
        "Pixel layouts": bars(summary["modes"]),
    }
    blocks = "".join(f"<section><h2>{name}</h2>{drawn}</section>" for name, drawn in parts.items())
    return f"<div class=two>{blocks}</div>"


def _heads(summary: dict[str, Any]) -> str:
    header = ("head", "classes", "known", "unknown", "rare", "no test")
    rows = [
        (f"{species} {feature}", own["classes"], own["records_known"],
         f"{own['unknown_frac'] * 100:.1f} %", own["rare_classes"], own["untestable_classes"])
        for species, heads in summary["heads"].items()
        for feature, own in heads.items()
    ]  # fmt: skip
    note = (
        f"<p class=pale>Known: records with a label. Rare: classes of fewer than {MIN_RECORDS} "
        "records. No test: classes without a record in the test part: no figure tells of them.</p>"
    )
    return f"<h2>Heads</h2>{note}{table(header, 1, rows)}"


def _classes(audit: Audit) -> str:
    found = [c for c in audit.classes if c.is_rare or c.is_untestable]
    found.sort(key=lambda c: (not c.is_untestable, c.records))
    shown = found[:MAX_CLASSES]
    rows = [(f"{c.species} {c.feature}", c.name, c.records, *c.by_split) for c in shown]
    header = ("head", "class", "records", "train", "val", "test")
    heading = "<h2>Rare and untestable classes</h2>"
    return heading + _more(len(found), len(rows), "classes.csv") + table(header, 2, rows)


def _duplicates(audit: Audit, dataset: Dataset, with_photos: bool) -> str:
    search = audit.summary["duplicates"]
    shown = audit.duplicates[:MAX_PAIRS]
    parts = [
        "<h2>Duplicates under two records</h2><p class=pale>Exact: the same pixels. Near: copies "
        "that were re-encoded, resized or brightened. Pairs across splits stand first: there the "
        "test part has been seen in training. Photos of one record may look alike.</p>",
        _more(len(audit.duplicates), len(shown), "duplicates.csv"),
    ]
    if search["crowded"]:
        parts.append(
            "<p>Some hashes are so common that not all their pairs were compared; near duplicates "
            "among them may be missing.</p>"
        )
    if with_photos:
        blocks = []
        for pair in shown:
            sides = ((pair.path_a, pair.split_a), (pair.path_b, pair.split_b))
            figures = [
                _figure(dataset, place, f"{path} ({split})")
                for place, (path, split) in zip(pair.places, sides, strict=True)
            ]
            what = pair.kind + (f", difference {pair.difference:.3f}" if pair.difference else "")
            blocks.append(f"<div class=pair><b>{what}</b>{''.join(figures)}</div>")
        return f"{''.join(parts)}<div class=photos>{''.join(blocks) or 'None.'}</div>"
    rows = [
        (p.kind, f"{p.path_a} ({p.split_a})", f"{p.path_b} ({p.split_b})", p.difference)
        for p in shown
    ]
    return "".join(parts) + table(("kind", "photo", "photo", "difference"), 3, rows)


def _issues(audit: Audit, dataset: Dataset, with_photos: bool) -> str:
    by_kind: dict[str, list[Issue]] = {kind: [] for kind in _KINDS}
    for issue in audit.issues:
        by_kind[issue.kind].append(issue)
    parts = ["<h2>Issues</h2>"]
    for kind, found in by_kind.items():
        if not found:
            continue
        shown = found[:MAX_ISSUES]
        photos = ""
        if with_photos and audit.examples.get(kind):
            places = audit.examples[kind][:MAX_EXAMPLES]
            figures = [_figure(dataset, place, path_text(dataset, place)) for place in places]
            photos = f"<div class=photos>{''.join(figures)}</div>"
        rows = [(issue.where, issue.detail) for issue in shown]
        parts.append(
            f"<details><summary><b>{len(found):,}</b> {_KINDS[kind]}</summary>"
            f"{_more(len(found), len(shown), 'issues.csv')}{photos}"
            f"{table(('path or record', 'detail'), 2, rows)}</details>"
        )
    return "".join(parts) if len(parts) > 1 else "<h2>Issues</h2><p>None.</p>"


def _more(num: int, shown: int, file_name: str) -> str:
    if num == shown:
        return ""
    return f"<p>The first {shown:,} of {num:,}; {file_name} holds them all.</p>"


def _figure(dataset: Dataset, place: int, caption: str) -> str:
    """Put a small JPEG copy of a photo into the page."""
    try:
        pixels = images.decode(dataset.catalog.path(place))
    except images.ImageError:  # gone or changed since it was looked at
        return f"<figure><figcaption>{text(caption)}: cannot be read</figcaption></figure>"
    stream = io.BytesIO()
    small = images.resize(pixels, PHOTO_PX, "letterbox")
    Image.fromarray(np.ascontiguousarray(small)).save(stream, "JPEG", quality=80)
    source = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    below = f"<figcaption><bdi>{text(caption).replace('/', '/<wbr>')}</bdi></figcaption>"
    return f'<figure><img src="{source}" alt="">{below}</figure>'
