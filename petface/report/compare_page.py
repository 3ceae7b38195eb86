"""Two or more evaluations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from petface.evaluation.figures import interval, points
from petface.report import charts
from petface.report.folders import flat, rows
from petface.report.page import Metric, Page, Strip, render, table

_VIEWS = {"conditional": "species right", "end_to_end": "end to end"}
_COLUMNS = "head view num num_records A_accuracy {}_accuracy change interval_95 p_holm verdict"
_METHOD = (
    "Photos of one animal tend to be right or wrong together. Intervals therefore resample whole "
    "records, and p-values swap the predictions of whole records. They are adjusted for the number "
    "of tests by Holm's method. The verdict is at the 5 % level."
)


def changed_words(comparison: dict[str, Any], letter: str = "B") -> str:
    """Return a sentence on how many predictions differ; it says so where none does."""
    num, photos = comparison["num_changed"], comparison["images"]["common"]
    if num:
        return f"{num:,} predictions on {photos:,} photos differ between A and {letter}."
    return f"A and {letter} are identical: all predictions on {photos:,} photos are the same."


def comparison_page(comparisons: Sequence[dict[str, Any]]) -> str:
    """Return the page of comparisons of one A with one B or more."""
    first = comparisons[0]
    folders = [first["a"]["folder"], *(each["b"]["folder"] for each in comparisons)]
    about = " · ".join(f"{chr(65 + k)}: {folder}" for k, folder in enumerate(folders))
    notes = dict.fromkeys(note for each in comparisons for note in each["notes"])
    metrics: list[Metric] = []
    sections: dict[str, Any] = {}
    folded: dict[str, Any] = {}
    for letter, comparison in zip("BCDEFGHIJKLMNOPQRSTUVWXYZ", comparisons, strict=False):
        test, val = (_tests(comparison, split, letter) for split in ("test", "val"))
        pair, shown = f"{letter} minus A", test if comparison["num_changed"] else []
        metrics += [
            Metric(
                f"{pair}, {t['head']}",
                f"{points(t['change'])} points",
                [f"95 %: {interval(t['interval_95'], points) or 'too few animals'}", t["verdict"]],
            )
            for t in shown
            if t["view"] != _VIEWS["conditional"]
        ]
        views = {view: [t for t in shown if t["view"] in ("", view)] for view in _VIEWS.values()}
        drawn = [
            charts.intervals(f"{pair}: {view}", own, "head change interval_95", "points")
            for view, own in views.items()
        ]
        sections[f"{pair}, test split"] = [
            *(changed_words(comparison, letter), Strip(drawn)),
            table(test, _COLUMNS.format(letter)),
        ]
        sides = {"A": flat(comparison["a"]), letter: flat(comparison["b"])}
        differing = [
            {"what": key, **{side: str(own.get(key, "none")) for side, own in sides.items()}}
            for key in {**sides["A"], **sides[letter]}
            if sides["A"].get(key) != sides[letter].get(key)
        ]
        folded |= {
            f"{pair}: who is right": [table(test, "head view both_right only_a only_b both_wrong")],
            f"{pair}: validation split": [table(val, _COLUMNS.format(letter))],
            f"Differences between A and {letter}; method": [_METHOD, table(differing)],
        }
    kind = f"{len(folders)} {first['kind']}"
    return render(Page(kind, "Comparison", about, [*notes], {}, metrics, sections, folded))


def _tests(comparison: dict[str, Any], split: str, letter: str) -> list[dict[str, Any]]:
    return [
        {
            **test,
            "view": "" if test["head"] == "species" else _VIEWS[test["view"]],
            "A_accuracy": test["accuracy_a"],
            f"{letter}_accuracy": test["accuracy_b"],
            "change": test["difference"],
            "verdict": test["verdict"].replace("B ", f"{letter} "),
        }
        for test in rows(comparison["figures"], split + ".{head}.{view}")
    ]
