"""Charts as SVG inside a page: no script, no fonts, no library; colours follow the page's.

Every text goes through `page.text`; sizes are in units of about one pixel of a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from petface.report.page import text
from petface.report.report_parts import is_number, percent

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 10, 38
_NUM_COLORS = 6
_MAX_POINTS = 400  # of a line; a long training is thinned


class Line(NamedTuple):
    """A series of (x, y), with (low, high) per point where it has whiskers; dots mark its points.

    Points that are no finite numbers are left out.
    """

    name: str
    points: Sequence[Sequence[Any]]
    whiskers: Sequence[Sequence[Any]] = ()
    color: int = 0
    is_dashed: bool = False
    has_dots: bool = False


class Frame(NamedTuple):
    """The axes of a chart: their names and spans; `x_names` stand at x = 0, 1, 2 ...

    `y_share` writes the y axis in percent, `x_share` the x axis.
    """

    x_label: str
    y_label: str
    x_span: tuple[float, float] | None = None
    y_span: tuple[float, float] | None = None
    x_share: bool = False
    y_share: bool = False
    x_names: Sequence[str] = ()


def chart(
    title: str,
    lines: Iterable[Line],
    frame: Frame,
    *,
    guides: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
    mark: tuple[str, Any, Any] | None = None,
    dividers: Sequence[float] = (),
) -> str:
    """Draw lines over two axes as a figure with a legend; nothing where no line has a point.

    `guides` are dashed straight lines, each two points; `mark` is (name, x, y) of a single point;
    `dividers` are places on the x axis with a line from top to bottom.
    """
    drawn = [kept for line in lines if (kept := _finite(line)).points]
    if not drawn:
        return ""
    x_span, y_span = _spans(drawn, frame)
    x_scale, y_scale = (
        _Scale(*x_span, _LEFT, WIDTH - _RIGHT),
        _Scale(*y_span, HEIGHT - _BOTTOM, _TOP),
    )
    parts = [_axes(frame, x_scale, y_scale)]
    for x in dividers:
        parts.append(f'<path class=grid d="M{x_scale(x)} {_TOP}V{HEIGHT - _BOTTOM}"/>')
    for (x1, y1), (x2, y2) in guides:
        ends = f"M{x_scale(x1)} {y_scale(y1)}L{x_scale(x2)} {y_scale(y2)}"
        parts.append(f'<path class=guide d="{ends}"/>')
    for line in drawn:
        parts.append(_line(line, x_scale, y_scale))
    if mark and is_number(mark[1]) and is_number(mark[2]):
        place = f'cx="{x_scale(mark[1])}" cy="{y_scale(mark[2])}"'
        parts.append(f'<circle {place} r="5" fill="var(--mark)"/>')
        legend = _legend([(line.name, f"var(--c{line.color})") for line in drawn]
                         + [(mark[0], "var(--mark)")])  # fmt: skip
    else:
        legend = _legend([(line.name, f"var(--c{line.color})") for line in drawn])
    alt = f"{title}: {', '.join(line.name for line in drawn)}"
    return (
        f"<figure class=chart><figcaption><bdi>{text(title)}</bdi></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(alt)}">'
        f"{''.join(parts)}</svg>{legend}</figure>"
    )


def sparkline(values: Sequence[Any]) -> str:
    """Draw a course without axes, small enough for a table's cell; nothing below two values."""
    points = [(k, v) for k, v in enumerate(values) if is_number(v)]
    if len(points) < 2:
        return ""
    low, high = min(v for _, v in points), max(v for _, v in points)
    x, y = _Scale(0, len(values) - 1, 2, 88), _Scale(low, high, 18, 2)
    way = " ".join(f"{x(k)},{y(v)}" for k, v in points)
    return (
        '<svg class=spark viewBox="0 0 90 20" role="img" aria-label="course of the validation '
        f'figure"><polyline points="{way}"/></svg>'
    )


class _Scale:
    """Maps a span of values to a span of the drawing, rounded to a tenth."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        share = min(max(share, -0.02), 1.02)
        return round(self.start + share * (self.end - self.start), 1)


def _finite(line: Line) -> Line:
    """Keep the points that can be drawn, `_MAX_POINTS` at most, with their whiskers."""
    chosen = [
        k
        for k, point in enumerate(line.points)
        if isinstance(point, list | tuple) and len(point) >= 2 and all(map(is_number, point[:2]))
    ]
    step = -(-len(chosen) // _MAX_POINTS) or 1
    chosen = [*chosen[:-1:step], *chosen[-1:]]
    whiskers = [line.whiskers[k] for k in chosen] if line.whiskers else ()
    return line._replace(
        points=[line.points[k] for k in chosen], whiskers=whiskers, color=line.color % _NUM_COLORS
    )


def _spans(lines: Sequence[Line], frame: Frame) -> tuple[tuple[float, float], ...]:
    spans = []
    for axis, given in enumerate((frame.x_span, frame.y_span)):
        values = [point[axis] for line in lines for point in line.points]
        low, high = given or (min(values), max(values))
        if low == high:
            low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
        spans.append((low, high))
    if frame.x_names:
        spans[0] = (-0.4, len(frame.x_names) - 0.6)
    return tuple(spans)


def _line(line: Line, x_scale: _Scale, y_scale: _Scale) -> str:
    color = f"var(--c{line.color})"
    places = [(x_scale(x), y_scale(y)) for x, y, *_ in line.points]
    dashes = ' stroke-dasharray="2 4"' if line.is_dashed else ""
    way = "L".join(f"{x} {y}" for x, y in places)
    parts = [f'<path class=line d="M{way}" stroke="{color}"{dashes}/>']
    for (x, _), ends in zip(places, line.whiskers, strict=False):
        if isinstance(ends, list | tuple) and len(ends) == 2 and all(map(is_number, ends)):
            way = f"M{x} {y_scale(ends[0])}V{y_scale(ends[1])}"
            parts.append(f'<path class=whisker d="{way}" stroke="{color}"/>')
    if line.has_dots or len(places) == 1:
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places]
    return "".join(parts)


def _axes(frame: Frame, x_scale: _Scale, y_scale: _Scale) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in ticks(y_scale.low, y_scale.high):
        y = y_scale(value)
        parts.append(
            f'<path class=grid d="M{_LEFT} {y}H{right}"/>'
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">'
            f"{_tick_text(value, frame.y_share)}</text>"
        )
    names: list[tuple[float, str]] = [(k, name) for k, name in enumerate(frame.x_names)] or [
        (value, _tick_text(value, frame.x_share)) for value in ticks(x_scale.low, x_scale.high)
    ]
    for value, name in names:
        parts.append(
            f'<text x="{x_scale(value)}" y="{bottom + 15}" text-anchor="middle">{text(name)}</text>'
        )
    middle = (_LEFT + right) / 2
    parts.append(
        f'<path class=axis d="M{_LEFT} {_TOP}V{bottom}H{right}"/>'
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{text(frame.x_label)}</text>'
        f'<text transform="translate(11 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{text(frame.y_label)}</text>"
    )
    return "".join(parts)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Choose at most `most` round values from `low` to `high`: multiples of 1, 2 or 5."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        step = power * factor
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [k * step for k in range(first, last + 1)]


def _tick_text(value: float, is_share: bool) -> str:
    if is_share:
        return percent(value).replace(".0 %", " %")
    if value and abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.6g}"


def _legend(names: Iterable[tuple[str, str]]) -> str:
    items = [
        f'<span><i style="background:{color}"></i><bdi>{text(name)}</bdi></span>'
        for name, color in names
    ]
    return f"<div class=legend>{''.join(items)}</div>"
