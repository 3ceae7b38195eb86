"""Two training runs side by side: test figures, settings, time and curves; nothing is paired."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from pathlib import Path
from typing import Any, Final

from petface.analysis.compare_text import wrapped
from petface.errors import UserError
from petface.files import plain_cell

NO_TEST: Final = (
    "A training run keeps no answers per photo, so no paired test is possible: whether a "
    "difference is more than chance cannot be told from here. Evaluate both with: python "
    "inference_engine.py evaluate, then compare the evaluations"
)


def compare_runs(folder_a: Path, folder_b: Path) -> dict[str, Any]:
    """Put two runs of the same kind beside each other, ready for JSON; `UserError` otherwise.

    `figures` holds what final.json measured on the test part, `training` its other numbers, and
    `curves` per column of metrics.csv the points (epoch, value) of A and of B.
    """
    a, b = _read(folder_a), _read(folder_b)
    if a["of"] != b["of"]:
        raise UserError(
            f"{folder_a} is {a['of']} and {folder_b} is {b['of']}; compare two runs of the same "
            "kind"
        )
    final_a, final_b = a["final"], b["final"]
    both = [key for key in final_a if key in final_b or final_a[key] is not None]
    both += [key for key in final_b if key not in final_a]
    numbers = [key for key in both if _number(final_a.get(key)) or _number(final_b.get(key))]
    settings_a, settings_b = a["settings"], b["settings"]
    names = [*settings_a, *(name for name in settings_b if name not in settings_a)]
    notes = [NO_TEST]
    for side, run in (("A", a), ("B", b)):
        if not run["final"]:
            notes.append(f"{side} has not finished: it has no test figures yet")
    if settings_a and settings_b:
        data = [n for n in _DATA if settings_a.get(n) != settings_b.get(n)]
        if data:
            notes.append(f"the data differ ({', '.join(data)}): the figures are of other photos")
    images = final_a.get("test_images"), final_b.get("test_images")
    if None not in images and images[0] != images[1]:
        notes.append(f"the test parts differ: {images[0]:,} images in A, {images[1]:,} in B")
    return {
        "kind": "training runs",
        "of": a["of"],
        "a": {"folder": str(folder_a)},
        "b": {"folder": str(folder_b)},
        "notes": notes,
        "figures": {k: _both(final_a, final_b, k) for k in numbers if k.startswith("test_")},
        "training": {k: _both(final_a, final_b, k) for k in numbers if not k.startswith("test_")},
        "settings": {
            name: {"a": settings_a.get(name), "b": settings_b.get(name)}
            for name in names
            if settings_a.get(name) != settings_b.get(name)
        },
        "curves": _curves(a["metrics"], b["metrics"]),
    }


_DATA = ("IMAGES_ROOT", "ANNOTATIONS_ROOT", "SPLITS_FILE", "SPLIT_SEED", "SPECIES")


def _read(folder: Path) -> dict[str, Any]:
    final = _json(folder / "final.json")
    environment = _json(folder / "environment.json")
    settings: dict[str, Any] = {}
    if (path := folder / "settings.toml").exists():
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: damaged ({error}); train again, or remove it") from error
    metrics: list[dict[str, str]] = []
    if (path := folder / "metrics.csv").exists():
        try:
            with path.open(encoding="utf-8", newline="") as handle:
                metrics = list(csv.DictReader(handle))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: damaged ({error}); train again, or remove it") from error
    command = environment.get("command") or [""]
    script = Path(str(command[0])).stem
    is_stage2 = "PHASE_EPOCHS" in settings or script.startswith("stage2")
    of = "a specialist" if is_stage2 else "a species classifier"
    return {
        "of": of,
        "final": final,
        "settings": settings,
        "metrics": metrics,
        "environment": environment,
    }


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); train again, or remove it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no figures; train again")
    return found


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _both(a: dict[str, Any], b: dict[str, Any], key: str) -> dict[str, Any]:
    x, y = (side.get(key) if _number(side.get(key)) else None for side in (a, b))
    return {"a": x, "b": y, "difference": y - x if x is not None and y is not None else None}


def _curves(
    a: list[dict[str, str]], b: list[dict[str, str]]
) -> dict[str, dict[str, list[list[float]]]]:
    """Take the losses and shares of both, numbered through over the phases of a specialist."""
    columns = [
        name
        for name in {**dict.fromkeys(a[0] if a else ()), **dict.fromkeys(b[0] if b else ())}
        if name.endswith(("_loss", "_frac"))
    ]
    return {
        name: {
            side: [
                [epoch, value]
                for epoch, row in enumerate(rows, 1)
                if math.isfinite(value := _value(row.get(name)))
            ]
            for side, rows in (("a", a), ("b", b))
        }
        for name in columns
    }


def _value(cell: str | None) -> float:
    try:
        return float(plain_cell(cell or ""))
    except ValueError:
        return math.nan


def describe_runs(comparison: dict[str, Any]) -> str:
    """Lay out the comparison of two runs in at most 110 columns."""
    lines = [f"A: {comparison['a']['folder']}", f"B: {comparison['b']['folder']}"]
    for title, key in (("test part (final.json)", "figures"), ("training", "training")):
        if comparison[key]:
            lines += ["", f"{title:44s} {'A':>14s} {'B':>14s} {'B - A':>14s}"]
        for name, values in comparison[key].items():
            shown = " ".join(f"{number(values[k]):>14s}" for k in ("a", "b", "difference"))
            lines.append(f"{name[:44]:44s} {shown}")
    if comparison["settings"]:
        lines += ["", f"{'settings that differ':44s} {'A':>30s} {'B':>30s}"]
    for name, values in comparison["settings"].items():
        lines.append(f"{name[:44]:44s} {_cut(values['a']):>30s} {_cut(values['b']):>30s}")
    return "\n".join([*lines, "", *wrapped(f"note: {note}" for note in comparison["notes"])])


def number(value: float | None) -> str:
    """Give a figure in four digits after the point, a whole number whole."""
    if value is None:
        return ""
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4f}"


def _cut(value: object, width: int = 30) -> str:
    shown = "" if value is None else str(value)
    return shown if len(shown) <= width else "..." + shown[3 - width :]
