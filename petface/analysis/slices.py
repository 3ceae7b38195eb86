"""Accuracy of an evaluation's test part, cut by what a photo, its animal or its label is like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from petface import files
from petface.analysis.mistakes import asked_places
from petface.analysis.photo_statistics import STATISTICS
from petface.data.loading import OK
from petface.evaluation.details import HEADS, Evaluation
from petface.metrics import cluster_bootstrap_interval
from petface.reliability import wilson_interval

MIN_RECORDS: Final = 10  # fewer give no interval
_PHOTO_BINS: Final = ((1, "1"), (2, "2"), (3, "3"), (4, "4-5"), (6, "6+"))  # from how many photos
_COLUMNS: Final = (
    "head", "slice", "unit", "bin", "num", "num_records", "accuracy", "low_95", "high_95",
    "stands_out",
)  # fmt: skip


class Cut(NamedTuple):
    """M photos sorted into bins: `bin_of[i]` is the place of photo i's bin in `names`."""

    names: list[str]
    bin_of: npt.NDArray[np.int64]  # (M,)


def record_numbers(evaluation: Evaluation) -> npt.NDArray[np.int64]:
    """Number the records from 0, each (species, record) once: (N,) int64."""
    rows = evaluation.rows
    species, record = (rows[c].cat.codes.to_numpy(np.int64) for c in ("species", "record"))
    _, numbers = np.unique(species * len(rows["record"].cat.categories) + record,
                           return_inverse=True)  # fmt: skip
    return numbers.astype(np.int64)


def photo_count_cut(num_photos: np.ndarray) -> Cut:
    """Cut by how many photos a record has, (M,) whole numbers from 1."""
    starts = [start for start, _ in _PHOTO_BINS]
    index = np.searchsorted(starts, num_photos, side="right") - 1
    return Cut([name for _, name in _PHOTO_BINS], index.astype(np.int64))


def quartile_cut(values: npt.ArrayLike, unit: str = "") -> Cut:
    """Cut (M,) finite numbers at their quartiles; equal values never part, so bins may be fewer.

    A bin holds its upper end.
    """
    v = np.asarray(values, np.float64)
    if not len(v):
        return Cut([], np.zeros(0, np.int64))
    edges = np.unique(np.quantile(v, (0.25, 0.5, 0.75)))
    edges = edges[edges < v.max()]
    index = np.searchsorted(edges, v, side="left")
    used, index = np.unique(index, return_inverse=True)
    ends = [float(v.min()), *edges[used[:-1]].tolist(), float(v.max())]
    return Cut(_range_names(ends, unit), index.astype(np.int64))


def tercile_cut(num_of_row: np.ndarray, num_of_class: np.ndarray) -> Cut:
    """Cut (M,) rows by how often their class was trained on, into thirds of the classes (K,).

    Classes of equal number never part.
    """
    if not len(num_of_class):
        return Cut([], np.zeros(0, np.int64))
    ordered = np.sort(num_of_class)
    low, high = (int(ordered[max(0, -(-len(ordered) * k // 3) - 1)]) for k in (1, 2))
    names = [f"up to {low:,}", f"{low + 1:,}-{high:,}", f"above {high:,}"]
    index = np.searchsorted([low, high], num_of_row, side="left")
    return Cut(names, index.astype(np.int64))


def bin_figures(
    correct: np.ndarray, records: np.ndarray, cut: Cut, resamples: int = 1000
) -> list[dict[str, Any]]:
    """Count each bin that holds a photo; `stands_out` where its interval leaves out the accuracy
    of all M photos.

    correct (M,) of 1 and 0, records (M,) numbers. The interval is the bootstrap over records; where
    all records agree it has no width, and Wilson's interval over records stands in. None below
    `MIN_RECORDS` records.
    """
    overall = float(correct.mean()) if len(correct) else 0.0
    found = []
    for place, name in enumerate(cut.names):
        inside = cut.bin_of == place
        if not inside.any():
            continue
        right = correct[inside]
        num_records, interval = _interval(right, records[inside], resamples)
        stands_out = interval is not None and not interval[0] <= overall <= interval[1]
        found.append(
            {
                "bin": name,
                "num": int(inside.sum()),
                "num_records": num_records,
                "accuracy": float(right.mean()),
                "interval_95": interval,
                "stands_out": stands_out,
            }
        )
    return found


def make_slices(
    evaluation: Evaluation, sample: np.ndarray, measured: np.ndarray, resamples: int = 1000
) -> dict[str, Any]:
    """Cut every head's test answers: {head: {slice: {"unit", "num", "accuracy", "bins"}}}.

    `sample` (S,) are rows of the evaluation and `measured` (S,) what `measure_photos` gave for
    them; the quartiles are those of the readable photos of the sample, the same for every head.
    `num` and `accuracy` are those of all photos in a slice's bins: what bins are compared with.
    """
    records = record_numbers(evaluation)
    num_photos = np.bincount(records)[records]
    readable = measured["status"] == OK
    photos = sample[readable]
    quartiles = {
        name: quartile_cut(measured[name][readable], "%" if unit == "%" else "")
        for name, unit in STATISTICS.items()
    }
    result: dict[str, Any] = {}
    for head in HEADS:
        asked = asked_places(evaluation, head)
        if not len(asked):
            continue
        correct = evaluation.rows[f"{head}_correct"].to_numpy()

        def entry(
            unit: str, places: np.ndarray, cut: Cut, correct: np.ndarray = correct
        ) -> dict[str, Any]:
            right = correct[places]
            return {
                "unit": unit,
                "num": len(places),
                "accuracy": float(right.mean()) if len(places) else None,
                "bins": bin_figures(right, records[places], cut, resamples),
            }

        found = {
            "photos_per_record": entry("photos", asked, photo_count_cut(num_photos[asked])),
            "training_photos_of_label": entry(
                "photos, thirds of the classes", asked, _frequency_cut(evaluation, head, asked)
            ),
        }
        kept = np.isin(photos, asked)
        for name, unit in STATISTICS.items():
            cut = quartiles[name]
            found[name] = entry(unit, photos[kept], Cut(cut.names, cut.bin_of[kept]))
        result[head] = found
    return result


def count_standing_out(slices: Mapping[str, Any]) -> dict[str, Any]:
    """Count bins with an interval, how many stand out, and how many would by chance alone."""
    bins = [
        b
        for head in slices.values()
        for entry in head.values()
        if len(entry["bins"]) > 1
        for b in entry["bins"]
        if b["interval_95"] is not None
    ]
    stand_out = sum(b["stands_out"] for b in bins)
    return {"bins": len(bins), "stand_out": stand_out, "by_chance": round(0.05 * len(bins), 1)}


def write_slices(path: Path, slices: Mapping[str, Any]) -> None:
    """Write every bin as a row of a CSV."""
    rows = []
    for head, entries in slices.items():
        for name, entry in entries.items():
            for b in entry["bins"]:
                low, high = b["interval_95"] or ("", "")
                figures = (b["bin"], b["num"], b["num_records"], b["accuracy"], low, high)
                rows.append((head, name, entry["unit"], *figures, int(b["stands_out"])))
    files.write_csv(path, _COLUMNS, rows)


def _interval(
    correct: np.ndarray, records: np.ndarray, resamples: int
) -> tuple[int, list[float] | None]:
    _, row = np.unique(records, return_inverse=True)
    num = np.bincount(row)
    if len(num) < MIN_RECORDS or resamples == 0:
        return len(num), None
    num_correct = np.rint(np.bincount(row, correct)).astype(np.int64)
    low, high = cluster_bootstrap_interval(num_correct, num, resamples=resamples)
    if low == high:
        share = np.array([num_correct.sum() / num.sum()])
        ends = wilson_interval(share, np.array([len(num)]), NormalDist().inv_cdf(0.975))
        low, high = (float(end[0].clip(0.0, 1.0)) for end in ends)
    return len(num), [low, high]


def _frequency_cut(evaluation: Evaluation, head: str, asked: np.ndarray) -> Cut:
    """Cut by the training photos of the true label; classes of an attribute are (species, label).

    Classes are those that were asked for in the test part.
    """
    rows = evaluation.rows
    species = rows["species"].cat.codes.to_numpy(np.int64)
    label = species
    if head != "species":
        column = rows[f"{head}_true"]
        label = species * len(column.cat.categories) + column.cat.codes.to_numpy(np.int64)
    _, label = np.unique(label, return_inverse=True)
    in_train = (rows["split"] == "train").to_numpy()
    counts = np.bincount(label[in_train], minlength=int(label.max()) + 1)
    return tercile_cut(counts[label[asked]], counts[np.unique(label[asked])])


def _range_names(ends: list[float], unit: str) -> list[str]:
    """Name the stretches between rising ends with as few digits as keep them apart."""
    for digits in range(3, 9):
        shown = [_short(end, digits) for end in ends]
        if len(set(shown[1:])) == len(shown) - 1:
            break
    unit = f" {unit}" if unit else ""
    return [
        (low if low == high else f"{low}-{high}") + unit
        for low, high in zip(shown, shown[1:], strict=False)
    ]


def _short(value: float, digits: int) -> str:
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"
