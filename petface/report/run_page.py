"""The report of a training run, of any of the three trainers."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

import petface
from petface import metrics
from petface.evaluation.figures import interval, percent
from petface.files import plain_cell
from petface.report import charts
from petface.report import folders as read
from petface.report.page import (
    Metric,
    Page,
    Sections,
    Strip,
    Table,
    headline,
    leaves,
    photo,
    picture,
    table,
    visible,
    write,
)

IDENTITY, _QUERIES = "identity_summary.json", "identity_queries.csv"
_NUM_LOOKED_UP = 8
_IDENTITY_COLUMNS = (
    "name verification.num_pairs verification.auc verification.auc_interval_95 "
    "reidentification.num_queries reidentification.top1 reidentification.top1_interval_95 "
    "reidentification.top5 reidentification.mean_average_precision top1_gain top1_gain_interval_95"
)
_IDENTITY_WORDS = (
    "Intervals hold for other animals like these. A photo is looked up among one photo of each "
    "animal of its species, unless the dataset's own lists were used."
)
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


def write_run_report(folder: Path, *, with_photos: bool = False) -> Path:
    """Write report.html, curves.png and, where confidence was measured, confidence.png."""
    run = read.read_run(folder)
    images_root = str(run.settings.get("IMAGES_ROOT", ""))
    root = read.photo_root(folder, images_root, with_photos=with_photos)
    identity = read.read_json(folder / IDENTITY, run.problems)
    heads = run.heads() if run.stage != 3 else []
    matrices = {row["head"]: row["matrix"] for row in heads if row["matrix"]}
    curves = charts.training(run.history)
    if curves:
        charts.write_png(folder / "curves.png", [curves])
    started = read.readable_time(run.environment.get("started"), folder)
    best, speeds = run.final.get("best_epoch"), run.history.get("train_images_per_s")
    epochs = f"{len(run.history)} epochs" + (f", best {best}" if best else "")
    speed = "" if speeds is None else f"{speeds.median():,.0f} images/s"
    folded = _folded(run, matrices, root)
    page = Page(
        "/".join(folder.resolve().parts[-2:]),
        _KINDS[run.stage],
        " · ".join(filter(None, (run.script, f"started {started}", run.state, run.device))),
        [*run.problems, *_notes(run)],
        photos=_looked_up(folder, root) if root and identity else {},
        metrics=[
            *(_identity_metrics(identity) if identity else ()),
            *(headline(row, " (by photo)") for row in heads),
            ("training time", run.time or "-", [epochs, speed]),
        ],
        sections={
            **_identity_sections(identity),
            "Training curves": [Strip([*map(charts.svg, curves)])],
            "Test split": [
                Strip([charts.confusion(h, *m) for h, m in matrices.items()], "wide"),
                table(_species(matrices)) if run.stage == 1 else table(heads, _HEAD_COLUMNS),
            ],
        },
        folded={**_identity_folded(identity), **folded},
    )
    return write(folder / read.REPORT, page)


def _folded(run: read.Run, matrices: dict[str, Any], root: Path | None) -> dict[str, Any]:
    """Build what is folded, and draw confidence.png; photos stand in it where there is a `root`."""
    # what was fitted and measured per head, by the names of an evaluation's summary
    fitted: list[dict[str, Any]] = [
        {**row, "accuracy_of_answered": row.get("accuracy")}
        for row in read.rows(run.final, "calibration.{head}")
    ]
    confidence = [charts.confidence(row) for row in fitted if row.get("reliability")]
    if confidence:
        charts.write_png(run.folder / "confidence.png", confidence)
    confusions = [
        {"head": head, **found._asdict()}
        for head, (names, counts) in matrices.items()
        for found in metrics.top_confusions(counts, names, 10)
    ]
    batch = run.folder / "batch.png"
    unreadable, conflicts = (
        read.read_csv(run.folder / name, run.problems, read.MAX_ROWS)
        for name in ("errors.csv", "label_conflicts.csv")
    )
    hidden = run.history.filter(regex="balanced|^num_|images_per_s")  # metrics.csv has all
    epochs: Any = run.history.drop(columns=hidden.columns).to_dict("records")
    return {
        "Most frequent confusions": [table(confusions)],
        "Recall and sampling weight per class (classes.csv)": [table(_class_history(run))],
        "Confidence": [
            _SURE_WORDS,
            Strip([charts.svg(panel) for row in confidence for panel in row]),
            table(fitted, _SURE_COLUMNS),
        ],
        "First batch, as the network saw it": [picture(batch)] if root and batch.is_file() else [],
        "Settings": _settings(run),
        "Unreadable photos (errors.csv)": [table(unreadable)],
        "Contradictory labels (label_conflicts.csv)": [table(conflicts)],
        "All epochs (metrics.csv)": [table(epochs)],
        "Versions, machine, command": [leaves(run.environment)],
    }


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


# ---- Identity: who was found, and how surely ----


def card_facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the card of an identity run says."""
    return {
        "summary": {"false_match_rate": None, **summary},
        "met": summary.get("learnt") or {"pairs": "?", "queries": "?"},
        "pairs": {"auc_interval_95": None, **summary["verification"]},
        "search": {"top1": None, "top1_interval_95": None, **summary["reidentification"]},
        "species_table": table(read.rows(summary, "per_species.{name}"), _IDENTITY_COLUMNS),
        "open_words": _open_words(summary),
        "open_table": _open_table(summary),
    }


def _identity_sections(summary: dict[str, Any]) -> dict[str, Any]:
    own = {"this network": summary} if summary else {}
    networks = read.rows({**own, **summary.get("baselines", {})}, "{name}")
    species = [*read.rows(summary, "per_species.{name}")]
    dots = "name reidentification.top1 reidentification.top1_interval_95"
    return {
        "Beside baselines": [_IDENTITY_WORDS, table(networks, _IDENTITY_COLUMNS)],
        "By species": [
            Strip([charts.intervals("top-1", species, dots, "top-1, %")]),
            table(species, _IDENTITY_COLUMNS),
        ],
    }


def _identity_folded(summary: dict[str, Any]) -> dict[str, Any]:
    sharp = read.rows(summary, "per_sharpness.{name}")
    return {
        "By sharpness of the photo": [table(sharp, _IDENTITY_COLUMNS)],
        "Open set": [_open_words(summary), _open_table(summary)],
        "Left out": [table([summary.get("left_out", {})])],
        "Not unseen: animals that it met": [table([summary.get("learnt") or {}])],
    }


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


def _open_words(summary: Mapping[str, Any]) -> str:
    rate = percent(summary.get("false_match_rate"))
    return (
        "Every second animal was taken out of the gallery. A photo below the threshold is called "
        f"unknown; {rate or '-'} % of single pairs of two animals reach it, and so a gallery of "
        "many animals accepts more strangers."
    )


def _open_table(summary: Mapping[str, Any]) -> Table:
    groups = (summary.get(f"per_{name}", {}) for name in ("species", "sharpness"))
    return table(
        row for group in ({"all": summary}, *groups) for row in read.rows(group, "{name}.open_set")
    )


def _looked_up(folder: Path, root: Path) -> Sections:
    """Show photos beside the best match of each."""
    if not (folder / _QUERIES).is_file():
        return {}
    rows = pd.read_csv(folder / _QUERIES, dtype=str, keep_default_na=False)
    rows = rows[rows["rank_of_its_animal"] != ""]
    wrong = rows[rows["rank_of_its_animal"] != "1"].astype({"similarity": float})
    wrong = wrong.sort_values("similarity", ascending=False, kind="stable").head(4)
    sections = {}
    for title, chosen in (
        (
            "Photos looked up, drawn by lot, each beside its best match",
            rows.sample(min(len(rows), _NUM_LOOKED_UP), random_state=0),
        ),
        ("Worst mistakes: the most similar of two animals", wrong),
    ):
        shown = []
        for row in chosen.to_dict("records"):
            query, match = (plain_cell(row[name]) for name in ("image", "best_match"))
            kind = "right" if row["rank_of_its_animal"] == "1" else "wrong"
            told = f"similarity {float(row['similarity']):.2f}", kind
            shown += [photo(root, query, ("looked up", "pale")), photo(root, match, told)]
        sections[title] = [Strip(shown, "photos")]
    return sections
