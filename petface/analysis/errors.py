"""Where an evaluation's test part is wrong: the surest mistakes, and accuracy by kind of photo.

Slices cut the test answers by what a photo, its animal or its label is like. A cut is a categorical
of the bin of each photo, its categories in the order of the bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface import files
from petface.analysis.paired import MIN_RECORDS
from petface.analysis.photos import STATISTICS
from petface.data.loading import OK
from petface.evaluation.details import HEADS, Evaluation
from petface.metrics import cluster_bootstrap_interval, cluster_wilson_interval

MISTAKE_COLUMNS: Final = (
    "image", "species", "record", "head", "true", "predicted", "probability", "true_probability",
    "rank",
)  # fmt: skip
_SLICE_COLUMNS: Final = (
    "head", "slice", "unit", "bin", "num", "num_records", "accuracy", "low_95", "high_95",
    "stands_out",
)  # fmt: skip


def asked_places(evaluation: Evaluation, head: str) -> np.ndarray:
    """Return the rows of the test part that a head answered and whose label is known: (M,) int64.

    For attributes these are rows whose species was predicted right; others were not asked.
    """
    rows = evaluation.rows
    return np.flatnonzero((rows["split"] == "test") & rows[f"{head}_correct"].notna())


def worst_mistakes(evaluation: Evaluation, head: str, num: int | None = None) -> pd.DataFrame:
    """Return a head's wrong answers in the test part, the most confident first.

    `MISTAKE_COLUMNS` and `place`, the row of the evaluation. `true_probability` is exp(-nll), NaN
    where the network has no class of that name; `rank` is the place of the truth among the
    answers, 1 = first. `num` of them or all; equally confident ones in the order of the evaluation.
    """
    rows, places = evaluation.rows, asked_places(evaluation, head)
    wrong = places[rows[f"{head}_correct"].to_numpy()[places] == 0]
    confidence = rows[f"{head}_prob"].to_numpy()[wrong]
    chosen = wrong[np.argsort(-confidence, kind="stable")][:num]
    own, details = rows.iloc[chosen], evaluation.details[head][chosen]
    return pd.DataFrame(
        {
            "image": evaluation.image_names(chosen),
            "species": own["species"].astype(str).to_numpy(),
            "record": own["record"].astype(str).to_numpy(),
            "head": head,
            "true": own[true_column(head)].astype(str).to_numpy(),
            "predicted": own[f"{head}_pred"].astype(str).to_numpy(),
            "probability": own[f"{head}_prob"].to_numpy(np.float64),
            "true_probability": np.exp(-details["nll"].astype(np.float64)),
            "rank": details["rank"].astype(np.int64),
            "place": chosen,
        }
    )


def true_column(head: str) -> str:
    """Return the column of an evaluation that holds a head's true labels."""
    return "species" if head == "species" else f"{head}_true"


def write_mistakes(path: Path, evaluation: Evaluation, num_kept: int = 20) -> dict[str, Any]:
    """Write every wrong answer of the test part as a CSV; return the worst per head, for JSON."""
    found = {head: list(_cells(worst_mistakes(evaluation, head))) for head in HEADS}
    files.write_csv(path, MISTAKE_COLUMNS, (cells for table in found.values() for cells in table))
    return {
        head: [
            dict(zip(MISTAKE_COLUMNS, (None if c == "" else c for c in cells), strict=True))
            for cells in table[:num_kept]
        ]
        for head, table in found.items()
        if len(asked_places(evaluation, head))
    }


def _cells(table: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    for row in table[list(MISTAKE_COLUMNS)].itertuples(index=False):
        yield tuple(
            ("" if math.isnan(cell) else round(cell, 6)) if isinstance(cell, float) else cell
            for cell in row
        )


def record_numbers(evaluation: Evaluation) -> np.ndarray:
    """Number the records from 0, each (species, record) once: (N,) int64."""
    return evaluation.rows.groupby(["species", "record"], observed=True).ngroup().to_numpy()


def photo_count_cut(num_photos: np.ndarray) -> pd.Categorical:
    """Cut by how many photos a record has, (M,) whole numbers from 1."""
    return pd.cut(num_photos, [0, 1, 2, 3, 5, math.inf], labels=["1", "2", "3", "4-5", "6+"])


def quartile_cut(values: npt.ArrayLike) -> pd.Categorical:
    """Cut (M,) finite numbers at their quartiles; equal values never part, so bins may be fewer.

    A bin holds its upper end.
    """
    v = np.asarray(values, np.float64)
    if not len(v):
        return pd.Categorical([])
    edges = np.unique(np.quantile(v, (0.25, 0.5, 0.75)))
    edges = edges[edges < v.max()]
    used, index = np.unique(np.searchsorted(edges, v, side="left"), return_inverse=True)
    ends = [float(v.min()), *edges[used[:-1]].tolist(), float(v.max())]
    return _categorical(index, _range_names(ends))


def tercile_cut(num_of_row: np.ndarray, num_of_class: np.ndarray) -> pd.Categorical:
    """Cut (M,) rows by how often their class was trained on, into thirds of the classes (K,).

    Classes of equal number never part.
    """
    ordered = np.sort(num_of_class)
    low, high = (int(ordered[max(0, -(-len(ordered) * k // 3) - 1)]) for k in (1, 2))
    names = [f"up to {low:,}", f"{low + 1:,}-{high:,}", f"above {high:,}"]
    index = np.searchsorted([low, high], num_of_row, side="left")
    return _categorical(index, names)


def _categorical(index: np.ndarray, names: list[str]) -> pd.Categorical:
    return pd.Categorical(np.array(names, object)[index], categories=names)


def bin_figures(
    correct: np.ndarray, records: np.ndarray, cut: pd.Categorical, resamples: int = 1000
) -> list[dict[str, Any]]:
    """Return each bin that holds a photo; `stands_out` where its interval leaves out the accuracy
    of all M photos.

    correct (M,) of 1 and 0, records (M,) numbers. The interval is the bootstrap over records; where
    all records agree it has no width, and Wilson's interval over records stands in. None below
    `MIN_RECORDS` records.
    """
    table = pd.DataFrame({"correct": correct, "record": records, "bin": cut})
    overall, found = float(table["correct"].mean()), []
    for name, own in table.groupby("bin", observed=True):
        counts = own.groupby("record")["correct"].agg(["sum", "size"])
        interval = _interval(counts["sum"], counts["size"], resamples)
        found.append(
            {
                "bin": str(name),
                "num": len(own),
                "num_records": len(counts),
                "accuracy": float(own["correct"].mean()),
                "interval_95": interval,
                "stands_out": interval is not None and not interval[0] <= overall <= interval[1],
            }
        )
    return found


def _interval(num_correct: pd.Series, num: pd.Series, resamples: int) -> list[float] | None:
    if len(num) < MIN_RECORDS or resamples == 0:
        return None
    low, high = cluster_bootstrap_interval(num_correct, num, resamples=resamples)
    return list(cluster_wilson_interval(num_correct, num)) if low == high else [low, high]


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
    result: dict[str, Any] = {}
    for head in HEADS:
        asked = asked_places(evaluation, head)
        if not len(asked):
            continue
        by_label = _frequency_cut(evaluation, head, asked)
        kept = np.isin(photos, asked)
        cuts = {
            "photos_per_record": ("photos", asked, photo_count_cut(num_photos[asked])),
            "training_photos_of_label": ("photos, thirds of the classes", asked, by_label),
        }
        for name, unit in STATISTICS.items():
            cut = quartile_cut(measured[name][readable])
            cuts[name] = unit, photos[kept], cut[kept]
        result[head] = {}
        for name, (unit, places, cut) in cuts.items():
            right = evaluation.rows[f"{head}_correct"].to_numpy()[places]
            result[head][name] = {
                "unit": unit,
                "num": len(places),
                "accuracy": float(right.mean()) if len(places) else None,
                "bins": bin_figures(right, records[places], cut, resamples),
            }
    return result


def _frequency_cut(evaluation: Evaluation, head: str, asked: np.ndarray) -> pd.Categorical:
    """Cut by the training photos of the true label; classes of an attribute are (species, label).

    Classes are those that were asked for in the test part.
    """
    rows = evaluation.rows
    label = rows.groupby(["species", true_column(head)], observed=True).ngroup().to_numpy()
    counts = np.bincount(label[rows["split"] == "train"], minlength=int(label.max()) + 1)
    return tercile_cut(counts[label[asked]], counts[np.unique(label[asked])])


def count_standing_out(slices: Mapping[str, Any]) -> dict[str, Any]:
    """Count bins with an interval, how many stand out, and how many would by chance alone."""
    entries = [entry["bins"] for head in slices.values() for entry in head.values()]
    bins = [b for own in entries if len(own) > 1 for b in own if b["interval_95"] is not None]
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
    files.write_csv(path, _SLICE_COLUMNS, rows)


def _range_names(ends: list[float]) -> list[str]:
    """Format the stretches between rising ends with as few digits as keep them apart."""

    def short(value: float, digits: int) -> str:
        is_long = abs(value) >= 10 ** (digits - 1)
        return f"{value:.0f}" if is_long else f"{value:.{digits}g}"

    shown = [short(end, 17) for end in ends]
    for digits in range(8, 2, -1):
        fewer = [short(end, digits) for end in ends]
        if len(set(fewer[1:])) == len(fewer) - 1:
            shown = fewer
    return [
        low if low == high else f"{low}-{high}" for low, high in zip(shown, shown[1:], strict=False)
    ]
