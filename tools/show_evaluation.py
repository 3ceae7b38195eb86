"""Show a finished evaluation: its held-out table, and a picture of six photos with their answers.

    python -m tools.show_evaluation runs/evaluation
    python -m tools.show_evaluation --config configs/eval/demo.toml

Draws <OUT_DIR>/strip.png, six of the photos of the report's page, chosen by a seed: right
predictions in green, wrong in red with the truth, grey without a known label.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from petface.errors import UserError, run_script, short  # isort: split

from PIL import Image, ImageDraw, ImageFont

import inference_engine
from petface import files
from petface.evaluation.details import MODELS, PER_IMAGE, SUMMARY
from petface.evaluation.summary import describe_summary
from petface.report.evaluation_page import prediction_sheet, read_test_rows
from petface.report.page import Photo
from petface.settings import read_settings

OUT_DIR: str = "runs/evaluation"  # the evaluation's folder, where none is named
IMAGES_ROOT: str = ""  # "" = where the evaluation found the photos

NUM_PHOTOS, NUM_LINES = 6, 5
TILE_PX, SHOWN_PX, LINE_PX, FONT_PX, MARGIN_PX = 280, 264, 30, 24, 16  # legible at half its size
COLORS = {"right": "#1a7f37", "wrong": "#c62828", "pale": "#7a7a7a"}


def main() -> None:
    words = "FOLDER", "the evaluation's folder, in place of OUT_DIR"
    s = read_settings(sys.modules[__name__], positional=words, presets_of=inference_engine)
    out = Path((s.positional or [s.OUT_DIR])[0])
    summary_file, picture = out / SUMMARY, out / "strip.png"
    if not summary_file.exists():
        raise UserError(f"{out} holds no finished evaluation; run: inference_engine.py evaluate")
    try:
        print(describe_summary(files.read_json(summary_file)))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        what = f"{summary_file} is damaged or of an earlier version ({short(repr(error))})"
        way_out = f"run: python inference_engine.py evaluate --out-dir {out} --force"
        raise UserError(f"{what}; {way_out}") from error
    root = s.IMAGES_ROOT or files.read_json(out / MODELS)["images_root"]
    photos = prediction_sheet(read_test_rows(out), Path(root))
    with files.atomic_write(picture) as handle:
        shown = draw_strip(photos[:: max(1, len(photos) // NUM_PHOTOS)][:NUM_PHOTOS])
        shown.save(handle, format="PNG", optimize=True)
    print(f"\nper_image: {out / PER_IMAGE}\nsummary: {summary_file}\npicture: {picture}")


def draw_strip(photos: Sequence[Photo]) -> Image.Image:
    """Draw photos in a row, each with its answers below."""
    size = len(photos) * TILE_PX + MARGIN_PX, SHOWN_PX + NUM_LINES * LINE_PX + 2 * MARGIN_PX
    strip = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(FONT_PX)
    for number, photo in enumerate(photos):
        left, top = MARGIN_PX + number * TILE_PX, MARGIN_PX
        if photo.source:  # empty where the file is gone
            shown = Image.open(io.BytesIO(base64.b64decode(photo.source.partition(",")[2])))
            larger = SHOWN_PX / max(shown.size)
            strip.paste(shown.resize([round(s * larger) for s in shown.size]), (left, top))
        for line, (text, kind) in enumerate(photo.lines[:NUM_LINES]):
            while draw.textlength(text, font) > TILE_PX - MARGIN_PX:
                text = text.rstrip("…")[:-1].rstrip() + "…"
            draw.text((left, top + SHOWN_PX + 2 + line * LINE_PX), text, COLORS[kind], font)
    return strip


if __name__ == "__main__":
    run_script(main)
