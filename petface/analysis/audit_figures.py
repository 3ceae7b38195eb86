"""The figures of an audit: counts per species, head, size, brightness; and their short text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from petface.analysis.audit_photos import Photos
from petface.data.dataset import Dataset
from petface.data.loading import OK, TOO_LARGE, UNREADABLE
from petface.data.splits import SPLITS, TEST

MIN_RECORDS = 10  # a class with fewer is rare
BRIGHTNESS_BINS = 16
_MANY_PHOTOS = 12  # records with more are counted together
_MOST_SIZES = 12


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
            names = table.vocabularies[feature]
            known = labels >= 0
            cells = labels[known].astype(np.int64) * len(SPLITS) + split[known]
            counts = np.bincount(cells, minlength=len(names) * len(SPLITS))
            for name, row in zip(names, counts.reshape(-1, len(SPLITS)).tolist(), strict=True):
                yield ClassCount(species, feature, name, sum(row), tuple(row))


def species_figures(dataset: Dataset, photos: Photos) -> dict[str, dict[str, Any]]:
    """Count photos and records of each species, and what was seen of its photos."""
    catalog = dataset.catalog
    seen_class = catalog.class_index[photos.places]
    figures = {}
    for number, name in enumerate(catalog.classes):
        own, seen = catalog.record_class == number, seen_class == number
        ok = seen & (photos.status == OK)
        split = np.bincount(dataset.record_split[own], minlength=len(SPLITS)).tolist()
        figures[name] = {
            "photos": int((catalog.class_index == number).sum()),
            "records": int(own.sum()),
            "records_per_split": dict(zip(SPLITS, split, strict=True)),
            "has_annotations": name in dataset.annotations,
            "looked_at": int(seen.sum()),
            "unreadable": int((seen & (photos.status == UNREADABLE)).sum()),
            "too_large": int((seen & (photos.status == TOO_LARGE)).sum()),
            "mean_brightness": round(float(photos.brightness[ok].mean()), 1) if ok.any() else None,
        }
    return figures


def photo_figures(photos: Photos) -> dict[str, Any]:
    """Describe the readable ones of the photos that were looked at: sizes, modes, brightness."""
    ok = photos.status == OK
    sides, counts = np.unique(
        np.stack((photos.width_px[ok], photos.height_px[ok]), axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    sizes = {f"{sides[i][0]}x{sides[i][1]}": int(counts[i]) for i in order[:_MOST_SIZES].tolist()}
    modes = np.bincount(photos.mode[ok], minlength=len(photos.modes)).tolist()
    found = [(-num, mode) for mode, num in zip(photos.modes, modes, strict=True) if num]
    bins, _ = np.histogram(photos.brightness[ok], BRIGHTNESS_BINS, range=(0, 256))
    return {
        "unreadable": int((photos.status == UNREADABLE).sum()),
        "too_large": int((photos.status == TOO_LARGE).sum()),
        "num_sizes": len(sides),
        "sizes": sizes,
        "modes": {mode: -num for num, mode in sorted(found)},
        "brightness_histogram": bins.tolist(),
        "mean_brightness": round(float(photos.brightness[ok].mean()), 1) if ok.any() else None,
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
    by_head: dict[tuple[str, str], list[ClassCount]] = {}
    for found in classes:
        by_head.setdefault((found.species, found.feature), []).append(found)
    catalog = dataset.catalog
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for species, table in sorted(dataset.annotations.items()):
        records = int((catalog.record_class == catalog.classes.index(species)).sum())
        figures[species] = {}
        for feature in table.features:
            own = by_head.get((species, feature), [])
            known = sum(found.records for found in own)
            figures[species][feature] = {
                "classes": len(own),
                "records_known": known,
                "unknown_frac": round(1 - known / records, 4),
                "rare_classes": sum(found.is_rare for found in own),
                "untestable_classes": sum(found.is_untestable for found in own),
            }
    return figures


def describe_audit(summary: dict[str, Any]) -> str:
    """Lay the main figures out as the text that an audit prints."""
    lines = [
        f"{'':14s} {'records':>9s} {'photos':>10s} {'train':>8s} {'val':>7s} {'test':>7s} "
        f"{'looked at':>10s} {'unusable':>9s}"
    ]
    for name, own in summary["per_species"].items():
        parts = own["records_per_split"]
        lines.append(
            f"{name:14s} {own['records']:9,d} {own['photos']:10,d} {parts['train']:8,d} "
            f"{parts['val']:7,d} {parts['test']:7,d} {own['looked_at']:10,d} "
            f"{own['unreadable'] + own['too_large']:9,d}"
        )
    lines += ["", f"{'head':24s} {'classes':>8s} {'unknown':>8s} {'rare':>6s} {'untestable':>11s}"]
    for species, heads in summary["heads"].items():
        for feature, own in heads.items():
            lines.append(
                f"{species + ' ' + feature:24s} {own['classes']:8,d} "
                f"{own['unknown_frac'] * 100:6.1f} % {own['rare_classes']:6,d} "
                f"{own['untestable_classes']:11,d}"
            )
    sizes = ", ".join(f"{size} ({num:,})" for size, num in list(summary["sizes"].items())[:5])
    modes = ", ".join(f"{mode} ({num:,})" for mode, num in summary["modes"].items())
    lines += ["", f"sizes: {sizes}" + (" ..." if summary["num_sizes"] > 5 else "")]
    lines += [f"modes: {modes}", *(f"note: {note}" for note in summary["notes"]), ""]
    lines += [f"{name}: {value}" for name, value in headline(summary).items()]
    return "\n".join(lines)


def headline(summary: dict[str, Any]) -> dict[str, str]:
    """Name the figures that decide whether the data can be used, most general first."""
    heads = [own for per_head in summary["heads"].values() for own in per_head.values()]
    pairs = summary["duplicates"]
    return {
        "records": f"{summary['records']:,}",
        "photos": f"{summary['photos']:,}",
        "looked_at": f"{summary['looked_at']:,}",
        "unreadable": f"{summary['unreadable']:,}",
        "too_large": f"{summary['too_large']:,}",
        "strays": f"{sum(summary['strays'].values()):,}",
        "label_conflicts": f"{summary['issues'].get('label_conflict', 0):,}",
        "rare_classes": f"{sum(own['rare_classes'] for own in heads):,}",
        "untestable_classes": f"{sum(own['untestable_classes'] for own in heads):,}",
        "exact_duplicates_across_splits": f"{pairs['exact_across_splits']:,}",
        "exact_duplicates": f"{pairs['exact']:,}",
        "near_duplicates_across_splits": f"{pairs['near_across_splits']:,}",
        "near_duplicates": f"{pairs['near']:,}",
    }
