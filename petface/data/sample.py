"""Deterministic stratified samples of labelled rows and of photos."""

from __future__ import annotations

import numpy as np

from petface.data.dataset import Dataset
from petface.data.splits import SPLITS
from petface.taxonomy import PRIMARY_ATTR_PRIORITY


def shuffled_by_class(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle the rows of each class and concatenate the classes.

    Return the order, (N,) rows, and the number of earlier rows of the same class, (N,).
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, begins, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return order, np.arange(len(order)) - np.repeat(begins, counts)


def sample_evenly(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Draw at most `most` rows, as evenly over the classes of `labels` (N,) as possible, sorted.

    Rare classes are used up before a frequent one contributes more rows.
    """
    order, num_before = shuffled_by_class(labels, seed)
    return np.sort(order[np.argsort(num_before, kind="stable")[:most]])


def sample_places(dataset: Dataset, part: str, species: str | None, num: int) -> np.ndarray:
    """Draw at most `num` images of a split, (M,) places in the catalog, sorted; deterministic.

    The strata contribute equally: species, or the labels of the first feature of one species.
    """
    if species is None:
        places = np.arange(len(dataset.catalog))
        stratum = dataset.catalog.class_index
    else:
        places, labels = dataset.image_labels(species)
        first = [labels[feature] for feature in PRIMARY_ATTR_PRIORITY if feature in labels]
        stratum = first[0] if first else np.zeros(len(places))
    inside = dataset.image_split[places] == SPLITS.index(part)
    places, stratum = places[inside], stratum[inside]
    return places[sample_evenly(stratum, num)]
