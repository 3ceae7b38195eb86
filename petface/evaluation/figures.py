"""How good a head's answers are: the figures of an evaluation per part, head and species."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from petface import metrics
from petface.evaluation.heads import HeadAnswers, Truths, best_share, share
from petface.reliability import expected_calibration_error
from petface.taxonomy import UNKNOWN

# From here on the bootstrap holds what it promises; with fewer it is too narrow.
MIN_RECORDS_FOR_BOOTSTRAP = 200


def figures(answers: HeadAnswers, resamples: int) -> dict[str, Any]:
    """Count the figures of one head over some photos; None where nothing is defined.

    Of the photos that were asked: `num`, `correct`, `accuracy`; `top3`, `top5`, None where no
    network has more classes than that, and how many photos they count; macro figures over the
    classes that occur; kappa, where chance knows the species of an attribute as the specialist
    does; `rescued_by_top5`, the share of the errors with the truth among the
    five best; losses and calibration at the fitted temperature and (`raw_*`) at 1;
    `num_not_a_class`, labels that the network cannot answer, which count as wrong.

    Of heads other than the species also over all photos with a label: `end_to_end`, where a wrong
    species counts as wrong, and which share of all was lost in which stage, so that
    accuracy + lost_in_stage1 + lost_in_stage2 = 1.

    `majority_baseline` is the score of always giving the commonest training label of the species.
    `interval_95` is a 95 % interval over animals; without `resamples` there is none.
    """
    asked = answers.asked()
    details = asked.details
    own_classes = asked.num_classes[asked.group]
    (top3, num_top3), (top5, num_top5) = best_share(asked, 3), best_share(asked, 5)
    wrong = asked.where(~asked.is_right)
    found: dict[str, Any] = {
        **_accuracy(asked, asked.is_right, resamples),
        "top3": top3,
        "num_top3": num_top3,
        "top5": top5,
        "num_top5": num_top5,
        "rescued_by_top5": best_share(wrong, 5)[0],
        "num_not_a_class": int((details["rank"] > own_classes).sum()),
        "num_classes": int(asked.num_classes[np.unique(asked.group)].sum()),
        **_class_figures(asked),
        "majority_baseline": _majority(answers),
        **_losses(asked),
    }
    if answers.head != "species":
        found["end_to_end"] = _accuracy(answers, answers.is_right, resamples)
        found["lost_in_stage1"] = share(~answers.is_species_right)
        found["lost_in_stage2"] = share(answers.is_species_right & ~answers.is_right)
    return found


def figures_by_species(answers: HeadAnswers, resamples: int) -> dict[str, dict[str, Any]]:
    """Count `figures` per true species.

    Of the head "species" one species is one class: its `recall` (the accuracy), and the `precision`
    and `f1` among all photos of the part; what compares classes is None.
    """
    found = {name: figures(part, resamples) for name, part in answers.per_species().items()}
    if answers.head == "species":
        scores = metrics.class_scores(*class_counts(answers))
        for name, entry in found.items():
            k = answers.classes.index((name, name))
            entry |= dict.fromkeys(
                ("balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "kappa",
                 "majority_baseline")
            )  # fmt: skip
            entry["recall"], entry["precision"] = entry["accuracy"], float(scores.precision[k])
            entry["f1"] = float(scores.f1[k])
    return found


def class_counts(asked: HeadAnswers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count per class (K,) the photos answered rightly, those of the class, and those answered so.

    Of asked photos alone.
    """
    num = len(asked.classes)
    answer = asked.top[:, 0]
    return (
        np.bincount(asked.true[asked.is_right], minlength=num),
        np.bincount(asked.true, minlength=num),
        np.bincount(answer, minlength=num),
    )


def known(value: float) -> float | None:
    """Give None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value)


def percent(share: Any, digits: int = 1) -> str:
    """Format a share as per cent without the unit, `97.3`; "" where it is no finite number."""
    return f"{share * 100:.{digits}f}" if _is_number(share) else ""


def points(change: Any, digits: int = 1) -> str:
    """Format a change of a share in points, `+3.2`, `-0.4` or `0.0`; "" for no finite number."""
    shown = f"{change * 100:+.{digits}f}" if _is_number(change) else ""
    return shown if shown.strip("+-0.") else shown[1:]


def interval(limits: Any, form: Callable[[Any], str] = percent) -> str:
    """Format an interval of shares, `95.2 - 99.1`, or with `points` `-4.0 to -2.1`; "" for none."""
    if not isinstance(limits, list | tuple) or len(limits) != 2 or not all(map(form, limits)):
        return ""
    return (" to " if form is points else " - ").join(map(form, limits))


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _class_figures(asked: HeadAnswers) -> dict[str, float | None]:
    hits, support, predicted = class_counts(asked)
    scores = metrics.class_scores(hits, support, predicted)
    occurs = support > 0
    return {
        "balanced_accuracy": share(hits[occurs] / support[occurs]),
        "macro_precision": known(scores.macro_precision),
        "macro_recall": known(scores.macro_recall),
        "macro_f1": known(scores.macro_f1),
        "kappa": known(metrics.cohen_kappa(hits, support, predicted, asked.class_group)),
    }


def _losses(asked: HeadAnswers) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for prefix in ("", "raw_"):
        for name in (f"{prefix}nll", f"{prefix}brier"):
            values = asked.details[name]
            found[name] = share(values[np.isfinite(values)])
        confidence = asked.details["raw_prob"] if prefix else asked.details["top_prob"][:, 0]
        order = np.argsort(confidence, kind="stable")  # five times as fast for a million photos
        error = expected_calibration_error(confidence[order], asked.is_right[order])
        found[f"{prefix}ece"] = known(error)
    return found


def _majority(answers: HeadAnswers) -> float | None:
    commonest = answers.commonest[answers.group]
    return share((answers.true == commonest) & (commonest != UNKNOWN))


def _accuracy(answers: HeadAnswers, is_right: Truths, resamples: int) -> dict[str, Any]:
    """Count photos into num, correct, accuracy and, where wanted, the interval over animals."""
    num, correct = len(answers), int(is_right.sum())
    found: dict[str, Any] = {"num": num, "correct": correct, "accuracy": share(is_right)}
    if not num:
        return found
    record = np.unique(answers.record, return_inverse=True)[1]
    photos = np.bincount(record)
    right = np.bincount(record[is_right], minlength=len(photos))
    found["num_records"] = len(photos)
    if resamples:
        bootstrap = list(metrics.cluster_bootstrap_interval(right, photos, resamples=resamples))
        is_enough = len(photos) >= MIN_RECORDS_FOR_BOOTSTRAP
        small = list(metrics.cluster_wilson_interval(right, photos))
        found["interval_95"] = bootstrap if is_enough else small
        found["bootstrap_95"] = bootstrap
    return found
