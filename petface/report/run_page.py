"""The report of a training run, of either stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from petface import metrics
from petface.report import charts
from petface.report import folders as read
from petface.report import page as html
from petface.report.page import Metric, Page, Section, Strip, leaves, table

_KINDS = {1: "Stage 1: species", 2: "Stage 2: attributes", 0: "Training run"}
_HEAD_KEYS = "head num accuracy interval_95 majority_baseline balanced_accuracy"
_SURE_KEYS = (
    "head num temperature threshold ece_before ece_after coverage accuracy_of_answered "
    "wanted_accuracy conformal_coverage conformal_mean_size"
)
_SURE_WORDS = (
    "Fitted on the validation part, measured on the test part. ECE: mean distance between "
    "confidence and accuracy. Coverage: photos whose confidence reaches the threshold."
)


def write_run_report(folder: Path) -> Path:
    """Write report.html, curves.png and, where confidence was measured, confidence.png."""
    run = read.read_run(folder)
    if panels := charts.training(run.history):
        charts.write_png(folder / "curves.png", [panels])
    sure = [own for own in _calibrations(run) if own.get("reliability")]
    if rows := [charts.confidence(own["head"], own) for own in sure]:
        charts.write_png(folder / "confidence.png", rows)
    return html.write(folder / read.REPORT, run_page(run))


def run_page(run: read.Run) -> Page:
    """Build the page: metrics, curves, confusion matrices, one table; the rest is folded."""
    heads, sure = run.heads(), _calibrations(run)
    matrices = {row["head"]: row["matrix"] for row in heads if row["matrix"]}
    maps = [charts.confusion(head, *matrix) for head, matrix in matrices.items()]
    panels = [
        p for own in sure if own.get("reliability") for p in charts.confidence(own["head"], own)
    ]
    data = [
        _rows(run, "errors.csv", "Photos that could not be read"),
        _rows(run, "label_conflicts.csv", "Labels that contradict each other and are unknown"),
    ]
    started = read.readable_time(run.environment.get("started"), run.folder)
    about = (run.script, f"started {started}", run.state, run.device)
    return Page(
        run.name,
        _KINDS[run.stage],
        " · ".join(filter(None, about)),
        [*run.problems, *_notes(run)],
        metrics=[*(html.headline(row["head"], row) for row in heads), _work(run)],
        sections=[
            Section("Training curves", [Strip([*map(charts.svg, charts.training(run.history))])]),
            Section("Confusion matrix", [Strip(maps, "wide")]),
            Section("Species", [table(_species(run, matrices))])
            if run.stage == 1
            else Section("Attributes", [table(heads, _HEAD_KEYS)]),
        ],
        folded=[
            Section("Most frequent confusions", [table(_confusions(matrices))]),
            Section(
                "Confidence",
                [_SURE_WORDS, Strip([*map(charts.svg, panels)]), table(sure, _SURE_KEYS)],
            ),
            _settings(run),
            *data,
            Section("All epochs", [table(run.history)]),
            Section("Versions, machine, command", [table(leaves(run.environment))]),
        ],
    )


def _notes(run: read.Run) -> list[str]:
    skipped = sum(row.get("num_skipped_steps") or 0 for row in run.history)
    unfinished = (
        f"Not finished ({run.state}): the test part is measured at the end. The same command "
        "resumes a stopped run."
    )
    not_finite = f"{skipped:,} steps were skipped: loss or gradient was not finite."
    return [unfinished] * (not run.final) + [not_finite] * bool(skipped)


def _work(run: read.Run) -> Metric:
    speeds = [v for row in run.history if (v := row.get("train_images_per_s")) is not None]
    best = run.final.get("best_epoch")
    epochs = f"{len(run.history)} epochs" + (f", best {best}" if best else "")
    speed = f"{np.median(speeds):,.0f} images/s" if speeds else ""
    return Metric("training time", run.time or "-", [epochs, speed])


def _species(run: read.Run, matrices: dict[str, Any]) -> list[dict[str, Any]]:
    if "species" not in matrices:
        recalls = read.entries(run.final, "test_recall")
        return [{"species": name, "recall": recall} for name, recall in recalls.items()]
    names, counts = matrices["species"]
    scores = metrics.precision_recall_f1(counts)
    columns = (counts.sum(axis=1), scores.recall, scores.precision, scores.f1)
    keys = ("num", "recall", "precision", "f1")
    return [
        {"species": names[k], **dict(zip(keys, (c[k].item() for c in columns), strict=True))}
        for k in np.argsort(-columns[0], kind="stable").tolist()
    ]


def _confusions(matrices: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"head": head, **found._asdict()}
        for head, (names, counts) in matrices.items()
        for found in metrics.top_confusions(counts, names, 10)
    ]


def _calibrations(run: read.Run) -> list[dict[str, Any]]:
    """List what was fitted and measured per head, by the names of an evaluation's summary."""
    found = read.rows(run.final.get("calibration"), "head")
    return [
        {**read.entries(o, "fitted"), **o, "accuracy_of_answered": o.get("accuracy")} for o in found
    ]


def _settings(run: read.Run) -> Section:
    defaults = read.defaults_of(run.script)
    rows = [
        {"setting": name, "this run": str(value), "default": str(defaults[name])}
        for name, value in run.settings.items()
        if name in defaults and value != defaults[name]
    ]
    lines = "\n".join(map(html.visible, run.settings_text.splitlines()))
    whole = Markup("<pre>{}</pre>").format(lines) if lines else Markup()
    words = f"What differs from the constants of {run.script} as they stand now, then all of them."
    return Section("Settings", [words, table(rows), whole])


def _rows(run: read.Run, name: str, title: str) -> Section:
    return Section(f"{title} ({name})", [table(read.read_rows(run.folder / name, run.problems))])
