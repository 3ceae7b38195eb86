"""Which of two evaluations is better, in what, and how surely: the figures of a comparison.

Every figure is B minus A on the same photos. `conditional` counts the photos that both were asked,
because both named the species right; `end_to_end` counts a wrong species as a wrong attribute.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface.analysis.changes import (
    agreement_of,
    changed_photos,
    changed_rows,
    count_changes,
    kind_of_change,
    movers,
)
from petface.analysis.paired import (
    MIN_RECORDS,
    difference_interval,
    holm,
    mean_interval,
    sign_flip_p_value,
)
from petface.analysis.pairing import (
    NONE,
    PARTS,
    HeadAnswers,
    Numbers,
    Pairing,
    describe_sides,
    read_answers,
    scores,
)
from petface.errors import UserError
from petface.evaluation.details import HEADS

SIGNIFICANT: Final = 0.05  # of the p-value adjusted for the number of tests
TESTED_PARTS: Final = ("test", "val")
Mask = npt.NDArray[np.bool_]


def compare_evaluations(
    pair: Pairing, *, resamples: int = 2000, flips: int = 100_000, seed: int = 0
) -> tuple[dict[str, Any], Iterator[list[object]]]:
    """Give the comparison as a dictionary ready for JSON, and the rows of changed.csv.

    `resamples` of the bootstrap over records, `flips` of the sign-flip test where it is not exact.
    """
    options = {"resamples": resamples, "flips": flips, "seed": seed}
    figures: dict[str, dict[str, Any]] = {part: {} for part in TESTED_PARTS}
    agreement: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    moved, changes, rows, notes = {}, {}, list[Iterator[list[object]]](), list(pair.notes)
    for head in HEADS:
        answers = read_answers(pair, head)
        if answers.relabelled:
            notes.append(
                f"{head}: {answers.relabelled:,} images have another label in A than in B; their "
                "label counts as unknown"
            )
        asked, answered, one_sided = _asked(pair, head, answers)
        notes += one_sided
        for part in TESTED_PARTS:
            own = pair.part == PARTS.index(part)
            views = _views(pair, head, answers, own & asked, own & answered, options)
            if views:
                figures[part][head] = views
        test = (pair.part == PARTS.index("test")) & asked
        if test.any():
            moved[head] = movers(pair, answers, test, options)
        for part in PARTS:
            if found := agreement_of(answers, pair.part == PARTS.index(part)):
                agreement[part][head] = found
        changed = changed_photos(answers)
        if len(changed):
            kind = kind_of_change(answers, changed)
            changes[head] = count_changes(pair, changed, kind)
            rows.append(changed_rows(pair, head, answers, changed, kind))
    _adjust(figures)
    comparison = {
        "kind": "evaluations",
        **describe_sides(pair),
        "notes": notes + _unanswered(pair),
        "images": {
            "common": len(pair.place_a),
            "only_a": len(pair.a.rows) - len(pair.place_a),
            "only_b": len(pair.b.rows) - len(pair.place_b),
            **dict(zip((*PARTS, "no_part"), np.bincount(pair.part, minlength=4).tolist(),
                       strict=True)),
        },
        "options": options,
        "num_tests": {part: sum(1 for _ in _tests(figures[part])) for part in TESTED_PARTS},
        "figures": figures,
        "classes": moved,
        "agreement": agreement,
        "changed": changes,
    }  # fmt: skip
    return comparison, chain.from_iterable(rows)


def _asked(pair: Pairing, head: str, answers: HeadAnswers) -> tuple[Mask, Mask, list[str]]:
    """Find the photos that both were asked, and those that count end to end, (M,) each.

    End to end, a species counts where both evaluations have a specialist for the head.
    """
    known, both = answers.truth != NONE, (answers.a != NONE) & (answers.b != NONE)
    if head == "species":
        return known & both, known & both, []
    has = [
        np.array([bool(side.class_names(head, name)) for name in pair.species_names], bool)
        for side in (pair.a, pair.b)
    ]
    notes = [
        f"{head}: only {side} has a specialist with this head for {', '.join(names)}; left out"
        for side, alone in (("A", has[0] & ~has[1]), ("B", has[1] & ~has[0]))
        if (names := [pair.species_names[k] for k in np.flatnonzero(alone).tolist()])
    ]
    answered = _species_answered(pair)
    return known & both, known & answered & (has[0] & has[1])[pair.species], notes


def _species_answered(pair: Pairing) -> Mask:
    a, b = (
        side.rows["species_correct"].notna().to_numpy()[places]
        for side, places in ((pair.a, pair.place_a), (pair.b, pair.place_b))
    )
    return np.asarray(a & b, bool)


def _unanswered(pair: Pairing) -> list[str]:
    num = int((~_species_answered(pair)).sum())
    what = "have no answer in A or in B (unreadable, or not finite) and count nowhere"
    return [f"{num:,} images {what}"] if num else []


def _views(
    pair: Pairing, head: str, answers: HeadAnswers, asked: Mask, answered: Mask,
    options: dict[str, int],
) -> dict[str, Any]:  # fmt: skip
    """Give the figures of one head in one part."""
    views = {}
    if asked.any():
        rows = np.flatnonzero(asked)
        views["conditional"] = {
            **_figure(pair, answers, rows, options),
            **_scores(pair, head, rows),
        }
    if head != "species" and answered.any():
        views["end_to_end"] = _figure(pair, answers, np.flatnonzero(answered), options)
    return views


def _figure(
    pair: Pairing, answers: HeadAnswers, rows: Numbers, options: dict[str, int]
) -> dict[str, Any]:
    """Compare the answers at `rows`, where the truth is known; no answer is a wrong one."""
    right_a = answers.a[rows] == answers.truth[rows]
    right_b = answers.b[rows] == answers.truth[rows]
    classes, class_of = np.unique(
        pair.species[rows] * len(answers.names) + answers.truth[rows], return_inverse=True
    )
    record, names = pd.factorize(pair.record[rows])
    class_of_record = np.zeros(len(names), np.int64)
    class_of_record[record] = class_of
    if (class_of_record[record] != class_of).any():
        raise UserError(f"{pair.a.folder}: photos of one record have different labels")
    gain_of = right_b.astype(np.int64) - right_a
    num = np.bincount(record)
    gain = np.bincount(record, gain_of).astype(np.int64)
    per_class = np.bincount(class_of)
    recall_a, recall_b = (np.bincount(class_of, r) / per_class for r in (right_a, right_b))
    p_value, exact = sign_flip_p_value(gain, flips=options["flips"], seed=options["seed"])
    enough = len(num) >= MIN_RECORDS
    draw = {key: options[key] for key in ("resamples", "seed")}
    return {
        "num": len(rows),
        "num_records": len(num),
        "num_records_changed": int((gain != 0).sum()),
        "num_classes": len(classes),
        "accuracy_a": float(right_a.mean()),
        "accuracy_b": float(right_b.mean()),
        "difference": float(gain_of.mean()),
        "interval_95": list(difference_interval(gain, num, **draw)) if enough else None,
        "p_value": p_value,
        "p_exact": exact,
        "both_right": int((right_a & right_b).sum()),
        "only_a": int((right_a & ~right_b).sum()),
        "only_b": int((right_b & ~right_a).sum()),
        "both_wrong": int((~right_a & ~right_b).sum()),
        "balanced_accuracy_a": float(recall_a.mean()),
        "balanced_accuracy_b": float(recall_b.mean()),
        "balanced_difference": float((recall_b - recall_a).mean()),
        "balanced_interval_95": list(difference_interval(gain, num, class_of_record, **draw))
        if enough
        else None,
    }


def _scores(pair: Pairing, head: str, rows: Numbers) -> dict[str, Any]:
    """Compare log loss and Brier score where both have one."""
    found: dict[str, Any] = {}
    for name in ("nll", "brier"):
        a = scores(pair.a, head, name, pair.place_a[rows])
        b = scores(pair.b, head, name, pair.place_b[rows])
        held = np.isfinite(a) & np.isfinite(b)
        if not held.any():
            continue
        record, names = pd.factorize(pair.record[rows][held])
        found |= {
            f"{name}_num": int(held.sum()),
            f"{name}_a": float(a[held].mean()),
            f"{name}_b": float(b[held].mean()),
            f"{name}_difference": float((b - a)[held].mean()),
            f"{name}_interval_95": list(
                mean_interval(np.bincount(record, (b - a)[held]), np.bincount(record))
            )
            if len(names) >= MIN_RECORDS
            else None,
        }
    return found


def _tests(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for views in figures.values():
        yield from views.values()


def _adjust(figures: dict[str, dict[str, Any]]) -> None:
    """Add to each test of a part the p-value adjusted for all tests of that part, and a verdict."""
    for part in figures.values():
        tests = list(_tests(part))
        for test, p in zip(tests, holm([t["p_value"] for t in tests]).tolist(), strict=True):
            test["p_holm"] = p
            better = "B better" if test["difference"] > 0 else "A better"
            test["verdict"] = better if p < SIGNIFICANT else "no difference shown"
