"""Where networks look: Grad-CAM of chosen test photos and the mean map of each class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from petface import files
from petface.analysis.errors import asked_places, true_column, worst_mistakes
from petface.data.catalog import Catalog, listed_files
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.data.sample import sample_per_class
from petface.errors import UserError
from petface.evaluation.details import HEADS, Evaluation, class_numbers
from petface.inference.gradcam import Map, finest_useful_layer, gradcams, heat, overlay
from petface.models.network import Network

RING_FRAC: Final = 0.1  # of the side: what counts as the border of a map
MAX_CLASSES_DRAWN: Final = 60
PICTURE_PX: Final = 128
_GAP, _LINE, _FONT_PX, _SHEET_PX = 6, 15, 11, 1080
_BATCH = 32
_KINDS = {
    "mistakes": "surest mistakes: photo, what speaks for the answer, what for the truth",
    "right": "right answers chosen by a seed: photo, what speaks for the answer",
}


class Tile(NamedTuple):
    """Pictures side by side, (H, W, 3) uint8 of any size, and lines of text below them."""

    pictures: list[np.ndarray]
    lines: list[str]


@dataclass(frozen=True, eq=False)
class Work:
    """The test photos of an analysis.

    `rows` (M,) int64 are rows of the evaluation, ascending; the catalog has their files and
    `names` their names. `sample` (S,) are those of them that stand for the whole test part, and
    `examples[head, "mistakes" | "right"]` those of the pictures.
    """

    evaluation: Evaluation
    rows: np.ndarray
    names: list[str]
    catalog: Catalog
    sample: np.ndarray
    examples: dict[tuple[str, str], np.ndarray]

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
    evaluation: Evaluation, images_root: str, num_sampled: int, num_examples: int, seed: int
) -> Work:
    """Choose the photos to look at, and list their files.

    The sample is `num_sampled` rows of the test part at equal distances, 0 = all, so that species
    keep their shares. Per head `num_examples` of the surest mistakes, and of the right answers
    drawn by the seed.
    """
    test = np.flatnonzero(evaluation.rows["split"] == "test")
    if not len(test):
        raise UserError(f"{evaluation.folder} has no photo in the test part")
    examples = {}
    for head in HEADS:
        worst = worst_mistakes(evaluation, head, num_examples)
        examples[head, "mistakes"] = worst["place"].to_numpy()
        asked = asked_places(evaluation, head)
        right = asked[evaluation.rows[f"{head}_correct"].to_numpy()[asked] == 1]
        drawn = sample_per_class(np.zeros(len(right)), num_examples, seed)
        examples[head, "right"] = right[drawn]
    sample = spread(test, num_sampled)
    rows = np.unique(np.concatenate([sample, *examples.values()]))
    names = evaluation.image_names(rows)
    catalog = listed_files(images_root or evaluation.models["images_root"], names)
    return Work(evaluation, rows, names, catalog, sample, examples)


def spread(rows: np.ndarray, num: int) -> np.ndarray:
    """Return `num` rows at equal distances; 0 takes all."""
    return rows if num == 0 or num >= len(rows) else rows[np.arange(num) * len(rows) // num]


@dataclass(eq=False)
class ClassMaps:
    """The maps of one class, added up."""

    total: Map  # (H, W)
    num: int = 0
    ring: list[float] = field(default_factory=list)  # of the maps that are not 0 everywhere


@dataclass(eq=False)
class HeadMaps:
    """What was gathered of one head; classes are (species, label)."""

    classes: dict[tuple[str, str], ClassMaps] = field(default_factory=dict)
    layers: set[tuple[str, int]] = field(default_factory=set)  # (stage, cells along a side)
    area_frac: float | None = None
    tiles: dict[str, dict[int, Tile]] = field(default_factory=lambda: defaultdict(dict))

    def add_class_maps(
        self, network: Network, catalog: Catalog, places: np.ndarray, head: int,
        classes: np.ndarray, keys: Sequence[tuple[str, str]],
    ) -> None:  # fmt: skip
        """Add the maps of photos that were answered right: `classes` and `keys` (M,) each."""
        self.layers.add(finest_useful_layer(network))
        for rows, _, maps in maps_of(network, catalog, places, head, classes):
            shares, self.area_frac = ring_energy(maps)
            for row, cam, share in zip(rows.tolist(), maps, shares.tolist(), strict=True):
                entry = self.classes.setdefault(keys[row], ClassMaps(np.zeros_like(cam)))
                entry.total += cam
                entry.num += 1
                if np.isfinite(share):
                    entry.ring.append(share)

    @property
    def layer(self) -> str:
        """Describe which maps were looked at, and how coarse they are."""
        return ", ".join(f"{layer} ({n}x{n} cells)" for layer, n in sorted(self.layers))

    def summary(self) -> dict[str, Any]:
        """Return border shares for JSON: the mean over photos, and per class."""
        rings = [share for entry in self.classes.values() for share in entry.ring]
        return {
            "num": sum(entry.num for entry in self.classes.values()),
            "layer": self.layer,
            "border_energy_frac": float(np.mean(rings)) if rings else None,
            "border_area_frac": self.area_frac,
            "classes": [
                {
                    "species": species,
                    "label": label,
                    "num": entry.num,
                    "border_energy_frac": float(np.mean(entry.ring)) if entry.ring else None,
                }
                for (species, label), entry in sorted(self.classes.items())
            ],
        }


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


def example_tiles(
    network: Network, catalog: Catalog, places: np.ndarray, head: int, classes: np.ndarray,
    captions: Sequence[list[str]],
) -> dict[int, Tile]:  # fmt: skip
    """Put each photo beside the maps for its classes (M, C), -1 for none: {row: tile}.

    Photos that cannot be read have no tile.
    """
    tiles: dict[int, Tile] = {}
    for column in classes.T:
        asked = np.flatnonzero(column >= 0)
        for rows, pixels, maps in maps_of(network, catalog, places[asked], head, column[asked]):
            for row, photo, cam in zip(asked[rows].tolist(), pixels, maps, strict=True):
                tile = tiles.setdefault(row, Tile([photo], list(captions[row])))
                tile.pictures.append(overlay(photo, cam))
    return tiles


def explain(
    found: HeadMaps, work: Work, network: Network, head: str, number: int, names: Sequence[str],
    species: str | None, *, photos_per_class: int, seed: int,
) -> None:  # fmt: skip
    """Gather the mean maps of head `number` over right answers of the sample, and the tiles of its
    pictures; `species` of a specialist, None for stage 1.
    """
    right = work.of_species(species, work.sample)
    right = right[work.correct(head, right) == 1]
    every = np.array(work.true_labels(head, right))
    right = right[sample_per_class(every, photos_per_class, seed)]
    if len(right):
        labels = work.true_labels(head, right)
        keys = [(species or label, label) for label in labels]
        places, classes = work.places(right), class_numbers(labels, names)
        found.add_class_maps(network, work.catalog, places, number, classes, keys)
    for kind in _KINDS:
        shown = work.of_species(species, work.examples[head, kind])
        columns = [class_numbers(work.answered_labels(head, shown), names)]
        if kind == "mistakes":
            columns.append(class_numbers(work.true_labels(head, shown), names))
        captions = [_caption(work, row, head) for row in shown.tolist()]
        classes, places = np.stack(columns, axis=1), work.places(shown)
        tiles = example_tiles(network, work.catalog, places, number, classes, captions)
        found.tiles[kind] |= {int(shown[k]): tile for k, tile in tiles.items()}


def _caption(work: Work, row: int, head: str) -> list[str]:
    """Return what was answered, how surely, and what is true."""
    places = np.array([row])
    probability = work.evaluation.rows[f"{head}_prob"].iloc[row]
    lines = [f"{work.answered_labels(head, places)[0]} {probability * 100:.0f} %"]
    if work.correct(head, places)[0] == 0:
        nll = work.evaluation.details[head]["nll"][row]
        chance = "" if np.isnan(nll) else f" {np.exp(-nll) * 100:.0f} %"
        lines.append(f"truth: {work.true_labels(head, places)[0]}{chance}")
    return [*lines, work.names[int(work.places(places)[0])]]


def draw_maps(work: Work, maps: dict[str, HeadMaps], out: Path) -> dict[str, Any]:
    """Draw the pictures of every head; return their names and the border's share of the maps."""
    result = {}
    for head, found in maps.items():
        entry = {**found.summary(), "files": [], "photo_files": []}
        if found.classes:
            entry["files"].append(f"gradcam_{head}.png")
            _draw_class_maps(out / f"gradcam_{head}.png", head, found)
        for kind, meaning in _KINDS.items():
            tiles = found.tiles[kind]
            ordered = [tiles[row] for row in work.examples[head, kind].tolist() if row in tiles]
            if ordered:
                name = f"photos/gradcam_{head}_{kind}.png"
                draw_sheet(out / name, f"{head}, test part: {meaning}", ordered)
                entry["photo_files"].append(name)
        if entry["files"] or entry["photo_files"]:
            result[head] = entry
    return result


def _draw_class_maps(path: Path, head: str, found: HeadMaps) -> None:
    """Draw the mean map of each class as a grid without any photo, those of most photos first."""
    keys = sorted(found.classes, key=lambda key: (-found.classes[key].num, key))
    tiles = []
    for species, label in keys[:MAX_CLASSES_DRAWN]:
        entry = found.classes[species, label]
        share = f", border {np.mean(entry.ring) * 100:.0f} %" if entry.ring else ""
        name = [label] if head == "species" else [label, species]
        tiles.append(Tile([heat(entry.total / entry.num)], [*name, f"{entry.num} photos{share}"]))
    title = (
        f"{head}: mean Grad-CAM of right answers in the test part, {len(tiles)} of {len(keys)} "
        f"classes; blue 0, red 1; {found.layer}; border: the outer {RING_FRAC * 100:.0f} %"
    )
    draw_sheet(path, title, tiles)


def draw_sheet(path: Path, title: str, tiles: Sequence[Tile]) -> None:
    """Draw tiles in rows under a title into a PNG; long lines end with their tile."""
    width = max(len(tile.pictures) for tile in tiles) * (PICTURE_PX + _GAP)
    height = PICTURE_PX + max(len(tile.lines) for tile in tiles) * _LINE + 2 * _GAP
    columns = max(1, _SHEET_PX // width)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (max(columns * width, width), rows * height + 2 * _LINE), "white")
    font = ImageFont.load_default(_FONT_PX)
    ImageDraw.Draw(sheet).text((_GAP, _GAP), title, "black", font)
    for number, tile in enumerate(tiles):
        block = Image.new("RGB", (width - _GAP, height), "white")
        for place, picture in enumerate(tile.pictures):
            small = Image.fromarray(picture).resize((PICTURE_PX, PICTURE_PX))
            block.paste(small, (place * (PICTURE_PX + _GAP), 0))
        for line_number, line in enumerate(tile.lines):
            shown = "".join(sign if sign.isprintable() else "?" for sign in line)
            y = PICTURE_PX + _GAP + line_number * _LINE
            ImageDraw.Draw(block).text((0, y), shown, "black", font)
        row, column = divmod(number, columns)
        sheet.paste(block, (_GAP + column * width, 2 * _LINE + row * height))
    with files.atomic_write(path) as handle:
        sheet.save(handle, format="PNG", optimize=True)
