"""Where networks look: Grad-CAM of the surest mistakes, for the answer and for the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from petface import files
from petface.analysis.errors import worst_mistakes
from petface.data.catalog import Catalog, listed_files
from petface.data.loading import FileImages
from petface.errors import UserError
from petface.evaluation.details import HEADS, Evaluation, class_numbers
from petface.inference.gradcam import finest_useful_layer, gradcams, overlay
from petface.models.network import Network
from petface.progress import progress

PICTURE_PX: Final = 128
_FONT_PX, _TEXT_PX = 11, 512


@dataclass(frozen=True, eq=False)
class Work:
    """The M test photos of an analysis, by their places in the catalog of their files."""

    catalog: Catalog
    rows: np.ndarray  # (M,) int64 of the evaluation, ascending
    answers: pd.DataFrame  # (M,) these rows
    sample: np.ndarray  # (S,) places of those that stand for the whole test split
    mistakes: dict[str, pd.DataFrame]  # per head, of `worst_mistakes`, by place

    def labels(self, column: str, places: np.ndarray) -> list[str]:
        """Return the texts of some photos in a column of the evaluation; "" where unknown."""
        return self.answers[column].iloc[places].astype(str).tolist()


def choose_photos(evaluation: Evaluation, root: str, num_sampled: int, num_mistakes: int) -> Work:
    """Choose the photos to look at, and list their files below `root`.

    The sample is `num_sampled` rows of the test split at equal distances, 0 = all, so that species
    keep their shares; of each head `num_mistakes` of the surest mistakes.
    """
    test = np.flatnonzero(evaluation.rows["split"] == "test")
    if not len(test):
        raise UserError(f"{evaluation.folder} has no photo in the test split")
    worst = {head: worst_mistakes(evaluation, head, num_mistakes) for head in HEADS}
    sample = test
    if 0 < num_sampled < len(test):
        sample = test[np.arange(num_sampled) * len(test) // num_sampled]
    rows = np.unique(np.concatenate([sample, *(table["place"] for table in worst.values())]))
    return Work(
        listed_files(root, evaluation.image_names(rows)),
        rows,
        evaluation.rows.iloc[rows],
        np.searchsorted(rows, sample),
        {head: own.set_index(np.searchsorted(rows, own["place"])) for head, own in worst.items()},
    )


def explain(
    work: Work, network: Network, head: str, number: int, names: Sequence[str], species: str | None
) -> dict[int, list[np.ndarray]]:
    """Draw the mistakes of head `number`: by place the photo, its maps for answer and truth.

    `species` of a specialist, None for stage 1. Photos that cannot be read are left out; a truth
    that is no class has no map. Pictures are (S, S, 3) uint8.
    """
    source, found = FileImages(work.catalog, network.preprocessing), {}
    layer, _ = finest_useful_layer(network)
    mistakes = work.mistakes[head]
    own = mistakes[(mistakes["species"] == species) | (species is None)]
    answered = list(own[["predicted", "true"]].itertuples(name=None))
    for place, *answers in progress(answered, desc=f"Grad-CAM, {head}", leave=False):
        classes = class_numbers(answers, names)
        classes = classes[classes >= 0]
        pixels = source.read(np.array([place])).arrays[0]
        if len(pixels):
            twice = pixels.expand(len(classes), -1, -1, -1)
            maps, photo = gradcams(network, twice, number, classes, layer), pixels[0].numpy()
            found[place] = [photo, *(overlay(photo, cam) for cam in maps)]
    return found


def draw_mistakes(
    path: Path, mistakes: pd.DataFrame, pictures: Mapping[int, Sequence[np.ndarray]]
) -> None:
    """Draw into a PNG a row per photo of `explain`: the photo, its maps, and what was answered."""
    shown = [place for place in mistakes.index if place in pictures]
    if not shown:
        return
    sheet = Image.new("RGB", (3 * PICTURE_PX + _TEXT_PX, len(shown) * PICTURE_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    for number, place in enumerate(shown):
        own, top = mistakes.loc[place], number * PICTURE_PX
        chance = own["true_probability"]
        for column, picture in enumerate(pictures[place]):
            small = Image.fromarray(picture).resize((PICTURE_PX, PICTURE_PX))
            sheet.paste(small, (column * PICTURE_PX, top))
        lines = [
            f"{own['predicted']} {own['probability'] * 100:.0f} %",
            f"truth: {own['true']}" + ("" if np.isnan(chance) else f" {chance * 100:.0f} %"),
            own["image"],
        ]
        text = ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
        draw.text((3 * PICTURE_PX + 8, top + 8), "\n".join(text), "black", font)
    with files.atomic_write(path) as handle:
        sheet.save(handle, format="PNG", optimize=True)
