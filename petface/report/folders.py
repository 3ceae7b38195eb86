"""Read what run folders and evaluations hold, finished or not, broken or not."""

from __future__ import annotations

import ast
import csv
import json
import math
import os
import re
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np

import petface
from petface.evaluation.details import HEADS, MODELS, PER_IMAGE, SUMMARY
from petface.files import plain_cell, take
from petface.metrics import cluster_wilson_interval, read_confusion
from petface.taxonomy import FEATURES

REPORT: Final = "report.html"  # of a run or an evaluation
METRICS, FINAL, SETTINGS, LOCK = "metrics.csv", "final.json", "settings.toml", "run.lock"
_MAX_ROWS = 200  # read of errors.csv, label_conflicts.csv and label_errors.csv


@dataclass
class Run:
    """A run folder as it was found; `problems` says what could not be read.

    `history` is metrics.csv, a dictionary per epoch, None for a cell that is no number. `final` is
    empty where the run is not finished.
    """

    folder: Path
    problems: list[str] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    settings_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float | None]] = field(default_factory=list)

    @property
    def script(self) -> str:
        """Return the file name of the script that made the run, "" where it is not known."""
        found = re.match(r"# All constants of a run of (\S+\.py);", self.settings_text)
        return found[1] if found else ""

    @property
    def stage(self) -> int:
        """Return 1 (species), 2 (attributes of one species) or 0 where nothing tells."""
        if self.script:
            return 2 if self.script.startswith("stage2") else 1
        columns = {*self.final, *(self.history[0] if self.history else ())}
        if columns & {"test_recall", "test_accuracy", "val_accuracy_frac"}:
            return 1
        return 2 if any(f"_{feature}_" in name for feature in FEATURES for name in columns) else 0

    @property
    def name(self) -> str:
        """Return the run's name; that of a specialist ends with its species."""
        name = str(self.settings.get("RUN_NAME") or self.folder.name)
        is_inside = self.stage == 2 and Path(name).name != self.folder.name
        return f"{name}/{self.folder.name}" if is_inside else name

    @property
    def state(self) -> str:
        """Return finished, running (its lock is held) or stopped, with the epochs done."""
        if self.final:
            return "finished"
        try:
            with (self.folder / LOCK).open("rb", buffering=0) as handle:
                word = "running" if take(handle) else "stopped"
        except OSError:
            word = "stopped"
        return f"{word}, {len(self.history)} epochs"

    @property
    def time(self) -> str:
        """Return the training time so far, in the unit that reads best."""
        minutes = self.final.get("train_minutes")
        if not is_number(minutes):
            minutes = sum(row.get("train_s") or 0 for row in self.history) / 60
        if minutes < 2:
            return f"{minutes * 60:.0f} s" if minutes else ""
        return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"

    @property
    def device(self) -> str:
        """Return the accelerator the run trained on, else the processor."""
        gpu = None if self.settings.get("DEVICE") == "cpu" else self.environment.get("gpu")
        return str(gpu or self.environment.get("processor") or "")

    def heads(self) -> list[dict[str, Any]]:
        """Return the test metrics per head, by the short names of a summary.

        `matrix` is the confusion matrix (names, counts) or None. Without a written interval one
        stands in that takes photos for independent.
        """
        rows = []
        for head in HEADS:
            prefix = "test_" if head == "species" else f"test_{head}_"
            if f"{prefix}accuracy" in self.final:
                num = self.final.get("test_images" if head == "species" else f"{prefix}known")
                own = {k.removeprefix(prefix): v for k, v in self.final.items()}
                matrix = read_confusion(self.folder / f"confusion_test_{head}.csv")
                rows.append({"head": head, **own, "num": num, "matrix": matrix})
                if matrix and not own.get("interval_95"):
                    rows[-1] |= {"interval_95": _photo_interval(matrix[1]), "is_by_photo": True}
        return rows


def read_run(folder: Path) -> Run:
    """Read a run folder; whatever cannot be read is noted and left out."""
    run = Run(folder)
    run.final = read_json(folder / FINAL, run.problems)
    run.environment = read_json(folder / "environment.json", run.problems)
    try:
        run.settings_text = (folder / SETTINGS).read_text(encoding="utf-8")
        run.settings = tomllib.loads(run.settings_text)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        run.problems.append(f"{SETTINGS} cannot be read: {error}")
    rows = read_rows(folder / METRICS, run.problems, None)
    run.history = [{name: _as_number(cell) for name, cell in row.items()} for row in rows]
    return run


def is_run(folder: Path) -> bool:
    """Recognise a run folder by its files."""
    return any((folder / name).is_file() for name in (FINAL, METRICS, SETTINGS, LOCK))


def is_evaluation(folder: Path) -> bool:
    """Recognise the folder of an evaluation, finished or not, by its files."""
    names = (SUMMARY, PER_IMAGE, PER_IMAGE + ".unfinished")
    return any((folder / name).is_file() for name in names)


def find_folders(root: Path) -> Iterator[Path]:
    """Yield every run and evaluation under `root`, links not followed, in the order of names."""
    for name, folders, _ in os.walk(root, followlinks=False):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if is_run(Path(name)) or is_evaluation(Path(name)):
            yield Path(name)


def read_evaluation_files(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Read an evaluation's summary and models, empty where they are missing, and the problems."""
    problems: list[str] = []
    return read_json(folder / SUMMARY, problems), read_json(folder / MODELS, problems), problems


def test_heads(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the test metrics per head: where it was asked, `end_to_end` beside it.

    The intervals are those of `figures`, which hold for small parts too, where they are there.
    """
    rows = []
    for head in HEADS:
        place = ("species",) if head == "species" else ("features", head)
        own, better = entries(summary, "test", *place), entries(summary, "figures", "test", head)
        asked, end = entries(own, "conditional"), entries(own, "end_to_end")
        row = {"head": head, **better, **own, **asked}
        row["end_to_end"] = {**end, "majority_baseline": own.get("majority_baseline")}
        for old, new in ((row, better), (row["end_to_end"], entries(better, "end_to_end"))):
            old["interval_95"] = new.get("interval_95") or old.get("interval_95")
        if row.get("num") or end.get("num"):
            rows.append(row)
    return rows


def headlines(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a user of the system meets per head: an attribute's metric is end to end."""
    own = (
        row if row["head"] == "species" else {"head": row["head"], **row["end_to_end"]}
        for row in test_heads(summary)
    )
    return [row for row in own if is_number(row.get("accuracy"))]


def defaults_of(script: str) -> dict[str, Any]:
    """Read the constants of a script as they stand in its file now; the script is not run."""
    path = Path(petface.__file__).resolve().parents[1] / Path(script).name
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else ():
        if isinstance(node, ast.AnnAssign) and node.value:
            with suppress(ValueError):
                value = ast.literal_eval(node.value)
                found[ast.unparse(node.target)] = [*value] if isinstance(value, tuple) else value
    return found


def found_at(folder: Path, path: str) -> Path | None:
    """Find a path that was given to a run, from here or from above its folder."""
    bases = (Path(), *folder.resolve().parents)
    return next((base / path for base in bases if path and (base / path).exists()), None)


def readable_time(stamp: Any, path: Path) -> str:
    """Format a time stamp as day and minute; where it is none, the time of a file."""
    try:
        return datetime.fromisoformat(str(stamp)).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        seconds = path.stat().st_mtime if path.exists() else None
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none, and where it is broken: noted."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path.name} cannot be read: it holds no JSON object")
    return found if isinstance(found, dict) else {}


def read_rows(
    path: Path, problems: list[str], most: int | None = _MAX_ROWS
) -> list[dict[str, str]]:
    """Read the first `most` rows of a CSV, or all; none where it cannot be read: noted."""
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            rows = [list(map(plain_cell, row)) for row in islice(csv.reader(handle), most)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return []
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]


def dig(tree: Any, *keys: str) -> Any:
    """Follow keys into nested dictionaries; None where one is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def entries(tree: Any, *keys: str) -> dict[str, Any]:
    """Follow keys to a dictionary; an empty one where there is none."""
    found = dig(tree, *keys)
    return found if isinstance(found, dict) else {}


def rows(tree: Any, *names: str) -> Iterator[dict[str, Any]]:
    """Yield the dictionaries, or lists of them, at a depth of nested ones, the keys under `names`.

    rows({"breed": {"cat": {"num": 3}}}, "head", "species") yields one row of head, species and num.
    """
    if not names:
        yield from (
            each for each in (tree if isinstance(tree, list) else [tree]) if type(each) is dict
        )
    elif isinstance(tree, dict):
        for key, below in tree.items():
            yield from ({names[0]: key, **row} for row in rows(below, *names[1:]))


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """Format a number: whole ones with separators, others with a few digits; "" for no number."""
    if not is_number(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _photo_interval(counts: np.ndarray) -> list[float] | None:
    right, total = np.trace(counts), counts.sum()
    if not total:
        return None
    return list(cluster_wilson_interval(np.arange(total) < right, np.ones(total)))


def _as_number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return None if not is_number(value) else int(value) if value.is_integer() else value
