"""The report of a training run, of any of the three trainers."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import petface
from petface import metrics
from petface.evaluation.figures import interval, percent
from petface.files import plain_cell
from petface.report import charts
from petface.report import folders as read
from petface.report.page import Metric, Photo, Table, headline, photo, picture, table, write

IDENTITY, _QUERIES = "identity_summary.json", "identity_queries.csv"
_NUM_LOOKED_UP = 8
_KINDS = {
    1: "Stage 1: species",
    2: "Stage 2: attributes",
    3: "Identity: single animals",
    0: "Training run",
}


def write_run_report(folder: Path, *, with_photos: bool = False) -> Path:
    """Write report.html, curves.png and, where confidence was measured, confidence.png."""
    run = read.read_run(folder)
    images_root = str(run.settings.get("IMAGES_ROOT", ""))
    root = read.photo_root(folder, images_root, with_photos=with_photos)
    curves = charts.training(run.history)
    # what was fitted and measured per head, by the names of an evaluation's summary
    fitted: list[dict[str, Any]] = [
        {**row, "accuracy_of_answered": row.get("accuracy")}
        for row in read.rows(run.final, "calibration.{head}")
    ]
    confidence = [charts.confidence(row) for row in fitted if row.get("reliability")]
    if curves:
        charts.write_png(folder / "curves.png", [curves])
    if confidence:
        charts.write_png(folder / "confidence.png", confidence)
    heads = run.heads() if run.stage != 3 else []
    matrices = {row["head"]: row["matrix"] for row in heads if row["matrix"]}
    identity = read.read_json(folder / IDENTITY, run.problems)
    unreadable, conflicts = (
        read.read_csv(folder / name, run.problems, read.MAX_ROWS)
        for name in ("errors.csv", "label_conflicts.csv")
    )
    classes = _class_history(run)
    hidden = run.history.filter(regex="balanced|^num_|images_per_s")  # metrics.csv has all
    started = read.readable_time(run.environment.get("started"), folder)
    best, speeds = run.final.get("best_epoch"), run.history.get("train_images_per_s")
    epochs = f"{len(run.history)} epochs" + (f", best {best}" if best else "")
    speed = "" if speeds is None else f"{speeds.median():,.0f} images/s"
    dots = "name reidentification.top1 reidentification.top1_interval_95"
    species = read.rows(identity, "per_species.{name}")
    return write(
        folder / read.REPORT,
        "run",
        title="/".join(folder.resolve().parts[-2:]),
        kind=_KINDS[run.stage],
        about=" · ".join(filter(None, (run.script, f"started {started}", run.state, run.device))),
        notes=[*run.problems, *_notes(run)],
        run=run,
        looked_up=_looked_up(folder, root) if root and identity else {},
        headlines=[
            *(_identity_metrics(identity) if identity else ()),
            *(headline(row, " (by photo)") for row in heads),
            ("training time", run.time or "-", [epochs, speed]),
        ],
        identity=identity,
        networks={"this network": identity, **identity.get("baselines", {})} if identity else {},
        species_dots=charts.intervals("top-1", species, dots, "top-1, %"),
        open_words=open_words,
        open_table=open_table,
        curves=[*map(charts.svg, curves)],
        heads=heads,
        matrices=[charts.confusion(head, *matrix) for head, matrix in matrices.items()],
        species=_species(*matrices["species"]) if "species" in matrices else [],
        confusions=[
            {"head": head, **found}
            for head, (names, counts) in matrices.items()
            for found in metrics.top_confusions(counts, names, 10)
        ],
        classes=classes,
        fitted=fitted,
        confidence=[charts.svg(panel) for own in confidence for panel in own],
        batch=[picture(path) for path in folder.glob("batch.png") if root],
        changed=_changed_settings(run),
        unreadable=unreadable,
        conflicts=conflicts,
        epochs=run.history.drop(columns=hidden.columns).to_dict("records"),
    )


def _notes(run: read.Run) -> list[str]:
    skipped = int(run.history.get("num_skipped_steps", np.zeros(1)).sum())
    notes = []
    if not run.final:
        notes.append(
            f"Not finished ({run.state}): the test split is measured at the end. The same command "
            "resumes a stopped run."
        )
    if skipped:
        notes.append(f"{skipped:,} steps were skipped: loss or gradient was not finite.")
    for doubt in ("contaminated", "not_known_what_was_learnt_by"):
        if doubt in run.final:
            notes.append(f"{doubt}: {run.final[doubt]}, so the test split is not new to it.")
    return notes


def _species(names: list[str], counts: np.ndarray) -> list[dict[Any, Any]]:
    """List the metrics of each species, the most frequent first."""
    scores = metrics.precision_recall_f1(counts)
    columns = {key: getattr(scores, key) for key in ("recall", "precision", "f1")}
    found = pd.DataFrame({"species": names, "num": counts.sum(axis=1), **columns})
    return found.sort_values("num", ascending=False, kind="stable").to_dict("records")


def _class_history(run: read.Run) -> list[dict[str, Any]]:
    """List each class's values in the first and the last epoch; classes.csv has all epochs."""
    found = pd.DataFrame(read.read_csv(run.folder / "classes.csv", run.problems))
    if found.empty:
        return []
    numbers = found.set_index("species").apply(pd.to_numeric, errors="coerce")
    ends = [numbers[numbers["epoch"] == numbers["epoch"].iloc[end]] for end in (0, -1)]
    first, last = ends[0].add_suffix(", first epoch"), ends[1].add_suffix(", last epoch")
    return first.join(last).filter(regex="recall|weight").reset_index().to_dict("records")


def _changed_settings(run: read.Run) -> list[dict[str, str]]:
    """List what differs from the constants as they stand in the script's file now."""
    path = Path(petface.__file__).resolve().parents[1] / run.script
    changed = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else ():
        with suppress(AttributeError, TypeError, ValueError):  # no constant of a literal
            name, default = node.target.id, ast.literal_eval(node.value)  # type: ignore[attr-defined]
            default = [*default] if isinstance(default, tuple) else default
            if run.settings.get(name, default) != default:
                now = {"this run": str(run.settings[name]), "default": str(default)}
                changed.append({"setting": name, **now})
    return changed


# ---- Identity: who was found, and how surely ----


def _identity_metrics(summary: Mapping[str, Any]) -> list[Metric]:
    found: list[Metric] = []
    for part, name, words, num in (
        ("verification", "auc", "verification, AUC", "num_pairs"),
        ("reidentification", "top1", "re-identification, top-1", "num_queries"),
    ):
        own = summary[part]
        bounds = interval(own.get(f"{name}_interval_95"))
        details = [f"95 %: {bounds} (by animal)"] * bool(bounds)
        details.append(f"{own[num]:,} {num[4:]} of {own['num_animals']:,} animals")
        found.append((words, f"{percent(own.get(name)) or '-'} %", details))
    return found


def open_words(summary: Mapping[str, Any]) -> str:
    rate = percent(summary.get("false_match_rate"))
    return (
        "Every second animal was taken out of the gallery. A photo below the threshold is called "
        f"unknown; {rate or '-'} % of single pairs of two animals reach it, and so a gallery of "
        "many animals accepts more strangers."
    )


def open_table(summary: Mapping[str, Any]) -> Table:
    groups = (summary.get(f"per_{name}", {}) for name in ("species", "sharpness"))
    return table(
        row for group in ({"all": summary}, *groups) for row in read.rows(group, "{name}.open_set")
    )


def _looked_up(folder: Path, root: Path) -> dict[str, list[Photo]]:
    """Show photos beside the best match of each."""
    if not (folder / _QUERIES).is_file():
        return {}
    rows = pd.read_csv(folder / _QUERIES, dtype=str, keep_default_na=False)
    rows = rows[rows["rank_of_its_animal"] != ""]
    wrong = rows[rows["rank_of_its_animal"] != "1"].astype({"similarity": float})
    lot = rows.sample(min(len(rows), _NUM_LOOKED_UP), random_state=0)
    found = {}
    for title, own in (
        ("Photos looked up, drawn by lot, each beside its best match", lot),
        ("Worst mistakes: the most similar of two animals", wrong.nlargest(4, "similarity")),
    ):
        found[title] = shown = list[Photo]()
        for row in own.to_dict("records"):
            query, match = (plain_cell(row[name]) for name in ("image", "best_match"))
            kind = "right" if row["rank_of_its_animal"] == "1" else "wrong"
            told = f"similarity {float(row['similarity']):.2f}", kind
            shown += [photo(root, query, ("looked up", "pale")), photo(root, match, told)]
    return found
