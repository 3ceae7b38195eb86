"""The report of a training run, of any of the three trainers."""

from __future__ import annotations

import ast
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

import petface
from petface import metrics
from petface.report import charts, photos
from petface.report import folders as read
from petface.report.identity_part import identity_parts
from petface.report.page import Metric, Page, Strip, headline, leaves, table, visible, write

DOUBTS = ("contaminated", "not_known_what_was_learnt_by")  # in final.json
_KINDS = {
    1: "Stage 1: species",
    2: "Stage 2: attributes",
    3: "Identity: single animals",
    0: "Training run",
}
_HEAD_COLUMNS = "head num accuracy interval_95 majority_baseline balanced_accuracy"
_SURE_COLUMNS = (
    "head num fitted.temperature fitted.threshold fitted.reason nll_after brier_after ece_before "
    "ece_after ece_null_after coverage accuracy_of_answered wanted_accuracy"
)
_SURE_WORDS = (
    "Fitted on the validation split, measured on the test split. ECE is the mean distance between "
    "confidence and accuracy; its null level is what chance alone gives a perfect network. "
    "Coverage is the share of photos whose confidence reaches the threshold."
)


def write_run_report(folder: Path, with_photos: bool = False) -> Path:
    """Write report.html, curves.png and, where confidence was measured, confidence.png."""
    run = read.read_run(folder)
    curves, confidence = charts.training(run.history), _confidence(run)
    if curves:
        charts.write_png(folder / "curves.png", [curves])
    if confidence:
        charts.write_png(folder / "confidence.png", confidence)
    return write(folder / read.REPORT, run_page(run, with_photos))


def run_page(run: read.Run, with_photos: bool = False) -> Page:
    """Build the page: metrics, curves, confusion matrices, one table; the rest is folded."""
    heads, folder = run.heads() if run.stage != 3 else [], run.folder.resolve()
    unreadable, conflicts = (
        read.read_csv(run.folder / name, run.problems, read.MAX_ROWS)
        for name in ("errors.csv", "label_conflicts.csv")
    )
    matrices = {row["head"]: row["matrix"] for row in heads if row["matrix"]}
    started = read.readable_time(run.environment.get("started"), run.folder)
    about = (run.script, f"started {started}", run.state, run.device)
    panels = [charts.svg(panel) for row in _confidence(run) for panel in row]
    hidden = run.history.filter(regex="balanced|^num_|images_per_s")  # metrics.csv has all
    shown, found, own, more = identity_parts(run, with_photos=with_photos)
    epochs: Any = run.history.drop(columns=hidden.columns).to_dict("records")
    return Page(
        "/".join(folder.parts[-2:]),
        _KINDS[run.stage],
        " · ".join(filter(None, about)),
        [*run.problems, *_notes(run)],
        photos=shown,
        metrics=[*found, *(headline(row, " (by photo)") for row in heads), _work(run)],
        sections={
            **own,
            "Training curves": [Strip([*map(charts.svg, charts.training(run.history))])],
            "Test split": [
                Strip([charts.confusion(h, *m) for h, m in matrices.items()], "wide"),
                table(_species(matrices)) if run.stage == 1 else table(heads, _HEAD_COLUMNS),
            ],
        },
        folded={
            **more,
            "Most frequent confusions": [table(_confusions(matrices))],
            "Recall and sampling weight per class (classes.csv)": [table(_class_history(run))],
            "Confidence": [_SURE_WORDS, Strip(panels), table(_calibrations(run), _SURE_COLUMNS)],
            "First batch, as the network saw it": _first_batch(run, with_photos),
            "Settings": _settings(run),
            "Unreadable photos (errors.csv)": [table(unreadable)],
            "Contradictory labels (label_conflicts.csv)": [table(conflicts)],
            "All epochs (metrics.csv)": [table(epochs)],
            "Versions, machine, command": [leaves(run.environment)],
        },
    )


def _first_batch(run: read.Run, with_photos: bool) -> list[Any]:
    """Show batch.png, which holds photos, where photos may be shown."""
    path, root = run.folder / "batch.png", str(run.settings.get("IMAGES_ROOT", ""))
    may_be_shown = photos.photo_root(run.folder, root, with_photos=with_photos)
    return [photos.picture(path)] if may_be_shown and path.is_file() else []


def _notes(run: read.Run) -> list[str]:
    skipped = int(run.history.get("num_skipped_steps", np.zeros(1)).sum())
    unfinished = (
        f"Not finished ({run.state}): the test split is measured at the end. The same command "
        "resumes a stopped run."
    )
    not_finite = f"{skipped:,} steps were skipped: loss or gradient was not finite."
    told = [
        f"{k}: {run.final[k]}, so the test split is not new to it."
        for k in DOUBTS
        if k in run.final
    ]
    return [unfinished] * (not run.final) + [not_finite] * bool(skipped) + told


def _work(run: read.Run) -> Metric:
    best, speeds = run.final.get("best_epoch"), run.history.get("train_images_per_s")
    epochs = f"{len(run.history)} epochs" + (f", best {best}" if best else "")
    speed = "" if speeds is None else f"{speeds.median():,.0f} images/s"
    return Metric("training time", run.time or "-", [epochs, speed])


def _species(matrices: dict[str, Any]) -> list[dict[str, Any]]:
    names, counts = matrices.get("species", ([], np.zeros((0, 0), int)))
    scores = metrics.precision_recall_f1(counts)
    columns = {key: getattr(scores, key) for key in ("recall", "precision", "f1")}
    found = pd.DataFrame({"species": names, "num": counts.sum(axis=1), **columns})
    return found.sort_values("num", ascending=False, kind="stable").to_dict("records")  # type: ignore[return-value]


def _class_history(run: read.Run) -> list[dict[str, Any]]:
    """List each class's values in the first and the last epoch; classes.csv has all epochs."""
    found = pd.DataFrame(read.read_csv(run.folder / "classes.csv", run.problems))
    if found.empty:
        return []
    numbers = found.set_index("species").apply(pd.to_numeric, errors="coerce")
    ends = [numbers[numbers["epoch"] == numbers["epoch"].iloc[end]] for end in (0, -1)]
    first, last = ends[0].add_suffix(", first epoch"), ends[1].add_suffix(", last epoch")
    return first.join(last).filter(regex="recall|weight").reset_index().to_dict("records")


def _confusions(matrices: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"head": head, **found._asdict()}
        for head, (names, counts) in matrices.items()
        for found in metrics.top_confusions(counts, names, 10)
    ]


def _calibrations(run: read.Run) -> list[dict[str, Any]]:
    """List what was fitted and measured per head, by the names of an evaluation's summary."""
    found = read.rows(run.final, "calibration.{head}")
    return [{**row, "accuracy_of_answered": row.get("accuracy")} for row in found]


def _confidence(run: read.Run) -> list[list[charts.Panel]]:
    return [charts.confidence(row) for row in _calibrations(run) if row.get("reliability")]


def _settings(run: read.Run) -> list[Any]:
    """Show what differs from the constants as they stand in the script's file now; then all."""
    path = Path(petface.__file__).resolve().parents[1] / run.script
    rows = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else ():
        with suppress(AttributeError, TypeError, ValueError):  # no constant of a literal
            name, default = node.target.id, ast.literal_eval(node.value)  # type: ignore[attr-defined]
            default = [*default] if isinstance(default, tuple) else default
            if run.settings.get(name, default) != default:
                now = {"this run": str(run.settings[name]), "default": str(default)}
                rows.append({"setting": name, **now})
    lines = "\n".join(map(visible, run.settings_text.splitlines()))
    whole = Markup("<pre tabindex=0>{}</pre>").format(lines) if lines else ""
    words = f"Settings that differ from the constants in {run.script} as it stands now; then all."
    return [words, table(rows), whole]
