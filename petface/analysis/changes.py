"""What changed between two evaluations, photo by photo and class by class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface.analysis.paired import MIN_RECORDS, difference_interval
from petface.analysis.pairing import (
    NONE,
    PARTS,
    HeadAnswers,
    Numbers,
    Pairing,
    answer_probabilities,
)

CHANGED_COLUMNS: Final = (
    "image", "species", "record", "split", "head", "truth",
    "a_answer", "a_prob", "b_answer", "b_prob", "change",
)  # fmt: skip
CHANGES: Final = ("better", "worse", "both wrong", "label unknown")
_MOST_MOVERS = 20  # classes listed as gains, and as losses, per head
Mask = npt.NDArray[np.bool_]


def movers(
    pair: Pairing, answers: HeadAnswers, asked: Mask, options: dict[str, int]
) -> dict[str, list[dict[str, Any]]]:
    """List the classes that gained and lost most photos."""
    rows = np.flatnonzero(asked)
    key, class_of = np.unique(
        pair.species[rows] * len(answers.names) + answers.truth[rows], return_inverse=True
    )
    right_a, right_b = (x[rows] == answers.truth[rows] for x in (answers.a, answers.b))
    num = np.bincount(class_of)
    sums = [np.bincount(class_of, right).astype(np.int64) for right in (right_a, right_b)]
    net = sums[1] - sums[0]
    by_class = np.argsort(class_of, kind="stable")
    ends = np.cumsum(num)

    def entry(k: int) -> dict[str, Any]:
        own = by_class[ends[k] - num[k] : ends[k]]
        record, names = pd.factorize(pair.record[rows[own]])
        gain = np.bincount(record, right_b[own].astype(np.int64) - right_a[own]).astype(np.int64)
        enough = len(names) >= MIN_RECORDS
        interval = difference_interval(
            gain, np.bincount(record), resamples=options["resamples"], seed=options["seed"]
        ) if enough else None  # fmt: skip
        species, label = divmod(int(key[k]), len(answers.names))
        return {
            "species": pair.species_names[species],
            "label": answers.names[label],
            "num": int(num[k]),
            "num_records": len(names),
            "correct_a": int(sums[0][k]),
            "correct_b": int(sums[1][k]),
            "difference": float(net[k] / num[k]),
            "interval_95": list(interval) if interval else None,
        }

    order = np.argsort(-net, kind="stable")
    gains = [entry(k) for k in order[:_MOST_MOVERS].tolist() if net[k] > 0]
    losses = [entry(k) for k in order[::-1][:_MOST_MOVERS].tolist() if net[k] < 0]
    return {"gains": gains, "losses": losses}


def agreement_of(answers: HeadAnswers, own: Mask) -> dict[str, Any] | None:
    """Count equal answers where both answered, and equal mistakes where both are wrong."""
    both = own & (answers.a != NONE) & (answers.b != NONE)
    if not (num := int(both.sum())):
        return None
    same = both & (answers.a == answers.b)
    known = both & (answers.truth != NONE)
    wrong = known & (answers.a != answers.truth) & (answers.b != answers.truth)
    return {
        "num": num,
        "same": int(same.sum()),
        "share": float(same.sum() / num),
        "both_wrong": int(wrong.sum()),
        "same_mistake": int((same & wrong).sum()),
    }


def changed_photos(answers: HeadAnswers) -> Numbers:
    """Find the images that both answered, each otherwise."""
    both = (answers.a != NONE) & (answers.b != NONE)
    return np.flatnonzero(both & (answers.a != answers.b))


def kind_of_change(answers: HeadAnswers, changed: Numbers) -> Numbers:
    """Number what each change means, (len,) into `CHANGES`."""
    truth = answers.truth[changed]
    kind = np.full(len(changed), CHANGES.index("both wrong"), np.int64)
    kind[answers.b[changed] == truth] = CHANGES.index("better")
    kind[answers.a[changed] == truth] = CHANGES.index("worse")
    kind[truth == NONE] = CHANGES.index("label unknown")
    return kind


def count_changes(pair: Pairing, changed: Numbers, kind: Numbers) -> dict[str, dict[str, int]]:
    """Count the changed photos of each part by `CHANGES`."""
    found = {}
    for number, part in enumerate(PARTS):
        counts = np.bincount(kind[pair.part[changed] == number], minlength=len(CHANGES))
        found[part] = dict(zip(CHANGES, counts.tolist(), strict=True))
    return found


def changed_rows(
    pair: Pairing, head: str, answers: HeadAnswers, changed: Numbers, kind: Numbers
) -> Iterator[list[object]]:
    """Lay out changed photos in the order of `CHANGED_COLUMNS`."""
    prob_a = answer_probabilities(pair.a, head, pair.place_a[changed])
    prob_b = answer_probabilities(pair.b, head, pair.place_b[changed])
    parts = (*PARTS, "")
    columns = zip(
        pair.image_names(changed),
        pair.species[changed].tolist(),
        pair.texts(changed, "record"),
        pair.part[changed].tolist(),
        answers.truth[changed].tolist(),
        answers.a[changed].tolist(),
        prob_a.tolist(),
        answers.b[changed].tolist(),
        prob_b.tolist(),
        kind.tolist(),
        strict=True,
    )
    names = answers.names
    for image, species, record, part, truth, a, a_prob, b, b_prob, change in columns:
        yield [
            image, pair.species_names[species], record, parts[part], head, names[truth],
            names[a], f"{a_prob:.6f}", names[b], f"{b_prob:.6f}", CHANGES[change],
        ]  # fmt: skip
