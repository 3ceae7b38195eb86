"""Show a finished evaluation: its held-out table, and a picture of photos with their answers.

    python -m tools.show_evaluation --config configs/eval/demo.toml

Draws <OUT_DIR>/predictions.png: for each species some photos of the test part with their answers;
right ones in green, wrong ones in red with the truth behind them, grey where no label is known. The
photos are chosen by a seed, not by their answers.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import inference_engine
from petface import files, taxonomy
from petface.data import images
from petface.errors import UserError, run_script
from petface.evaluation.summary import describe_summary
from petface.settings import read_settings

TILE_PX, PHOTO_PX, LINE_PX, MARGIN_PX = 190, 132, 15, 12
NUM_PHOTOS, NUM_LINES, NAME_PX = 4, 4, 100
NUM_BLOCKS = 2  # species side by side
RIGHT, WRONG, PALE, INK, PAPER = "#1a7f37", "#c62828", "#7a7a7a", "#222222", "#ffffff"


def main() -> None:
    settings = read_settings(inference_engine)
    out = Path(settings.OUT_DIR)
    summary_file, rows_file = out / "petface_eval_summary.json", out / "petface_eval_per_image.csv"
    if not summary_file.exists():
        raise UserError(f"{out} holds no finished evaluation; run: inference_engine.py evaluate")
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    if "figures" not in summary:
        raise UserError(
            f"{summary_file} is of an earlier version; run: python inference_engine.py evaluate "
            f"--out-dir {out} --force"
        )
    print(describe_summary(summary))
    with rows_file.open(encoding="utf-8", newline="") as handle:
        rows = [
            row for row in csv.DictReader(handle) if row["split"] == "test" and row["species_pred"]
        ]
    with files.atomic_write(out / "predictions.png") as handle:
        draw_sheet(rows, Path(settings.IMAGES_ROOT)).save(handle, format="PNG", optimize=True)
    print(f"\nper_image: {rows_file}\nsummary: {summary_file}\npicture: {out / 'predictions.png'}")


def draw_sheet(rows: list[dict[str, str]], images_root: Path, seed: int = 0) -> Image.Image:
    """Lay out up to `NUM_PHOTOS` answered photos of each species with their answers."""
    species = sorted({row["species"] for row in rows})
    height_px = PHOTO_PX + NUM_LINES * LINE_PX + MARGIN_PX
    width_px = NAME_PX + NUM_PHOTOS * TILE_PX
    num_rows = -(-len(species) // NUM_BLOCKS)
    size = (NUM_BLOCKS * width_px + MARGIN_PX, num_rows * height_px + MARGIN_PX)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    generator = np.random.default_rng(seed)
    for number, name in enumerate(species):
        block, row_number = divmod(number, num_rows)
        left, top = MARGIN_PX + block * width_px, MARGIN_PX + row_number * height_px
        draw.text((left, top + PHOTO_PX // 2 - 8), name, INK, ImageFont.load_default(14))
        own = [row for row in rows if row["species"] == name]
        chosen = generator.choice(len(own), min(NUM_PHOTOS, len(own)), replace=False)
        for column, index in enumerate(sorted(chosen.tolist())):
            corner = (left + NAME_PX - MARGIN_PX + column * TILE_PX, top)
            _draw_tile(sheet, draw, own[index], images_root, corner)
    return sheet


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    row: dict[str, str],
    images_root: Path,
    corner: tuple[int, int],
) -> None:
    left, top = corner
    pixels = images.decode(images_root / files.plain_cell(row["image"]))
    photo = images.resize(pixels, PHOTO_PX, "stretch")
    sheet.paste(Image.fromarray(photo), (left, top))
    for number, (text, color) in enumerate(_captions(row)):
        place = (left, top + PHOTO_PX + 2 + number * LINE_PX)
        font = ImageFont.load_default(11)
        while draw.textlength(text, font) > TILE_PX - 6:
            text = text.rstrip("…")[:-1].rstrip() + "…"
        draw.text(place, text, color, font)


def _captions(row: dict[str, str]) -> list[tuple[str, str]]:
    """One line per answer: (text, colour)."""
    lines: list[tuple[str, Any]] = []
    for what in ("species", *taxonomy.FEATURES):
        predicted, probability = files.plain_cell(row[f"{what}_pred"]), row[f"{what}_prob"]
        if not predicted or len(lines) == NUM_LINES:
            continue
        true = row["species"] if what == "species" else files.plain_cell(row[f"{what}_true"])
        color = PALE if not true else RIGHT if true == predicted else WRONG
        text = f"{predicted} {float(probability) * 100:.0f} %"
        text = text if what == "species" else f"{what}: {text}"
        lines.append((f"{text} ({true})" if color == WRONG else text, color))
    return lines


if __name__ == "__main__":
    sys.argv[0] = "tools.show_evaluation"
    run_script(main)
