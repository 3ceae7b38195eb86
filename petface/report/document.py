"""A plain document built once from parts and written twice: as Markdown and as a page.

Texts are plain: what looks like Markdown or HTML in them is shown, never obeyed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from petface.report.page import page, table, text

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&$])")
_LIST_START = re.compile(r"^(\d*)([-+=.)])(?=\s|$|[-+=])")  # and lines of dashes


@dataclass(frozen=True)
class Heading:
    """A section, or with `level` 3 a part of one."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Some sentences."""

    text: str


@dataclass(frozen=True)
class Notice:
    """Something that must not be overlooked, begun by a word in bold."""

    word: str
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table: the first `num_texts` columns are texts, the others numbers."""

    header: Sequence[str]
    num_texts: int
    rows: Sequence[Sequence[object]]


Block = Heading | Paragraph | Notice | Bullets | Grid


@dataclass(frozen=True)
class Document:
    """A title and the parts below it."""

    title: str
    blocks: Sequence[Block]


def to_markdown(document: Document) -> str:
    """Write GitHub's Markdown; every text is escaped."""
    parts = [f"# {markdown_text(document.title)}"]
    parts += ["\n".join(_markdown(block)) for block in document.blocks]
    return "\n\n".join(parts) + "\n"


def to_page(document: Document) -> str:
    """Write one self-contained HTML page."""
    body = [f"<h1>{text(document.title)}</h1>", _STYLE]
    return page(document.title, [*body, *map(_html, document.blocks)])


def markdown_text(value: object) -> str:
    """Escape for Markdown, also inside a table; line breaks and controls become visible."""
    shown = html.unescape(text(value)).strip()  # controls as the page shows them
    return _LIST_START.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", shown))


def _markdown(block: Block) -> Iterator[str]:
    match block:
        case Heading(shown, level):
            yield f"{'#' * level} {markdown_text(shown)}"
        case Paragraph(shown):
            yield markdown_text(shown)
        case Notice(word, shown):
            yield f"> **{markdown_text(word)}:** {markdown_text(shown)}"
        case Bullets(items):
            yield from (f"- {markdown_text(item)}" for item in items)
        case Grid(header, num_texts, rows):
            if not rows:
                yield "None."
                return
            yield _row(header)
            yield _row(["---"] * num_texts + ["---:"] * (len(header) - num_texts), plain=True)
            yield from (_row([_number(cell) for cell in row]) for row in rows)


def _row(cells: Sequence[object], *, plain: bool = False) -> str:
    shown = (str(cell) if plain else markdown_text(cell) for cell in cells)
    return f"| {' | '.join(shown)} |"


def _number(cell: object) -> object:
    return f"{cell:,}" if isinstance(cell, int | float) else cell


def _html(block: Block) -> str:
    match block:
        case Heading(shown, level):
            return f"<h{level}>{text(shown)}</h{level}>"
        case Paragraph(shown):
            return f"<p><bdi>{text(shown)}</bdi></p>"
        case Notice(word, shown):
            return f"<p class=notice><b>{text(word)}:</b> <bdi>{text(shown)}</bdi></p>"
        case Bullets(items):
            listed = "".join(f"<li><bdi>{text(item)}</bdi></li>" for item in items)
            return f"<ul>{listed}</ul>"
        case Grid(header, num_texts, rows):
            return table(header, num_texts, rows)


_STYLE = """<style>
td.text:first-child{min-width:11ch}
h3{font-size:16px;margin:24px 0 8px}ul{margin:4px 0 12px;padding-left:22px;max-width:75ch}
li{overflow-wrap:anywhere}.notice{border-left:4px solid var(--doubt);background:var(--soft);
padding:8px 12px;border-radius:4px}
.scroll+.scroll,.scroll+p{margin-top:14px}
</style>"""
