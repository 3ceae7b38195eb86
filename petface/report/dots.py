"""Rows of dots with whiskers, and of stacked bars: texts keep their size on a narrow screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from petface.report.page import text
from petface.report.report_parts import interval, is_number, percent, points, points_interval


class Dot(NamedTuple):
    """A share with its 95 % interval and a baseline to beat, each None where it is not known.

    `num` is what it was measured on.
    """

    name: str
    value: Any
    ends: Any = None
    baseline: Any = None
    num: Any = None


def dots(rows: Iterable[Dot], *, baseline: str = "", unit: str = "photos") -> str:
    """Draw a row per share from 0 to 100 %; `baseline` says what the upright stroke is.

    Rows without a value are left out, and all of it where none has one.
    """
    drawn = [_row(row, unit) for row in rows if is_number(row.value)]
    if not drawn:
        return ""
    scale = "".join(f'<span style="left:{k}%">{k} %</span>' for k in (0, 50, 100))
    keys = '<span><i style="background:var(--c0)"></i>share right, with 95 % interval</span>'
    if baseline:
        keys += f'<span><i style="background:var(--c1)"></i>{text(baseline)}</span>'
    return (
        f"<div class=legend>{keys}</div><div class=dots>{''.join(drawn)}"
        f"<div class=row><div class=scale>{scale}</div></div></div>"
    )


def _row(row: Dot, unit: str) -> str:
    ends = interval(row.ends)
    whisker = stroke = ""
    if ends:
        low, high = (min(max(share, 0.0), 1.0) for share in row.ends)
        whisker = f'<i style="left:{low * 100:.2f}%;width:{(high - low) * 100:.2f}%"></i>'
    if is_number(row.baseline):
        stroke = f'<u style="left:{row.baseline * 100:.2f}%"></u>'
    num = f"<br><span class=pale>{row.num:,} {unit}</span>" if is_number(row.num) else ""
    place = min(max(row.value, 0.0), 1.0) * 100
    value = f"{percent(row.value)}{f' ({ends})' if ends else ''}"
    return (
        f"<div class=row><span class=name><bdi>{text(row.name)}</bdi>{num}</span>"
        f'<div class=track>{whisker}{stroke}<b style="left:{place:.2f}%"></b></div>'
        f"<span class=value>{value}</span></div>"
    )


class Change(NamedTuple):
    """A change in share right, with its 95 % interval or None."""

    name: str
    value: Any
    ends: Any = None


def changes(rows: Iterable[Change]) -> str:
    """Draw a bar per change, to the left of the middle for a loss; rows without a value left out.

    All bars have one scale, printed below: the largest change or end of an interval.
    """
    kept = [row for row in rows if is_number(row.value)]
    sizes = [abs(row.value) for row in kept]
    sizes += [abs(end) for row in kept if interval(row.ends) for end in row.ends]
    most = max(sizes, default=0.0) or 0.01
    drawn = []
    for row in kept:
        left, right = sorted((0.0, row.value))
        color = "--c1" if row.value < 0 else "--c2"
        bar = _span(left, right, most, f"height:10px;top:4px;background:var({color})")
        whisker = ""
        if interval(row.ends):
            whisker = _span(row.ends[0], row.ends[1], most, "background:var(--ink)")
        value = points(row.value) + (f" ({points_interval(row.ends)})" if whisker else "")
        drawn.append(
            f"<div class=row><span class=name><bdi>{text(row.name)}</bdi></span>"
            f"<div class=track>{bar}{whisker}</div><span class=value>{value}</span></div>"
        )
    if not drawn:
        return ""
    marks = [f"{points(share)}" for share in (-most, 0.0, most)]
    scale = "".join(f'<span style="left:{50 * k}%">{mark}</span>' for k, mark in enumerate(marks))
    return (
        f"<div class=dots>{''.join(drawn)}<div class=row><div class=scale>{scale}</div></div></div>"
    )


def _span(low: float, high: float, most: float, style: str) -> str:
    """Lay a stretch of -most .. most over the track."""
    start, end = ((value / most + 1) * 50 for value in (low, high))
    return f'<i style="left:{start:.2f}%;width:{end - start:.2f}%;{style}"></i>'


def stacked(rows: Mapping[str, Sequence[Any]], names: Sequence[str], colors: Sequence[str]) -> str:
    """Draw shares of a whole as a bar per row; `colors` are CSS colours, one for each of `names`.

    Rows in which a share is missing are left out.
    """
    drawn = []
    for name, shares in rows.items():
        if not shares or not all(map(is_number, shares)):
            continue
        pieces = "".join(
            f'<i style="width:{max(share, 0.0) * 100:.2f}%;background:{color}"></i>'
            for share, color in zip(shares, colors, strict=True)
        )
        values = " / ".join(f"{share * 100:.1f}" for share in shares)
        drawn.append(
            f"<div class=row><span class=name><bdi>{text(name)}</bdi></span>"
            f"<div class=stack>{pieces}</div><span class=value>{values} %</span></div>"
        )
    if not drawn:
        return ""
    keys = "".join(
        f'<span><i style="background:{color}"></i>{text(name)}</span>'
        for name, color in zip(names, colors, strict=True)
    )
    return f"<div class=legend>{keys}</div><div class=dots>{''.join(drawn)}</div>"
