"""The course of a run as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petface.drawing import figure_maker, save_png, tidy


def draw_curves(history: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw losses, shares (`*_frac`) and learning rate over the epochs into a PNG.

    `history` holds a dictionary per epoch. False, with a line that says how to install it, where
    matplotlib is missing.
    """
    make_figure = figure_maker(path)
    if make_figure is None:
        return False
    epochs = [row["epoch"] for row in history]
    columns = list(history[0]) if history else []
    panels = {
        "loss": [c for c in columns if c.endswith("_loss")],
        "share right": [c for c in columns if c.endswith("_frac")],
        "learning rate": [c for c in columns if c == "learning_rate"],
    }
    figure = make_figure(figsize=(13, 3.8), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            label = name.removesuffix("_frac").replace("_", " ")
            axes.plot(epochs, [row[name] for row in history], marker=".", label=label)
        for change in _phase_changes(history):
            axes.axvline(change, color="0.8", linewidth=1, zorder=0)
        axes.set(title=title, xlabel="epoch")
        tidy(axes)
        if title == "share right":
            axes.set_ylim(0, 1)
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=8)
    save_png(figure, path, 110)
    return True


def _phase_changes(history: Sequence[dict[str, Any]]) -> list[float]:
    """Places between two epochs of different training phases."""
    return [
        after["epoch"] - 0.5
        for before, after in zip(history, history[1:], strict=False)
        if before.get("phase") != after.get("phase")
    ]
