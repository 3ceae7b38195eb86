"""Small samples of photos, stratified and always the same, to fit or compare something on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from petface.data.dataset import Dataset
from petface.data.images import Preprocessing
from petface.data.loading import even_slices
from petface.data.packing import image_source
from petface.data.splits import SPLITS
from petface.taxonomy import PRIMARY_ATTR_PRIORITY

_AT_ONCE = 32  # photos

Photos = Callable[[str, int], Tensor]  # part of the split, number -> (N, size, size, 3) uint8


def shuffled_by_class(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle the rows of each class, and lay one class after the other.

    Return the order, (N,) rows, and how many rows of its class stand before each of them, (N,).
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, begins, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return order, np.arange(len(order)) - np.repeat(begins, counts)


def sample_evenly(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Draw at most `most` rows, as evenly over the classes of `labels` (N,) as they allow; rising.

    Rare classes are taken whole before a frequent one has more.
    """
    order, num_before = shuffled_by_class(labels, seed)
    return np.sort(order[np.argsort(num_before, kind="stable")[:most]])


def sample_per_class(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Draw at most `most` rows of each class of `labels` (N,); rising."""
    order, num_before = shuffled_by_class(labels, seed)
    return np.sort(order[num_before < most])


def photos_of(dataset: Dataset, pack: str, rule: Preprocessing, species: str | None) -> Photos:
    """Give what decodes a stratified sample of the dataset, or of a species of it.

    Strata are the species, or the labels of the species' first feature; each gives as many photos,
    as far as it has them. The sample of a part and number is always the same.
    """

    def photos(part: str, num: int) -> Tensor:
        places = sample_places(dataset, part, species, num)
        source = image_source(dataset.catalog, pack, rule)
        arrays = [source.read(piece).arrays[0] for piece in even_slices(places, _AT_ONCE)]
        return (
            torch.cat(arrays)
            if arrays
            else torch.empty((0, rule.size_px, rule.size_px, 3), dtype=torch.uint8)
        )

    return photos


def sample_places(dataset: Dataset, part: str, species: str | None, num: int) -> np.ndarray:
    """Draw at most `num` images of a part, (M,) places in the catalog, rising; see `photos_of`."""
    if species is None:
        places = np.arange(len(dataset.catalog))
        stratum = dataset.catalog.class_index
    else:
        places, labels = dataset.image_labels(species)
        first = next((f for f in PRIMARY_ATTR_PRIORITY if f in labels), None)
        stratum = labels[first] if first else np.zeros(len(places))
    inside = dataset.image_split[places] == SPLITS.index(part)
    places, stratum = places[inside], stratum[inside]
    order = np.random.default_rng(0).permutation(len(places))
    order = order[np.argsort(stratum[order], kind="stable")]
    _, begins, counts = np.unique(stratum[order], return_index=True, return_counts=True)
    turn = np.arange(len(order)) - np.repeat(begins, counts)  # of each image in its stratum
    return np.sort(places[order[np.argsort(turn, kind="stable")[:num]]])
