"""Where an evaluation's test split is wrong: the surest mistakes, and accuracy by kind of animal.

Slices cut the test answers by what the animal or its label is like.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface import files
from petface.evaluation.details import HEADS, Evaluation
from petface.metrics import accuracy_interval

_SLICE_COLUMNS: Final = (
    "head", "slice", "unit", "bin", "num", "num_records", "accuracy", "low_95", "high_95",
    "stands_out",
)  # fmt: skip


def asked_places(evaluation: Evaluation, head: str) -> np.ndarray:
    """Return the rows of the test split that a head answered and whose label is known: (M,) int64.

    For attributes these are rows whose species was predicted right; others were not asked.
    """
    rows = evaluation.rows
    return np.flatnonzero((rows["split"] == "test") & rows[f"{head}_correct"].notna())


def true_column(head: str) -> str:
    """Return the column of an evaluation that holds a head's true labels."""
    return "species" if head == "species" else f"{head}_true"


def worst_mistakes(evaluation: Evaluation, head: str, num: int | None = None) -> pd.DataFrame:
    """Return a head's wrong answers in the test split, the most confident first.

    `place` is the row of the evaluation. `true_probability` is exp(-nll), NaN where the network has
    no class of that name; `rank` is the place of the truth among the answers, 1 = first. `num` of
    them or all; equally confident ones in the order of the evaluation.
    """
    own = evaluation.rows.iloc[asked_places(evaluation, head)]
    own = own[own[f"{head}_correct"] == 0]
    own = own.sort_values(f"{head}_prob", ascending=False, kind="stable")[:num]
    place = own.index.to_numpy()
    details = evaluation.details[head][place]
    found = {
        "image": evaluation.image_names(place),
        "species": own["species"].astype(str),
        "record": own["record"].astype(str),
        "head": head,
        "true": own[true_column(head)].astype(str),
        "predicted": own[f"{head}_pred"].astype(str),
        "probability": own[f"{head}_prob"].astype(np.float64),
        "true_probability": np.exp(-details["nll"].astype(np.float64)),
        "rank": details["rank"].astype(np.int64),
        "place": place,
    }
    return pd.DataFrame(found)


def write_mistakes(path: Path, evaluation: Evaluation, num_kept: int = 20) -> dict[str, Any]:
    """Write every wrong answer of the test split as a CSV; return the worst per head, for JSON."""
    every = pd.concat([worst_mistakes(evaluation, head) for head in HEADS], ignore_index=True)
    every = every.drop(columns="place").round(6).astype(object)
    every = every.where(every.notna(), None)
    files.write_csv(path, every.columns.tolist(), every.itertuples(index=False))
    return {
        head: every[every["head"] == head].head(num_kept).to_dict("records")
        for head in HEADS
        if len(asked_places(evaluation, head))
    }


def record_numbers(evaluation: Evaluation) -> np.ndarray:
    """Number the records from 0, each (species, record) once: (N,) int64."""
    return evaluation.rows.groupby(["species", "record"], observed=True).ngroup().to_numpy()


def cut_at(values: np.ndarray, edges: npt.ArrayLike) -> pd.Categorical[Any]:
    """Cut (M,) counts at some edges into bins in their order; a bin holds its upper end."""
    ends = np.unique(edges).tolist()
    labels = [*(f"up to {end:,}" for end in ends), f"above {ends[-1]:,}"]
    return pd.cut(values, [-np.inf, *ends, np.inf], labels=labels)


def bin_figures(
    correct: np.ndarray, records: np.ndarray, cut: pd.Categorical
) -> list[dict[str, Any]]:
    """Return each bin that holds a photo; `stands_out` where its interval leaves out the accuracy
    of all M photos.

    correct (M,) of 1 and 0, records (M,) numbers.
    """
    table = pd.DataFrame({"correct": correct, "record": records, "bin": cut})
    overall, found = float(table["correct"].mean()), []
    for name, own in table.groupby("bin", observed=True):
        interval = accuracy_interval(own["correct"].to_numpy(), own["record"].to_numpy())
        found.append(
            {
                "bin": str(name),
                "num": len(own),
                "num_records": own["record"].nunique(),
                "accuracy": float(own["correct"].mean()),
                "interval_95": interval,
                "stands_out": interval is not None and not interval[0] <= overall <= interval[1],
            }
        )
    return found


def make_slices(evaluation: Evaluation) -> dict[str, Any]:
    """Cut every head's test answers: {head: {slice: {"unit", "num", "accuracy", "bins"}}}.

    By the photos of the animal, and by how often the label was trained on.
    """
    rows, records = evaluation.rows, record_numbers(evaluation)
    num_photos = np.bincount(records)[records]
    result: dict[str, Any] = {}
    for head in HEADS:
        asked = asked_places(evaluation, head)
        if not len(asked):
            continue
        # classes of an attribute are (species, label); those that were asked for are cut
        label = rows.groupby(["species", true_column(head)], observed=True).ngroup().to_numpy()
        trained = np.bincount(label[rows["split"] == "train"], minlength=int(label.max()) + 1)
        classes = trained[np.unique(label[asked])]
        thirds = np.quantile(classes, (1 / 3, 2 / 3), method="inverted_cdf")
        cuts = {
            "photos_per_record": ("photos", cut_at(num_photos[asked], (1, 2, 3, 5))),
            "training_photos_of_label": (
                "photos, thirds of the classes", cut_at(trained[label[asked]], thirds)
            ),
        }  # fmt: skip
        right = rows[f"{head}_correct"].to_numpy()[asked]
        result[head] = {
            name: {
                "unit": unit,
                "num": len(asked),
                "accuracy": float(right.mean()),
                "bins": bin_figures(right, records[asked], cut),
            }
            for name, (unit, cut) in cuts.items()
        }
    return result


def count_standing_out(slices: Mapping[str, Any]) -> dict[str, Any]:
    """Count bins with an interval, how many stand out, and how many would by chance alone."""
    entries = [entry["bins"] for head in slices.values() for entry in head.values()]
    bins = [b for own in entries if len(own) > 1 for b in own if b["interval_95"] is not None]
    stand_out = sum(b["stands_out"] for b in bins)
    return {"bins": len(bins), "stand_out": stand_out, "by_chance": round(0.05 * len(bins), 1)}


def write_slices(path: Path, slices: Mapping[str, Any]) -> None:
    """Write every bin as a row of a CSV."""
    rows = [
        (head, name, entry["unit"], b["bin"], b["num"], b["num_records"], b["accuracy"],
         *(b["interval_95"] or ("", "")), int(b["stands_out"]))
        for head, entries in slices.items()
        for name, entry in entries.items()
        for b in entry["bins"]
    ]  # fmt: skip
    files.write_csv(path, _SLICE_COLUMNS, rows)
