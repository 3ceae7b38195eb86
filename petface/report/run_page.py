"""The report of a training run, of either stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from petface import metrics
from petface.report import charts
from petface.report import folders as read
from petface.report.page import (
    Metric,
    Page,
    Section,
    Strip,
    headline,
    leaves,
    table,
    visible,
    write,
)

_KINDS = {1: "Stage 1: species", 2: "Stage 2: attributes", 0: "Training run"}


def write_run_report(folder: Path) -> Path:
    """Write report.html, curves.png and, where confidence was measured, confidence.png."""
    run = read.read_run(folder)
    if panels := charts.training(run.history):
        charts.write_png(folder / "curves.png", [panels])
    if rows := [charts.confidence(head, own) for head, own in _reliabilities(run)]:
        charts.write_png(folder / "confidence.png", rows)
    return write(folder / read.REPORT, run_page(run))


def run_page(run: read.Run) -> Page:
    """Build the page: metrics, curves, confusion matrices, one table; the rest is folded."""
    heads = run.heads()
    matrices = {row["head"]: row["matrix"] for row in heads if row["matrix"]}
    drawn = [charts.confusion(head, *matrix) for head, matrix in matrices.items()]
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
        metrics=[*(headline(row["head"], row) for row in heads), _work(run)],
        sections=[
            Section("Training curves", [Strip([*map(charts.svg, charts.training(run.history))])]),
            Section("Confusion matrix", [Strip(drawn, "wide")]),
            _species(run, matrices)
            if run.stage == 1
            else Section("Attributes", [table(heads, _HEAD_KEYS)]),
        ],
        folded=[
            Section("Most frequent confusions", [table(_confusions(matrices))]),
            _confidence(run),
            Section(
                "Photos that show no known animal",
                [table(leaves(read.entries(run.final, "guard")))],
            ),
            _settings(run),
            *data,
            Section("All epochs", [table(run.history)]),
            Section("Versions, machine, command", [table(leaves(run.environment))]),
        ],
    )


_HEAD_KEYS = "head num accuracy interval_95 majority_baseline balanced_accuracy"


def _notes(run: read.Run) -> list[str]:
    skipped = sum(row.get("num_skipped_steps") or 0 for row in run.history)
    unfinished = (
        f"Not finished ({run.state}): the test part is measured at the end. The same command "
        "resumes a stopped run."
    )
    return [unfinished] * (not run.final) + (
        [f"{skipped:,.0f} steps were skipped: loss or gradient was not finite."] if skipped else []
    )


def _work(run: read.Run) -> Metric:
    speeds = [v for row in run.history if (v := row.get("train_images_per_s")) is not None]
    best = run.final.get("best_epoch")
    epochs = f"{len(run.history)} epochs" + (f", best {best}" if best else "")
    speed = f"{np.median(speeds):,.0f} images/s" if speeds else ""
    return Metric("training time", run.time or "-", [epochs, speed])


def _species(run: read.Run, matrices: dict[str, Any]) -> Section:
    if "species" not in matrices:
        recalls = read.entries(run.final, "test_recall")
        return Section("Species", [table({"class": k, "recall": v} for k, v in recalls.items())])
    names, counts = matrices["species"]
    scores = metrics.precision_recall_f1(counts)
    rows = [
        {"species": names[k], "num": int(counts[k].sum()), "recall": float(scores.recall[k]),
         "precision": float(scores.precision[k]), "f1": float(scores.f1[k])}
        for k in np.argsort(-counts.sum(axis=1), kind="stable").tolist()
    ]  # fmt: skip
    return Section("Species", [table(rows)])


def _confusions(matrices: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"head": head, **found._asdict()}
        for head, (names, counts) in matrices.items()
        for found in metrics.top_confusions(counts, names, 10)
    ]


def _reliabilities(run: read.Run) -> list[tuple[str, dict[str, Any]]]:
    """List the heads whose confidence can be drawn, by the names of an evaluation's summary."""
    own = read.entries(run.final, "calibration")
    return [
        (
            head,
            {
                **read.entries(own, head, "fitted"),
                **found,
                "accuracy_of_answered": found.get("accuracy"),
            },
        )
        for head in own
        if (found := read.entries(own, head)).get("reliability")
    ]


def _confidence(run: read.Run) -> Section:
    words = (
        "Fitted on the validation part, measured on the test part. ECE: mean distance between "
        "confidence and accuracy. Answered: photos whose confidence reaches the threshold."
    )
    drawn = [
        charts.svg(p) for head, own in _reliabilities(run) for p in charts.confidence(head, own)
    ]
    keys = (
        "head num fitted.temperature fitted.threshold ece_before ece_after coverage accuracy "
        "conformal_coverage conformal_mean_size"
    )
    rows = [own for own in read.entries(run.final, "calibration").values() if isinstance(own, dict)]
    return Section("Confidence", [words, Strip(drawn), table(rows, keys)])


def _settings(run: read.Run) -> Section:
    defaults = read.defaults_of(run.script)
    rows = [
        {"setting": name, "this run": str(value), "default": str(defaults[name])}
        for name, value in run.settings.items()
        if name in defaults and value != defaults[name]
    ]
    lines = "\n".join(map(visible, run.settings_text.splitlines()))
    whole = Markup("<pre>{}</pre>").format(lines) if lines else Markup()
    words = f"What differs from the constants of {run.script} as they stand now, then all of them."
    return Section("Settings", [words, table(rows), whole])


def _rows(run: read.Run, name: str, title: str) -> Section:
    return Section(f"{title} ({name})", [table(read.read_rows(run.folder / name, run.problems))])
