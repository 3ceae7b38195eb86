"""A confusion table as a picture: rows are the truth, columns the answers, both numbered."""

from __future__ import annotations

import numpy as np

from petface.report.page import table, text

MAX_CLASSES = 60  # of a picture; above, the commonest confusions stand in a table
NUM_PAIRS = 20
_CELL, _BIG_CELL, _LETTER = 15, 28, 6.1  # units of about a pixel
_MAX_NAME, _MAX_COUNTED = 34, 14  # letters; classes up to which the counts stand in the cells
_NUM_SHADES = 10


def draw_confusion(title: str, names: list[str], counts: np.ndarray) -> str:
    """Draw counts (K, K), shaded by the share of their row, or list the commonest confusions."""
    if not counts.any():
        return ""
    if len(names) > MAX_CLASSES:
        return f"<h3>{text(title)}</h3>" + top_pairs(names, counts)
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    shown = [_shortened(name) for name in names]
    left = round((max(map(len, shown)) + 4) * _LETTER + 6)
    is_counted = len(names) <= _MAX_COUNTED
    cell = _BIG_CELL if is_counted else _CELL
    top, size = 18, cell * len(names)
    parts = []
    for shade in range(1, _NUM_SHADES + 1):
        is_shade = (np.ceil(shares * _NUM_SHADES - 1e-9) == shade) & (counts > 0)
        for on_diagonal, color in ((True, "--c0"), (False, "--c1")):
            chosen = is_shade & (np.eye(len(names), dtype=bool) == on_diagonal)
            way = "".join(
                f"M{left + cell * column} {top + cell * row}h{cell - 1}v{cell - 1}h-{cell - 1}z"
                for row, column in np.argwhere(chosen).tolist()
            )
            if way:
                opacity = 0.12 + 0.88 * shade / _NUM_SHADES
                parts.append(f'<path d="{way}" fill="var({color})" opacity="{opacity:.2f}"/>')
    parts.append(f'<path class=grid d="M{left} {top}h{size}v{size}h-{size}z"/>')
    for k, name in enumerate(shown):
        middle = top + cell * k + cell / 2 + 3.5
        parts.append(
            f'<text x="{left - 6}" y="{middle}" text-anchor="end">{text(name)} {k + 1}</text>'
            f'<text x="{left + cell * k + cell / 2 - 0.5}" y="{top - 5}" text-anchor="middle" '
            f'style="font-size:9px">{k + 1}</text>'
        )
    if is_counted:
        parts += _cell_texts(counts, shares, left, top, cell)
    width, height = left + size + 4, top + size + 4
    return (
        f"<figure class=map><figcaption><bdi>{text(title)}</bdi></figcaption><div class=scroll>"
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{text(title)}: confusion table of {len(names)} classes">'
        f"{''.join(parts)}</svg></div></figure>"
    )


def top_pairs(names: list[str], counts: np.ndarray) -> str:
    """List the commonest confusions of counts (K, K)."""
    wrong = counts * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_PAIRS]
    rows = [
        (names[true], names[answer], int(wrong[true, answer]), int(counts[true].sum()))
        for true, answer in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[true, answer]
    ]
    return table(("truth", "answer", "photos", "of that truth"), 2, rows)


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _cell_texts(
    counts: np.ndarray, shares: np.ndarray, left: int, top: int, cell: int
) -> list[str]:
    return [
        f'<text class={kind} x="{left + cell * column + cell / 2 - 0.5}" '
        f'y="{top + cell * row + cell / 2 + 3}" text-anchor="middle">{_short_count(num)}</text>'
        for row, column in np.argwhere(counts > 0).tolist()
        for num, kind in [(int(counts[row, column]), _ink(shares[row, column]))]
    ]


def _ink(share: float) -> str:
    """Choose light letters on a strong colour."""
    return '"count light"' if share > 0.55 else "count"


def _short_count(num: int) -> str:
    """Write a count in four letters at most."""
    if num < 10_000:
        return str(num)
    return f"{num // 1000}k" if num < 1_000_000 else f"{num // 1_000_000}M"
