"""Whether an animal's two colours are answered as a pair that makes sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from petface.data.splits import SPLITS
from petface.evaluation.heads import Truths, share
from petface.taxonomy import UNKNOWN

FIRST, SECOND = "color1", "color2"
_COLUMNS = tuple(f"{head}_{what}" for what in ("true", "pred") for head in (FIRST, SECOND))


def describe_consistency(rows: pd.DataFrame) -> dict[str, Any]:
    """Compare the answers to both colours with the pairs that occur as labels, per part.

    Of the `num` photos with both answered, of species that have training labels for both:
    `impossible_pairs`, the share whose pair is no training label of the species, and
    `equal_predicted`, the same colour twice. Of the `num_known` whose labels are both known:
    `unseen_true`, the share whose true pair is no training label (what a faultless network would
    have as impossible), `equal_true`, `joint_accuracy`, both right, and `product_of_accuracies`,
    what that were if the errors had nothing to do with each other. `per_species` likewise. Parts
    without such photos are left out.
    """
    species = rows["species"].cat.codes.to_numpy().astype(np.int64)
    names = sorted({str(n) for c in _COLUMNS for n in rows[c].cat.categories} - {""})
    code = {name: number for number, name in enumerate(names)}
    first_true, second_true, first, second = (
        np.array([code.get(str(n), UNKNOWN) for n in rows[c].cat.categories], np.int64)[
            rows[c].cat.codes.to_numpy()
        ]
        if len(rows)
        else np.zeros(0, np.int64)
        for c in _COLUMNS
    )
    is_known, is_answered = (first_true >= 0) & (second_true >= 0), (first >= 0) & (second >= 0)
    base = max(len(names), 1)
    true_pair = (species * base + first_true) * base + second_true
    pair = (species * base + first) * base + second
    possible = np.unique(true_pair[is_known & (rows["split"] == "train").to_numpy()])
    has_labels = np.isin(species, possible // base**2)
    counted = is_answered & has_labels
    marks = {
        "known": is_known,
        "impossible": ~np.isin(pair, possible),
        "unseen": ~np.isin(true_pair, possible),
        "equal": first == second,
        "equal_true": first_true == second_true,
        "first_right": first == first_true,
        "second_right": second == second_true,
    }
    found = {}
    for part in (*SPLITS, "all"):
        chosen = counted if part == "all" else counted & (rows["split"] == part).to_numpy()
        if chosen.any():
            found[part] = {
                **_describe(marks, chosen),
                "per_species": {
                    str(rows["species"].cat.categories[k]): _describe(
                        marks, chosen & (species == k)
                    )
                    for k in np.unique(species[chosen]).tolist()
                },
            }
    return found


def _describe(marks: dict[str, Truths], chosen: Truths) -> dict[str, Any]:
    known = chosen & marks["known"]
    first, second = marks["first_right"][known], marks["second_right"][known]
    return {
        "num": int(chosen.sum()),
        "impossible_pairs": share(marks["impossible"][chosen]),
        "equal_predicted": share(marks["equal"][chosen]),
        "num_known": len(first),
        "unseen_true": share(marks["unseen"][known]),
        "equal_true": share(marks["equal_true"][known]),
        "joint_accuracy": share(first & second),
        "product_of_accuracies": float(first.mean() * second.mean()) if len(first) else None,
    }
