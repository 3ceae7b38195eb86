"""The index over runs and evaluations: grouped by kind, the best and the running marked."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup

from petface.evaluation.details import SUMMARY
from petface.evaluation.figures import percent
from petface.report import folders as read
from petface.report.page import Metric, Page, table, visible, write

INDEX: Final = "index.html"
_GROUPS = (
    *("Evaluations", "Stage 1: species", "Stage 2: attributes", "Identity: single animals"),
    "Other folders",
)
_COLUMNS = "link headline interval_95 majority_baseline other_heads time when state"


def write_index(root: Path) -> Path:
    """Write index.html over every run and evaluation under `root`."""
    return write(root / INDEX, index_page(root, [_entry(f) for f in read.find_folders(root)]))


def index_page(root: Path, found: list[dict[str, Any]]) -> Page:
    """Build the page: a table per kind, the running and the best first; links are relative."""
    num_rivals = Counter(entry["rival"] for entry in found if entry["accuracy"] >= 0)
    best: dict[Any, float] = {}
    for entry in found:
        best[entry["rival"]] = max(entry["accuracy"], best.get(entry["rival"], 0))
    numbers = Counter({"evaluations": 0, "training runs": 0, "running": 0, "stopped or damaged": 0})
    for entry in found:
        is_best = num_rivals[entry["rival"]] > 1 and best[entry["rival"]] == entry["accuracy"]
        entry |= {"link": _link(root, entry["folder"]), "headline": _bar(entry, is_best)}
        numbers["evaluations" if entry["group"] == _GROUPS[0] else "training runs"] += 1
        if entry["is_running"]:
            numbers["running"] += 1
            entry["state"] = Markup("<span class=running>● {}</span>").format(entry["state"])
        elif entry["state"] != "finished":
            numbers["stopped or damaged"] += 1
    # Specialists stand in the order of their folders: their species are not rivals.
    found.sort(key=lambda e: "" if e["group"] != _GROUPS[2] else str(e["folder"]))
    found.sort(key=lambda e: (not e["is_running"], e["group"] != _GROUPS[2] and -e["accuracy"]))
    return Page(
        "Runs and evaluations",
        "Index",
        f"{root}: accuracy on the test split; for attributes of an evaluation, end to end",
        metrics=[Metric(name, f"{num:,}") for name, num in numbers.items()],
        sections={g: [table((e for e in found if e["group"] == g), _COLUMNS)] for g in _GROUPS},
    )


def _link(root: Path, folder: Path) -> str:
    """Link to a folder's report; plain text where it has none."""
    relative = folder.relative_to(root)
    if not (folder / read.REPORT).is_file():
        return str(relative)
    target = quote(os.fsencode(relative / read.REPORT))
    return Markup('<a href="./{}">{}</a>').format(target, visible(relative))


def _bar(entry: dict[str, Any], is_best: bool) -> str:
    if entry["accuracy"] < 0:
        return ""
    mark = Markup("&nbsp;<span class=best>★&nbsp;best</span>") if is_best else ""
    bar = Markup('<span class=bar><i style="width:{:.1f}%"></i></span>{}&nbsp;{}{}')
    shown = percent(entry["accuracy"])
    return bar.format(entry["accuracy"] * 100, entry["head"], shown, mark)


def _entry(folder: Path) -> dict[str, Any]:
    """Read what a row shows; entries with the same `rival` were measured on the same thing."""
    entry = {"folder": folder, "group": _GROUPS[4], "rival": folder, "accuracy": -1.0,
             "is_running": False}  # fmt: skip
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
    return {
        "group": _GROUPS[run.stage or 4],
        "when": read.readable_time(run.environment.get("started"), folder),
        "heads": run.heads(),
        "time": run.time,
        "state": "; ".join(run.problems) or run.state,
        "is_running": run.state.startswith("running"),
        "rival": (run.stage, *map(str, data), folder.name if run.stage == 2 else ""),
    }


def _evaluation(folder: Path) -> dict[str, Any]:
    summary, models, problems = read.read_evaluation_files(folder)
    heads = read.headlines(summary)
    return {
        "group": _GROUPS[0],
        "when": read.readable_time(None, folder / SUMMARY),
        "heads": heads,
        "state": "; ".join(problems) or ("finished" if summary else "stopped"),
        "rival": ("evaluation", str(models.get("dataset")), heads[0]["num"] if heads else 0),
    }
