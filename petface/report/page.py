"""A page from parts: photos, metrics, charts and tables, laid out by one template, all escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from petface import files
from petface.evaluation.figures import interval, percent, points
from petface.report.folders import dig, is_number, number

MIN_PHOTOS: Final = 30  # of fewer photos an accuracy says little
_NAMES = {
    "num": "photos",
    "num_records": "animals",
    "interval_95": "95 % interval",
    "change_interval": "95 % interval, points",
    "accuracy_a": "A",
    "accuracy_b": "other",
    "p_holm": "p, adjusted",
}
_SHARES = re.compile(
    "accuracy|recall|precision|f1|top[35]|share|frac|probability|agreement|baseline|coverage|in_stage"
)


class Table(NamedTuple):
    """Rows below (heading, whether its cells are numbers)."""

    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[object]]

    def __bool__(self) -> bool:
        return bool(self.rows and self.columns)


class Photo(NamedTuple):
    """A small copy as a data URI, "" where it cannot be read; lines of (words, right or wrong)."""

    source: str
    name: str
    lines: Sequence[tuple[str, str]]


class Strip(NamedTuple):
    """Photos or SVG charts side by side; a wide one keeps its size and scrolls on a phone."""

    shown: Sequence[Photo | Markup]
    kind: str = "charts"  # photos, wide

    def __bool__(self) -> bool:
        return any(self.shown)


class Section(NamedTuple):
    """A heading and what stands below it; a plain string explains and is no content."""

    title: str
    parts: Sequence[Table | Strip | Markup | str]

    def __bool__(self) -> bool:
        return any(part for part in self.parts if type(part) is not str)


class Metric(NamedTuple):
    """A headline metric with what must stand beside it."""

    name: str
    value: str
    details: Sequence[str] = ()


@dataclass
class Page:
    """What a page shows, from top to bottom; sections without content are left out.

    `about` is one line below the title, `notes` must be seen; `folded` sections open on a click.
    """

    title: str
    kind: str
    about: str
    notes: list[str] = field(default_factory=list)
    photos: list[Section] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    folded: list[Section] = field(default_factory=list)


def write(path: Path, page: Page) -> Path:
    """Write a page as HTML that runs no script and asks nothing of the network."""
    with files.atomic_write(path, "w") as handle:
        handle.write(render(page))
    return path


def render(page: Page) -> str:
    """Return a page as HTML."""
    return _environment(is_html=True).get_template("page.html.jinja").render(page=page)


def render_markdown(template: str, **values: Any) -> str:
    """Return a card in GitHub's Markdown; every value is shown as it is, never obeyed."""
    return _environment(is_html=False).get_template(template).render(values)


def table(rows: Iterable[dict[str, Any]], keys: str = "") -> Table:
    """Format dictionaries: a column per key, `a.b` a nested one; without `keys` the plain ones.

    Columns without any content are left out. A key decides the format: shares in %, changes in
    points, intervals, else numbers and texts.
    """
    rows = list(rows)
    plain = [key for key, value in (rows[0] if rows else {}).items() if type(value) is not dict]
    columns, shown = [], []
    for key in keys.split() or plain:
        values = [dig(row, *key.split(".")) for row in rows]
        own = key.split(".")[-1]
        formatted = [_format(own, value) for value in values]
        if any(formatted):
            heading = _NAMES.get(key, key.replace(".", " ").replace("_", " "))
            heading += ", %" if _SHARES.search(own) else ", points" if own == "change" else ""
            columns.append((heading, not any(isinstance(value, str) for value in values)))
            shown.append(formatted)
    return Table(columns, list(zip(*shown, strict=True)))


def _format(key: str, value: Any) -> object:
    if "interval" in key:
        return interval(value, points if key == "change_interval" else percent)
    if key == "change" or _SHARES.search(key):
        return points(value) if key == "change" else percent(value)
    return number(value) if is_number(value) else "" if value is None else value


def headline(name: str, figure: dict[str, Any]) -> Metric:
    """Build the headline of an accuracy: its interval and the majority baseline stand beside it."""
    num, limits = figure.get("num"), interval(figure.get("interval_95"))
    by_photo = " (by photo)" if figure.get("is_by_photo") else ""
    baseline = percent(figure.get("majority_baseline"))
    few = ", too few to rely on" if is_number(num) and num < MIN_PHOTOS else ""
    details = (
        f"95 %: {limits}{by_photo}" if limits else "",
        f"majority baseline {baseline} %" if baseline else "",
        f"{number(num)} photos{few}" if is_number(num) else "",
    )
    return Metric(name, f"{percent(figure.get('accuracy')) or '-'} %", details)


def leaves(tree: Any, above: str = "") -> list[dict[str, Any]]:
    """List what nested dictionaries hold: what (the joined keys) and value."""
    found: list[dict[str, Any]] = []
    for key, value in (tree or {}).items():
        name = f"{above}{key}".replace("_", " ")
        if isinstance(value, dict):
            found += leaves(value, f"{name} ")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append({"what": name, "value": shown})
    return found


def visible(value: object) -> str:
    """Return text with control characters, text direction marks and lone surrogates escaped."""
    signs = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return "".join(signs)


def markdown_text(value: object) -> str:
    """Escape for Markdown, also inside a table and at the start of a line."""
    shown = re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", visible(value).strip())
    return re.sub(r"^(\d*)([-+=.)])(?=\s|$|[-+=])", r"\1\\\2", shown)


@cache
def _environment(*, is_html: bool) -> Environment:
    """Build what renders templates; every value goes through `visible` or `markdown_text`."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=is_html,
        finalize=_shown if is_html else markdown_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _shown(value: object) -> object:
    return value if isinstance(value, Markup) else visible(value)
