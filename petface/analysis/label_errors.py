"""Find labels that are likely wrong, from predictions of records that no prediction learnt from.

The labels of R records are (R,) class numbers, -1 unknown; probabilities are (R, K), NaN where a
record could not be judged. The criterion is confident learning's (Northcutt et al. 2021, arXiv
1911.00068): records are ranked by self-confidence, the probability of the given label, and counted
as errors by thresholds per class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from petface.data.dataset import Dataset
from petface.data.images import normalise, to_float
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.data.sample import shuffled_by_class
from petface.data.splits import SPLITS
from petface.errors import UserError
from petface.evaluation.details import Evaluation, class_numbers
from petface.models.architecture import forward_with_maps
from petface.models.network import Network
from petface.taxonomy import UNKNOWN

Floats = npt.NDArray[np.float64]
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


# (head, labels to believe (R,)) -> (R, K) probabilities
Predict = Callable[[Head, np.ndarray], Floats]


def heads_of(dataset: Dataset, species: str, features: Sequence[str]) -> list[Head]:
    """Return the wanted attributes of a species that have two known classes."""
    dataset.image_labels(species)  # refuses an unknown species
    table = dataset.annotations.get(species)
    if table is None:
        return []
    number = dataset.catalog.classes.index(species)
    ends = np.searchsorted(dataset.catalog.record_class, [number, number + 1]).tolist()
    records = slice(*ends)
    labels = table.align(dataset.catalog.record_names[records])
    return [
        Head(species, feature, table.vocabularies[feature], own.astype(np.int64), records)
        for feature in features
        if (own := labels.get(feature)) is not None and len(table.vocabularies[feature]) > 1
    ]


def pooled_maps(network: Network, body: Any, pixels: Tensor, grid: int) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, D) float32 on the CPU: the maps of layer1 to layer3, each averaged
    over grid x grid cells, because it matters where in a face something is.

    `body` is a classifier or a body, on the network's device.
    """
    rule = network.preprocessing
    x = to_float(pixels.permute(0, 3, 1, 2).to(network.device))
    x = normalise(x, rule.mean, rule.std)
    with torch.inference_mode(), network.precision.autocast(network.device):
        _, maps = forward_with_maps(body, x)
    pooled = [adaptive_avg_pool2d(m.float(), grid).flatten(1) for m in maps[:NUM_STAGES]]
    return torch.cat(pooled, dim=1).cpu()


def features_of_photos(
    network: Network, body: Any, dataset: Dataset, places: np.ndarray, *, grid: int,
    batch_size: int, num_workers: int, title: str = "features",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return `pooled_maps` of the readable images at `places` (n,) of the catalog.

    (m, D) float32, and which of the n were readable, (n,) bool.
    """
    body.eval()
    source, slices = (
        FileImages(dataset.catalog, network.preprocessing),
        even_slices(places, batch_size),
    )
    num_features = grid * grid * sum(body.architecture.map_channels[:NUM_STAGES])
    rows, readable = [np.empty((0, num_features), np.float32)], [np.empty(0, bool)]
    with tqdm(total=len(places), desc=title, unit="img", leave=False, mininterval=0.5) as bar:
        for item in read_ahead(source, slices, num_workers):
            readable.append(item.status == OK)
            if len(item.arrays[0]):
                rows.append(pooled_maps(network, body, item.arrays[0], grid).numpy())
            bar.update(len(item.status))
    return np.concatenate(rows), np.concatenate(readable)


def record_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Deal records out to folds, each class as evenly as it allows: (R,) labels -> (R,) folds."""
    order, _ = shuffled_by_class(labels, seed)
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % num_folds
    return folds


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
    record without a photo is NaN.
    """
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    of_record = np.full(len(labels), -1, np.int64)
    known = np.flatnonzero(labels != UNKNOWN)
    of_record[known] = record_folds(labels[known], num_folds, seed)
    fold, truth = of_record[photo_record], labels[photo_record]
    probabilities = np.full((len(features), num_classes), np.nan)
    for number in range(num_folds):
        held_out, learnt = fold == number, (fold >= 0) & (fold != number)
        if not held_out.any():
            continue
        classes = np.unique(truth[learnt])
        probabilities[held_out] = 0.0
        if len(classes) == 1:
            probabilities[np.ix_(held_out, classes)] = 1.0
        elif len(classes):
            model = LogisticRegression(C=inverse_strength, max_iter=_MAX_ITERATIONS)
            model.fit(scaled[learnt], truth[learnt])
            probabilities[np.ix_(held_out, classes)] = model.predict_proba(scaled[held_out])
    return fuse_photos(probabilities, photo_record, len(labels))


def evaluated_probabilities(evaluation: Evaluation, dataset: Dataset) -> Predict:
    """Return what predicts by a finished evaluation, whatever the labels: by its specialists.

    Records of the training part are NaN: a specialist has learnt their labels, wrong ones too. An
    evaluation keeps five probabilities; what they leave is shared by the other classes.
    """
    if evaluation.models["dataset"] != dataset.fingerprint():
        raise UserError(f"{evaluation.folder} was made of other images, labels or splits")
    rows = evaluation.rows

    def predict(head: Head, _labels: np.ndarray) -> Floats:
        details = evaluation.details[head.feature]
        is_asked = (rows["species"] == head.species) & (rows["split"] != "train")
        chosen = np.flatnonzero(is_asked & (details["top"][:, 0] >= 0))
        names = dataset.catalog.record_names[head.records]
        record = np.searchsorted(names, rows["record"].iloc[chosen].astype(str).to_numpy())
        of_class = class_numbers(evaluation.class_names(head.feature, head.species), head.names)
        top, p = details["top"][chosen], details["top_prob"][chosen].astype(float)
        p[top < 0] = 0.0
        rest = np.maximum(1 - p.sum(axis=1), 0) / max(len(head.names) - top.shape[1], 1)
        probabilities = np.repeat(rest[:, None], len(head.names), axis=1)
        for column in range(top.shape[1]):
            classes = np.where(top[:, column] >= 0, np.append(of_class, -1)[top[:, column]], -1)
            known = np.flatnonzero(classes >= 0)
            probabilities[known, classes[known]] = p[known, column]
        return fuse_photos(probabilities, record, len(names))

    return predict


def fuse_photos(probabilities: Floats, photo_record: np.ndarray, num_records: int) -> Floats:
    """Fuse the photos' probabilities (M, K) by their mean logarithm: (R, K), rows sum to 1.

    NaN for a record without a predicted photo.
    """
    usable = np.isfinite(probabilities).all(axis=1)
    log_p = pd.DataFrame(np.log(np.maximum(probabilities[usable], _LEAST_P)))
    mean = log_p.groupby(photo_record[usable]).mean().reindex(range(num_records)).to_numpy()
    fused = np.exp(mean - mean.max(axis=1, keepdims=True))
    return fused / fused.sum(axis=1, keepdims=True)


def class_thresholds(probabilities: Floats, labels: np.ndarray) -> Floats:
    """Return each class's mean self-confidence, (K,); infinite for a class without a record.

    Source: Northcutt et al. 2021, equation 2.
    """
    num_classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    num = np.bincount(labels, minlength=num_classes)
    total = np.bincount(labels, own, num_classes)
    return np.divide(total, num, out=np.full(num_classes, np.inf), where=num > 0)


def confident_classes(probabilities: Floats, labels: np.ndarray) -> np.ndarray:
    """Return the class that each record is counted under, (R,), -1 under none.

    The most probable of the classes whose threshold its probability reaches: where it differs from
    the given label, the label is estimated to be wrong. Source: Northcutt et al. 2021, equation 1.
    """
    reached = probabilities >= class_thresholds(probabilities, labels)
    best = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), best, -1)


def judged_records(labels: np.ndarray, num_classes: int, least: int) -> npt.NDArray[np.bool_]:
    """Mark the records of known classes with at least `least` records: (R,) bool.

    Of a rarer class too little is left to learn from when one of its records is held out.
    """
    counts = np.bincount(labels[labels != UNKNOWN], minlength=num_classes)
    return np.where(labels == UNKNOWN, 0, counts[labels]) >= least


def rank_suspects(probabilities: Floats, labels: np.ndarray, judged: np.ndarray) -> pd.DataFrame:
    """Rank the `judged` (R,) bool records with a prediction, the least self-confident label first.

    Columns: `record`, the place among the R; `suggested`, the most probable other class; `p_given`,
    the self-confidence; `p_suggested`; `margin`, their difference, negative where the other class
    is more probable; `is_confident`, off the diagonal of the confident joint. Ties go by the
    margin, then by the record. At least two classes are needed.
    """
    record = np.flatnonzero(judged & np.isfinite(probabilities).all(axis=1))
    p, given = probabilities[record], labels[record]
    rows = np.arange(len(record))
    others = p.copy()
    others[rows, given] = -1.0
    suggested, found = others.argmax(axis=1), confident_classes(p, given)
    table = pd.DataFrame(
        {
            "record": record,
            "suggested": suggested,
            "p_given": p[rows, given],
            "p_suggested": p[rows, suggested],
            "margin": p[rows, given] - p[rows, suggested],
            "is_confident": (found >= 0) & (found != given),
        }
    )
    return table.sort_values(["p_given", "margin", "record"], ignore_index=True)


def suspect_rows(dataset: Dataset, head: Head, suspects: pd.DataFrame) -> pd.DataFrame:
    """Return the records of a head whose suggestion is more probable than their label."""
    catalog, own = dataset.catalog, suspects[suspects["margin"] < 0]
    places = own["record"].to_numpy() + head.records.start
    first = np.searchsorted(catalog.record_index, places)  # the photos of a record are consecutive
    paths = (catalog.relative_path(place) for place in first.tolist())
    names = np.array(head.names, object)
    return pd.DataFrame(
        {
            "species": head.species,
            "record": catalog.record_names[places],
            "split": np.array(SPLITS)[dataset.record_split[places]],
            "feature": head.feature,
            "label": names[head.labels[own["record"]]],
            "suggested": names[own["suggested"]],
            "p_label": own["p_given"],
            "p_suggested": own["p_suggested"],
            "margin": own["margin"],
            "confident": own["is_confident"].astype(int),
            "num_photos": np.searchsorted(catalog.record_index, places + 1) - first,
            "image": [path.decode("utf-8", "backslashreplace") for path in paths],
        }
    )


def summarise_suspects(head: Head, suspects: pd.DataFrame) -> dict[str, Any]:
    """Count the suspects of a head, and tell whether its judge knows more than the class counts."""
    counts, num = np.bincount(head.labels[suspects["record"]], minlength=1), len(suspects)
    is_suspect = suspects["margin"] < 0
    agreement = float((~is_suspect).mean()) if num else None
    majority = float(counts.max() / num) if num else None
    return {
        "species": head.species,
        "feature": head.feature,
        "num_known": int((head.labels != UNKNOWN).sum()),
        "num_judged": num,
        "agreement": agreement,  # the most probable class is the given label
        "majority_share": majority,
        "can_judge": agreement is not None and majority is not None and agreement > majority,
        "num_suspects": int(is_suspect.sum()),
        "num_confident": int((suspects["is_confident"] & is_suspect).sum()),
    }
