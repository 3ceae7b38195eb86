"""The metrics of one head: over photos, over animals, its mistakes, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd

from petface import metrics
from petface.calibration import (
    OVERCONFIDENT,
    coverage_rows,
    expected_calibration_error,
    null_calibration_error,
    reliability_rows,
)
from petface.evaluation.details import TOP, Evaluation, HeadAnswers, share
from petface.sureness import Truths

CONFUSIONS = "confusion"  # the folder of the matrices
NUM_LISTED = 20
MIN_PHOTOS = 5  # of a class that can be called hard
_VOTES = 2.0**40  # probabilities are summed as whole numbers: no sum depends on the order of rows
WANTED_ACCURACY = 0.9  # where the file does not say: nothing else was ever fitted by default
_TOLERANCE = 1e-6  # as `HeadCalibration.is_sure`


def figures(answers: HeadAnswers, *, intervals: bool) -> dict[str, Any]:
    """Count the metrics of one head over some photos; None where nothing is defined.

    Of the photos that it predicted: `num`, `correct`, `accuracy`; `top3`, `top5`, None where no
    network has more classes than that; macro averages over the classes that occur; kappa, where
    chance knows the species of an attribute as the specialist does; losses and calibration at the
    fitted temperature; `num_not_a_class`, labels that the network cannot answer, which count as
    wrong; `known_classes` is the count without them.

    Of heads other than the species also over all photos with a label: `end_to_end`, where a wrong
    species counts as wrong.

    `majority_baseline` is the score of always giving the commonest training label of the species.
    `interval_95` (`<figure>_interval_95` of averages over classes) is over animals, None where they
    are too few: see `metrics.cluster_interval`; only with `intervals`.
    """
    own = answers.predicted()
    rank = own.details["rank"]
    is_class = rank <= own.num_classes
    found: dict[str, Any] = {
        **accuracy(own, intervals=intervals),
        # among no more classes the truth cannot be missed
        "top3": share(rank[own.num_classes > 3] <= 3),
        "top5": share(rank[own.num_classes > 5] <= 5),
        "num_not_a_class": int((~is_class).sum()),
        "known_classes": {} if is_class.all() else count(own.is_right[is_class]),
        **_class_averages(own, intervals=intervals),
        "majority_baseline": share(answers.is_commonest),
        **_losses(own),
    }
    if answers.head != "species":
        found["end_to_end"] = accuracy(answers, intervals=intervals)
    return {key: None if value != value else value for key, value in found.items()}  # JSON: no NaN


def class_counts(own: HeadAnswers) -> np.ndarray:
    """Count per class (3, K) the photos predicted rightly, those of the class, and those predicted
    so; of predicted photos alone.
    """
    counted = own.true[own.is_right], own.true, own.top[:, 0]
    return np.stack([np.bincount(k, minlength=len(own.classes)) for k in counted])


def _class_averages(own: HeadAnswers, *, intervals: bool) -> dict[str, Any]:
    hits, support, predicted = class_counts(own)
    scores = metrics.class_scores(hits, support, predicted)
    names = ["" if own.head == "species" else name for name, _ in own.classes]
    group = np.unique(names, return_inverse=True)[1]  # (K,)
    found: dict[str, Any] = {
        "balanced_accuracy": share(scores.recall[support > 0]),
        "macro_precision": scores.macro_precision,
        "macro_recall": scores.macro_recall,
        "macro_f1": scores.macro_f1,
        "kappa": metrics.cohen_kappa(hits, support, predicted, group),
    }
    if intervals:
        balanced = metrics.balanced_accuracy_interval(own.true, own.is_right, own.record)
        found["balanced_accuracy_interval_95"] = balanced
        macro_f1 = metrics.macro_f1_interval(own.true, own.top[:, 0], own.record)
        found["macro_f1_interval_95"] = macro_f1
    return found


def _losses(own: HeadAnswers) -> dict[str, float | None]:
    known = own.details[np.isfinite(own.details["nll"])]
    confidence = own.details["top_prob"][:, 0]
    order = np.argsort(confidence, kind="stable")  # five times as fast for a million photos
    return {
        "nll": share(known["nll"]),
        "brier": share(known["brier"]),
        "ece": expected_calibration_error(confidence[order], own.is_right[order]),
        "ece_null": null_calibration_error(confidence[order]),
    }


def accuracy(answers: HeadAnswers, *, intervals: bool) -> dict[str, Any]:
    """Count photos into num, correct, accuracy and, where wanted, the interval over animals."""
    found = count(answers.is_right)
    if len(answers):
        found["num_records"] = len(np.unique(answers.record))
        if intervals:
            found["interval_95"] = metrics.accuracy_interval(answers.is_right, answers.record)
    return found


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
            first = int(own.first_class[0])
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


def hardest_classes(answers: HeadAnswers) -> list[dict[Any, Any]]:
    """List the classes of `MIN_PHOTOS` or more with the lowest recall, then the lowest F1."""
    own = answers.predicted()
    counts = class_counts(own)
    scores = metrics.class_scores(*counts)
    pairs = np.unique(np.stack([own.true, own.record]), axis=1)
    table = pd.DataFrame(list(own.classes), columns=["species", "label"]).assign(
        num=counts[1],
        num_records=np.bincount(pairs[0], minlength=len(own.classes)),
        recall=scores.recall,
        f1=scores.f1,
    )
    tested = table[table["num"] >= MIN_PHOTOS].sort_values(["recall", "f1"], kind="stable")
    return tested.head(NUM_LISTED).to_dict("records")


def write_confusions(heads: Mapping[str, HeadAnswers], folder: Path) -> None:
    """Write `test_<head>[_<species>].csv`; those of an earlier evaluation are removed."""
    for path in [*folder.glob("test_*.csv"), *folder.glob("all_*.csv")]:
        path.unlink()
    for head, answers in heads.items():
        for species, names, counts in matrices(answers.of_split("test")):
            name = "_".join(filter(None, ("test", head, species)))
            metrics.write_confusion(folder / f"{name}.csv", counts, names)


# ---- Several photos of one animal answered as one ----


def fuse(answers: HeadAnswers) -> pd.DataFrame:
    """Let the predicted photos of each animal answer together.

    Each photo gives its five best classes their probabilities; the class with the largest sum is
    the answer, of equal ones the first. Labels that differ within an animal make it two. A row per
    animal: `record`, `one_photo` (the share of its photos that are right), `is_right`.
    """
    own = answers.predicted()
    top = own.top
    photos = pd.DataFrame({"record": own.record, "true": own.true, "one_photo": own.is_right * 1.0})
    animals, given = photos.groupby(["record", "true"]), top >= 0
    votes = pd.DataFrame(
        {
            "animal": np.repeat(animals.ngroup().to_numpy(), TOP)[given.ravel()],
            "answer": top[given],
            "votes": np.rint(own.details["top_prob"][given] * _VOTES).astype(np.int64),
        }
    )
    sums = votes.groupby(["animal", "answer"])["votes"].sum().reset_index()
    best = sums.sort_values("votes", ascending=False, kind="stable").drop_duplicates("animal")
    fused = animals["one_photo"].mean().reset_index()
    answer = best.sort_values("animal")["answer"].to_numpy()
    return fused.assign(is_right=answer == fused["true"].to_numpy())


def describe_fusion(fused: pd.DataFrame) -> dict[str, Any]:
    """Compare the photos of each animal answered one by one with all of them fused.

    `accuracy_one_photo` is over animals, as the fused one is: what one photo drawn from each gives.
    Their difference is what fusing gains. `interval_95` is that of the fused accuracy,
    `gain_interval_95` that of the gain, in -1..1.
    """
    record, is_right = fused["record"].to_numpy(), fused["is_right"].to_numpy()
    one_photo = fused["one_photo"].to_numpy()
    return {
        "num_records": len(fused),
        "accuracy_one_photo": share(one_photo),
        "accuracy_fused": share(is_right),
        "interval_95": metrics.accuracy_interval(is_right, record),
        "gain": share(is_right - one_photo),
        "gain_interval_95": metrics.gain_interval(is_right - one_photo, record),
    }


def count(is_right: Truths) -> dict[str, Any]:
    """Count truths into num, correct, accuracy."""
    return {"num": len(is_right), "correct": int(is_right.sum()), "accuracy": share(is_right)}


# ---- How far answers can be believed ----


def describe_reliability(evaluation: Evaluation, answers: HeadAnswers) -> dict[str, Any]:
    """Measure the confidence of one head on the photos it predicted: "all", and by species.

    In "all" each photo is judged by what was fitted for its own species; `threshold` and what was
    wanted are None there where they differ. `coverage` is the share at or above the threshold of
    the photos of species whose head was fitted at all; without one, no answer counts as sure, and
    `reason` says why a species has none.

    Of "all" alone: `curve` has the rows [coverage, accuracy, threshold] of one threshold for all,
    `reliability` [mean confidence, accuracy, photos, low, high], a 95 % interval that takes photos
    for independent; `raw_reliability` at temperature 1.
    """
    own = answers.predicted()
    if not len(own):
        return {}
    confidence, raw = own.details["top_prob"][:, 0].astype(np.float64), own.details["raw_prob"]
    every = _describe(evaluation, own) | {
        "curve": coverage_rows(confidence, own.is_right),
        "reliability": reliability_rows(confidence, own.is_right),
        "raw_reliability": reliability_rows(raw, own.is_right),
    }
    by_species = {} if own.head == "species" else own.per_species()
    return {"all": every} | {name: _describe(evaluation, o) for name, o in by_species.items()}


def _describe(evaluation: Evaluation, own: HeadAnswers) -> dict[str, Any]:
    numbers, place = np.unique(own.species, return_inverse=True)
    fitted = [evaluation.fitted(own.head, own.species_names[k]) for k in numbers.tolist()]
    threshold = np.array([entry.get("threshold") for entry in fitted], np.float64)[place]  # or NaN
    confidence, right = own.details["top_prob"][:, 0].astype(np.float64), own.is_right
    judged = np.array([bool(entry) for entry in fitted])[place]
    is_one = len(fitted) == 1 or own.head == "species"  # what was fitted
    is_sure = judged & (confidence >= threshold - _TOLERANCE)
    return {
        "num": len(own),
        "threshold": _common(fitted, "threshold", None),
        "reason": fitted[0].get("reason", "") if is_one else "",
        "wanted_accuracy": _common(fitted, "wanted_accuracy", WANTED_ACCURACY),
        "coverage": share(is_sure[judged]),
        "accuracy_of_answered": share(right[is_sure]),
        "overconfident_error_share": share(confidence[~right] >= OVERCONFIDENT),
    }


def _common(fitted: list[dict[str, Any]], key: str, otherwise: float | None) -> float | None:
    """Return what the species were fitted with; None where that differs between them."""
    given = {entry.get(key, otherwise) for entry in fitted if entry}
    return given.pop() if len(given) == 1 else None if given else otherwise


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
