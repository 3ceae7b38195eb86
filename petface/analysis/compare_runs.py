"""Two training runs side by side: test metrics, settings, time and curves; nothing is paired."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from petface.analysis.compare import wrapped
from petface.errors import UserError

NO_TEST: Final = (
    "A training run keeps no answers per photo, so no paired test is possible: whether a "
    "difference is more than chance cannot be told from here. Evaluate both with: python "
    "inference_engine.py evaluate, then compare the evaluations"
)
_DATA = ("IMAGES_ROOT", "ANNOTATIONS_ROOT", "SPLITS_FILE", "SPLIT_SEED", "SPECIES")


def compare_runs(folder_a: Path, folder_b: Path) -> dict[str, Any]:
    """Return two runs of the same kind beside each other, ready for JSON; `UserError` otherwise.

    `figures` holds what final.json measured on the test part, `training` its other numbers, and
    `curves` per column of metrics.csv the points (epoch, value) of A and of B.
    """
    finals, settings, curves, kinds = zip(*map(_read, (folder_a, folder_b)), strict=True)
    if kinds[0] != kinds[1]:
        raise UserError(
            f"{folder_a} is {kinds[0]} and {folder_b} is {kinds[1]}; compare two runs of the same "
            "kind"
        )
    notes = [NO_TEST]
    for side, final in zip("AB", finals, strict=True):
        if not final:
            notes.append(f"{side} has not finished: it has no test figures yet")
    differ = _beside(*settings)
    if all(settings) and (data := [name for name in _DATA if name in differ]):
        notes.append(f"the data differ ({', '.join(data)}): the figures are of other photos")
    num_a, num_b = (final.get("test_images") for final in finals)
    if None not in (num_a, num_b) and num_a != num_b:
        notes.append(f"the test parts differ: {num_a:,} images in A, {num_b:,} in B")
    numbers = {
        name: _difference(*(final.get(name) for final in finals))
        for name in dict.fromkeys([*finals[0], *finals[1]])
        if any(_is_number(final.get(name)) for final in finals)
    }
    return {
        "kind": "training runs",
        "of": kinds[0],
        "a": {"folder": str(folder_a)},
        "b": {"folder": str(folder_b)},
        "notes": notes,
        "figures": {k: v for k, v in numbers.items() if k.startswith("test_")},
        "training": {k: v for k, v in numbers.items() if not k.startswith("test_")},
        "settings": differ,
        "curves": {
            name: {side: own.get(name, []) for side, own in zip("ab", curves, strict=True)}
            for name in dict.fromkeys([*curves[0], *curves[1]])
        },
    }


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]:
    """Read a run's final.json, settings, curves and kind; what is missing is empty."""
    final, settings, curves = {}, {}, {}
    try:
        if (path := folder / "final.json").exists():
            final = dict(json.loads(path.read_text(encoding="utf-8")))
        if (path := folder / "settings.toml").exists():
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        if (path := folder / "metrics.csv").exists():
            curves = _curves(pd.read_csv(path))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); train again, or remove it") from error
    return final, settings, curves, "a specialist" if "PHASE_EPOCHS" in settings else _SPECIES_RUN


_SPECIES_RUN = "a species classifier"


def _curves(epochs: pd.DataFrame) -> dict[str, list[list[float]]]:
    """Return losses and shares as points (epoch, value), numbered through over the phases."""
    found = {}
    for name in epochs.columns[epochs.columns.str.endswith(("_loss", "_frac"))]:
        values = pd.to_numeric(epochs[name], errors="coerce").to_numpy(np.float64)
        found[name] = [[k, v] for k, v in enumerate(values.tolist(), 1) if np.isfinite(v)]
    return found


def _beside(a: dict[str, Any], b: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = dict.fromkeys([*a, *b])
    return {n: {"a": a.get(n), "b": b.get(n)} for n in names if a.get(n) != b.get(n)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _difference(a: Any, b: Any) -> dict[str, Any]:
    a, b = (value if _is_number(value) else None for value in (a, b))
    return {"a": a, "b": b, "difference": None if a is None or b is None else b - a}


def describe_runs(comparison: dict[str, Any]) -> str:
    """Format the comparison of two runs in at most 110 columns."""
    lines = [f"{side.upper()}: {comparison[side]['folder']}" for side in "ab"]
    for title, key in (
        ("test part (final.json)", "figures"),
        ("training", "training"),
        ("settings that differ", "settings"),
    ):
        if comparison[key]:
            table = pd.DataFrame.from_dict(comparison[key], orient="index").map(number)
            lines += ["", title, table.to_string(max_colwidth=36)]
    return "\n".join([*lines, "", *wrapped(f"note: {note}" for note in comparison["notes"])])


def number(value: object) -> str:
    """Format a metric with four digits after the point, a whole number whole."""
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4f}"
    return "" if value is None else f"{value:,d}" if _is_number(value) else str(value)
