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
from petface.report.page import Page, Strip, photo, table, visible, write

if TYPE_CHECKING:
    from petface.analysis.audit import Audit
    from petface.data.dataset import Dataset

INDEX: Final = "index.html"
_EVALUATIONS, _SPECIALISTS, _OTHERS = "Evaluations", "Stage 2: attributes", "Other folders"
_GROUPS = (
    *(_EVALUATIONS, "Stage 1: species", _SPECIALISTS, "Identity: single animals"),
    _OTHERS,
)
_INDEX_COLUMNS = "link headline interval_95 majority_baseline other_heads time when state"
_SPECIES_COLUMNS = (
    "species photos records records_per_split.train records_per_split.val records_per_split.test "
    "unreadable too_large mean_brightness"
)
_MAX_PAIRS, _MAX_EXAMPLES, _MAX_ISSUES, _MAX_LISTED = 8, 4, 5, 100  # the CSV files hold all
_VIEWS = {"conditional": "species right", "end_to_end": "end to end"}
_TEST_COLUMNS = "head view num num_records A_accuracy B_accuracy change interval_95 p_holm verdict"
_METHOD = (
    "Photos of one animal tend to be right or wrong together. Intervals therefore resample whole "
    "records, and p-values swap the predictions of whole records. They are adjusted for the number "
    "of tests by Holm's method. The verdict is at the 5 % level."
)


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
    page = Page(
        "Runs and evaluations",
        "Index",
        f"{root}: accuracy on the test split; for attributes of an evaluation, end to end",
        metrics=[(name, f"{num:,}", ()) for name, num in numbers.items()],
        sections={
            g: [table((e for e in found if e["group"] == g), _INDEX_COLUMNS)] for g in _GROUPS
        },
    )
    return write(root / INDEX, page)


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
    bad = summary["unreadable"] + summary["too_large"]
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
    grey = {f"{k * step}-{k * step + step - 1}": num for k, num in enumerate(levels)}
    drawn = [
        charts.bars("Photos per record", summary["photos_per_record"], "records", "photos"),
        charts.bars("Mean grey level", grey, "photos", "0 black to 255 white"),
        charts.bars("Most common sizes", summary["sizes"], "photos", "pixels"),
    ]
    page = Page(
        str(root),
        "Data audit",
        f"{summary['looked_at']:,} of {summary['photos']:,} photos were read for the counts of "
        "sizes, brightness and duplicates.",
        notes,
        metrics=[
            ("photos", f"{summary['photos']:,}", [f"{summary['records']:,} animals"]),
            ("species", f"{summary['species']:,}", [f"{len(classes):,} classes"]),
            ("unusable", f"{bad:,}", [f"of {summary['looked_at']:,} read"]),
            ("duplicate pairs", f"{len(pairs):,}", [f"{leaks:,} across the split"]),
            ("untestable classes", f"{(~classes['testable']).sum():,}", ["without a test record"]),
        ],
        sections={
            "Issues (all in issues.csv)": [table(issues)],
            **(_photos(audit, dataset, root) if with_photos or read.are_made_up(root) else {}),
            "Species": [table(rows(summary, "per_species.{species}"), _SPECIES_COLUMNS)],
            "Sizes and brightness": [Strip(drawn)],
        },
        folded={
            "Duplicates (all in duplicates.csv)": [
                table(_first(pairs), "kind path_a split_a path_b split_b difference")
            ],
            "Attributes": [table(rows(summary, "heads.{species}.{attribute}"))],
            "Rare and untestable classes (all in classes.csv)": [
                table(_first(listed), "species feature class records train val test")
            ],
            "Notes from reading the data": [table({"note": note} for note in summary["notes"])],
        },
    )
    return write(path, page)


def _photos(audit: Audit, dataset: Dataset, root: Path) -> dict[str, list[Strip]]:
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
        title: [
            Strip([photo(root, p, (words, mark), (p, "pale")) for p, words, mark in own], "photos")
        ]
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
    drawn = [
        charts.intervals(
            f"B minus A: {view}",
            [row for row in shown if row["view"] in ("", view)],
            "head change interval_95",
            "points",
        )
        for view in _VIEWS.values()
    ]
    a, b = flat(comparison["a"]), flat(comparison["b"])
    differing = [
        {"what": key, "A": str(a.get(key, "none")), "B": str(b.get(key, "none"))}
        for key in {**a, **b}
        if a.get(key) != b.get(key)
    ]
    page = Page(
        "2 evaluations",
        "Comparison",
        f"A: {a['folder']} · B: {b['folder']}",
        comparison["notes"],
        metrics=[
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
        sections={
            "B minus A, test split": [
                changed_words(comparison),
                Strip(drawn),
                table(test, _TEST_COLUMNS),
            ]
        },
        folded={
            "Who is right": [table(test, "head view both_right only_a only_b both_wrong")],
            "Validation split": [table(val, _TEST_COLUMNS)],
            "Differences between A and B; method": [_METHOD, table(differing)],
        },
    )
    return write(path, page)
