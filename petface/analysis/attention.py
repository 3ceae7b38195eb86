"""Where networks look: Grad-CAM of chosen photos and the mean map of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from petface.analysis.sheets import Tile, draw_sheet
from petface.data.catalog import Catalog
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.inference.gradcam import (
    Map,
    finest_useful_layer,
    gradcam,
    gradcams,
    heat,
    overlay,
    ring_energy,
)
from petface.models.network import Network

RING_FRAC: Final = 0.1  # of the side: what counts as the border of a map
MAX_CLASSES_DRAWN: Final = 60
_BATCH = 32


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


def choose_per_class(labels: Sequence[Any], most: int, seed: int) -> np.ndarray:
    """Draw up to `most` rows of each label: places, ascending."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, numbers = np.unique(np.asarray(labels)[order], return_inverse=True)
    by_label = np.argsort(numbers, kind="stable")
    ordered = numbers[by_label]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    return np.sort(order[by_label[rank < most]])


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


def add_class_maps(
    found: HeadMaps,
    network: Network,
    catalog: Catalog,
    places: np.ndarray,
    head: int,
    classes: np.ndarray,
    names: Sequence[tuple[str, str]],
) -> None:
    """Add the maps of photos that were answered right: `classes` (M,) numbers, `names` (M) keys."""
    found.layers.add(finest_useful_layer(network))
    for rows, _, maps in maps_of(network, catalog, places, head, classes):
        shares, found.area_frac = ring_energy(maps, RING_FRAC)
        for row, cam, share in zip(rows.tolist(), maps, shares.tolist(), strict=True):
            entry = found.classes.setdefault(names[row], ClassMaps(np.zeros_like(cam)))
            entry.total += cam
            entry.num += 1
            if np.isfinite(share):
                entry.ring.append(share)


def example_tiles(
    network: Network,
    catalog: Catalog,
    places: np.ndarray,
    head: int,
    classes: np.ndarray,
    captions: Sequence[list[str]],
) -> dict[int, Tile]:
    """Lay each photo beside the maps for its classes (M, C), -1 for none: {row: tile}.

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


def photo_tile(
    network: Network, pixels: np.ndarray, head: int, class_index: int, lines: list[str]
) -> Tile:
    """Lay one photo, (S, S, 3) uint8 of the network's size, beside the map for a class."""
    layer, _ = finest_useful_layer(network)
    return Tile(
        [pixels, overlay(pixels, gradcam(network, pixels, head, class_index, layer))], lines
    )


def draw_class_maps(path: Path, head: str, found: HeadMaps) -> None:
    """Draw the mean map of each class as a grid without any photo; the classes with most photos
    first.
    """
    keys = sorted(found.classes, key=lambda key: (-found.classes[key].num, key))
    drawn = keys[:MAX_CLASSES_DRAWN]
    tiles = []
    for species, label in drawn:
        entry = found.classes[species, label]
        name = [label] if head == "species" else [label, species]
        share = f", border {np.mean(entry.ring) * 100:.0f} %" if entry.ring else ""
        num = f"{entry.num} photo{'s' if entry.num > 1 else ''}"
        tiles.append(Tile([heat(entry.total / entry.num)], [*name, num + share]))
    area = "" if found.area_frac is None else f", {found.area_frac * 100:.0f} % of the area"
    title = [
        f"{head}: mean Grad-CAM of right answers in the test part"
        + (f", {len(drawn)} of {len(keys)} classes" if len(drawn) < len(keys) else ""),
        f"blue 0, red 1; {describe_layers(found)}; border: the outer {RING_FRAC * 100:.0f} %{area}",
    ]
    draw_sheet(path, title, tiles)


def describe_layers(found: HeadMaps) -> str:
    """Say which maps were looked at, and how coarse they are."""
    return ", ".join(f"{layer} ({n}x{n} cells)" for layer, n in sorted(found.layers))


def summarise_maps(found: HeadMaps) -> dict[str, Any]:
    """Give border shares for JSON: the mean over photos, and per class."""
    rings = [share for entry in found.classes.values() for share in entry.ring]
    return {
        "num": sum(entry.num for entry in found.classes.values()),
        "layer": describe_layers(found),
        "border_energy_frac": float(np.mean(rings)) if rings else None,
        "border_area_frac": found.area_frac,
        "classes": [
            {
                "species": species,
                "label": label,
                "num": entry.num,
                "border_energy_frac": float(np.mean(entry.ring)) if entry.ring else None,
            }
            for (species, label), entry in sorted(found.classes.items())
        ],
    }
