"""The course of a run as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petface import files

INSTALL_LINE = "pip install -r requirements-report.txt"


def draw_curves(history: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw losses, shares (`*_frac`) and learning rate over the epochs into a PNG.

    `history` holds a dictionary per epoch. False, with a line that says how to install it, where
    matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{path.name} is not drawn: matplotlib is missing ({INSTALL_LINE})")
        return False
    epochs = [row["epoch"] for row in history]
    columns = list(history[0]) if history else []
    panels = {
        "loss": [c for c in columns if c.endswith("_loss")],
        "share right": [c for c in columns if c.endswith("_frac")],
        "learning rate": [c for c in columns if c == "learning_rate"],
    }
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            label = name.removesuffix("_frac").replace("_", " ")
            axes.plot(epochs, [row[name] for row in history], marker=".", label=label)
        for change in _phase_changes(history):
            axes.axvline(change, color="0.8", linewidth=1, zorder=0)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if title == "share right":
            axes.set_ylim(0, 1)
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=8)
    with files.atomic_write(path) as handle:
        figure.savefig(handle, format="png", dpi=110)
    return True


def _phase_changes(history: Sequence[dict[str, Any]]) -> list[float]:
    """Places between two epochs of different training phases."""
    return [
        after["epoch"] - 0.5
        for before, after in zip(history, history[1:], strict=False)
        if before.get("phase") != after.get("phase")
    ]
