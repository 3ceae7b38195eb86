"""Repeated runs as tables: a row per run, mean and standard deviation per preset, one picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from petface import files
from petface.drawing import figure_maker, save_png, tidy

RULE: Final = (
    "Chosen by the validation part alone, by mean - standard deviation over the runs; the test "
    "part is measured once per run, for the report."
)
_FIGURES: Final = ("_accuracy",)  # endings of what is compared, of "val_" and "test_" figures


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
        """Give the accuracies of both parts by name, without those that nothing was known for."""
        return {
            key: float(value)
            for key, value in self.final.items()
            if key.startswith(("val_", "test_"))
            and key.endswith(_FIGURES)
            and isinstance(value, int | float)
        }


@dataclass(frozen=True)
class Summary:
    """The runs of one preset and species: per figure mean and standard deviation (of a sample)."""

    preset: str
    species: str
    num_runs: int
    minutes: float  # of training, mean
    figures: dict[str, tuple[float, float]]

    def score(self, watched: str) -> float:
        """Give what presets are chosen by; minus infinity where it was not measured."""
        mean, spread = self.figures.get(watched, (-math.inf, 0.0))
        return mean - spread


def summarise(runs: Sequence[SweepRun]) -> list[Summary]:
    """Put the runs of each preset and species together, in the order of their first one."""
    groups: dict[tuple[str, str], list[SweepRun]] = {}
    for run in runs:
        groups.setdefault((run.preset, run.species), []).append(run)
    found = []
    for (preset, species), group in groups.items():
        figures = {}
        for key in group[0].figures:
            values = [run.figures[key] for run in group if key in run.figures]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            figures[key] = statistics.mean(values), spread
        minutes = statistics.mean(run.final["train_minutes"] for run in group)
        found.append(Summary(preset, species, len(group), minutes, figures))
    return found


def watched_figure(summaries: Sequence[Summary]) -> str:
    """Name the validation figure that presets are chosen by: balanced where there is one."""
    keys = [key for summary in summaries for key in summary.figures if key.startswith("val_")]
    balanced = [key for key in keys if key.endswith("balanced_accuracy")]
    return (balanced or keys or [""])[0]


def write_sweep(folder: Path, runs: Sequence[SweepRun]) -> str:
    """Write runs.csv, summary.csv and, with matplotlib, accuracy_time.png into `folder`; give the
    comparison as text, the best preset of each species first.
    """
    summaries = summarise(runs)
    watched = watched_figure(summaries)
    keys = list(dict.fromkeys(key for run in runs for key in run.figures))
    files.write_csv(
        folder / "runs.csv",
        ("preset", "variant", "species", "train_minutes", *keys),
        [
            (r.preset, r.variant, r.species, f"{r.final['train_minutes']:.2f}")
            + tuple(f"{r.figures[key]:.4f}" if key in r.figures else "" for key in keys)
            for r in runs
        ],
    )
    header = [f"{key}{end}" for key in keys for end in ("_mean", "_std")]
    files.write_csv(
        folder / "summary.csv",
        ("preset", "species", "runs", "train_minutes", *header),
        [
            (s.preset, s.species, s.num_runs, f"{s.minutes:.2f}")
            + tuple(
                f"{number:.4f}" if key in s.figures else ""
                for key in keys
                for number in s.figures.get(key, (0.0, 0.0))
            )
            for s in summaries
        ],
    )
    _draw(folder / "accuracy_time.png", runs, watched.replace("val_", "test_"))
    return _text(sorted(summaries, key=lambda s: (s.species, -s.score(watched))), keys, watched)


def _text(summaries: Sequence[Summary], keys: Sequence[str], watched: str) -> str:
    rows = [["preset", "species", "runs", "minutes", *(key.replace("_", " ") for key in keys)]]
    for s in summaries:
        cells = [
            f"{s.figures[key][0] * 100:.1f} ± {s.figures[key][1] * 100:.1f}"
            if key in s.figures
            else "-"
            for key in keys
        ]
        rows.append([s.preset, s.species or "-", str(s.num_runs), f"{s.minutes:.1f}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    best = {s.species: s.preset for s in reversed(summaries)}
    chosen = ", ".join(f"{preset}{f' for {name}' if name else ''}" for name, preset in best.items())
    way = f"best by {watched.replace('_', ' ')}: {chosen}" if watched else "nothing to choose by"
    return "\n".join([*lines, "", f"{way}. {RULE}"])


def _draw(path: Path, runs: Sequence[SweepRun], figure_name: str) -> None:
    """Draw the test figure of every run against its minutes of training."""
    make_figure = figure_maker(path)
    if make_figure is None:
        return
    figure = make_figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (preset, species) in enumerate(dict.fromkeys((r.preset, r.species) for r in runs)):
        points = [
            (r.final["train_minutes"], r.figures[figure_name] * 100)
            for r in runs
            if (r.preset, r.species) == (preset, species) and figure_name in r.figures
        ]
        if points:
            label = f"{preset} {species}".strip()
            marker = "os^Dv<>Pp*"[number % 10]
            axes.plot(*zip(*points, strict=True), marker, label=label, alpha=0.8)
    axes.set(xlabel="minutes of training", ylabel=f"{figure_name.replace('_', ' ')}, %")
    tidy(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    save_png(figure, path, 120)
