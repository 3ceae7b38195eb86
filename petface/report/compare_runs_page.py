"""The comparison of two training runs as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from petface.analysis.compare_runs import number
from petface.report.compare_page import STYLE, folders, notes_of
from petface.report.page import page, table, text


def runs_page(comparison: dict[str, Any]) -> str:
    """Lay out what `compare_runs` gives."""
    sections = []
    for title, key in (("Test part", "figures"), ("Training", "training")):
        rows = [
            (name.removeprefix("test_").replace("_", " "), *(number(v[k]) for k in _AB))
            for name, v in comparison[key].items()
        ]
        sections.append(f"<h2>{title}</h2>{table(('', 'A', 'B', 'B - A'), 1, rows)}")
    rows = [(name, str(v["a"]), str(v["b"])) for name, v in comparison["settings"].items()]
    body = [
        STYLE,
        f"<h1>Comparison of two training runs</h1>{folders(comparison)}",
        notes_of(comparison["notes"]),
        sections[0],
        f"<h2>Settings that differ</h2>{table(('', 'A', 'B'), 3, rows)}",
        sections[1],
        "<h2>Curves</h2><p class=key><span></span>A<span class=kb></span>B</p>",
        f"<div class=curves>{''.join(_curves(comparison['curves']))}</div>",
    ]
    return page("Comparison", body)


_AB = ("a", "b", "difference")


def _curves(curves: dict[str, dict[str, list[list[float]]]]) -> Iterator[str]:
    for name, sides in curves.items():
        every = [*sides["a"], *sides["b"]]
        if not every:
            continue
        last, values = max(epoch for epoch, _ in every), [value for _, value in every]
        low, high = min(values), max(values)
        spread, length = (high - low) or 1.0, max(last - 1, 1)
        lines = ""
        for side in ("a", "b"):
            where = " ".join(
                f"{3 + 294 * (epoch - 1) / length:.1f},{104 - 98 * (value - low) / spread:.1f}"
                for epoch, value in sides[side]
            )
            lines += f'<polyline class={side} points="{where}"/>'
        title = text(name.removesuffix("_frac").replace("_", " "))
        yield (
            f"<div><b>{title}</b><br>{low:.4g} to {high:.4g}, {last:.0f} epochs"
            f'<svg viewBox="0 0 300 110" preserveAspectRatio="none">{lines}</svg></div>'
        )
