"""Fit the guard of a species classifier at the end of its training, and measure what it is worth.

The strangers are made up, because no photo of one is at hand: what the guard misses of them is
measured, and says nothing about photos of other animals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from petface.data.loading import OK, FileImages, Samples, even_slices, read_ahead
from petface.devices import choose_precision
from petface.models import guard
from petface.models.network import Network

MAX_PHOTOS = 4000  # of each part that are looked at, spread evenly over the species
NUM_STRANGERS = 300  # of each kind, at most
PATCHES = 4  # a side, of a photo whose patches are shuffled


def patches_shuffled(photos: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Cut each of (N, S, S, 3) uint8 into 4 x 4 patches and shuffle them; the rest turns black."""
    side = photos.shape[1] // PATCHES
    shuffled = np.zeros_like(photos)
    for photo, out in zip(photos, shuffled, strict=True):
        order = draw.permutation(PATCHES * PATCHES).tolist()
        for place, source in enumerate(order):
            row, column = divmod(place, PATCHES)
            from_row, from_column = divmod(source, PATCHES)
            out[row * side : (row + 1) * side, column * side : (column + 1) * side] = photo[
                from_row * side : (from_row + 1) * side,
                from_column * side : (from_column + 1) * side,
            ]
    return shuffled


def noise(photos: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Draw pixels independently, of the shape of `photos` (N, S, S, 3) uint8."""
    return draw.integers(0, 256, photos.shape, dtype=np.uint8)


def flat_colour(photos: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Draw one colour for all pixels of a photo, of the shape of `photos` (N, S, S, 3) uint8."""
    colours = draw.integers(0, 256, (len(photos), 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, photos.shape).copy()


KINDS: Final[Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]] = {
    "patches_shuffled": patches_shuffled,
    "noise": noise,
    "flat_colour": flat_colour,
}


def make_guard(
    network: Network,
    source: FileImages,
    parts: Mapping[str, Samples],
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Fit a guard on the train and validation parts and measure it on the test part.

    Gives what the checkpoint stores, None where the validation part is too small, and the figures
    for final.json: shares of test photos called strangers, and of strangers not noticed.
    """
    exact = replace(network, precision=choose_precision("fp32", network.device))  # as single photos
    model: Any = exact.model.eval()
    draw = np.random.default_rng(seed)
    num_features = sum(model.architecture.map_channels)

    def means_of(pixels: Tensor) -> Tensor:
        return exact.logits_and_means(pixels)[1]

    features: dict[str, Tensor] = {}
    labels: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        rows, kept = [torch.empty(0, num_features)], [np.empty(0, np.int64)]
        chosen = evenly(part.labels["species"], MAX_PHOTOS, draw)
        for pixels, species in _photos(source, part, chosen, batch_size, num_workers):
            rows.append(means_of(pixels))
            kept.append(species)
        features[name], labels[name] = torch.cat(rows), np.concatenate(kept)
    fitted = guard.fit_guard(features["train"], torch.from_numpy(labels["train"]), features["val"])
    figures: dict[str, Any] = {"fitted": fitted is not None, "num_val": len(features["val"])}
    if fitted is None:
        return None, {**figures, "why_not": "too few photos in the train or validation part"}
    missed: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    chosen = evenly(parts["test"].labels["species"], NUM_STRANGERS, draw)
    for pixels, _ in _photos(source, parts["test"], chosen, batch_size, num_workers):
        for kind, make in KINDS.items():
            strangers = torch.from_numpy(make(pixels.numpy(), draw))
            missed[kind].append(fitted.knows(means_of(strangers)))
    return fitted.to_dict(), {
        **figures,
        "wanted_false_alarms": guard.FALSE_ALARM_FRAC,
        "num_test": len(features["test"]),
        "test_false_alarms": _share([~fitted.knows(features["test"])]),
        "num_strangers_per_kind": sum(map(len, missed["noise"])),
        "missed_strangers": {kind: _share(found) for kind, found in missed.items()},
    }


def _photos(
    source: FileImages, part: Samples, chosen: np.ndarray, batch_size: int, num_workers: int
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yield readable photos (B, S, S, 3) uint8 of a part with their species (B,)."""
    slices = even_slices(chosen, batch_size)
    decoded = read_ahead(source, [part.images[piece] for piece in slices], num_workers)
    for piece, item in zip(slices, decoded, strict=True):
        if len(item.arrays[0]):
            yield item.arrays[0], part.labels["species"][piece[item.status == OK]]


def evenly(labels: np.ndarray, most: int, draw: np.random.Generator) -> np.ndarray:
    """Choose at most `most` of (N,) labelled photos, as evenly over the classes as they allow.

    Their places, in rising order.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    order = draw.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # classes one after the other, shuffled
    ordered = labels[order]
    turn = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # how many came before
    return np.sort(order[np.argsort(turn, kind="stable")[:most]])


def _share(marked: list[Tensor]) -> float | None:
    return float(torch.cat(marked).double().mean()) if sum(map(len, marked)) else None
