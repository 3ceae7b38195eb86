"""The index over runs and evaluations: a row each, the newest first, linked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from petface import distributed
from petface.evaluation.details import PER_IMAGE
from petface.report.page import Html, table, text
from petface.report.plots import sparkline
from petface.report.report_evaluation import write_evaluation_report
from petface.report.report_parts import (
    Tile,
    entries,
    interval,
    number,
    pale,
    percent,
    report,
    tiles,
    write_page,
)
from petface.report.report_run import duration, write_run_report
from petface.report.run_files import (
    FINAL,
    REPORT,
    find_folders,
    head_rows,
    held_out,
    is_evaluation,
    is_run,
    read_evaluation_files,
    read_run,
)
from petface.taxonomy import FEATURES

INDEX: Final = "index.html"


class Entry(NamedTuple):
    """A row of the index; `folder` holds the report if there is one."""

    folder: Path
    kind: str
    date: str
    figures: Sequence[str]
    time: str
    device: str
    state: str
    curve: str = ""


def write_reports(
    folders: Sequence[Path], *, with_photos: bool = False, images_root: str = ""
) -> tuple[list[Path], list[str]]:
    """Write the report of every run and evaluation in `folders`: the pages, and what failed.

    A folder that is both a run and an evaluation is reported as the evaluation.
    """
    written: list[Path] = []
    failures: list[str] = []
    for folder in dict.fromkeys(folder for root in folders for folder in find_folders(root)):
        try:
            if is_evaluation(folder):
                written.append(
                    write_evaluation_report(
                        folder, with_photos=with_photos, images_root=images_root or None
                    )
                )
            elif path := write_run_report(folder):
                written.append(path)
        except Exception as error:  # one strange folder must not keep the others from theirs
            failures.append(f"{folder}: no report, {type(error).__name__}: {error}")
    return written, failures


def report_line(folder: Path) -> str:
    """Write the report of one folder and say where it is, or why there is none.

    Never raises: what was trained or measured is finished by then.
    """
    written, failures = write_reports([folder])
    return "\n".join([*(f"report: {path}" for path in written), *failures])


def late_report(folder: Path) -> str:
    """Write the report of a folder that was stopped between its last figure and its report.

    What is finished is never started again, so whoever finds it finished calls this. Gives the line
    that says so, with a line break; "" where nothing is missing.
    """
    is_finished = (folder / FINAL).is_file() or (folder / PER_IMAGE).is_file()
    if not is_finished or (folder / REPORT).is_file() or not distributed.is_main():
        return ""
    return f"\n{report_line(folder)}\n"


def write_index(root: Path) -> Path:
    """Write `index.html` over every run and evaluation under `root`."""
    found = [_entry(folder) for folder in find_folders(root)]
    found.sort(key=lambda entry: str(entry.folder))
    found.sort(key=lambda entry: entry.date, reverse=True)
    return write_page(root / INDEX, index_page(root, found))


def index_page(root: Path, found: Sequence[Entry]) -> str:
    """Lay the rows out; every link is relative to `root`."""
    unfinished = sum(entry.state != "finished" for entry in found)
    body = [
        "<h1>Runs and evaluations</h1>",
        pale(
            f"{root}, the newest first. Figures are of the test part: share right of so "
            "many photos, with the 95 % interval where there is one."
        ),
        tiles(
            [
                Tile(number(sum(e.kind == "evaluation" for e in found)), "evaluations"),
                Tile(number(sum(e.kind != "evaluation" for e in found)), "training runs"),
                Tile(number(unfinished), "not finished", "doubt" if unfinished else ""),
            ]
        ),
    ]
    rows = [
        (_link(root, e.folder), _keep(e.kind), _keep(e.date), _lines(e.figures), Html(e.curve),
         _keep(e.time), e.device, _keep(e.state))
        for e in found
    ]  # fmt: skip
    header = ("name", "kind", "date", "test part", "course", "time", "device", "state")
    body.append(f"<div class=index>{table(header, len(header), rows)}</div>")
    return report("Runs and evaluations", body)


def _link(root: Path, folder: Path) -> Html:
    """Link to a folder's report; plain text where it has none."""
    relative = folder.relative_to(root)
    name = f"<bdi>{text(relative).replace('/', '/<wbr>')}</bdi>"
    if not (folder / REPORT).is_file():
        return Html(name)
    target = quote(os.fsencode(relative / REPORT))
    return Html(f'<a href="./{target}">{name}</a>')


def _entry(folder: Path) -> Entry:
    try:
        return _evaluation_entry(folder) if is_evaluation(folder) else _run_entry(folder)
    except Exception as error:  # nothing in one folder may cost the whole index
        words = f"cannot be read: {type(error).__name__}: {error}"
        return Entry(folder, "unknown", "", (), "", "", words)


def _in_brackets(ends: str) -> str:
    return f" ({ends})" if ends else ""


def _lines(words: Sequence[str]) -> Html:
    return Html("<br>".join(f"<bdi>{text(line)}</bdi>" for line in words))


def _keep(words: str) -> Html:
    """Keep a few words in one line; long ones may break."""
    return Html(f"<span{' class=keep' if len(words) < 20 else ''}><bdi>{text(words)}</bdi></span>")


def _run_entry(folder: Path) -> Entry:
    run = read_run(folder)
    shown = []
    for row in head_rows(run.final or {}):
        ends = interval(row["interval_95"])
        if value := percent(row["accuracy"]):
            shown.append(f"{row['head']} {value} of {number(row['num'])}{_in_brackets(ends)}")
    state = "finished" if run.final is not None else f"unfinished, {len(run.history)} epochs"
    columns = list(run.history[0]) if run.history else []
    shares = [c for c in columns if c.endswith("_frac")]
    watched = (shares or [c for c in columns if c == "val_loss"])[:1]
    curve = sparkline([row.get(watched[0]) for row in run.history]) if watched else ""
    return Entry(
        folder,
        {"species": "stage 1", "specialist": "stage 2"}.get(run.kind, run.kind),
        run.started,
        shown,
        duration(run.minutes),
        run.device,
        "; ".join([*run.problems, *([] if run.problems and run.final is None else [state])]),
        curve,
    )


def _evaluation_entry(folder: Path) -> Entry:
    found = read_evaluation_files(folder)
    summary = found.summary or {}
    figures = [("species", held_out(summary, "species")[1])]
    figures += [(head, held_out(summary, head)[2]) for head in FEATURES]
    shown = []
    for head, own in figures:
        ends = interval(own.get("interval_95"))
        if value := percent(own.get("accuracy")):
            shown.append(f"{head} {value} of {number(own.get('num'))}{_in_brackets(ends)}")
    state = "finished" if found.summary is not None else "unfinished"
    return Entry(
        folder,
        "evaluation",
        found.finished,
        shown,
        "",
        str(entries(found.models).get("device", "")),
        "; ".join(found.problems) or state,
    )


def is_reportable(folder: Path) -> bool:
    """Tell whether a folder is or holds a run or an evaluation."""
    return is_run(folder) or is_evaluation(folder) or any(True for _ in find_folders(folder))
