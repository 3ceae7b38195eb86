"""Read what run folders and evaluations hold, finished or not, broken or not."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
import pandas as pd

import petface
from petface.evaluation.details import HEADS, MODELS, PER_IMAGE, SUMMARY
from petface.files import plain_cell, take
from petface.metrics import read_confusion, wilson_interval
from petface.taxonomy import FEATURES

REPORT: Final = "report.html"  # of a run or an evaluation
METRICS, FINAL, SETTINGS, LOCK = "metrics.csv", "final.json", "settings.toml", "run.lock"
MAX_ROWS: Final = 200  # of a CSV file in a page; the file holds all


@dataclass
class Run:
    """A run folder as it was found; `problems` says what could not be read.

    `history` is metrics.csv as numbers; `final` is empty where the run is not finished.
    """

    folder: Path
    problems: list[str] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    settings_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)

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
        columns = {*self.final, *self.history}
        if columns & {"test_accuracy", "val_accuracy_frac"}:
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
        holder = ""
        with suppress(OSError), (self.folder / LOCK).open("rb", buffering=0) as handle:
            holder = take(handle)
        return f"{'running' if holder else 'stopped'}, {len(self.history)} epochs"

    @property
    def time(self) -> str:
        """Return the training time so far, in the unit that reads best."""
        minutes = self.final.get("train_minutes")
        if not is_number(minutes):
            minutes = self.history.get("train_s", pd.Series([0.0])).sum() / 60
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

        `matrix` is the confusion matrix (names, counts) or None. A run does not know which photos
        show one animal: its interval takes them for independent.
        """
        found = []
        for head in HEADS:
            prefix, known = ("test_", "images") if head == "species" else (f"test_{head}_", "known")
            row = {k.removeprefix(prefix): v for k, v in self.final.items() if k.startswith(prefix)}
            accuracy, num = row.get("accuracy"), row.get(known)
            if is_number(accuracy):
                row |= {"head": head, "num": num}
                row["matrix"] = read_confusion(self.folder / f"confusion_test_{head}.csv")
                if is_number(num) and num > 0:
                    limits = wilson_interval(accuracy, num, 1.96)
                    row["interval_95"] = np.clip(limits, 0, 1).tolist()
                found.append(row)
        return found


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
    history = pd.DataFrame(read_csv(folder / METRICS, run.problems), dtype=object)
    run.history = history.apply(pd.to_numeric, errors="coerce")
    return run


def is_evaluation(folder: Path) -> bool:
    """Recognise the folder of an evaluation, finished or not, by its files."""
    names = (SUMMARY, PER_IMAGE, PER_IMAGE + ".unfinished")
    return any((folder / name).is_file() for name in names)


def find_folders(root: Path) -> Iterator[Path]:
    """Yield every run and evaluation under `root`, links not followed, in the order of names."""
    for name, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if is_evaluation(Path(name)) or {FINAL, METRICS, SETTINGS, LOCK} & {*names}:
            yield Path(name)


def read_evaluation_files(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Read an evaluation's summary and models, empty where they are missing, and the problems."""
    problems: list[str] = []
    return read_json(folder / SUMMARY, problems), read_json(folder / MODELS, problems), problems


def test_heads(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the test metrics per head: where it was asked, and `end_to_end.*`."""
    by_animal = {row["head"]: row for row in rows(summary, "per_record.test.{head}")}
    return [
        {**row, "per_record.accuracy": by_animal.get(row["head"], {}).get("accuracy_fused")}
        for row in rows(summary, "figures.test.{head}")
        if row.get("num") or row.get("end_to_end.num")
    ]


def headlines(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a user of the system meets per head: an attribute's metric is end to end."""
    found = []
    for row in test_heads(summary):
        end = "" if row["head"] == "species" else "end_to_end."
        own = {key: row.get(end + key) for key in ("num", "accuracy", "interval_95")}
        found.append(
            {"head": row["head"], "majority_baseline": row.get("majority_baseline"), **own}
        )
    return [row for row in found if is_number(row["accuracy"])]


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
    """Format a time stamp as day and minute; without one, the time of a file."""
    if not stamp and path.exists():
        stamp = datetime.fromtimestamp(path.stat().st_mtime).isoformat()
    return str(stamp or "")[:16].replace("T", " ")


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none, and where it is broken: noted."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        problems.append(f"{path.name} cannot be read: it holds no JSON object")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
    return {}


def read_csv(path: Path, problems: list[str], most: int | None = None) -> list[dict[str, Any]]:
    """Read the first `most` rows of a CSV as text, or all; none where it cannot be read: noted."""
    try:
        found = pd.read_csv(path, dtype=str, nrows=most, keep_default_na=False, index_col=False)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return []
    return found.map(plain_cell, na_action="ignore").to_dict("records")  # type: ignore[return-value]


def rows(tree: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """Yield the dictionaries at a path into nested ones, flat; of a list each.

    `{name}` in a path stands for any key, which becomes a cell: of {"breed": {"cat": {"num": 3}}},
    `{head}.{species}` is the row {"head": "breed", "species": "cat", "num": 3}.
    """
    key, _, below = path.partition(".")
    if not path:
        found = tree if isinstance(tree, list) else [tree]
        yield from (flat(row) for row in found if isinstance(row, dict))
    elif isinstance(tree, dict) and key.startswith("{"):
        for name, own in tree.items():
            yield from ({key[1:-1]: name, **row} for row in rows(own, below))
    elif isinstance(tree, dict):
        yield from rows(tree.get(key), below)


def flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, by their keys joined with dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{above}{key}.") if nested else {f"{above}{key}": value}
    return found


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """Format a number: whole ones with separators, others with a few digits; "" for no number."""
    if not is_number(value):
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
