"""What a page is made of: photos, charts and tables, laid out by its template, all escaped.

templates/<page>.html.jinja says what stands where, with the macros of parts.html.jinja and the
functions of `_environment`.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from petface import files
from petface.data import images
from petface.evaluation.figures import interval, is_number, percent, points
from petface.report import folders as read

MIN_PHOTOS: Final = 30  # of fewer photos an accuracy says little
PHOTO_PX: Final = 144
_NAMES = {
    "num": "photos",
    "num_records": "animals",
    "interval_95": "95 % interval",
    **{f"records_per_split.{split}": f"{split} records" for split in ("train", "val", "test")},
    "p_holm": "p, adjusted",
    "headline": "accuracy, %",
    "other_heads": "other accuracies, %",
    "link": "folder",
    "verification.num_pairs": "pairs",
    "verification.auc": "AUC",
    "verification.auc_interval_95": "95 % interval",
    "reidentification.num_queries": "queries",
    "reidentification.top1": "top-1",
    "reidentification.top1_interval_95": "95 % interval",
    "reidentification.top5": "top-5",
    "reidentification.mean_average_precision": "mAP",
    "top1_gain": "top-1 gained",
    "top1_gain_interval_95": "95 % interval",
}
_SHARES = re.compile(
    "accuracy|recall|precision|f1|auc|top[135]|share|frac|probability|agreement|baseline|coverage|"
    "impossible|equal|found|mistaken|accepted"
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


# A headline metric: its name, its value, and what must stand beside it.
Metric = tuple[str, str, Sequence[str]]


def write(path: Path, template: str, **values: Any) -> Path:
    """Write a page as HTML that runs no script and asks nothing of the network.

    Of every page `title`, `kind`, `about`, a line below the title, and `notes` that must be seen.
    """
    environment = _environment(is_html=True)
    body = Markup(environment.get_template(f"{template}.html.jinja").render(values))
    with files.atomic_write(path, "w") as handle:
        handle.write(environment.get_template("page.html.jinja").render(values, body=body))
    return path


def render_markdown(template: str, **values: Any) -> str:
    """Return a card in GitHub's Markdown; every value is shown as it is, never obeyed."""
    return _environment(is_html=False).get_template(template).render(values)


def photo(images_root: Path, name: str, *lines: tuple[str, str]) -> Photo:
    """Make a small JPEG copy; a name that leads out of the folder is not opened."""
    path, source = PurePosixPath(name), ""
    if not path.is_absolute() and ".." not in path.parts and "\0" not in name:
        with suppress(images.ImageError):  # gone or changed since
            pixels = images.resize(images.decode(images_root / path), PHOTO_PX, "letterbox")
            source = _jpeg(Image.fromarray(np.ascontiguousarray(pixels)))
    return Photo(source, name, lines)


def picture(path: Path) -> Markup:
    """Embed a PNG that an analysis drew."""
    with Image.open(path) as opened:
        drawn, words = _jpeg(opened.convert("RGB")), path.stem.replace("_", " ")
    return Markup('<img class=picture src="{}" alt="{}">').format(drawn, words)


def _jpeg(shown: Image.Image) -> str:
    stream = io.BytesIO()
    shown.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def table(rows: Iterable[Mapping[str, Any]], columns: str = "") -> Table:
    """Format flat dictionaries, a column per key or only `columns`; empty columns are left out.

    A name decides the format: shares in %, a `change` and its interval in points, intervals, else
    numbers and texts.
    """
    rows = list(rows)
    names = columns.split() or [*(rows or [{}])[0]]
    headings, cells = [], []
    for name in names:
        own, unit = name.rpartition(".")[2], ""
        form: Callable[[Any], str] = text
        is_interval = "interval" in own
        if "change" in own or "gain" in own or (is_interval and "change" in names):
            form, unit = partial(interval, form=points) if is_interval else points, ", points"
        elif is_interval:
            form = interval
        elif _SHARES.search(own):
            form, unit = percent, ", %"
        values = [row.get(name) for row in rows]
        if any(shown := [form(value) for value in values]):
            heading = _NAMES.get(name, re.sub("[._]", " ", name.removesuffix("_frac")))
            headings.append((heading + unit, not any(isinstance(v, str) for v in values)))
            cells.append(shown)
    return Table(headings, list(zip(*cells, strict=True)))


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
        f"{text(num)} photos{few}" if is_number(num) else "",
        f"worst: {figure['worst']}" if figure.get("worst") else "",
    )
    return (str(figure["head"]), f"{percent(figure.get('accuracy')) or '-'} %", details)


def visible(value: object) -> str:
    """Return text with control characters, text direction marks and lone surrogates escaped.

    Markup stays as it is.
    """
    if isinstance(value, Markup):
        return value
    signs = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return "".join(signs)


def markdown_text(value: object) -> str:
    """Escape for Markdown, also inside a table and at the start of a line."""
    shown = re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", visible(value).strip())
    return re.sub(r"^(\d*)([-+=.)])(?=\s|$|[-+=])", r"\1\\\2", shown)


def text(value: Any) -> str:
    """Format anything but a share; a text that is markup stays markup, None is empty."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if is_number(value):
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else ""


@cache
def _environment(*, is_html: bool) -> Environment:
    """Build what renders templates; every value goes through `visible` or `markdown_text`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=is_html,
        finalize=visible if is_html else markdown_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        table=table, rows=read.rows, leaves=leaves, text=text, strip=Strip, percent=percent,
        interval=interval, has_content=lambda parts: any(p for p in parts if type(p) is not str),
    )  # fmt: skip
    if is_html:
        macros = environment.get_template("parts.html.jinja").module
        names = ("section", "fold", "metrics")
        environment.globals.update({name: getattr(macros, name) for name in names})
    return environment
