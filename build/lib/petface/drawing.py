"""Pictures by matplotlib, which is an extra: begun where it is installed, saved whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from petface import files
from petface.errors import install_line


def figure_maker(path: Path) -> Callable[..., Any] | None:
    """Return matplotlib's `Figure`, which needs no window.

    None, with a line that names `path` and says how to install it, where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{path.name} is not drawn: matplotlib is missing ({install_line('report')})")
        return None
    return Figure


def tidy(axes: Any, **grid: Any) -> None:
    """Draw a faint grid (options of matplotlib's `grid`) and no frame above and right."""
    axes.grid(alpha=0.25, **grid)
    axes.spines[["top", "right"]].set_visible(False)


def save_png(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with files.atomic_write(path) as handle:
        figure.savefig(handle, format="png", dpi=dpi)
