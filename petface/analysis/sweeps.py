"""Repeated runs as tables: a row per run, mean and standard deviation per preset, one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from petface import files
from petface.drawing import figure_maker, save_png, tidy

RULE: Final = (
    "Chosen by the validation part alone, by mean - standard deviation over the runs; the test "
    "part is measured once per run, for the report."
)


@dataclass(frozen=True)
class SweepRun:
    """One finished run: its preset, what was varied (a seed or a fold), its species in stage 2, and
    what its final.json says.
    """

    preset: str
    variant: str
    species: str
    final: Mapping[str, Any]

    @property
    def figures(self) -> dict[str, float]:
        """Return the accuracies of both parts by name, without those that nothing was known for."""
        return {
            key: float(value)
            for key, value in self.final.items()
            if key.startswith(("val_", "test_"))
            and key.endswith("_accuracy")
            and isinstance(value, int | float)
        }


def write_sweep(folder: Path, runs: Sequence[SweepRun]) -> str:
    """Write runs.csv, summary.csv and, with matplotlib, accuracy_time.png into `folder`.

    Return the comparison as text, the best preset of each species first.
    """
    table = pd.DataFrame(
        [
            {"preset": run.preset, "variant": run.variant, "species": run.species,
             "train_minutes": float(run.final["train_minutes"]), **run.figures}
            for run in runs
        ]
    )  # fmt: skip
    keys = list(table.columns[4:])
    groups = table.groupby(["preset", "species"], sort=False)
    summary = groups.agg(runs=("variant", "size"), train_minutes=("train_minutes", "mean"))
    for key in keys:
        summary[f"{key}_mean"] = groups[key].mean()
        # of a sample; one run has no spread
        summary[f"{key}_std"] = groups[key].std().fillna(0.0).where(summary[f"{key}_mean"].notna())
    for name, rows in (("runs.csv", table), ("summary.csv", summary.reset_index())):
        cells = [[_cell(*cell) for cell in row.items()] for _, row in rows.iterrows()]
        files.write_csv(folder / name, rows.columns.tolist(), cells)
    watched = watched_figure(keys)
    _draw(folder / "accuracy_time.png", table, watched.replace("val_", "test_"))
    return _text(summary.reset_index(), keys, watched)


def _cell(column: Any, value: Any) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.{2 if column == 'train_minutes' else 4}f}"


def watched_figure(keys: Sequence[str]) -> str:
    """Return the validation figure that presets are chosen by: balanced where there is one."""
    own = [key for key in keys if key.startswith("val_")]
    return next((key for key in own if key.endswith("balanced_accuracy")), [*own, ""][0])


def _text(summary: pd.DataFrame, keys: Sequence[str], watched: str) -> str:
    way = "nothing to choose by"
    if watched:
        score = summary[f"{watched}_mean"] - summary[f"{watched}_std"]
        order = summary.assign(score=-score.fillna(-math.inf)).sort_values(["species", "score"])
        summary = summary.loc[order.index]
        best = summary.drop_duplicates("species")[["preset", "species"]].itertuples(index=False)
        chosen = ", ".join(f"{preset}{f' for {name}' if name else ''}" for preset, name in best)
        way = f"best by {watched.replace('_', ' ')}: {chosen}"
    rows = [["preset", "species", "runs", "minutes", *(key.replace("_", " ") for key in keys)]]
    for _, s in summary.iterrows():
        figures = ((s[f"{key}_mean"] * 100, s[f"{key}_std"] * 100) for key in keys)
        cells = ["-" if math.isnan(mean) else f"{mean:.1f} ± {std:.1f}" for mean, std in figures]
        rows.append(
            [s["preset"], s["species"] or "-", str(s["runs"]), f"{s['train_minutes']:.1f}", *cells]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", f"{way}. {RULE}"])


def _draw(path: Path, table: pd.DataFrame, figure_name: str) -> None:
    """Draw the test figure of every run against its minutes of training."""
    make_figure = figure_maker(path)
    if make_figure is None:
        return
    figure = make_figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if figure_name in table:
        groups = table.dropna(subset=[figure_name]).groupby(["preset", "species"], sort=False)
        for number, (name, own) in enumerate(groups):
            marker, label = "os^Dv<>Pp*"[number % 10], " ".join(map(str, name)).strip()
            axes.plot(own["train_minutes"], own[figure_name] * 100, marker, label=label, alpha=0.8)
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="minutes of training", ylabel=f"{figure_name.replace('_', ' ')}, %")
    tidy(axes)
    save_png(figure, path, 120)
