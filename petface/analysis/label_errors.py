"""Find labels that are likely wrong, from predictions of records that no prediction learnt from.

The labels of R records are (R,) class numbers, -1 unknown; probabilities are (R, K), NaN where a
record could not be judged. The criterion is confident learning's (Northcutt et al. 2021, arXiv
1911.00068): records are ranked by self-confidence, the probability of the given label, and counted
as errors by thresholds per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import adaptive_avg_pool2d

from petface.calibration import Floats, softmax
from petface.data.dataset import Dataset
from petface.data.images import normalise, to_float
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.data.splits import SPLITS, shuffled_by_class
from petface.files import readable_name
from petface.metrics import accuracy_interval
from petface.models.architecture import forward_with_maps
from petface.models.network import Network
from petface.progress import progress
from petface.taxonomy import UNKNOWN

NUM_STAGES = 3  # of four: the last one knows the species and little else
_LEAST_P = 1e-6  # a photo's veto must not be absolute when a record's photos are fused
_MAX_ITERATIONS = 300


@dataclass(frozen=True, eq=False)
class Head:
    """An attribute of a species: its class names, and the labels of its R records."""

    species: str
    feature: str
    names: Sequence[str]
    labels: np.ndarray  # (R,) int64
    records: slice  # where they stand in the catalog


def heads_of(dataset: Dataset, species: str, features: Sequence[str]) -> list[Head]:
    """Return the wanted attributes of a species that have two known classes."""
    dataset.image_labels(species)  # refuses an unknown species
    table = dataset.annotations.get(species)
    if table is None:
        return []
    number = dataset.catalog.classes.index(species)
    records = slice(*np.searchsorted(dataset.catalog.record_class, [number, number + 1]).tolist())
    labels = table.align(dataset.catalog.record_names[records])
    return [
        Head(species, feature, table.vocabularies[feature], own.astype(np.int64), records)
        for feature in features
        if (own := labels.get(feature)) is not None and len(table.vocabularies[feature]) > 1
    ]


def features_of_photos(
    network: Network, body: Any, dataset: Dataset, places: np.ndarray, *, grid: int,
    batch_size: int, num_workers: int, title: str = "features",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Compute the features of the images at `places` (n,) of the catalog.

    (m, D) float32 of those that are readable, and which of the n are, (n,) bool. They are the maps
    of layer1 to layer3, each averaged over grid x grid cells, because it matters where in a face
    something is. `body` is the classifier, on the network's device.
    """
    body.eval()
    rule, source = network.preprocessing, FileImages(dataset.catalog, network.preprocessing)
    num_features = grid * grid * sum(body.architecture.map_channels[:NUM_STAGES])
    rows, readable = [np.empty((0, num_features), np.float32)], [np.empty(0, bool)]
    with progress(total=len(places), desc=title, leave=False) as bar:
        for item in read_ahead(source, even_slices(places, batch_size), num_workers):
            readable.append(item.status == OK)
            bar.update(len(item.status))
            if not len(item.arrays[0]):
                continue
            x = to_float(item.arrays[0].permute(0, 3, 1, 2).to(network.device))
            with torch.inference_mode(), network.precision.autocast(network.device):
                _, maps = forward_with_maps(body, normalise(x, rule.mean, rule.std))
            pooled = [adaptive_avg_pool2d(m.float(), grid).flatten(1) for m in maps[:NUM_STAGES]]
            rows.append(torch.cat(pooled, dim=1).cpu().numpy())
    return np.concatenate(rows), np.concatenate(readable)


def predict_out_of_sample(
    features: np.ndarray,
    photo_record: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    num_folds: int,
    inverse_strength: float,
    seed: int,
) -> Floats:
    """Predict each record by a logistic regression that saw none of its photos: (R, K).

    `features` (M, D) of the photos of record `photo_record` (M,); the regression's C is
    `inverse_strength`, for features scaled to unit variance. Only records with a label count; a
    record without a photo is NaN. Folds hold each class as evenly as it allows.
    """
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    of_record = np.full(len(labels), -1, np.int64)
    known = np.flatnonzero(labels != UNKNOWN)
    order, _ = shuffled_by_class(labels[known], seed)
    of_record[known[order]] = np.arange(len(known)) % num_folds
    fold, truth = of_record[photo_record], labels[photo_record]
    probabilities = np.full((len(features), num_classes), np.nan)
    for number in range(num_folds):
        held_out, learnt = fold == number, (fold >= 0) & (fold != number)
        if not held_out.any():
            continue
        classes, found = np.unique(truth[learnt]), np.ones(1)  # of one class alone
        if len(classes) > 1:
            model = LogisticRegression(C=inverse_strength, max_iter=_MAX_ITERATIONS)
            model.fit(scaled[learnt], truth[learnt])
            found = model.predict_proba(scaled[held_out])
        probabilities[held_out] = 0.0
        probabilities[np.ix_(held_out, classes)] = found
    return fuse_photos(probabilities, photo_record, len(labels))


def frozen_baseline(
    features: np.ndarray, photo_record: np.ndarray, labels: np.ndarray, split: np.ndarray,
    inverse_strength: float,
) -> dict[str, Any]:  # fmt: skip
    """Measure what frozen features alone tell of the test split's photos: a network must beat it.

    By a logistic regression learnt from the train split. Features (M, D) of the photos of record
    `photo_record` (M,), labels (R,), `split` (R,) places in `SPLITS`. Empty where a split has no
    label, or the train split a single one.
    """
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    truth, part = labels[photo_record], split[photo_record]
    train, test = ((truth != UNKNOWN) & (part == SPLITS.index(name)) for name in ("train", "test"))
    if not test.any() or len(np.unique(truth[train])) < 2:
        return {}
    model = LogisticRegression(C=inverse_strength, max_iter=_MAX_ITERATIONS)
    right = model.fit(scaled[train], truth[train]).predict(scaled[test]) == truth[test]
    bounds = accuracy_interval(right, photo_record[test])
    figure = {"accuracy": float(right.mean()), "interval_95": bounds}
    return {"num": len(right), "logistic_regression": figure}


def fuse_photos(probabilities: Floats, photo_record: np.ndarray, num_records: int) -> Floats:
    """Fuse the photos' probabilities (M, K) by their mean logarithm: (R, K), rows sum to 1.

    NaN for a record without a predicted photo.
    """
    usable = np.isfinite(probabilities).all(axis=1)
    log_p = pd.DataFrame(np.log(np.maximum(probabilities[usable], _LEAST_P)))
    mean = log_p.groupby(photo_record[usable]).mean().reindex(range(num_records))
    return softmax(mean.to_numpy())


def rank_suspects(probabilities: Floats, labels: np.ndarray, min_records: int) -> pd.DataFrame:
    """Rank the records with a prediction, the least self-confident label first.

    Records of classes with fewer than `min_records` are not judged: too little is left to learn
    from when one of them is held out. Columns: `record`, the place among the R; `given`;
    `suggested`, the most probable other class; `p_label`, the self-confidence; `p_suggested`;
    `margin`, their difference, negative where the other class is more probable; `confident`. Ties
    go by the margin, then by the record. At least two classes are needed.

    A label is confidently wrong where the most probable of the classes that reach their threshold,
    the mean self-confidence of their records, is another one. Source: Northcutt et al. 2021,
    equations 1 and 2.
    """
    num_classes = probabilities.shape[1]
    counts = np.bincount(labels[labels != UNKNOWN], minlength=num_classes)
    is_judged = (labels != UNKNOWN) & (counts[labels] >= min_records)
    record = np.flatnonzero(is_judged & np.isfinite(probabilities).all(axis=1))
    p, given, rows = probabilities[record], labels[record], np.arange(len(record))
    own = p[rows, given]
    threshold = pd.Series(own).groupby(given).mean().reindex(range(num_classes), fill_value=np.inf)
    reached = np.where(p >= threshold.to_numpy(), p, -1.0)
    others = p.copy()
    others[rows, given] = -1.0
    suggested = others.argmax(axis=1)
    table = pd.DataFrame(
        {
            "record": record,
            "given": given,
            "suggested": suggested,
            "p_label": own,
            "p_suggested": p[rows, suggested],
            "margin": own - p[rows, suggested],
            "confident": (reached.max(axis=1) >= 0) & (reached.argmax(axis=1) != given),
        }
    )
    return table.sort_values(["p_label", "margin", "record"], ignore_index=True)


def suspect_rows(dataset: Dataset, head: Head, suspects: pd.DataFrame) -> pd.DataFrame:
    """Return the records of a head whose suggestion is more probable than their label."""
    catalog, own = dataset.catalog, suspects[suspects["margin"] < 0]
    places = own["record"].to_numpy() + head.records.start
    first = np.searchsorted(catalog.record_index, places)  # the photos of a record are consecutive
    names = np.array(head.names, object)
    return pd.DataFrame(
        {
            "species": head.species,
            "record": catalog.record_names[places],
            "split": np.array(SPLITS)[dataset.record_split[places]],
            "feature": head.feature,
            "label": names[own["given"]],
            "suggested": names[own["suggested"]],
            **{name: own[name] for name in ("p_label", "p_suggested", "margin")},
            "confident": own["confident"].astype(int),
            "num_photos": np.searchsorted(catalog.record_index, places + 1) - first,
            "image": [readable_name(catalog.relative_path(place)) for place in first.tolist()],
        }
    )


def summarise_suspects(head: Head, suspects: pd.DataFrame) -> dict[str, Any]:
    """Count the suspects of a head, and tell whether its judge knows more than the class counts."""
    num, is_suspect = len(suspects), suspects["margin"] < 0
    agreement = float((~is_suspect).mean()) if num else None
    majority = float(suspects["given"].value_counts().max() / num) if num else None
    return {
        "species": head.species,
        "feature": head.feature,
        "num_known": int((head.labels != UNKNOWN).sum()),
        "num_judged": num,
        "agreement": agreement,  # the most probable class is the given label
        "majority_share": majority,
        "can_judge": agreement is not None and majority is not None and agreement > majority,
        "num_suspects": int(is_suspect.sum()),
        "num_confident": int((suspects["confident"] & is_suspect).sum()),
    }
