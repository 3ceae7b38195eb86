"""What the report of an identity run shows besides curves: who was found, and how surely."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from petface.evaluation.figures import interval, percent, points
from petface.files import plain_cell
from petface.report import charts, photos
from petface.report import folders as read
from petface.report.page import Metric, Sections, Strip, Table, table

SUMMARY, QUERIES = "identity_summary.json", "identity_queries.csv"
_NUM_LOOKED_UP = 8
_WORDS = (
    "Intervals hold for other animals like these. A photo is looked up among one photo of each "
    "animal of its species, unless the dataset's own lists were used."
)


def identity_parts(
    run: read.Run, *, with_photos: bool
) -> tuple[Sections, list[Metric], Sections, Sections]:
    """Build photos, headline metrics, tables, and what is folded; empty before the run's end."""
    summary = read.read_json(run.folder / SUMMARY, run.problems)
    if not summary:
        return {}, [], {}, {}
    networks = {"this network": summary, **summary.get("baselines", {})}
    species, sharp = (_rows(summary.get(f"per_{name}", {})) for name in ("species", "sharpness"))
    dots = "name top1_frac top1_interval_95"
    sections: Sections = {
        "Beside baselines": [_WORDS, _table(_rows(networks))],
        "By species": [
            Strip([charts.intervals("top-1", species, dots, "top-1, %")]),
            _table(species),
        ],
    }
    folded: Sections = {
        "By sharpness of the photo": [_table(sharp)],
        "Open set": [_open_words(summary), _open_table(summary)],
        "Left out": [table([summary.get("left_out", {})])],
        "Not unseen: animals that it met": [table([summary.get("learnt") or {}])],
    }
    return _looked_up(run, with_photos), _metrics(summary), sections, folded


def card_facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the card of an identity run says."""
    return {
        "summary": {"false_match_rate": None, **summary},
        "met": summary.get("learnt") or {"pairs": "?", "queries": "?"},
        "pairs": {"auc_interval_95": None, **summary["verification"]},
        "search": {"top1": None, "top1_interval_95": None, **summary["reidentification"]},
        "species_table": _table(_rows(summary.get("per_species", {}))),
        "open_words": _open_words(summary),
        "open_table": _open_table(summary),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    """Format rows; the last one has every column."""
    columns = dict.fromkeys(rows[-1] if rows else ())
    return table({**columns, **row} for row in rows)


def _rows(networks: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_row(name, found) for name, found in networks.items()]


def _row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    pairs, search = found["verification"], found["reidentification"]
    row = {
        "name": name,
        "pairs": pairs["num_pairs"],
        "AUC_frac": pairs.get("auc"),
        "AUC_interval_95": pairs.get("auc_interval_95"),
        "queries": search["num_queries"],
        "top1_frac": search.get("top1"),
        "top1_interval_95": search.get("top1_interval_95"),
        "top5_frac": search.get("top5"),
        "mAP_frac": search.get("mean_average_precision"),
    }
    if "top1_gain" in found:
        bounds = interval(found["top1_gain_interval_95"], points)
        row["top1 gained over it, points"] = f"{points(found['top1_gain'])} ({bounds})"
    return row


def _metrics(summary: Mapping[str, Any]) -> list[Metric]:
    found = []
    for part, name, words, num in (
        ("verification", "auc", "verification, AUC", "num_pairs"),
        ("reidentification", "top1", "re-identification, top-1", "num_queries"),
    ):
        own = summary[part]
        bounds = interval(own.get(f"{name}_interval_95"))
        details = [f"95 %: {bounds} (by animal)"] * bool(bounds)
        details.append(f"{own[num]:,} {num[4:]} of {own['num_animals']:,} animals")
        found.append(Metric(words, f"{percent(own.get(name)) or '-'} %", details))
    return found


def _open_words(summary: Mapping[str, Any]) -> str:
    rate = percent(summary.get("false_match_rate"))
    return (
        "Every second animal was taken out of the gallery. A photo below the threshold is called "
        f"unknown; {rate or '-'} % of single pairs of two animals reach it, and so a gallery of "
        "many animals accepts more strangers."
    )


def _open_table(summary: Mapping[str, Any]) -> Table:
    whole = {"threshold", "num_known", "num_strangers"}
    parts = {"all": summary, **summary.get("per_species", {}), **summary.get("per_sharpness", {})}
    rows = {name: own["open_set"] for name, own in parts.items() if "open_set" in own}
    return table(
        {"name": name, **{k if k in whole else f"{k}_frac": v for k, v in own.items()}}
        for name, own in rows.items()
    )


def _looked_up(run: read.Run, with_photos: bool) -> Sections:
    root = photos.photo_root(
        run.folder, str(run.settings.get("IMAGES_ROOT", "")), with_photos=with_photos
    )
    path = run.folder / QUERIES
    if root is None or not path.is_file():
        return {}
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = rows[rows["rank_of_its_animal"] != ""]
    wrong = rows[rows["rank_of_its_animal"] != "1"]
    wrong = wrong.assign(value=wrong["similarity"].astype(float)).sort_values("value").tail(4)
    drawn = rows.sample(min(len(rows), _NUM_LOOKED_UP), random_state=0)
    return {
        "Photos looked up, drawn by lot, each beside its best match": [_pairs(root, drawn)],
        "Worst mistakes: the most similar of two animals": [_pairs(root, wrong[::-1])],
    }


def _pairs(root: Path, rows: pd.DataFrame) -> Strip:
    shown = []
    for row in rows.to_dict("records"):
        query, match = (plain_cell(row[name]) for name in ("image", "best_match"))
        kind = "right" if row["rank_of_its_animal"] == "1" else "wrong"
        told = f"similarity {float(row['similarity']):.2f}", kind
        shown += [photos.photo(root, query, ("looked up", "pale")), photos.photo(root, match, told)]
    return Strip(shown, "photos")
