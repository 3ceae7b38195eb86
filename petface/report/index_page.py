"""The index over runs and evaluations: grouped by kind, the best and the running marked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup

from petface.evaluation.details import SUMMARY
from petface.evaluation.figures import percent
from petface.report import folders as read
from petface.report.page import Metric, Page, Section, table, visible, write

INDEX: Final = "index.html"
_GROUPS = ("Evaluations", "Stage 1: species", "Stage 2: attributes", "Other folders")


@dataclass
class Entry:
    """A row: `heads` are the test metrics, the headline first.

    Entries with the same `rival` were measured on the same thing, so the best can be told.
    """

    folder: Path
    group: str
    when: str = ""
    heads: list[dict[str, Any]] = field(default_factory=list)
    time: str = ""
    state: str = "finished"
    rival: tuple[Any, ...] = ()
    is_best: bool = False

    @property
    def accuracy(self) -> float:
        """Return the headline accuracy, -1 where there is none."""
        value = self.heads[0].get("accuracy") if self.heads else None
        return float(value) if read.is_number(value) else -1.0


def write_index(root: Path) -> Path:
    """Write index.html over every run and evaluation under `root`."""
    return write(root / INDEX, index_page(root, [_entry(f) for f in read.find_folders(root)]))


def index_page(root: Path, found: Sequence[Entry]) -> Page:
    """Build the page: a table per kind, the running and the best first; links are relative."""
    for entry in found:
        rivals = [e.accuracy for e in found if e.rival and e.rival == entry.rival]
        entry.is_best = len(rivals) > 1 and 0 <= max(rivals) == entry.accuracy
    sections = []
    for group in _GROUPS:
        own = [entry for entry in found if entry.group == group]
        # specialists stand in the order of their folders: their species are not rivals
        own.sort(key=lambda e: (str(e.folder) if e.rival[:1] == (2,) else "", -e.accuracy))
        own.sort(key=lambda e: not e.state.startswith("running"))
        sections.append(Section(group, [table(_row(root, entry) for entry in own)]))
    states = [entry.state.partition(",")[0] for entry in found]
    num_evaluations = sum(entry.group == _GROUPS[0] for entry in found)
    return Page(
        "Runs and evaluations",
        "Index",
        f"{root}: accuracy on the test part; attributes of an evaluation end to end",
        metrics=[
            Metric("evaluations", f"{num_evaluations:,}"),
            Metric("training runs", f"{len(found) - num_evaluations:,}"),
            Metric("running", f"{states.count('running'):,}"),
            Metric("stopped or damaged", f"{len(found) - sum(s in _FINE for s in states):,}"),
        ],
        sections=sections,
    )


_FINE = ("finished", "running")


def _row(root: Path, entry: Entry) -> dict[str, Any]:
    relative = entry.folder.relative_to(root)
    link: object = str(relative)
    if (entry.folder / read.REPORT).is_file():
        target = quote(os.fsencode(relative / read.REPORT))
        link = Markup('<a href="./{}">{}</a>').format(target, visible(relative))
    own = entry.heads[0] if entry.heads else {}
    bar = ""
    if entry.accuracy >= 0:
        bar = Markup('<span class=bar><i style="width:{:.1f}%"></i></span>{}&nbsp;{}{}').format(
            entry.accuracy * 100,
            own["head"],
            percent(entry.accuracy),
            Markup("&nbsp;<span class=best>★&nbsp;best</span>") if entry.is_best else "",
        )
    others = [f"{row['head']} {p}" for row in entry.heads[1:] if (p := percent(row["accuracy"]))]
    state: object = entry.state
    if entry.state.startswith("running"):
        state = Markup("<span class=running>● {}</span>").format(entry.state)
    return {
        "folder": link, "headline": bar, "interval_95": own.get("interval_95"),
        "majority_baseline": own.get("majority_baseline"), "other heads": " · ".join(others),
        "time": entry.time, "started or finished": entry.when, "state": state,
    }  # fmt: skip


def _entry(folder: Path) -> Entry:
    try:
        return _evaluation(folder) if read.is_evaluation(folder) else _run(folder)
    except Exception as error:  # nothing in one folder may cost the whole index
        words = f"cannot be read: {type(error).__name__}: {error}"
        return Entry(folder, _GROUPS[3], state=words)


def _run(folder: Path) -> Entry:
    run = read.read_run(folder)
    data = run.settings.get("IMAGES_ROOT"), run.settings.get("SPLIT_SEED")
    return Entry(
        folder,
        _GROUPS[run.stage or 3],
        read.readable_time(run.environment.get("started"), folder),
        run.heads(),
        run.time,
        "; ".join(run.problems) or run.state,
        (run.stage, *data, folder.name if run.stage == 2 else ""),
    )


def _evaluation(folder: Path) -> Entry:
    summary, models, problems = read.read_evaluation_files(folder)
    heads = [{"head": h["head"], **read.headline_of(h)} for h in read.test_heads(summary)]
    state = "; ".join(problems) or ("finished" if summary else "stopped")
    when = read.readable_time(None, folder / SUMMARY)
    rival = ("evaluation", models.get("dataset"), heads[0].get("num") if heads else 0)
    return Entry(folder, _GROUPS[0], when, heads, "", state, rival)
