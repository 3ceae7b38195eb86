"""A page from parts: photos, metrics, charts and tables, laid out by one template, all escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from petface import files
from petface.evaluation.figures import interval, percent, points
from petface.report import folders as read
from petface.report.folders import is_number, number

MIN_PHOTOS: Final = 30  # of fewer photos an accuracy says little
_NAMES = {
    "num": "photos",
    "num_records": "animals",
    "interval_95": "95 % interval",
    **{f"records_per_split.{split}": f"{split} records" for split in ("train", "val", "test")},
    "p_holm": "p, adjusted",
    "frac_of_true": "share of true",
    "headline": "accuracy, %",
    "other_heads": "other accuracies, %",
    "link": "folder",
}
_SHARES = re.compile(
    "accuracy|recall|precision|f1|top[35]|share|frac|probability|agreement|baseline|coverage|in_stage|"
    "impossible|equal"
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


class Metric(NamedTuple):
    """A headline metric with what must stand beside it."""

    name: str
    value: str
    details: Sequence[str] = ()


# What stands below each heading; a plain string explains and is no content.
Sections = Mapping[str, Sequence[Table | Strip | Markup | str]]


@dataclass
class Page:
    """What a page shows, from top to bottom; sections without content are left out.

    `about` is one line below the title, `notes` must be seen; `folded` sections open on a click.
    """

    title: str
    kind: str
    about: str
    notes: Sequence[str] = ()
    photos: Sections = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    sections: Sections = field(default_factory=dict)
    folded: Sections = field(default_factory=dict)


def write(path: Path, page: Page) -> Path:
    """Write a page as HTML that runs no script and asks nothing of the network."""
    with files.atomic_write(path, "w") as handle:
        handle.write(render(page))
    return path


def render(page: Page) -> str:
    """Return a page as HTML."""
    template = _environment(is_html=True).get_template("page.html.jinja")
    return template.render(
        page=page, has_content=lambda parts: any(part for part in parts if type(part) is not str)
    )


def render_markdown(template: str, **values: Any) -> str:
    """Return a card in GitHub's Markdown; every value is shown as it is, never obeyed."""
    return _environment(is_html=False).get_template(template).render(values)


def table(rows: Iterable[Mapping[str, Any]], columns: str = "") -> Table:
    """Format flat dictionaries, a column per key or only `columns`; empty columns are left out.

    A name decides the format: shares in %, a `change` and its interval in points, intervals, else
    numbers and texts.
    """
    rows = list(rows)
    names = columns.split() or [*(rows or [{}])[0]]
    headings, cells = [], []
    for name in names:
        values, (form, unit) = [row.get(name) for row in rows], _format_of(name, names)
        shown = [form(value) for value in values]
        if any(shown):
            heading = _NAMES.get(name, re.sub("[._]", " ", name.removesuffix("_frac")))
            headings.append((heading + unit, not any(isinstance(v, str) for v in values)))
            cells.append(shown)
    return Table(headings, list(zip(*cells, strict=True)))


def tables(tree: Any, *each: tuple[str, str, str, str]) -> dict[str, Sequence[Table | str]]:
    """Format a section per (title, path as `read.rows` takes it, columns, words above)."""
    return {
        title: [words, table(read.rows(tree, path), columns)]
        for title, path, columns, words in each
    }


def leaves(tree: Mapping[str, Any]) -> Table:
    """Format nested dictionaries as two columns: their joined keys, and the values."""
    found = read.flat(dict(tree)).items()
    return table({"what": re.sub("[._]", " ", key), "value": value} for key, value in found)


def headline(figure: Mapping[str, Any], by: str = "") -> Metric:
    """Build the headline of a head's accuracy: its interval and majority baseline stand beside it.

    `by` says what the interval takes for independent where that is not the animal.
    """
    num, limits = figure.get("num"), interval(figure.get("interval_95"))
    baseline = percent(figure.get("majority_baseline"))
    few = ", too few to rely on" if is_number(num) and num < MIN_PHOTOS else ""
    details = (
        f"95 %: {limits}{by}" if limits else "",
        f"majority baseline {baseline} %" if baseline else "",
        f"{number(num)} photos{few}" if is_number(num) else "",
        f"worst: {figure['worst']}" if figure.get("worst") else "",
    )
    return Metric(str(figure["head"]), f"{percent(figure.get('accuracy')) or '-'} %", details)


def visible(value: object) -> str:
    """Return text with control characters, text direction marks and lone surrogates escaped."""
    signs = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return "".join(signs)


def markdown_text(value: object) -> str:
    """Escape for Markdown, also inside a table and at the start of a line."""
    shown = re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", visible(value).strip())
    return re.sub(r"^(\d*)([-+=.)])(?=\s|$|[-+=])", r"\1\\\2", shown)


def _format_of(name: str, names: Sequence[str]) -> tuple[Callable[[Any], str], str]:
    """Return what formats a column, and the unit for its heading."""
    own = name.rpartition(".")[2]
    if "interval" in own and "change" in names:
        return partial(interval, form=points), ", points"
    if "interval" in own:
        return interval, ""
    if own == "change":
        return points, ", points"
    return (percent, ", %") if _SHARES.search(own) else (_text, "")


def _text(value: Any) -> str:
    """Format anything but a share; a text that is markup stays markup."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if value is None or isinstance(value, int | float):
        return number(value)
    return value if isinstance(value, str) else " ".join(map(str, value))


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
