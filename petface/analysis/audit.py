"""What an audit of a dataset finds: counts and issues as JSON, CSV files and text."""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from petface import files
from petface.analysis import duplicates
from petface.analysis.duplicates import Photos
from petface.data import images
from petface.data.dataset import Dataset
from petface.data.loading import OK, STATUS_NAMES, TOO_LARGE, UNREADABLE, even_slices
from petface.data.sources.petface import Scan
from petface.data.splits import SPLITS, sample_evenly
from petface.devices import num_cores

MIN_RECORDS = 10  # a class with fewer is rare
BRIGHTNESS_BINS = 16
SMALL_PX, ELONGATED = 32, 3.0  # a side shorter than this; one side this many times the other
DARK, BRIGHT = 10.0, 245.0  # mean grey level of a photo that shows next to nothing
QUICK_SAMPLE, QUICK_LIMIT_S = 500, 1.2  # `quick_audit_line` stops looking at photos then
_MANY_PHOTOS = 12  # records with more are counted together
_MOST_SIZES = 12
_PAIRS_AT_ONCE = 8192  # 64 MB as float32 thumbnails


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything found; `summary` is ready for JSON, the tables are the CSV files."""

    summary: dict[str, Any]
    issues: pd.DataFrame  # kind, path_or_record (below the images folder), detail
    duplicates: pd.DataFrame  # pairs of photos of different records
    classes: pd.DataFrame  # records with photos of each class, in all and per split
    examples: dict[str, list[int]]  # kind of odd photo -> places in the catalog


def make_audit(dataset: Dataset, scan: Scan, photos: Photos) -> Audit:
    """Return what the tree, the labels and the photos show."""
    catalog, odd = dataset.catalog, _odd_photos(photos.seen)
    found = _issues(dataset, scan, photos, odd)
    issues = pd.DataFrame(found, columns=["kind", "path_or_record", "detail"])
    pairs, search = find_duplicates(dataset, photos)
    classes = count_classes(dataset)
    num_photos = np.bincount(catalog.record_index, minlength=catalog.num_records)
    many = np.bincount(np.minimum(num_photos, _MANY_PHOTOS + 1)).tolist()
    summary = {
        "photos": len(catalog),
        "records": catalog.num_records,
        "species": len(catalog.classes),
        "looked_at": len(photos.places),
        **_photo_summary(photos.seen),
        "strays": dict(sorted(scan.stray_counts.items())),
        "issues": issues["kind"].value_counts().sort_index().to_dict(),
        "duplicates": search,
        "per_species": _species_summary(dataset, photos),
        "photos_per_record": {f"{n}{'+' * (n > _MANY_PHOTOS)}": k for n, k in enumerate(many) if n},
        "heads": _head_summary(dataset, classes),
        "notes": list(dataset.notes),
    }
    examples = {kind: photos.places[list(rows)].tolist() for kind, rows in odd.items()}
    return Audit(summary, issues, pairs, classes, examples)


def write_audit(folder: Path, audit: Audit) -> None:
    """Write audit.json, issues.csv, duplicates.csv and classes.csv."""
    files.write_json(folder / "audit.json", audit.summary)
    for name in ("issues", "duplicates", "classes"):
        table = getattr(audit, name)
        files.write_csv(folder / f"{name}.csv", list(table), table.itertuples(index=False))


def path_text(dataset: Dataset, place: int) -> str:
    """Return a photo's path below the images folder; bytes that are not UTF-8 are shown escaped."""
    return files.readable_name(dataset.catalog.relative_path(int(place)))


# ---- Duplicates ----


def find_duplicates(dataset: Dataset, photos: Photos) -> tuple[pd.DataFrame, dict[str, int]]:
    """List pairs of different records, those across splits first; count them, and how thorough the
    search was.

    `difference` is that of the thumbnails. Photos of next to one colour, whose hash is noise, are
    left out of the search for near ones.
    """
    seen, catalog = photos.seen, dataset.catalog
    usable = np.flatnonzero(seen["status"] == OK)
    records, digests = catalog.record_index[photos.places[usable]], seen["digest"][usable]
    exact = usable[duplicates.exact_pairs(digests, records, dataset.record_split[records])]
    _, first = np.unique(digests, return_index=True)  # copies are found already
    shown = first[seen["contrast"][usable[first]] >= duplicates.MIN_CONTRAST]
    own = seen[usable[shown]]
    near = duplicates.near_pairs(own["hash"], own["mirrored"], records[shown])
    rows = usable[shown[near.pairs]]
    difference = _differences(dataset, photos.places[rows])
    alike = difference <= duplicates.MAX_DIFFERENCE
    places = photos.places[np.concatenate((exact, rows[alike]))]
    pairs = pd.DataFrame({"kind": np.repeat(["exact", "near"], [len(exact), alike.sum()])})
    for side, own_places in zip("ab", places.T, strict=True):
        pairs[f"path_{side}"] = [path_text(dataset, place) for place in own_places]
        pairs[f"split_{side}"] = np.array(SPLITS)[dataset.image_split[own_places]]
    pairs["difference"] = np.pad(difference[alike].round(3), (len(exact), 0))  # of exact ones 0
    inside, counts = pairs["split_a"] == pairs["split_b"], dict[str, int]()
    for kind in ("exact", "near"):
        counts[kind] = int((pairs["kind"] == kind).sum())
        counts[f"{kind}_across_splits"] = int((~inside & (pairs["kind"] == kind)).sum())
    counts |= {"candidates": len(rows), "radius_bits": near.radius, "crowded": near.crowded}
    order = ["inside", "kind", "difference", "path_a", "path_b"]
    pairs = pairs.assign(inside=inside).sort_values(order, ignore_index=True)
    return pairs.drop(columns="inside"), counts


def _differences(dataset: Dataset, pairs: np.ndarray) -> np.ndarray:
    """Compare the thumbnails of pairs (P, 2) of places: (P,), NaN where one is gone by now.

    The photos are decoded once more: thumbnails of all photos would fill the memory.
    """

    def look(place: int) -> np.ndarray:
        path = dataset.catalog.path(place)
        try:
            with images.room_for(path):
                return duplicates.thumbnail(images.decode(path))
        except images.ImageError:
            return np.full((duplicates.THUMBNAIL_PX, duplicates.THUMBNAIL_PX), np.nan)

    result = np.empty(len(pairs))
    with ThreadPoolExecutor(num_cores()) as pool:  # decoding does not hold Python's lock
        for part in even_slices(np.arange(len(pairs)), _PAIRS_AT_ONCE):
            places, rows = np.unique(pairs[part], return_inverse=True)
            small = np.stack(list(pool.map(look, places.tolist())))
            first, second = small[rows.reshape(-1, 2).T]
            ways = [duplicates.thumbnail_difference(first, s) for s in (second, second[:, :, ::-1])]
            result[part] = np.minimum(*ways)
    return result


# ---- Issues ----


def _issues(
    dataset: Dataset, scan: Scan, photos: Photos, odd: dict[str, dict[int, str]]
) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, path or record, detail) of what is to be looked at."""
    status = photos.seen["status"]
    for row, why in zip(np.flatnonzero(status != OK).tolist(), photos.failures, strict=True):
        yield STATUS_NAMES[status[row]], path_text(dataset, photos.places[row]), why
    for path, reason in scan.strays:
        yield "stray", files.readable_name(path), reason
    for name in scan.empty_species:
        yield "empty_species", name, "a species folder without an image"
    for folder in scan.empty_records:
        yield "empty_record", files.readable_name(folder), "a record folder without an image"
    for species in dataset.catalog.classes:
        if species not in dataset.annotations:
            yield "no_annotation_file", species, "trains in stage 1, has no specialist"
            continue
        no_row, no_photo = dataset.unmatched(species)
        for record in no_row:
            yield "record_without_row", f"{species}/{record}", "all its labels are unknown"
        for record in no_photo:
            yield "row_without_photo", f"{species}/{record}", "the row is not used"
        for conflict in dataset.annotations[species].conflicts:
            values, lines = " | ".join(conflict.values), ", ".join(map(str, conflict.lines))
            told = f"{conflict.feature}: {values} (lines {lines})"
            yield "label_conflict", f"{species}/{conflict.record}", told
    for kind, details in odd.items():
        for row, detail in details.items():
            yield kind, path_text(dataset, photos.places[row]), detail


def _odd_photos(seen: np.ndarray) -> dict[str, dict[int, str]]:
    """Find readable photos that look wrong: kind -> row -> detail."""
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
    ok = seen["status"] == OK
    return {
        kind: {row: form.format(seen[row]) for row in np.flatnonzero(mask & ok).tolist()}
        for kind, (mask, form) in found.items()
    }


# ---- Counts ----


def count_classes(dataset: Dataset) -> pd.DataFrame:
    """Count the records with photos of every class, in the order of species, heads and names."""
    catalog, rows = dataset.catalog, []
    for species, table in sorted(dataset.annotations.items()):
        own = catalog.record_class == catalog.classes.index(species)
        split = dataset.record_split[own]
        for feature, labels in table.align(catalog.record_names[own]).items():
            for k, name in enumerate(table.vocabularies[feature]):
                counts = np.bincount(split[labels == k], minlength=len(SPLITS)).tolist()
                rows.append((species, feature, name, sum(counts), *counts))
    return pd.DataFrame(rows, columns=["species", "feature", "class", "records", *SPLITS])


def _head_summary(dataset: Dataset, classes: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """Count classes, rare and untestable ones and unknown labels of each head of each species."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for species, table in sorted(dataset.annotations.items()):
        num_records, found[species] = len(dataset.catalog.records_of(species)), {}
        for feature in table.features:
            own = classes[(classes["species"] == species) & (classes["feature"] == feature)]
            known = int(own["records"].sum())
            found[species][feature] = {
                "classes": len(own),
                "records_known": known,
                "unknown_frac": round(1 - known / num_records, 4),
                "rare_classes": int((own["records"] < MIN_RECORDS).sum()),
                "untestable_classes": int((own["test"] == 0).sum()),
            }
    return found


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
            "looked_at": len(seen),
            **_failures_and_brightness(seen),
        }
    return found


def _failures_and_brightness(seen: np.ndarray) -> dict[str, Any]:
    light = seen["brightness"][seen["status"] == OK]
    return {
        "unreadable": int((seen["status"] == UNREADABLE).sum()),
        "too_large": int((seen["status"] == TOO_LARGE).sum()),
        "mean_brightness": round(float(light.mean()), 1) if len(light) else None,
    }


def _photo_summary(seen: np.ndarray) -> dict[str, Any]:
    """Describe the readable ones of the photos that were looked at: common sizes, brightness."""
    own = seen[seen["status"] == OK]
    sizes = Counter(sorted(own[["width_px", "height_px"]].tolist())).most_common(_MOST_SIZES)
    bins, _ = np.histogram(own["brightness"], BRIGHTNESS_BINS, range=(0, 256))
    return {
        **_failures_and_brightness(seen),
        "sizes": {f"{width}x{height}": num for (width, height), num in sizes},
        "brightness_histogram": bins.tolist(),
    }


# ---- Text ----


def describe_audit(summary: dict[str, Any]) -> str:
    """Format the main counts as the text that an audit prints."""
    species = pd.DataFrame.from_dict(summary["per_species"], orient="index")
    shown = ["records", "photos", "looked_at", "unreadable", "too_large"]
    heads = {f"{s} {head}": own for s, of in summary["heads"].items() for head, own in of.items()}
    counts = {
        **{name: summary[name] for name in shown},
        "strays": sum(summary["strays"].values()),
        "label_conflicts": summary["issues"].get("label_conflict", 0),
        **{f"duplicates_{name}": num for name, num in summary["duplicates"].items()},
    }
    lines = [species[shown].to_string(), ""]
    lines += [pd.DataFrame.from_dict(heads, orient="index").to_string(), ""] if heads else []
    lines += [f"note: {note}" for note in summary["notes"]]
    return "\n".join([*lines, *(f"{name}: {num:,}" for name, num in counts.items())])


def quick_audit_line(
    dataset: Dataset, annotations_root: str, size_px: int, columns: Sequence[str] = ()
) -> str:
    """Return in one line, in under two seconds, what a first look at the data shows.

    Another line follows where the photos are much smaller than the `size_px` of the training.
    Photos are looked at in random order until there were `QUICK_SAMPLE` of them or time is up.
    """
    start, bad, sides, catalog = time.perf_counter(), 0, list[int](), dataset.catalog
    places = sample_evenly(catalog.class_index, QUICK_SAMPLE)
    for place in np.random.default_rng(0).permutation(places).tolist():
        if len(sides) + bad and time.perf_counter() - start > QUICK_LIMIT_S:
            break
        try:
            sides.append(min(images.decode(catalog.path(place)).shape[:2]))
        except images.ImageError:
            bad += 1
    flags = ["--images-root", os.fsdecode(catalog.root), "--annotations-root", annotations_root]
    flags += ["--columns", *columns] if columns else []
    own_px = int(np.median(sides)) if sides else size_px
    hint = ""
    if size_px > 1.5 * own_px:
        faster = f"trains {(size_px / own_px) ** 2:.0f} times as fast as {size_px}"
        hint = f"\nphotos are {own_px} px: --image-size-px {own_px} {faster}"
    return (
        f"data: {catalog.num_records:,} records, {len(catalog):,} photos; "
        f"{bad:,} of {len(sides) + bad:,} sampled photos cannot be read; "
        f"{(count_classes(dataset)['test'] == 0).sum():,} classes have no test record; "
        f"full audit: python -m tools.audit --all {shlex.join(flags)}{hint}"
    )
