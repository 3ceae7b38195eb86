"""Where networks look: Grad-CAM of the surest mistakes, and how much of it lies on the border."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from petface import files
from petface.analysis.errors import true_column, worst_mistakes
from petface.data.catalog import Catalog, listed_files
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.data.sample import sample_per_class
from petface.errors import UserError
from petface.evaluation.details import HEADS, Evaluation, class_numbers
from petface.inference.gradcam import Map, finest_useful_layer, gradcams, overlay
from petface.models.network import Network

RING_FRAC: Final = 0.1  # of the side: what counts as the border of a map
PICTURE_PX: Final = 128
_FONT_PX, _TEXT_PX = 11, 512
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Work:
    """The M test photos of an analysis, by their places in the catalog of their files."""

    catalog: Catalog
    rows: np.ndarray  # (M,) int64 of the evaluation, ascending
    answers: pd.DataFrame  # (M,) these rows
    sample: np.ndarray  # (S,) places of those that stand for the whole test part
    mistakes: dict[str, pd.DataFrame]  # per head, of `worst_mistakes`, by place

    def labels(self, column: str, places: np.ndarray) -> list[str]:
        """Return the texts of some photos in a column of the evaluation; "" where unknown."""
        return self.answers[column].iloc[places].astype(str).tolist()


def choose_photos(
    evaluation: Evaluation, images_root: str, num_sampled: int, num_mistakes: int
) -> Work:
    """Choose the photos to look at, and list their files.

    The sample is `num_sampled` rows of the test part at equal distances, 0 = all, so that species
    keep their shares; of each head `num_mistakes` of the surest mistakes.
    """
    test = np.flatnonzero(evaluation.rows["split"] == "test")
    if not len(test):
        raise UserError(f"{evaluation.folder} has no photo in the test part")
    worst = {head: worst_mistakes(evaluation, head, num_mistakes) for head in HEADS}
    sample = spread(test, num_sampled)
    rows = np.unique(np.concatenate([sample, *(table["place"] for table in worst.values())]))
    root = images_root or evaluation.models["images_root"]
    return Work(
        listed_files(root, evaluation.image_names(rows)),
        rows,
        evaluation.rows.iloc[rows],
        np.searchsorted(rows, sample),
        {head: own.set_index(np.searchsorted(rows, own["place"])) for head, own in worst.items()},
    )


def spread(rows: np.ndarray, num: int) -> np.ndarray:
    """Return `num` rows at equal distances; 0 takes all."""
    return rows if num == 0 or num >= len(rows) else rows[np.arange(num) * len(rows) // num]


@dataclass(eq=False)
class HeadMaps:
    """What was gathered of one head."""

    num: int = 0  # maps of right answers
    ring: list[float] = field(default_factory=list)  # of those that are not 0 everywhere
    area_frac: float | None = None
    layers: set[tuple[str, int]] = field(default_factory=set)  # (stage, cells along a side)
    pictures: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))

    def summary(self) -> dict[str, Any]:
        """Return for JSON the mean share of a map's energy that lies on the border."""
        return {
            "num": self.num,
            "layer": ", ".join(f"{layer} ({n}x{n} cells)" for layer, n in sorted(self.layers)),
            "border_energy_frac": float(np.mean(self.ring)) if self.ring else None,
            "border_area_frac": self.area_frac,
        }


def explain(
    found: HeadMaps, work: Work, network: Network, head: str, number: int, names: Sequence[str],
    species: str | None, *, photos_per_class: int, seed: int,
) -> None:  # fmt: skip
    """Gather the maps of head `number`: the border's share over right answers of the sample, and
    the pictures of its mistakes; `species` of a specialist, None for stage 1.
    """
    own = work.answers.iloc[work.sample]
    is_own = (own[f"{head}_correct"] == 1) & ((own["species"] == species) | (species is None))
    right, truth = work.sample[is_own.to_numpy()], true_column(head)
    right = right[sample_per_class(np.array(work.labels(truth, right)), photos_per_class, seed)]
    classes = class_numbers(work.labels(truth, right), names)
    for places, _, maps in maps_of(network, work.catalog, right, number, classes):
        shares, found.area_frac = ring_energy(maps)
        found.num += len(places)
        found.ring += shares[np.isfinite(shares)].tolist()
        found.layers.add(finest_useful_layer(network))
    shown = work.mistakes[head]
    shown = shown[(shown["species"] == species) | (species is None)]
    for column in ("predicted", "true"):
        classes = class_numbers(shown[column].tolist(), names)
        known = np.flatnonzero(classes >= 0)
        wrong = shown.index.to_numpy()[known]
        for places, pixels, maps in maps_of(network, work.catalog, wrong, number, classes[known]):
            for place, photo, cam in zip(places.tolist(), pixels, maps, strict=True):
                pictures = found.pictures[place]
                pictures += [overlay(photo, cam)] if pictures else [photo, overlay(photo, cam)]


def maps_of(
    network: Network, catalog: Catalog, places: np.ndarray, head: int, classes: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, Map]]:
    """Yield (places, pixels, maps) of the readable photos at `places` (M,), batch by batch.

    `classes` (M,) is what each map speaks for.
    """
    layer, _ = finest_useful_layer(network)
    slices = even_slices(np.arange(len(places)), _BATCH)
    source = FileImages(catalog, network.preprocessing)
    decoded = read_ahead(source, [places[part] for part in slices], 0)
    for part, item in zip(slices, decoded, strict=True):
        rows, pixels = part[item.status == OK], item.arrays[0]
        if len(rows):
            maps = gradcams(network, pixels, head, classes[rows], layer)
            yield places[rows], pixels.numpy(), maps


def ring_energy(cams: Map) -> tuple[npt.NDArray[np.float64], float]:
    """Return the share of each map (B, H, W) in its outer ring, and the ring's share of the area.

    NaN for maps that are 0 everywhere. A share far above that of the area hints that the network
    looks at borders rather than at the animal.
    """
    height, width = cams.shape[1:]
    rows, columns = round(RING_FRAC * height), round(RING_FRAC * width)
    inner = cams[:, rows : height - rows, columns : width - columns].sum((1, 2), dtype=np.float64)
    whole = cams.sum((1, 2), dtype=np.float64)
    share = np.divide(whole - inner, whole, out=np.full(len(cams), np.nan), where=whole > 0)
    return share, 1 - (height - 2 * rows) * (width - 2 * columns) / (height * width)


def draw_maps(work: Work, maps: dict[str, HeadMaps], out: Path) -> dict[str, Any]:
    """Draw the mistakes of every head; return their files and the border's share of the maps."""
    result = {}
    for head, found in maps.items():
        rows = []
        for place, m in work.mistakes[head].iterrows():
            if place in found.pictures:
                chance = m["true_probability"]
                chance = "" if np.isnan(chance) else f" {chance * 100:.0f} %"
                answer = f"{m['predicted']} {m['probability'] * 100:.0f} %"
                lines = [answer, f"truth: {m['true']}{chance}", m["image"]]
                rows.append((found.pictures[place], lines))
        names = [f"photos/gradcam_{head}_mistakes.png"] if rows else []
        for name in names:
            draw_strip(out / name, rows)
        if rows or found.num:
            result[head] = {**found.summary(), "photo_files": names}
    return result


def draw_strip(path: Path, rows: Sequence[tuple[list[np.ndarray], list[str]]]) -> None:
    """Draw into a PNG a row per photo: the photo, its maps for the answer and for the truth, (H, W,
    3) uint8 of any size, and lines of text.
    """
    sheet = Image.new("RGB", (3 * PICTURE_PX + _TEXT_PX, len(rows) * PICTURE_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    for number, (pictures, lines) in enumerate(rows):
        top = number * PICTURE_PX
        for place, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize((PICTURE_PX, PICTURE_PX))
            sheet.paste(small, (place * PICTURE_PX, top))
        shown = ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
        draw.text((3 * PICTURE_PX + 8, top + 8), "\n".join(shown), "black", font)
    with files.atomic_write(path) as handle:
        sheet.save(handle, format="PNG", optimize=True)
