"""What all report pages are built from: sections, tiles, formatted figures, their style."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeGuard

from petface import files
from petface.report.page import page, text
from petface.report.report_style import REPORT_STYLE

EARLIER: Final = "made by an earlier version; run evaluate --force"
MIN_PHOTOS: Final = 30  # below, a share right is marked as too few to rely on


def report(title: str, body: Iterable[str]) -> str:
    """Put the parts of a report into a page with the reports' style."""
    return page(title, body, REPORT_STYLE)


def dig(tree: Any, *keys: str) -> Any:
    """Follow keys into nested dictionaries; None where one is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def entries(tree: Any, *keys: str) -> dict[str, Any]:
    """Follow keys to a dictionary; an empty one where there is none."""
    found = dig(tree, *keys)
    return found if isinstance(found, dict) else {}


def listed(tree: Any, *keys: str) -> list[Any]:
    """Follow keys to a list; an empty one where there is none."""
    found = dig(tree, *keys)
    return found if isinstance(found, list) else []


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(share: Any) -> str:
    """Write a share as `97.3 %`; nothing where it is no number."""
    return f"{share * 100:.1f} %" if is_number(share) else ""


def number(value: Any, digits: int = 3) -> str:
    """Write a figure: whole ones with separators, others with `digits`; nothing for no number."""
    if not is_number(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def interval(pair: Any) -> str:
    """Write a 95 % interval of shares as `95.2 - 99.1`; nothing where there is none."""
    if isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_number, pair)):
        return f"{pair[0] * 100:.1f} - {pair[1] * 100:.1f}"
    return ""


def points(change: Any) -> str:
    """Write a change of a share as `-3.2` points; nothing where it is no number."""
    return f"{change * 100 + 0.0:+.1f}" if is_number(change) else ""


def points_interval(pair: Any) -> str:
    """Write an interval of a change as `-4.0 to -2.1`; nothing where there is none."""
    return f"{points(pair[0])} to {points(pair[1])}" if interval(pair) else ""


class Tile(NamedTuple):
    """A headline figure; `kind` is "", "bad", "doubt" or "good"."""

    value: str
    name: str
    kind: str = ""


def tiles(shown: Iterable[Tile]) -> str:
    """Lay headline figures out side by side; one without a value is left out."""
    return (
        "<div class=tiles>"
        + "".join(
            f'<div class="tile {tile.kind}"><b{" class=long" if len(tile.value) > 12 else ""}>'
            f"<bdi>{text(tile.value)}</bdi></b><span><bdi>{text(tile.name)}</bdi></span></div>"
            for tile in shown
            if tile.value
        )
        + "</div>"
    )


def section(name: str, title: str, *parts: str) -> str:
    """Give a part of the page its heading; nothing where all parts are empty."""
    if not any(parts):
        return ""
    return f'<section id="{name}"><h2>{text(title)}</h2>{"".join(parts)}</section>'


def contents(sections: Sequence[tuple[str, str, str]]) -> str:
    """Link to the sections, each (name, title, its HTML), that hold something."""
    links = [f'<a href="#{name}">{text(title)}</a>' for name, title, body in sections if body]
    return f"<nav>{''.join(links)}</nav>" + "".join(body for _, _, body in sections)


def pale(words: str) -> str:
    """A line of explanation; escaped."""
    return f"<p class=pale><bdi>{text(words)}</bdi></p>"


def note(words: str, kind: str = "") -> str:
    """A line that must be seen; escaped."""
    return f'<p class="note {kind}"><bdi>{text(words)}</bdi></p>'


def fold(title: str, *parts: str, is_open: bool = False) -> str:
    """Hide parts behind a line to click on; nothing where all are empty."""
    if not any(parts):
        return ""
    begin = "<details open>" if is_open else "<details>"
    return f"{begin}<summary>{text(title)}</summary>{''.join(parts)}</details>"


def absent(summary: dict[str, Any]) -> str:
    """Say of a summary, unless it is empty, that a part is missing, and the way out."""
    return pale(f"Not in this evaluation: {EARLIER}.") if summary else ""


def preformatted(words: str) -> str:
    """Show lines of text as they are."""
    return "<pre>" + "\n".join(text(line) for line in words.splitlines()) + "</pre>"


def read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no file, and where it is broken, which is noted."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None
    if isinstance(found, dict):
        return found
    problems.append(f"{path.name} cannot be read: it holds no JSON object")
    return None


def write_page(path: Path, words: str) -> Path:
    """Write a page whole or not at all."""
    with files.atomic_write(path, "w") as handle:
        handle.write(words)
    return path
