"""The metrics of one head: over photos, over animals, its mistakes, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from petface import metrics
from petface.calibration import expected_calibration_error, null_calibration_error
from petface.evaluation.details import TOP, HeadAnswers, Whole, share
from petface.sureness import Truths
from petface.taxonomy import UNKNOWN

NUM_PHOTOS = {"1": 1, "2": 2, "3": 3, "4-5": 5, "6-9": 9, "10+": math.inf}  # of an animal, at most
_OF_SEVERAL_CLASSES = (
    *("balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "kappa"),
    "majority_baseline",
)
CONFUSIONS = "confusion"  # the folder of the matrices, of these splits
WRITTEN = ("test", "all")
NUM_LISTED = 20
MIN_PHOTOS = 5  # of a class that can be called hard
_VOTES = 2.0**40  # probabilities are summed as whole numbers: no sum depends on the order of rows


def figures(answers: HeadAnswers, *, intervals: bool) -> dict[str, Any]:
    """Count the metrics of one head over some photos; None where nothing is defined.

    Of the photos that it predicted: `num`, `correct`, `accuracy`; `top3`, `top5`, None where no
    network has more classes than that, and how many photos they count; macro averages over the
    classes that occur; kappa, where chance knows the species of an attribute as the specialist
    does; `rescued_by_top5`, the share of the errors with the truth among the five best; losses and
    calibration at the fitted temperature and (`raw_*`) at 1; `num_not_a_class`, labels that the
    network cannot answer, which count as wrong; `known_classes` is the count without them.

    Of heads other than the species also over all photos with a label: `end_to_end`, where a wrong
    species counts as wrong, and which share of all was lost in which stage, so that
    accuracy + lost_in_stage1 + lost_in_stage2 = 1.

    `majority_baseline` is the score of always giving the commonest training label of the species.
    `interval_95` (`<figure>_interval_95` of averages over classes) is over animals, None where they
    are too few: see `metrics.cluster_interval`; only with `intervals`.
    """
    own = answers.predicted()
    (top3, num_top3), (top5, num_top5) = _best_share(own, 3), _best_share(own, 5)
    commonest = answers.commonest[answers.group]
    is_class = own.details["rank"] <= own.num_classes[own.group]
    found: dict[str, Any] = {
        **_accuracy(own, own.is_right, intervals=intervals),
        "top3": top3,
        "num_top3": num_top3,
        "top5": top5,
        "num_top5": num_top5,
        "rescued_by_top5": _best_share(own.where(~own.is_right), 5)[0],
        "num_not_a_class": int((~is_class).sum()),
        "known_classes": {} if is_class.all() else count(own.is_right[is_class]),
        "num_classes": int(own.num_classes[np.unique(own.group)].sum()),
        **_class_averages(own, intervals=intervals),
        "majority_baseline": share((answers.true == commonest) & (commonest != UNKNOWN)),
        **_losses(own),
    }
    if answers.head != "species":
        found["end_to_end"] = _accuracy(answers, answers.is_right, intervals=intervals)
        found["lost_in_stage1"] = share(~answers.is_species_right)
        found["lost_in_stage2"] = share(answers.is_species_right & ~answers.is_right)
    return found


def figures_by_species(answers: HeadAnswers, *, intervals: bool) -> dict[str, dict[str, Any]]:
    """Count `figures` per true species.

    Of the head "species" one species is one class: its `recall` (the accuracy), and the `precision`
    and `f1` among all these photos; what compares classes is None.
    """
    found = {name: figures(own, intervals=intervals) for name, own in answers.per_species().items()}
    if answers.head == "species":
        scores = metrics.class_scores(*class_counts(answers))
        for name, entry in found.items():
            k = answers.classes.index((name, name))
            entry |= dict.fromkeys(_OF_SEVERAL_CLASSES)
            entry["recall"], entry["precision"] = entry["accuracy"], float(scores.precision[k])
            entry["f1"] = float(scores.f1[k])
    return found


def _best_share(answers: HeadAnswers, k: int) -> tuple[float | None, int]:
    """Return the share of predictions with the truth among the `k` best, and their number.

    Of networks with more than `k` classes alone: among no more, the truth cannot be missed.
    """
    assert k <= TOP, k
    counted = answers.is_predicted & (answers.num_classes[answers.group] > k)
    return share(answers.details["rank"][counted] <= k), int(counted.sum())


def class_counts(own: HeadAnswers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count per class (K,) the photos predicted rightly, those of the class, and those predicted
    so; of predicted photos alone.
    """
    counted = own.true[own.is_right], own.true, own.top[:, 0]
    hits, support, predicted = (np.bincount(k, minlength=len(own.classes)) for k in counted)
    return hits, support, predicted


def _class_averages(own: HeadAnswers, *, intervals: bool) -> dict[str, Any]:
    hits, support, predicted = class_counts(own)
    scores = metrics.class_scores(hits, support, predicted)
    group = np.searchsorted(own.first_class, np.arange(len(hits)), side="right") - 1  # (K,)
    bounds: dict[str, Any] = {}
    if intervals:
        labels = own.true, own.top[:, 0]
        balanced = metrics.balanced_accuracy_interval(own.true, own.is_right, own.record)
        bounds["balanced_accuracy_interval_95"] = balanced
        bounds["macro_f1_interval_95"] = metrics.macro_f1_interval(*labels, own.record)
    return {
        **bounds,
        "balanced_accuracy": share(scores.recall[support > 0]),
        "macro_precision": _known(scores.macro_precision),
        "macro_recall": _known(scores.macro_recall),
        "macro_f1": _known(scores.macro_f1),
        "kappa": _known(metrics.cohen_kappa(hits, support, predicted, group)),
    }


def _losses(own: HeadAnswers) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for prefix in ("", "raw_"):
        for name in (f"{prefix}nll", f"{prefix}brier"):
            values = own.details[name]
            found[name] = share(values[np.isfinite(values)])
        confidence = own.details["raw_prob"] if prefix else own.details["top_prob"][:, 0]
        order = np.argsort(confidence, kind="stable")  # five times as fast for a million photos
        error = expected_calibration_error(confidence[order], own.is_right[order])
        found[f"{prefix}ece"] = _known(error)
        found[f"{prefix}ece_null"] = _known(null_calibration_error(confidence[order]))
    return found


def _accuracy(answers: HeadAnswers, is_right: Truths, *, intervals: bool) -> dict[str, Any]:
    """Count photos into num, correct, accuracy and, where wanted, the interval over animals."""
    found = count(is_right)
    if len(answers):
        found["num_records"] = len(np.unique(answers.record))
        if intervals:
            found["interval_95"] = metrics.accuracy_interval(is_right, answers.record)
    return found


def _known(value: float) -> float | None:
    """Return None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value)


# ---- What is taken for what ----


def matrices(answers: HeadAnswers) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Count a head's answers: per species its name, the class names (K,), and counts (K, K).

    One matrix with the name "" for the head "species". A label that the network has no class for
    has a row, and a column without a count. Species without a photo are left out.
    """
    predicted = answers.predicted()
    groups = {"": predicted} if answers.head == "species" else predicted.per_species()
    for species, own in groups.items():
        if len(own):
            first = int(own.first_class[own.group[0]])
            names = [label for name, label in own.classes if species in ("", name)]
            counts = metrics.confusion_matrix(own.true - first, own.top[:, 0] - first, len(names))
            yield species, names, counts


def top_confusions(answers: HeadAnswers) -> list[dict[str, Any]]:
    """List the most frequent mistakes of a head, most frequent first, ties in class order."""
    found = [
        {"species": species or mistake["true"], **mistake}
        for species, names, counts in matrices(answers)
        for mistake in metrics.top_confusions(counts, names, NUM_LISTED)
    ]
    return sorted(found, key=lambda entry: -entry["num"])[:NUM_LISTED]


def hardest_classes(answers: HeadAnswers) -> list[dict[str, Any]]:
    """List the classes of `MIN_PHOTOS` or more with the lowest recall, then the lowest F1."""
    counts = class_counts(answers.predicted())
    scores = metrics.class_scores(*counts)
    tested = np.flatnonzero(counts[1] >= MIN_PHOTOS)
    pairs = np.unique(np.stack([answers.true, answers.record])[:, answers.is_predicted], axis=1)
    animals = np.bincount(pairs[0], minlength=len(answers.classes))
    order = np.lexsort((scores.f1[tested], scores.recall[tested]))
    return [
        {
            "species": answers.classes[k][0],
            "label": answers.classes[k][1],
            "num": int(counts[1][k]),
            "num_records": int(animals[k]),
            "recall": float(scores.recall[k]),
            "f1": float(scores.f1[k]),
        }
        for k in tested[order][:NUM_LISTED].tolist()
    ]


def write_confusions(heads: Mapping[str, HeadAnswers], folder: Path) -> None:
    """Write `<split>_<head>[_<species>].csv` for the test split and all images.

    Files of an earlier evaluation that are not written again are removed.
    """
    kept = set()
    for split in WRITTEN:
        for head, answers in heads.items():
            for species, names, counts in matrices(answers.of_split(split)):
                path = folder / f"{'_'.join(filter(None, (split, head, species)))}.csv"
                metrics.write_confusion(path, counts, names)
                kept.add(path.name)
    for path in [path for split in WRITTEN for path in folder.glob(f"{split}_*.csv")]:
        if path.name not in kept:
            path.unlink()


# ---- Several photos of one animal answered as one ----


@dataclass(frozen=True, eq=False)
class Fused:
    """R animals, arrays (R,)."""

    record: Whole  # the number of each
    num_photos: Whole
    share_right: np.ndarray  # float64, of its photos
    is_right: Truths  # all its photos together


def fuse(answers: HeadAnswers) -> Fused:
    """Let the predicted photos of each animal answer together.

    Each photo gives its five best classes their probabilities; the class with the largest sum is
    the answer, of equal ones the first. Labels that differ within an animal make it two.
    """
    own = answers.predicted()
    num_classes = max(len(own.classes), 1)
    labelled = own.record * num_classes + own.true
    first, animal = np.unique(labelled, return_index=True, return_inverse=True)[1:]
    num_photos = np.bincount(animal, minlength=len(first))
    num_right = np.bincount(animal[own.is_right], minlength=len(first))
    top, probability = own.top.ravel(), own.details["top_prob"].ravel()
    given = top >= 0
    key = (np.repeat(animal, own.top.shape[1]) * num_classes + top)[given]
    voted, place = np.unique(key, return_inverse=True)  # by animal, then by class
    sums = np.zeros(len(voted), np.int64)
    np.add.at(sums, place, np.rint(probability[given] * _VOTES).astype(np.int64))
    by_animal, candidate = np.divmod(voted, num_classes)
    best = np.lexsort((candidate, -sums, by_animal))
    winner = candidate[best[np.unique(by_animal[best], return_index=True)[1]]]
    share_right = num_right / np.maximum(num_photos, 1)
    return Fused(own.record[first], num_photos, share_right, winner == own.true[first])


def describe_fusion(fused: Fused) -> dict[str, Any]:
    """Compare photos answered one by one with all of an animal's photos fused.

    `accuracy_per_photo` is over photos. `accuracy_one_photo` is over animals, as the fused one is:
    what one photo drawn from each gives. Their difference is what fusing gains. `interval_95` is
    that of the fused accuracy, `gain_interval_95` that of the gain, in -1..1.
    """
    groups, low = [], 0.0
    for name, high in NUM_PHOTOS.items():
        inside = (fused.num_photos > low) & (fused.num_photos <= high)
        if inside.any():
            groups.append({"photos": name, **_compare(fused, inside)})
        low = high
    every = _compare(fused, np.ones(len(fused.num_photos), bool))
    bounds = {
        "interval_95": metrics.accuracy_interval(fused.is_right, fused.record),
        "gain": share(fused.is_right - fused.share_right),
        "gain_interval_95": metrics.gain_interval(fused.is_right - fused.share_right, fused.record),
    }
    return {"num_records": every.pop("records"), **every, **bounds, "by_num_photos": groups}


def count(is_right: Truths) -> dict[str, Any]:
    """Count truths into num, correct, accuracy."""
    return {"num": len(is_right), "correct": int(is_right.sum()), "accuracy": share(is_right)}


def _compare(fused: Fused, inside: Truths) -> dict[str, Any]:
    photos = fused.num_photos[inside]
    num_right = float((fused.share_right[inside] * photos).sum())
    return {
        "records": int(inside.sum()),
        "accuracy_per_photo": num_right / photos.sum() if len(photos) else None,
        "accuracy_one_photo": share(fused.share_right[inside]),
        "accuracy_fused": share(fused.is_right[inside]),
    }


# ---- How shares are written ----


def percent(share: Any, digits: int = 1) -> str:
    """Format a share as per cent without the unit, `97.3`; "" where it is no finite number."""
    return f"{share * 100:.{digits}f}" if is_number(share) else ""


def points(change: Any, digits: int = 1) -> str:
    """Format a change of a share in points, `+3.2`, `-0.4` or `0.0`; "" for no finite number."""
    shown = f"{change * 100:+.{digits}f}" if is_number(change) else ""
    return shown if shown.strip("+-0.") else shown[1:]


def interval(limits: Any, form: Callable[[Any], str] = percent) -> str:
    """Format an interval of shares, `95.2 - 99.1`, or with `points` `-4.0 to -2.1`; "" for none."""
    if not isinstance(limits, list | tuple) or len(limits) != 2 or not all(map(form, limits)):
        return ""
    return (" to " if form is points else " - ").join(map(form, limits))


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
