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
# Headings of keys that need one; it decides the format: shares in %, changes in points, intervals.
COLUMNS: Final = {
    "num": "photos",
    "num_records": "animals",
    "num_judged": "judged",
    "accuracy": "accuracy, %",
    "accuracy_a": "A, %",
    "accuracy_b": "other, %",
    "balanced_accuracy_a": "balanced A, %",
    "balanced_accuracy_b": "balanced other, %",
    "interval_95": "95 % interval",
    "majority_baseline": "majority, %",
    "majority_share": "majority, %",
    "balanced_accuracy": "balanced, %",
    "end_to_end.accuracy": "end to end, %",
    "per_record.accuracy": "per animal, %",
    "accuracy_one_photo": "one photo, %",
    "accuracy_fused": "all photos fused, %",
    "macro_f1": "macro F1, %",
    "top3": "top 3, %",
    "top5": "top 5, %",
    "raw_ece": "ECE as trained",
    "ece": "ECE calibrated",
    "nll": "NLL",
    "lost_in_stage1": "lost by a wrong species, %",
    "lost_in_stage2": "lost by the specialist, %",
    "share_of_true": "of that class, %",
    "frac_of_true": "of that class, %",
    "recall": "recall, %",
    "precision": "precision, %",
    "f1": "F1, %",
    "coverage": "answered, %",
    "accuracy_of_answered": "accuracy of these, %",
    "wanted_accuracy": "wanted, %",
    "conformal.coverage": "set holds truth, %",
    "conformal_coverage": "set holds truth, %",
    "conformal.mean_size": "mean set size",
    "fitted.temperature": "temperature",
    "fitted.threshold": "threshold",
    "probability": "its probability, %",
    "true_probability": "of the truth, %",
    "agreement": "same answer, %",
    "change": "change, points",
    "change_interval": "95 % interval, points",
    "share": "same answer, %",
    "unknown_frac": "unknown, %",
    "p_holm": "p, adjusted",
    "name": "",
}


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
    """Lay out dictionaries: a column per key, `a.b` a nested one; without `keys` those of a row.

    Columns without any content are left out.
    """
    rows = list(rows)
    names = keys.split() or list(rows[0] if rows else ())
    cells = [[dig(row, *name.split(".")) for row in rows] for name in names]
    columns, shown = [], []
    for name, values in zip(names, cells, strict=True):
        heading = COLUMNS.get(name, name.split(".")[-1].replace("_", " "))
        formatted = [format_cell(heading, value) for value in values]
        if any(formatted):
            is_text = any(isinstance(value, str | Path) for value in values)
            columns.append((heading, not is_text))
            shown.append(formatted)
    return Table(columns, list(zip(*shown, strict=True)))


def format_cell(heading: str, value: Any) -> object:
    """Format a value as its column's heading asks; "" where there is none."""
    if heading.startswith("95 %"):
        return interval(value, points if "points" in heading else percent)
    if "points" in heading:
        return points(value)
    if heading.endswith(", %"):
        return percent(value)
    return number(value) if is_number(value) or value is None else value


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


def leaves(tree: dict[str, Any], above: str = "") -> list[dict[str, Any]]:
    """List what nested dictionaries hold: what (the joined keys) and value."""
    found: list[dict[str, Any]] = []
    for key, value in tree.items():
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
