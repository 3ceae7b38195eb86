"""From the per-image rows of an evaluation to its figures; the rows are the only source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from petface import metrics
from petface.reports.answers import read_rows
from petface.taxonomy import FEATURES

_PARTS = ("train", "val", "test")


def summarise(per_image_csv: Path, resamples: int = 1000) -> dict[str, Any]:
    """Read `petface_eval_per_image.csv` and give the summary as a dictionary ready for JSON.

    Counts over all images and the same tree per part of the split; then, for the test part alone,
    what a held-out claim needs: see `_held_out`. `resamples` of the bootstrap over records; 0 = no
    intervals.
    """
    rows = read_rows(per_image_csv)
    return {
        "num_images": len(rows),
        "status_counts": _counts(rows["status"]),
        **_tree(rows),
        "splits": {
            part: {
                "num_images": int((rows["split"] == part).sum()),
                **_tree(rows[rows["split"] == part]),
            }
            for part in _PARTS
        },
        "test": _held_out(rows, resamples),
    }


def _figure(correct: pd.Series) -> dict[str, Any]:
    """Count a column of 1, 0 and NaN (not asked) into the three numbers of the contract."""
    num, right = int(correct.notna().sum()), int(correct.sum())
    return {"num": num, "correct": right, "accuracy": right / num if num else None}


def _counts(column: pd.Series) -> dict[str, int]:
    return {str(name): int(num) for name, num in sorted(column.value_counts().items()) if num}


def _tree(rows: pd.DataFrame) -> dict[str, Any]:
    species = {str(n): part for n, part in rows.groupby("species", observed=True)}
    per_species: dict[str, Any] = {}
    for name, part in species.items():
        figures = {f: _figure(part[f"{f}_correct"]) for f in FEATURES}
        per_species[name] = {f: figure for f, figure in figures.items() if figure["num"]}
    return {
        "stage1": {
            "overall": _figure(rows["species_correct"]),
            "per_species": {n: _figure(part["species_correct"]) for n, part in species.items()},
        },
        "stage2": {
            "per_feature": {f: _figure(rows[f"{f}_correct"]) for f in FEATURES},
            "per_species": {n: figures for n, figures in per_species.items() if figures},
        },
    }


def _held_out(rows: pd.DataFrame, resamples: int) -> dict[str, Any]:
    """Describe the test part; images that were not answered (unreadable) are left out.

    For the species and for each feature, pooled and per species: `conditional` (stage 2 where
    stage 1 was right) and `end_to_end` (a wrong species counts as a wrong attribute), each with a
    95 % interval from a bootstrap over records; `per_record`, where a record's photos vote with
    their probabilities; `majority_baseline`, the score of always giving the commonest training
    label of that species; and `balanced_accuracy`, the mean recall over the true classes.
    """
    train = rows[rows["split"] == "train"]
    answered = rows[(rows["split"] == "test") & rows["species_correct"].notna()]
    species = {
        **_with_interval(answered, answered["species_correct"], resamples),
        "per_record": _fused(answered, answered["species"], "species"),
        "balanced_accuracy": _mean_recall(answered["species"], answered["species_correct"]),
        "majority_baseline": _majority(train["species"], answered["species"]),
    }
    result: dict[str, Any] = {"species": species, "features": {}, "per_species": {}}
    for feature, name, test, known_train in _attributes(rows):
        entry = _attribute(test, known_train, feature, resamples)
        if name is None:
            result["features"][feature] = entry
        else:
            result["per_species"].setdefault(name, {})[feature] = entry
    return result


def _attributes(
    rows: pd.DataFrame,
) -> Iterator[tuple[str, str | None, pd.DataFrame, pd.DataFrame]]:
    """Yield (feature, species or None for all, test rows and train rows with a known label).

    A species that was asked for the feature in no part has no specialist for it and is left out.
    """
    for feature in FEATURES:
        known = rows[rows[f"{feature}_true"] != ""]
        asked = known.loc[known[f"{feature}_correct"].notna(), "species"].unique()
        known = known[known["species"].isin(asked)]
        train = known[known["split"] == "train"]
        test = known[(known["split"] == "test") & known["species_correct"].notna()]
        if len(test):
            yield feature, None, test, train
        for name, part in test.groupby("species", observed=True):
            yield feature, str(name), part, train[train["species"] == name]


def _attribute(
    rows: pd.DataFrame, train: pd.DataFrame, feature: str, resamples: int
) -> dict[str, Any]:
    correct = rows[f"{feature}_correct"]
    end_to_end = correct.fillna(0.0)  # not asked: the species was wrong
    label = rows["species"].astype(str) + "\0" + rows[f"{feature}_true"].astype(str)
    asked = rows[correct.notna()]
    baseline = sum(
        _majority(train.loc[train["species"] == name, f"{feature}_true"], part[f"{feature}_true"])
        * len(part)
        for name, part in rows.groupby("species", observed=True)
    )
    return {
        "conditional": _with_interval(asked, asked[f"{feature}_correct"], resamples),
        "end_to_end": _with_interval(rows, end_to_end, resamples),
        "per_record": _fused(asked, asked[f"{feature}_true"], feature),
        "balanced_accuracy": _mean_recall(label, correct),
        "majority_baseline": baseline / len(rows),
    }


def _with_interval(rows: pd.DataFrame, correct: pd.Series, resamples: int) -> dict[str, Any]:
    figure = _figure(correct)
    if resamples and figure["num"]:
        records = correct.groupby([rows["species"], rows["record"]], observed=True)
        sums, nums = records.sum().to_numpy(), records.count().to_numpy()
        low, high = metrics.cluster_bootstrap_interval(
            sums.astype(np.int64), nums.astype(np.int64), resamples=resamples
        )
        figure["interval_95"] = [low, high]
        figure["num_records"] = int((nums > 0).sum())
    return figure


def _fused(rows: pd.DataFrame, true: pd.Series, what: str) -> dict[str, Any]:
    """Let the photos of a record vote, each with the probability of its answer.

    Votes are counted in millionths, the resolution of the table, so that ties are exact; the first
    name of a tie wins.
    """
    votes = pd.DataFrame(
        {
            "species": rows["species"].astype(str),
            "record": rows["record"].astype(str),
            "true": true.astype(str),
            "pred": rows[f"{what}_pred"].astype(str),
            "vote": (rows[f"{what}_prob"].astype("float64") * 1e6).round().astype("int64"),
        }
    )
    keys = ["species", "record", "true"]
    sums = votes.groupby([*keys, "pred"], as_index=False)["vote"].sum()  # sorted by its keys
    best = sums.loc[sums.groupby(keys)["vote"].idxmax()]
    return _figure((best["true"] == best["pred"]).astype("float32"))


def _mean_recall(true: pd.Series, correct: pd.Series) -> float | None:
    """Balanced accuracy over the true classes that were answered."""
    recall = correct[correct.notna()].groupby(true.astype(str)).mean()
    return float(recall.mean()) if len(recall) else None


def _majority(train: pd.Series, test: pd.Series) -> float:
    """Share of the test labels that equal the commonest training label; 0 where none was trained
    on.
    """
    counts = train.astype(str).value_counts()
    if not len(counts) or not len(test):
        return 0.0
    commonest = min(counts[counts == counts.max()].index)  # ties: the first by name
    return float((test.astype(str) == commonest).mean())


def describe_summary(summary: dict[str, Any]) -> str:
    """Lay the held-out figures out as the table that an evaluation prints last."""
    test = summary["test"]
    lines = [
        f"{summary['num_images']:,} images, {summary['splits']['test']['num_images']:,} of them in "
        "the test part; on the test part, in %:",
        f"{'':10s} {'images':>8s} {'accuracy':>9s} {'95 % interval':>15s} {'end to end':>11s} "
        f"{'per record':>11s} {'balanced':>9s} {'majority':>9s}",
    ]
    for name, entry in [("species", test["species"]), *test["features"].items()]:
        figure = entry.get("conditional", entry)
        interval = figure.get("interval_95")
        shown = f"{interval[0] * 100:.1f} - {interval[1] * 100:.1f}" if interval else ""
        end_to_end = entry["end_to_end"]["accuracy"] if "end_to_end" in entry else None
        lines.append(
            f"{name:10s} {figure['num']:8,d} {_percent(figure['accuracy']):>9s} {shown:>15s} "
            f"{_percent(end_to_end):>11s} {_percent(entry['per_record']['accuracy']):>11s} "
            f"{_percent(entry['balanced_accuracy']):>9s} {_percent(entry['majority_baseline']):>9s}"
        )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.1f}"
