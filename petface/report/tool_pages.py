"""Pages of tools: the index over runs and evaluations, an audit, a comparison of evaluations."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np
import pandas as pd
from markupsafe import Markup

from petface.evaluation.details import SUMMARY
from petface.evaluation.figures import interval, percent, points
from petface.report import charts
from petface.report import folders as read
from petface.report.folders import flat, rows
from petface.report.page import Photo, photo, visible, write

if TYPE_CHECKING:
    from petface.analysis.audit import Audit
    from petface.data.dataset import Dataset

INDEX: Final = "index.html"
_EVALUATIONS, _SPECIALISTS, _OTHERS = "Evaluations", "Stage 2: attributes", "Other folders"
_GROUPS = (_EVALUATIONS, "Stage 1: species", _SPECIALISTS, "Identity: single animals", _OTHERS)
_MAX_PAIRS, _MAX_EXAMPLES, _MAX_ISSUES, _MAX_LISTED = 8, 4, 5, 100  # the CSV files hold all
_VIEWS = {"conditional": "species right", "end_to_end": "end to end"}


# ---- Index ----


def write_index(root: Path) -> Path:
    """Write index.html over every run and evaluation under `root`: a table per kind.

    The running and the best stand first; specialists in the order of their folders, for their
    species are no rivals. Links are relative.
    """
    found = [_entry(root, folder) for folder in read.find_folders(root)]
    rivals = defaultdict(list)
    for entry in found:
        rivals[entry["rival"]].append(entry["accuracy"])
    for entry in found:
        others = rivals[entry["rival"]]
        is_best = entry["accuracy"] == max(others) and sum(a >= 0 for a in others) > 1
        entry["headline"] = _bar(entry, is_best) if entry["accuracy"] >= 0 else ""
    is_run = {e["group"]: e["group"] != _SPECIALISTS for e in found}
    found.sort(key=lambda e: (not e["is_running"], is_run[e["group"]] and -e["accuracy"]))
    num_evaluations = sum(entry["group"] == _EVALUATIONS for entry in found)
    num_running = sum(entry["is_running"] for entry in found)
    numbers = {
        "evaluations": num_evaluations,
        "training runs": len(found) - num_evaluations,
        "running": num_running,
        "stopped or damaged": sum(e["state"] != "finished" for e in found) - num_running,
    }
    return write(
        root / INDEX,
        "index",
        title="Runs and evaluations",
        kind="Index",
        about=f"{root}: accuracy on the test split; for attributes of an evaluation, end to end",
        notes=(),
        numbers=[(name, f"{num:,}", ()) for name, num in numbers.items()],
        groups={group: [e for e in found if e["group"] == group] for group in _GROUPS},
    )


def _bar(entry: dict[str, Any], is_best: bool) -> Markup:
    mark = Markup("&nbsp;<span class=best>★&nbsp;best</span>") if is_best else ""
    bar = Markup('<span class=bar><i style="width:{:.1f}%"></i></span>{}&nbsp;{}{}')
    shown = percent(entry["accuracy"])
    return bar.format(entry["accuracy"] * 100, entry["head"], shown, mark)


def _entry(root: Path, folder: Path) -> dict[str, Any]:
    """Read what a row shows; entries with the same `rival` were measured on the same thing."""
    link = str(folder.relative_to(root))
    if (folder / read.REPORT).is_file():
        target = quote(os.fsencode(folder.relative_to(root) / read.REPORT))
        link = Markup('<a href="./{}">{}</a>').format(target, visible(link))
    entry = {"link": link, "group": _OTHERS, "rival": folder, "accuracy": -1.0, "is_running": False}
    try:
        own = _evaluation(folder) if read.is_evaluation(folder) else _run(folder)
    except Exception as error:  # nothing in one folder may cost the whole index
        return {**entry, "state": f"cannot be read: {type(error).__name__}: {error}"}
    first, *others = own.pop("heads") or [{}]
    each = Markup("{}&nbsp;{}")  # a line breaks between heads alone
    heads = [each.format(row["head"], percent(row["accuracy"])) for row in others]
    when = Markup("<time>{}</time>").format(visible(own["when"]))
    return {**entry, **first, **own, "other_heads": Markup(" · ").join(heads), "when": when}


def _run(folder: Path) -> dict[str, Any]:
    run = read.read_run(folder)
    data = run.settings.get("IMAGES_ROOT"), run.settings.get("SPLIT_SEED")
    is_running = run.state.startswith("running")
    state = Markup("<span class=running>● {}</span>").format(run.state)
    return {
        "group": _GROUPS[run.stage or 4],
        "when": read.readable_time(run.environment.get("started"), folder),
        "heads": run.heads(),
        "time": run.time,
        "state": state if is_running else "; ".join(run.problems) or run.state,
        "is_running": is_running,
        "rival": (run.stage, *map(str, data), folder.name if run.stage == 2 else ""),
    }


def _evaluation(folder: Path) -> dict[str, Any]:
    summary, models, problems = read.read_evaluation_files(folder)
    heads = read.headlines(summary)
    return {
        "group": _EVALUATIONS,
        "when": read.readable_time(None, folder / SUMMARY),
        "heads": heads,
        "state": "; ".join(problems) or ("finished" if summary else "stopped"),
        "rival": ("evaluation", str(models.get("dataset")), heads[0]["num"] if heads else 0),
    }


# ---- Audit ----


def write_audit_page(
    path: Path, audit: Audit, dataset: Dataset, root: Path, *, with_photos: bool
) -> Path:
    """Write the page of an audit of the images below `root`.

    Photos stand in it `with_photos`, and always where they are made up.
    """
    from petface.analysis.audit import MIN_RECORDS

    summary, pairs = audit.summary, audit.duplicates
    leaks = int((pairs["split_a"] != pairs["split_b"]).sum())
    classes = audit.classes.assign(testable=audit.classes["test"] > 0)
    listed = classes[(classes["records"] < MIN_RECORDS) | ~classes["testable"]]
    listed = listed.sort_values(["testable", "records"], kind="stable")
    notes = [f"{leaks:,} pairs of duplicates lie in different parts of the split."] if leaks else []
    if summary["duplicates"]["crowded"]:
        notes.append("Some hashes are so common that not all their pairs were compared.")
    issues = [
        {"issue": f"{str(kind).replace('_', ' ')} ({len(own):,})", **row}
        for kind, own in audit.issues.groupby("kind", sort=False)
        for row in _first(own.drop(columns="kind"), _MAX_ISSUES)
    ]
    levels, step = summary["brightness_histogram"], 256 // len(summary["brightness_histogram"])
    return write(
        path,
        "audit",
        title=str(root),
        kind="Data audit",
        about=f"{summary['looked_at']:,} of {summary['photos']:,} photos were read for the counts "
        "of sizes, brightness and duplicates.",
        notes=notes,
        summary=summary,
        num_pairs=len(pairs),
        num_leaks=leaks,
        num_classes=len(classes),
        num_untestable=int((~classes["testable"]).sum()),
        issues=issues,
        photos=_photos(audit, dataset, root) if with_photos or read.are_made_up(root) else {},
        bars=charts.bars,
        grey={f"{k * step}-{k * step + step - 1}": num for k, num in enumerate(levels)},
        told=[{"note": note} for note in summary["notes"]],
        pairs=_first(pairs),
        classes=_first(listed),
    )


def _photos(audit: Audit, dataset: Dataset, root: Path) -> dict[str, list[Photo]]:
    from petface.analysis.audit import path_text

    first = np.unique(dataset.catalog.class_index, return_index=True)[1].tolist()
    shown: dict[str, list[tuple[str, str, str]]] = {  # path, words, their mark
        "Duplicates under two records": [
            (pair[f"path_{side}"], f"{pair['kind']}, {pair[f'split_{side}']}",
             "pale" if pair["split_a"] == pair["split_b"] else "wrong")
            for pair in _first(audit.duplicates, _MAX_PAIRS)
            for side in "ab"
        ],
        "Odd photos": [
            (path_text(dataset, place), kind, "wrong")
            for kind, places in audit.examples.items()
            for place in places[:_MAX_EXAMPLES]
        ],
        "One photo of each species": [(path_text(dataset, place), "", "") for place in first],
    }  # fmt: skip
    return {
        title: [photo(root, p, (words, mark), (p, "pale")) for p, words, mark in own]
        for title, own in shown.items()
    }


def _first(found: pd.DataFrame, num: int = _MAX_LISTED) -> list[dict[Any, Any]]:
    return found.head(num).to_dict("records")


# ---- Comparison ----


def changed_words(comparison: dict[str, Any]) -> str:
    """Return a sentence on how many predictions differ; it says so where none does."""
    num, photos = comparison["num_changed"], comparison["images"]["common"]
    if num:
        return f"{num:,} predictions on {photos:,} photos differ between A and B."
    return f"A and B are identical: all predictions on {photos:,} photos are the same."


def write_comparison(path: Path, comparison: dict[str, Any]) -> Path:
    """Write the page of two evaluations side by side."""
    test, val = (
        [
            {
                **row,
                "view": "" if row["head"] == "species" else _VIEWS[row["view"]],
                "A_accuracy": row["accuracy_a"],
                "B_accuracy": row["accuracy_b"],
                "change": row["difference"],
            }
            for row in rows(comparison["figures"], split + ".{head}.{view}")
        ]
        for split in ("test", "val")
    )
    shown = test if comparison["num_changed"] else []
    a, b = flat(comparison["a"]), flat(comparison["b"])
    return write(
        path,
        "comparison",
        title="2 evaluations",
        kind="Comparison",
        about=f"A: {a['folder']} · B: {b['folder']}",
        notes=comparison["notes"],
        headlines=[
            (
                f"B minus A, {row['head']}",
                f"{points(row['change'])} points",
                [
                    f"95 %: {interval(row['interval_95'], points) or 'too few animals'}",
                    row["verdict"],
                ],
            )
            for row in shown
            if row["view"] != _VIEWS["conditional"]
        ],
        changed_words=changed_words(comparison),
        dots=[
            charts.intervals(
                f"B minus A: {view}",
                [row for row in shown if row["view"] in ("", view)],
                "head change interval_95",
                "points",
            )
            for view in _VIEWS.values()
        ],
        test=test,
        val=val,
        differing=[
            {"what": key, "A": str(a.get(key, "none")), "B": str(b.get(key, "none"))}
            for key in {**a, **b}
            if a.get(key) != b.get(key)
        ],
    )
