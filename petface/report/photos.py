"""Photos inside a page, as small JPEG copies: test photos with their predictions, the mistakes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from petface.data import images
from petface.evaluation.details import HEADS, PER_IMAGE
from petface.files import plain_cell
from petface.report.folders import found_at, read_json
from petface.report.page import Photo, Strip

PHOTO_PX: Final = 144
NUM_SHOWN: Final = 16  # photos of a sheet, or one of each species
NUM_MISTAKES: Final = 8


def photo_root(folder: Path, images_root: str, *, with_photos: bool) -> Path | None:
    """Find the photos of an evaluation; None where they are gone or may not be shown."""
    root = found_at(folder, images_root)
    return root if root and root.is_dir() and (with_photos or are_made_up(root)) else None


def are_made_up(images_root: Path) -> bool:
    """Return whether photos are those of tools.make_demo_data, which anyone may see."""
    return read_json(images_root.parent / "demo.json", []).get("tool") == "tools.make_demo_data"


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


def read_test_rows(folder: Path) -> pd.DataFrame:
    """Read the test photos of an evaluation that have predictions, beside their true labels."""
    rows = pd.read_csv(folder / PER_IMAGE, dtype=str, keep_default_na=False)
    rows = rows[(rows["split"] == "test") & (rows["species_pred"] != "")].reset_index(drop=True)
    return rows.assign(species_true=rows["species"])


def prediction_sheet(rows: pd.DataFrame, images_root: Path, seed: int = 0) -> Strip:
    """Show test photos of every species, chosen by a seed and not by their predictions."""
    each = max(1, NUM_SHOWN // max(1, rows["species"].nunique()))
    drawn = rows.sample(frac=1, random_state=seed).groupby("species").head(each)
    drawn = drawn.sort_values(["species", "image"], kind="stable").head(2 * NUM_SHOWN)
    return Strip([_predicted(images_root, row) for row in drawn.to_dict("records")], "photos")


def worst_mistakes(rows: pd.DataFrame, images_root: Path, heads: Sequence[str]) -> Strip:
    """Show the most confident of the wrong predictions, one of each animal."""
    wrong = pd.concat([rows[rows[f"{head}_correct"] == "0"].assign(head=head) for head in heads])
    wrong["sure"] = [float(row[f"{row['head']}_prob"]) for row in wrong.to_dict("records")]
    wrong = wrong.sort_values("sure", ascending=False, kind="stable")
    shown = wrong.drop_duplicates(["species", "record"]).head(NUM_MISTAKES).to_dict("records")
    return Strip([_predicted(images_root, row, (row["head"],)) for row in shown], "photos")


def _predicted(root: Path, row: dict[Any, Any], heads: Sequence[str] = HEADS) -> Photo:
    """Show a photo with a line per predicted head."""
    lines = []
    for head in heads:
        predicted, true = plain_cell(row[f"{head}_pred"]), plain_cell(row[f"{head}_true"])
        if predicted:
            words = f"{predicted} {float(row[f'{head}_prob']) * 100:.0f} %"
            kind = {"1": "right", "0": "wrong"}.get(row[f"{head}_correct"], "pale")
            lines.append((f"{words}, is {true}" if kind == "wrong" else words, kind))
    return photo(root, plain_cell(row["image"]), *lines)


def _jpeg(shown: Image.Image) -> str:
    stream = io.BytesIO()
    shown.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
