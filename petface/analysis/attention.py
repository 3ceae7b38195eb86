"""Where networks look: Grad-CAM of the surest mistakes, and how much of it lies on the border."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
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
    """The test photos of an analysis.

    `rows` (M,) int64 are rows of the evaluation, ascending; the catalog has their files and
    `names` their names. `sample` (S,) are those of them that stand for the whole test part, and
    `mistakes[head]` those of the pictures.
    """

    evaluation: Evaluation
    rows: np.ndarray
    names: list[str]
    catalog: Catalog
    sample: np.ndarray
    mistakes: dict[str, np.ndarray]

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Find rows of the evaluation in the catalog."""
        return np.searchsorted(self.rows, rows)

    def true_labels(self, head: str, rows: np.ndarray) -> list[str]:
        """Return the true labels of some rows; "" where unknown."""
        return self.evaluation.rows[true_column(head)].iloc[rows].astype(str).tolist()

    def answered_labels(self, head: str, rows: np.ndarray) -> list[str]:
        """Return what the evaluation answered to some rows; "" where nothing."""
        return self.evaluation.rows[f"{head}_pred"].iloc[rows].astype(str).tolist()

    def correct(self, head: str, rows: np.ndarray) -> np.ndarray:
        """Return 1, 0 or NaN for some rows."""
        return self.evaluation.rows[f"{head}_correct"].to_numpy()[rows]

    def of_species(self, species: str | None, rows: np.ndarray) -> np.ndarray:
        """Return those rows that are of a species; None means any."""
        own = self.evaluation.rows["species"].iloc[rows]
        return rows if species is None else rows[(own == species).to_numpy()]


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
    worst = (worst_mistakes(evaluation, head, num_mistakes) for head in HEADS)
    mistakes = {head: table["place"].to_numpy() for head, table in zip(HEADS, worst, strict=True)}
    sample = spread(test, num_sampled)
    rows = np.unique(np.concatenate([sample, *mistakes.values()]))
    names = evaluation.image_names(rows)
    catalog = listed_files(images_root or evaluation.models["images_root"], names)
    return Work(evaluation, rows, names, catalog, sample, mistakes)


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


def maps_of(
    network: Network, catalog: Catalog, places: np.ndarray, head: int, classes: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, Map]]:
    """Yield (rows, pixels, maps) of the readable photos at `places` (M,), batch by batch.

    `rows` are places in `places`; `classes` (M,) is what each map speaks for.
    """
    layer, _ = finest_useful_layer(network)
    source = FileImages(catalog, network.preprocessing)
    slices = even_slices(np.arange(len(places)), _BATCH)
    decoded = read_ahead(source, [places[part] for part in slices], 0)
    for part, item in zip(slices, decoded, strict=True):
        rows = part[item.status == OK]
        if len(rows):
            pixels = item.arrays[0]
            yield rows, pixels.numpy(), gradcams(network, pixels, head, classes[rows], layer)


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


def explain(
    found: HeadMaps, work: Work, network: Network, head: str, number: int, names: Sequence[str],
    species: str | None, *, photos_per_class: int, seed: int,
) -> None:  # fmt: skip
    """Gather the maps of head `number`: the border's share over right answers of the sample, and
    the pictures of its mistakes; `species` of a specialist, None for stage 1.
    """
    right = work.of_species(species, work.sample)
    right = right[work.correct(head, right) == 1]
    every = np.array(work.true_labels(head, right))
    right = right[sample_per_class(every, photos_per_class, seed)]
    classes = class_numbers(work.true_labels(head, right), names)
    for rows, _, maps in maps_of(network, work.catalog, work.places(right), number, classes):
        shares, found.area_frac = ring_energy(maps)
        found.num += len(rows)
        found.ring += shares[np.isfinite(shares)].tolist()
        found.layers.add(finest_useful_layer(network))
    shown = work.of_species(species, work.mistakes[head])
    for labels in (work.answered_labels(head, shown), work.true_labels(head, shown)):
        classes = class_numbers(labels, names)
        own, classes = shown[classes >= 0], classes[classes >= 0]
        for rows, pixels, maps in maps_of(network, work.catalog, work.places(own), number, classes):
            for row, photo, cam in zip(own[rows].tolist(), pixels, maps, strict=True):
                pictures = found.pictures[row]
                pictures += [overlay(photo, cam)] if pictures else [photo, overlay(photo, cam)]


def _caption(work: Work, row: int, head: str) -> list[str]:
    """Return what was answered, how surely, what is true, and the name of the photo."""
    places = np.array([row])
    probability = work.evaluation.rows[f"{head}_prob"].iloc[row]
    nll = work.evaluation.details[head]["nll"][row]
    chance = "" if np.isnan(nll) else f" {np.exp(-nll) * 100:.0f} %"
    return [
        f"{work.answered_labels(head, places)[0]} {probability * 100:.0f} %",
        f"truth: {work.true_labels(head, places)[0]}{chance}",
        work.names[int(work.places(places)[0])],
    ]


def draw_maps(work: Work, maps: dict[str, HeadMaps], out: Path) -> dict[str, Any]:
    """Draw the mistakes of every head; return their files and the border's share of the maps."""
    result = {}
    for head, found in maps.items():
        shown = [row for row in work.mistakes[head].tolist() if row in found.pictures]
        name = f"photos/gradcam_{head}_mistakes.png"
        if shown:
            rows = [(found.pictures[row], _caption(work, row, head)) for row in shown]
            draw_strip(out / name, rows)
        if shown or found.num:
            result[head] = {**found.summary(), "photo_files": [name] if shown else []}
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
