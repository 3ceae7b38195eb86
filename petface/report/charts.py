"""Charts by matplotlib in one house style: SVG inside a page, PNG beside a run.

A panel is a function that draws on axes. Text takes the page's colour and data have middle tones,
so that a chart can be read on light and dark paper. A legend names only what is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from petface import files
from petface.report.folders import is_number
from petface.report.page import visible

Panel = Callable[[Any], None]
BLUE, ORANGE, GREY = "#3f85c6", "#d9752b", "#8a949e"
INK = "#010203"  # becomes the page's text colour in SVG
_SIZE_IN = (4.5, 2.9)
_WHOLE_NUMBERS: Any = {"integer": True, "nbins": 6, "min_n_ticks": 1}  # also of a single epoch
MAX_CLASSES: Final = 40  # of a confusion matrix with names
_MAX_LETTERS, _MAX_ROW_LETTERS, _MAX_COUNTED = 28, 44, 20  # of names; classes with counts in cells
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "petface",  # the same chart is the same file
    "text.parse_math": False,
    "font.size": 9,
    "axes.prop_cycle": cycler(color=(BLUE, ORANGE, "#3f9e60", "#9b72cf", "#2a9d9d", "#c75d7a")),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    **dict.fromkeys(("grid.color", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
}


def svg(panel: Panel, size_in: tuple[float, float] = _SIZE_IN) -> Markup:
    """Draw a panel as an SVG element without a background, a script or an id of its own."""
    stream = io.BytesIO()
    _draw([[panel]], size_in, stream, "svg")
    drawn = stream.getvalue().decode("utf-8").replace(INK, "currentColor")
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawn, flags=re.S)
    drawn = re.sub(r" xmlns(:xlink)?=\"[^\"]*\"", "", drawn[drawn.index("<svg") :])
    own, used = f"-{zlib.crc32(drawn.encode()):x}", set(re.findall(r"#(\w+)", drawn))
    ids = re.compile(r' id="([^"]*)"')  # those of two charts must not be the same
    drawn = ids.sub(lambda found: f' id="{found[1]}{own}"' if found[1] in used else "", drawn)
    return Markup(re.sub(r'(url\(|href=")#(\w+)', rf"\1#\2{own}", drawn))


def write_png(path: Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw panels, a row of the picture each, on white paper."""
    with files.atomic_write(path) as handle:
        _draw(rows, (_SIZE_IN[0] * len(rows[0]), _SIZE_IN[1] * 1.1 * len(rows)), handle, "png")


def training(history: pd.DataFrame) -> list[Panel]:
    """Build the training curves of metrics.csv: losses, accuracies in % and the learning rate."""

    def curves(title: str, ending: str, unit: str) -> Panel:
        def draw(axes: Any) -> None:
            for name in history.columns[history.columns.str.endswith(ending)]:
                known = history[["epoch", name]].replace(np.inf, np.nan).dropna()
                if len(known):
                    label = re.sub("^val_(?!loss)|(_accuracy)?_frac$|_loss$", "", name)
                    scale = 100 if ending == "_frac" else 1
                    dots = {"marker": "o" if len(known) <= 30 else "", "markersize": 3}
                    label = visible(label.replace("_", " "))
                    axes.plot(known["epoch"], known[name] * scale, label=label, **dots)
            for number, epoch in enumerate(first_epochs[1:]):
                style = {"color": GREY, "linewidth": 0.9, "linestyle": ":"}
                axes.axvline(epoch - 0.5, label=None if number else "next phase", **style)
            top = {"top": 102} if ending == "_frac" else {}
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]), **top)
            axes.xaxis.set_major_locator(MaxNLocator(**_WHOLE_NUMBERS))
            _finish(axes, title, "epoch", unit)

        return draw

    if "epoch" not in history:
        return []
    phases = history["phase"] if "phase" in history else pd.Series(0, history.index)
    first_epochs = history["epoch"][phases.diff() != 0].tolist()
    return [
        curves("Loss", "_loss", "loss"),
        curves("Validation accuracy", "_frac", "accuracy, %"),
        curves("Learning rate", "learning_rate", "learning rate"),
    ]


def confidence(fitted: Mapping[str, Any]) -> list[Panel]:
    """Build reliability before and after calibration, and accuracy by coverage.

    `head`, `reliability`, `raw_reliability` and `curve` as `petface.calibration` computes them.
    """
    head = fitted["head"]

    def draw_reliability(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--", label="ideal")
        for name, key, style in (
            ("as trained", "raw_reliability", {"color": ORANGE, "marker": "s"}),
            ("calibrated", "reliability", {"color": BLUE, "marker": "o"}),
        ):
            if fitted.get(key):
                bins = np.array(fitted[key], float) * 100
                axes.plot(bins[:, 0], bins[:, 1], markersize=3.5, label=name, **style)
                axes.vlines(bins[:, 0], bins[:, 3], bins[:, 4], color=style["color"], alpha=0.4)
        axes.set(xlim=(0, 102), ylim=(0, 102))
        _finish(axes, f"{head}: reliability", "confidence, %", "accuracy, % (95 % interval)")

    def draw_coverage(axes: Any) -> None:
        curve = np.array(fitted.get("curve") or np.zeros((0, 3)), float) * 100
        wanted, accuracy = fitted.get("wanted_accuracy"), fitted.get("accuracy_of_answered")
        axes.plot(curve[:, 0], curve[:, 1], "o-"[len(curve) > 1], label="any threshold")
        if is_number(wanted):
            axes.axhline(wanted * 100, color=GREY, linewidth=1, linestyle="--", label="wanted")
        if is_number(accuracy):
            place = fitted["coverage"] * 100, accuracy * 100
            axes.plot(*place, "o", color=ORANGE, label="chosen threshold")
        axes.set(xlim=(0, 102), ylim=(0, 102))
        _finish(axes, f"{head}: accuracy by coverage", "coverage, % of photos", "accuracy, %")

    return [draw_reliability, draw_coverage]


def confusion(title: str, names: Sequence[str], counts: np.ndarray) -> Markup:
    """Draw counts (K, K) with the names of the classes: rows true, columns predicted.

    The stronger a cell, the larger its share of the row; orange cells are mistakes. Of many
    classes the most frequent are drawn.
    """
    total = counts.sum(axis=1)
    kept = np.sort(np.argsort(-total, kind="stable")[:MAX_CLASSES])
    kept = kept[(total + counts.sum(axis=0))[kept] > 0]
    if not len(kept):
        return Markup()
    shares = (counts / np.maximum(total, 1)[:, None])[np.ix_(kept, kept)]
    shown, labels = counts[np.ix_(kept, kept)], [_short(names[k]) for k in kept.tolist()]
    num = len(kept)
    if num < len(names):
        title += f": {num} of {len(names)} classes"

    def draw(axes: Any) -> None:
        for row, column in np.argwhere(shown > 0).tolist():
            share, color = float(shares[row, column]), BLUE if row == column else ORANGE
            corner, alpha = (column - 0.48, row - 0.48), 0.12 + 0.88 * share
            axes.add_patch(Rectangle(corner, 0.96, 0.96, color=color, alpha=alpha, lw=0))
            if num <= _MAX_COUNTED:
                style = {"color": "white" if share > 0.55 else INK, "fontsize": 7.5}
                axes.text(column, row, shown[row, column], ha="center", va="center", **style)
        axes.set(xlim=(-0.5, num - 0.5), ylim=(num - 0.5, -0.5), aspect="equal", anchor="W")
        axes.set_xticks(range(num), labels, rotation=90)
        axes.set_yticks(range(num), labels)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        _finish(axes, title, "predicted", "true")

    edge = 0.075 * max(map(len, labels)) + 0.5  # for the names; the title begins after it
    side = num * (0.27 if num <= _MAX_COUNTED else 0.19) + edge
    return svg(draw, (max(side, 0.09 * len(title) + edge), side + 0.15))


def intervals(title: str, rows: Iterable[Mapping[str, Any]], columns: str, label: str) -> Markup:
    """Draw a dot with its 95 % interval for each row of a table.

    `columns` name what a row is called, a share, its interval and perhaps a share to compare with;
    of a `change`, 0 is marked.
    """
    name, share, interval, reference = (*columns.split(), "")[:4]
    rows = [row for row in rows if is_number(row.get(share))]

    def draw(axes: Any) -> None:
        places = np.arange(len(rows))
        low, high = np.array([row.get(interval) or (np.nan, np.nan) for row in rows], float).T * 100
        axes.hlines(places, low, high, color=BLUE, linewidth=2, alpha=0.6)
        axes.plot([row[share] * 100 for row in rows], places, "o", color=BLUE, markersize=5)
        marks = np.array([row.get(reference) for row in rows], float) * 100
        if np.isfinite(marks).any():
            style = {"color": ORANGE, "markersize": 11, "mew": 2}
            axes.plot(marks, places, "|", label=reference.replace("_", " "), **style)
        elif share == "change":
            axes.axvline(0, color=GREY, linewidth=1)
        _finish(axes, title, label, name)

    return _rows_svg(draw, [row[name] for row in rows])


def bars(title: str, counts: Mapping[str, int], label: str, rows_label: str) -> Markup:
    """Draw a bar per entry; `label` and `rows_label` say what is counted, and of what."""

    def draw(axes: Any) -> None:
        axes.barh(range(len(counts)), list(counts.values()), color=BLUE, height=0.7)
        axes.xaxis.set_major_locator(MaxNLocator(**_WHOLE_NUMBERS))
        _finish(axes, title, label, rows_label)

    return _rows_svg(draw, list(counts))


def _draw(
    rows: Sequence[Sequence[Panel]], size_in: tuple[float, float], handle: Any, form: str
) -> None:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        figure = Figure(figsize=size_in)
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for axes, panel in zip(grid.flat, (panel for row in rows for panel in row), strict=True):
            panel(axes)
        options: Any = {"transparent": True, "metadata": {"Date": None}} if form == "svg" else {}
        figure.savefig(handle, format=form, dpi=110, **options)


def _rows_svg(draw: Panel, names: Sequence[str]) -> Markup:
    """Draw a panel with named rows, from top to bottom; a long name makes it wider."""
    labels = [_short(name, _MAX_ROW_LETTERS) for name in names]

    def draw_named(axes: Any) -> None:
        draw(axes)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")

    width_in = max(_SIZE_IN[0], 2.6 + 0.075 * max(map(len, labels), default=0))
    return svg(draw_named, (width_in, 0.9 + 0.2 * len(labels))) if labels else Markup()


def _finish(axes: Any, title: str, x_label: str, y_label: str) -> None:
    """Write what the axes mean; a legend stands above, outside, below the title."""
    axes.set(xlabel=x_label, ylabel=y_label)
    if not axes.get_legend_handles_labels()[1]:
        axes.set_title(visible(title))
        return
    legend = axes.legend(
        title=visible(title), alignment="left", ncols=3, loc="lower left", bbox_to_anchor=(0, 1)
    )
    legend.get_title().set(weight="bold", size=9.5)


def _short(name: str, most: int = _MAX_LETTERS) -> str:
    name = visible(name)
    return name if len(name) <= most else name[: most - 1] + "…"
