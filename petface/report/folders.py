"""Read what run folders and evaluations hold, finished or not, broken or not."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from petface import files
from petface.errors import UserError
from petface.evaluation.details import HEADS, MODELS, PER_IMAGE, SUMMARY
from petface.evaluation.figures import is_number
from petface.evaluation.summary import contamination_lines, worst_of
from petface.files import plain_cell, take
from petface.metrics import clopper_pearson, read_confusion

REPORT: Final = "report.html"  # of a run or an evaluation
METRICS, FINAL, SETTINGS, LOCK = "metrics.csv", "final.json", "settings.toml", "run.lock"
MAX_ROWS: Final = 200  # of a CSV file in a page; the file holds all


@dataclass
class Run:
    """A run folder as it was found; what is missing or broken is empty."""

    folder: Path
    problems: list[str]  # what could not be read
    final: dict[str, Any]  # empty where the run is not finished
    settings: dict[str, Any]
    settings_text: str
    environment: dict[str, Any]
    history: pd.DataFrame  # metrics.csv as numbers
    script: str  # file name of what made the run, "" where it is not known
    stage: int  # 1 (species), 2 (attributes of one), 3 (identity) or 0 where nothing tells
    state: str  # finished, or running (its lock is held) or stopped with the epochs done
    time: str  # of the training so far
    device: str  # the accelerator it trained on, else the processor

    def heads(self) -> list[dict[str, Any]]:
        """Return the test metrics per head, by the short names of a summary.

        `matrix` is the confusion matrix (names, counts) or None. A run does not know which photos
        show one animal: its interval takes them for independent.
        """
        found = []
        if is_number(top1 := self.final.get("test_top1")):
            row = {"head": "top-1", "accuracy": top1, "num": self.final.get("test_queries")}
            found.append({**row, "matrix": None})
        for head in HEADS:
            prefix, known = ("test_", "images") if head == "species" else (f"test_{head}_", "known")
            row = {k.removeprefix(prefix): v for k, v in self.final.items() if k.startswith(prefix)}
            accuracy, num = row.get("accuracy"), row.get(known)
            if is_number(accuracy):
                row |= {"head": head, "num": num}
                row["matrix"] = read_confusion(self.folder / f"confusion_test_{head}.csv")
                if is_number(num) and num > 0:
                    row["interval_95"] = list(clopper_pearson(accuracy * num, num, 0.025))
                found.append(row)
        return found


def read_run(folder: Path) -> Run:
    """Read a run folder; whatever cannot be read is noted and left out."""
    problems: list[str] = []
    final = read_json(folder / FINAL, problems)
    environment = read_json(folder / "environment.json", problems)
    text, settings = "", {}
    try:
        text = (folder / SETTINGS).read_text(encoding="utf-8")
        settings = tomllib.loads(text)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        problems.append(f"{SETTINGS} cannot be read: {error}")
    cells = pd.DataFrame(read_csv(folder / METRICS, problems), dtype=object)
    history = cells.apply(pd.to_numeric, errors="coerce")
    made_by = re.match(r"# All constants of a run of (.+\.py);", text)
    script = Path(made_by[1]).name if made_by else ""
    others = {"stage2_resnet_multi.py": 2, "train_identity.py": 3, "": 0}
    stage = others.get(script, 1)
    holder = ""
    with suppress(OSError), (folder / LOCK).open("rb", buffering=0) as handle:
        holder = "" if final else take(handle)
    state = f"{'running' if holder else 'stopped'}, {len(history)} epochs"
    seconds = history["train_s"].sum() if "train_s" in history else 0.0
    if is_number(final.get("train_minutes")):
        seconds = final["train_minutes"] * 60
    long = f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    time = long if seconds >= 120 else f"{seconds:.0f} s" if seconds else ""
    gpu = "" if settings.get("DEVICE") == "cpu" else environment.get("gpu")
    return Run(
        folder, problems, final, settings, text, environment, history, script, stage,
        "finished" if final else state, time, str(gpu or environment.get("processor") or ""),
    )  # fmt: skip


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
    # a table without its final name is not whole, whatever a summary says
    summary = read_json(folder / SUMMARY, problems) if (folder / PER_IMAGE).is_file() else {}
    return summary, read_json(folder / MODELS, problems), problems


def test_words(summary: dict[str, Any]) -> str:
    """Return what is known of the test split: whether it is new to the networks."""
    lines = contamination_lines(summary) or ["Animals that no network was trained or chosen on"]
    return " ".join(f"{line}." for line in lines)


def test_heads(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the test metrics per head: where it was predicted, and `end_to_end.*`."""
    fused = {row["head"]: row for row in rows(summary, "per_record.test.{head}")}
    return [
        {**row, "per_record.accuracy": fused.get(row["head"], {}).get("accuracy_fused")}
        for row in rows(summary, "figures.test.{head}")
        if row.get("num") or row.get("end_to_end.num")
    ]


def headlines(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a user of the system meets per head: an attribute's metric is end to end."""
    found, worst = [], worst_of(summary)
    for row in test_heads(summary):
        row["worst"] = worst.get(row["head"], "")
        if row["head"] != "species":
            row |= {key: row.get(f"end_to_end.{key}") for key in ("num", "accuracy", "interval_95")}
        found.append(row)
    return [row for row in found if is_number(row.get("accuracy"))]


def found_at(folder: Path, path: str) -> Path | None:
    """Find a path that was given to a run, from here or from above its folder."""
    bases = (Path(), *folder.resolve().parents)
    return next((base / path for base in bases if path and (base / path).exists()), None)


def photo_root(folder: Path, images_root: str, *, with_photos: bool) -> Path | None:
    """Find the photos of a run or evaluation; None where they are gone or may not be shown.

    Those of tools.make_demo_data are made up: anyone may see them.
    """
    root = found_at(folder, images_root)
    return root if root and root.is_dir() and (with_photos or are_made_up(root)) else None


def are_made_up(images_root: Path) -> bool:
    """Return whether photos are those of tools.make_demo_data."""
    return read_json(images_root.parent / "demo.json", []).get("tool") == "tools.make_demo_data"


def readable_time(stamp: Any, path: Path) -> str:
    """Format a time stamp as day and minute; without one, the time of a file."""
    if not stamp and path.exists():
        stamp = datetime.fromtimestamp(path.stat().st_mtime).isoformat()
    return str(stamp or "")[:16].replace("T", " ")


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none, and where it is broken: noted."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        pass
    except (OSError, UserError) as error:
        problems.append(str(error).replace(str(path), path.name))
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
