"""Read what run folders and evaluations hold, finished or not, broken or not."""

from __future__ import annotations

import ast
import csv
import os
import re
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import petface
from petface.evaluation.details import MODELS, PER_IMAGE, SUMMARY
from petface.files import plain_cell
from petface.report.report_parts import dig, entries, is_number, read_json
from petface.taxonomy import FEATURES

REPORT = "report.html"  # of a run or an evaluation
METRICS, FINAL, SETTINGS, ENVIRONMENT = (
    "metrics.csv", "final.json", "settings.toml", "environment.json"
)  # fmt: skip
LABEL_ERRORS = "label_errors.json"  # of an evaluation; the suspects stand in the .csv beside it
_MAX_SUSPECTS = 20
_SCRIPT_LINE = re.compile(r"# All constants of a run of (\S+\.py);")
_SOURCE = Path(petface.__file__).resolve().parents[1]  # the scripts lie beside the package


@dataclass
class Run:
    """A run folder as it was found; `problems` says what could not be read.

    `history` is metrics.csv, a dictionary per epoch, None for a cell that is no number. `final` is
    None where the run is not finished. `unreadable` and `conflicts` are the rows of errors.csv and
    label_conflicts.csv.
    """

    folder: Path
    final: dict[str, Any] | None
    problems: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    settings_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float | None]] = field(default_factory=list)
    unreadable: list[list[str]] = field(default_factory=list)
    conflicts: list[list[str]] = field(default_factory=list)

    @property
    def script(self) -> str:
        """Name the script that made the run; "" where its settings do not say."""
        found = _SCRIPT_LINE.match(self.settings_text)
        return found[1] if found else ""

    @property
    def kind(self) -> str:
        """Say what was trained."""
        if self.script.startswith("stage2") or "PHASE_STAGES" in self.settings:
            return "specialist"
        return "species" if self.script or "test_recall" in (self.final or {}) else "training"

    @property
    def started(self) -> str:
        """Give day and minute of the start; of the newest file where nothing says."""
        return readable_time(self.environment.get("started"), self.folder)

    @property
    def minutes(self) -> float | None:
        """Sum the training time."""
        minutes = dig(self.final, "train_minutes")
        if is_number(minutes):
            return float(minutes)
        seconds = [row.get("train_s") for row in self.history]
        return sum(filter(None, seconds)) / 60 if any(seconds) else None

    @property
    def device(self) -> str:
        """Name what the run trained on: the accelerator if there was one, else the processor."""
        asked = str(self.settings.get("DEVICE", "auto"))
        gpu = self.environment.get("gpu")
        return str((gpu if asked != "cpu" else None) or self.environment.get("processor") or "")

    def unreadable_per_species(self) -> Counter[str]:
        """Count the images that could not be used."""
        return Counter(row[0] for row in self.unreadable if row)


@dataclass
class EvaluationFiles:
    """An evaluation as it was found; what is missing or broken is None."""

    folder: Path
    summary: dict[str, Any] | None
    models: dict[str, Any] | None
    analysis: dict[str, Any] | None
    label_errors: dict[str, Any] | None
    suspects: list[dict[str, str]]  # the first rows of label_errors.csv
    problems: list[str]

    @property
    def finished(self) -> str:
        """Give day and minute of the summary."""
        return readable_time(None, self.folder, SUMMARY)


def read_run(folder: Path) -> Run:
    """Read a run folder; whatever cannot be read is noted and left out."""
    problems: list[str] = []
    run = Run(folder, read_json(folder / FINAL, problems), problems)
    run.environment = read_json(folder / ENVIRONMENT, problems) or {}
    try:
        run.settings_text = (folder / SETTINGS).read_text(encoding="utf-8")
        run.settings = tomllib.loads(run.settings_text)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        problems.append(f"{SETTINGS} cannot be read: {error}")
    header, rows = _read_csv(folder / METRICS, problems)
    run.history = [dict(zip(header, map(_as_number, row), strict=False)) for row in rows]
    run.unreadable = _read_csv(folder / "errors.csv", problems)[1]
    run.conflicts = _read_csv(folder / "label_conflicts.csv", problems)[1]
    return run


def read_evaluation_files(folder: Path) -> EvaluationFiles:
    """Read the JSON files of an evaluation; whatever cannot be read is noted and left out."""
    problems: list[str] = []
    return EvaluationFiles(
        folder,
        summary=read_json(folder / SUMMARY, problems),
        models=read_json(folder / MODELS, problems),
        analysis=read_json(folder / "analysis" / "analysis.json", problems),
        label_errors=read_json(folder / LABEL_ERRORS, problems),
        suspects=_read_suspects(folder),
        problems=problems,
    )


def is_run(folder: Path) -> bool:
    """Tell a run folder by its files."""
    names = (FINAL, METRICS, SETTINGS, "run.lock")
    return any((folder / name).is_file() for name in names)


def is_evaluation(folder: Path) -> bool:
    """Tell the folder of an evaluation, finished or not, by its files."""
    names = (SUMMARY, PER_IMAGE, PER_IMAGE + ".unfinished")
    return any((folder / name).is_file() for name in names)


def find_folders(root: Path) -> Iterator[Path]:
    """Give every run and evaluation under `root`, links not followed, in the order of names."""
    for name, folders, _ in os.walk(root, followlinks=False):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if is_run(Path(name)) or is_evaluation(Path(name)):
            yield Path(name)


def head_rows(final: dict[str, Any]) -> list[dict[str, Any]]:
    """Gather the test figures of a finished run per head: the names of final.json, shortened."""
    rows = []
    for head in ("species", *FEATURES):
        prefix = "test_" if head == "species" else f"test_{head}_"
        if f"{prefix}accuracy" not in final:
            continue
        known = "test_images" if head == "species" else f"{prefix}known"
        own = {
            name: final.get(prefix + name)
            for name in ("accuracy", "balanced_accuracy", "majority_baseline", "interval_95")
        }
        measured = entries(final, "calibration", head)
        rows.append({"head": head, "num": final.get(known), **own, "calibration": measured})
    return rows


def held_out(summary: dict[str, Any], head: str) -> tuple[dict[str, Any], ...]:
    """Give a head's entry of the test part, its figure where it was asked, and its end to end one.

    The intervals are those of `figures`, which hold for small parts too, where they are there.
    """
    own = entries(summary, "test", *(("species",) if head == "species" else ("features", head)))
    asked, end = entries(own, "conditional") or own, entries(own, "end_to_end")
    better = entries(summary, "figures", "test", head)
    pairs = ((asked, better), (end, entries(better, "end_to_end")))
    return own, *(
        {**old, "interval_95": new["interval_95"]} if old and new.get("interval_95") else old
        for old, new in pairs
    )


def defaults_of(script: str) -> dict[str, Any]:
    """Read the constants of a script as they stand in its file now; the script is not run."""
    path = _SOURCE / Path(script).name
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return {}
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            found[node.target.id] = list(value) if isinstance(value, tuple) else value
    return found


def readable_time(stamp: Any, folder: Path, name: str = "") -> str:
    """Write a time stamp as day and minute; the time of a file or the folder where it is none."""
    try:
        return datetime.fromisoformat(str(stamp)).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        pass
    try:
        seconds = (folder / name).stat().st_mtime
    except OSError:
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _read_suspects(folder: Path) -> list[dict[str, str]]:
    header, rows = _read_csv(folder / LABEL_ERRORS.replace(".json", ".csv"), [], _MAX_SUSPECTS)
    return [dict(zip(header, row, strict=False)) for row in rows]


def _read_csv(
    path: Path, problems: list[str], most: int | None = None
) -> tuple[list[str], list[list[str]]]:
    """Read a header and `most` rows or all."""
    end = None if most is None else most + 1
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            rows = [[plain_cell(cell) for cell in row] for row in islice(csv.reader(handle), end)]
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return [], []
    return (rows[0], rows[1:]) if rows else ([], [])


def _as_number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if is_number(value) else None
