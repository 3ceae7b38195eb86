"""The report of a training run: one page that opens without a network and runs no script."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from petface.metrics import read_confusion
from petface.report.dots import Dot, dots
from petface.report.heat_map import draw_confusion
from petface.report.page import table, text
from petface.report.pictures import picture
from petface.report.plots import Frame, Line, chart
from petface.report.report_parts import (
    MIN_PHOTOS,
    Tile,
    contents,
    entries,
    fold,
    interval,
    is_number,
    note,
    number,
    pale,
    percent,
    report,
    section,
    tiles,
    write_page,
)
from petface.report.report_run_notes import (
    data_section,
    environment_section,
    guard_section,
    settings_section,
)
from petface.report.run_files import REPORT, Run, head_rows, is_run, read_run

_MAX_CLASSES_SHOWN = 40  # of a table of recall; all of them can be unfolded
_KINDS = {"species": "stage 1: species", "specialist": "stage 2: specialist", "training": "run"}


def write_run_report(folder: Path) -> Path | None:
    """Write `report.html` into a run folder, finished or not; None where it is no run folder."""
    folder = Path(folder)
    if not is_run(folder):
        return None
    return write_page(folder / REPORT, run_page(read_run(folder)))


def run_page(run: Run) -> str:
    """Lay out the report of a run; sections without content are left out."""
    heads = head_rows(run.final or {})
    parts = [
        ("figures", "Test part", _test_figures(heads)),
        ("curves", "Course of the training", _curves(run)),
        ("classes", "Classes", _classes(run, heads)),
        ("confusions", "Confusions", _confusions(run, heads)),
        ("confidence", "Confidence", _confidence(run, heads)),
        ("guard", "Photos that show no known animal", guard_section(run)),
        ("settings", "Settings", settings_section(run)),
        ("data", "Data notes", data_section(run)),
        ("environment", "Environment", environment_section(run)),
    ]
    name = _name_of(run)
    body = [
        f"<h1><bdi>{text(name)}</bdi></h1>",
        pale(" · ".join(filter(None, (_KINDS[run.kind], run.script, f"started {run.started}")))),
        *(note(problem, "bad") for problem in run.problems),
        _state(run),
        _headline(run, heads),
        contents([(k, title, section(k, title, drawn)) for k, title, drawn in parts]),
    ]
    return report(f"{name}: training report", body)


def _name_of(run: Run) -> str:
    name = str(run.settings.get("RUN_NAME") or run.folder.name)
    is_inside = run.kind == "specialist" and Path(name).name != run.folder.name
    return f"{name}/{run.folder.name}" if is_inside else name


def _state(run: Run) -> str:
    if run.final is not None:
        return ""
    num = len(run.history)
    epochs = f"{num} epoch{'s' if num != 1 else ''} so far" if num else "no epoch has ended yet"
    return note(
        f"Not finished: {epochs}. The test part is measured at the end; until then there are "
        "validation figures only. The same command goes on where it stopped."
    )


def _headline(run: Run, heads: list[dict[str, Any]]) -> str:
    final = run.final or {}
    shown = [
        Tile(percent(row["accuracy"]), f"{row['head']}: right of {number(row['num'])} test photos"
             f"{_few(row['num'])}; always the commonest: {percent(row['majority_baseline'])}",
             "doubt" if _few(row["num"]) else "")
        for row in heads
    ]  # fmt: skip
    epochs = number(final.get("epochs", len(run.history) or None))
    best = final.get("best_epoch")
    speeds = [v for row in run.history if (v := row.get("train_images_per_s")) is not None]
    shown += [
        Tile(epochs, f"epochs, the best {best}" if is_number(best) else "epochs"),
        Tile(duration(run.minutes), "training time"),
        Tile(number(round(median(speeds))) if speeds else "", "images/s in training (median)"),
        Tile(run.device, "device"),
        Tile(str(run.settings.get("PRECISION", "")), "precision asked for"),
    ]
    return tiles(shown)


def _few(num: Any) -> str:
    return ", too few to rely on" if is_number(num) and num < MIN_PHOTOS else ""


def duration(minutes: float | None) -> str:
    """Write minutes as seconds, minutes or hours, whichever reads best."""
    if minutes is None:
        return ""
    if minutes < 2:
        return f"{minutes * 60:.0f} s"
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _test_figures(heads: list[dict[str, Any]]) -> str:
    if not heads:
        return ""
    rows = [
        (row["head"], number(row["num"]), percent(row["accuracy"]),
         percent(row["balanced_accuracy"]), percent(row["majority_baseline"]),
         interval(row["interval_95"]))
        for row in heads
    ]  # fmt: skip
    header = ["head", "photos with a label", "right", "balanced", "commonest", "95 % interval"]
    num_columns = len(header) if any(row[-1] for row in rows) else len(header) - 1
    drawn = dots(
        [
            Dot(
                row["head"],
                row["accuracy"],
                row["interval_95"],
                row["majority_baseline"],
                row["num"],
            )
            for row in heads
        ],
        baseline="always the commonest class of the train part",
    )
    words = (
        "Records that nothing was trained or chosen on. Balanced: the mean recall over classes. "
        "Commonest: what always answering the commonest class of the train part reaches."
    )
    return pale(words) + drawn + table(header[:num_columns], 1, [row[:num_columns] for row in rows])


def _curves(run: Run) -> str:
    columns = list(run.history[0]) if run.history else []
    shares = [c for c in columns if c.endswith("_frac")]
    panels = [
        ("Loss", [c for c in columns if c.endswith("_loss")], "loss", False),
        ("Share right, validation part", shares, "share", True),
        ("Learning rate", [c for c in columns if c == "learning_rate"], "rate", False),
        ("Speed", [c for c in columns if c == "train_images_per_s"], "images/s", False),
    ]
    drawn = []
    for title, names, y_label, is_share in panels:
        lines = [
            Line(
                name.removesuffix("_frac")
                .removeprefix("val_" if is_share else "\0")
                .replace("_", " "),
                [(row.get("epoch"), row.get(name)) for row in run.history],
                color=k,
                has_dots=len(run.history) <= 30,
            )
            for k, name in enumerate(names)
        ]
        frame = Frame("epoch", y_label, y_span=(0, 1) if is_share else _from_zero(run, names),
                      y_share=is_share)  # fmt: skip
        drawn.append(chart(title, lines, frame, dividers=_phase_changes(run)))
    if not any(drawn):
        return ""
    words = "Thin upright lines: a new phase of the training." if _phase_changes(run) else ""
    every = fold("All figures of all epochs", _epoch_table(run, columns))
    return (pale(words) if words else "") + f"<div class=charts>{''.join(drawn)}</div>" + every


def _from_zero(run: Run, names: list[str]) -> tuple[float, float] | None:
    values = [v for row in run.history for name in names if (v := row.get(name)) is not None]
    return (0.0, max(values) * 1.05) if values and min(values) >= 0 < max(values) else None


def _phase_changes(run: Run) -> list[float]:
    """Places between two epochs of different training phases."""
    pairs = zip(run.history, run.history[1:], strict=False)
    return [
        (after.get("epoch") or 0.5) - 0.5
        for before, after in pairs
        if before.get("phase") != after.get("phase")
    ]


def _epoch_table(run: Run, columns: list[str]) -> str:
    rows = [
        tuple("" if (v := row.get(c)) is None else f"{v:.6g}" for c in columns)
        for row in run.history
    ]
    return table([c.replace("_", " ") for c in columns], 0, rows)


def _classes(run: Run, heads: list[dict[str, Any]]) -> str:
    """Show recall and support per class: the confusion tables', else final.json's recall alone."""
    parts = []
    for row in heads:
        head = row["head"]
        if found := read_confusion(run.folder / f"confusion_test_{head}.csv"):
            parts.append(_class_table(head, *found, title=len(heads) > 1))
        elif head == "species":
            recalls = [(n, percent(r)) for n, r in entries(run.final, "test_recall").items()]
            parts.append(table(("class", "recall"), 1, recalls) if recalls else "")
    if not any(parts):
        return ""
    return pale("Recall in the test part: the share of a class's photos answered right.") + "".join(
        parts
    )


def _class_table(head: str, names: list[str], counts: np.ndarray, *, title: bool) -> str:
    support, right = counts.sum(axis=1), np.diagonal(counts)
    order = np.argsort(-support, kind="stable")
    order = order[support[order] > 0]
    rows = [
        (names[k], percent(int(right[k]) / int(support[k])), int(support[k]), int(right[k]),
         int(counts[:, k].sum()))
        for k in order.tolist()
    ]  # fmt: skip
    header = ("class", "recall", "photos", "right", "times answered")
    heading = f"<h3>{text(head)}</h3>" if title else ""
    if untested := len(names) - len(rows):
        heading += pale(f"{untested:,} of {len(names):,} classes have no photo in the test part.")
    if not rows:
        return heading
    shown = table(header, 1, rows[:_MAX_CLASSES_SHOWN])
    rest = rows[_MAX_CLASSES_SHOWN:]
    return (
        heading
        + shown
        + (fold(f"{len(rest):,} more, with fewer photos", table(header, 1, rest)) if rest else "")
    )


def _confusions(run: Run, heads: list[dict[str, Any]]) -> str:
    drawn = "".join(
        draw_confusion(row["head"], *found)
        for row in heads
        if (found := read_confusion(run.folder / f"confusion_test_{row['head']}.csv"))
    )
    words = "Test part; a row is a true class, a column an answer, in the same order. The stronger "
    return (
        pale(words + "the colour, the larger the share of the row; orange are wrong answers.")
        + drawn
        if (drawn)
        else ""
    )


def _confidence(run: Run, heads: list[dict[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = []
    for row in heads:
        own = row["calibration"]
        if not own.get("num"):
            continue
        fitted = entries(own, "fitted")
        rows.append(
            (row["head"], number(fitted.get("temperature"), 2), number(own.get("ece_before")),
             number(own.get("ece_after")), number(fitted.get("threshold")) or "none",
             percent(own.get("coverage")), percent(own.get("accuracy")),
             percent(own.get("conformal_coverage")), number(own.get("conformal_mean_size"), 1))
        )  # fmt: skip
    if not rows:
        return ""
    rows = [tuple(cell or "-" for cell in row) for row in rows]
    header = ("head", "temperature", "ECE before", "ECE after", "threshold", "answered",
              "right of these", "set holds truth", "mean set size")  # fmt: skip
    words = (
        "Fitted on the validation part, measured on the test part. ECE: how far confidence and "
        "share right lie apart on average. Answered: the share of photos whose confidence reaches "
        'the threshold; threshold "none": no confidence was right often enough. Set: answers '
        "that together hold the truth in about 9 of 10 photos."
    )
    drawn = picture(run.folder / "confidence.png", "reliability and coverage", is_broad=True)
    return pale(words) + table(header, 1, rows) + drawn
