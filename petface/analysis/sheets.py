"""Pictures made of small pictures with text, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from petface import files

PICTURE_PX: Final = 128
_GAP, _MARGIN, _LINE, _FONT_PX = 4, 14, 15, 11
_WIDTH_PX = 1100
_INK, _PALE, _PAPER = "#222222", "#6a6a6a", "#ffffff"


class Tile(NamedTuple):
    """Pictures side by side, (H, W, 3) uint8 of any size, and lines of text below them."""

    pictures: list[np.ndarray]
    lines: list[str]


def draw_sheet(path: Path, title: Sequence[str], tiles: Sequence[Tile]) -> None:
    """Lay tiles out in rows under the lines of a title and write a PNG; long lines are cut."""
    num_pictures = max((len(tile.pictures) for tile in tiles), default=1)
    num_lines = max((len(tile.lines) for tile in tiles), default=0)
    inner = num_pictures * (PICTURE_PX + _GAP) - _GAP
    width, height = inner + _MARGIN, PICTURE_PX + num_lines * _LINE + _MARGIN
    columns = max(1, min(len(tiles), (_WIDTH_PX - _MARGIN) // width))
    rows = -(-len(tiles) // columns)
    top = _MARGIN + len(title) * (_LINE + 3)
    font, bold = ImageFont.load_default(_FONT_PX), ImageFont.load_default(_FONT_PX + 2)
    needed = max((round(bold.getlength(printable(line))) for line in title), default=0)
    size = (max(columns * width, min(needed, _WIDTH_PX)) + 2 * _MARGIN, top + rows * height)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title):
        place = (_MARGIN, _MARGIN // 2 + number * (_LINE + 3))
        draw.text(place, _fitted(line, bold, size[0] - 2 * _MARGIN), _INK, bold)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left, y = _MARGIN + column * width, top + row * height
        for place_in_row, picture in enumerate(tile.pictures):
            small = Image.fromarray(picture).resize((PICTURE_PX, PICTURE_PX))
            sheet.paste(small, (left + place_in_row * (PICTURE_PX + _GAP), y))
        for line_number, line in enumerate(tile.lines):
            place = (left, y + PICTURE_PX + 2 + line_number * _LINE)
            color = _INK if line_number == 0 else _PALE
            draw.text(place, _fitted(line, font, inner), color, font)
    with files.atomic_write(path) as handle:
        sheet.save(handle, format="PNG", optimize=True)


def printable(line: str) -> str:
    """Replace what a line of a picture cannot show: line breaks and control characters."""
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def _fitted(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    line = printable(line)[:400]
    while line and font.getlength(line) > width_px:
        line = line.rstrip("…")[:-1].rstrip() + "…"
        if line == "…":
            return ""
    return line
