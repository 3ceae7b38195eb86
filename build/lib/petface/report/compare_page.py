"""Two or more evaluations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from petface.evaluation.figures import interval, points
from petface.report import charts
from petface.report.folders import flat, rows
from petface.report.page import Metric, Page, Strip, render, table

_VIEWS = {"conditional": "species right in both", "end_to_end": "end to end"}
_METHOD = (
    "Photos of one animal are right or wrong together, so everything is counted by record. "
    "Intervals: whole records drawn again. p-values: the two answers swapped in whole records, "
    "adjusted for the number of tests by Holm's method; the verdict is at 5 %."
)
_COLUMNS = "head num num_records accuracy_a accuracy_b change interval_95 p_holm verdict"


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
        pair = f"{letter} minus A"
        metrics += [
            Metric(
                f"{letter} - A, {t['head'].partition(',')[0]}",
                f"{points(t['change'])} points",
                [f"95 %: {interval(t['interval_95'], points) or 'too few animals'}", t["verdict"]],
            )
            for t in test
            if _VIEWS["conditional"] not in t["head"]
        ]
        drawn = charts.intervals(f"Accuracy, {pair}", test, "head change interval_95", "points")
        sections[f"{pair}, test split"] = [Strip([drawn]), table(test, _COLUMNS)]
        sides = {"A": flat(comparison["a"]), "other": flat(comparison["b"])}
        differing = [
            {"what": key, **{side: str(own.get(key, "none")) for side, own in sides.items()}}
            for key in {**sides["A"], **sides["other"]}
            if sides["A"].get(key) != sides["other"].get(key)
        ]
        folded |= {
            f"{pair}: who is right": [table(test, "head both_right only_a only_b both_wrong")],
            f"{pair}: validation split": [table(val, _COLUMNS)],
            f"What differs between A and {letter}, and how it was done": [
                _METHOD, table(differing)
            ],
        }  # fmt: skip
    kind = f"{len(folders)} {first['kind']}"
    return render(Page(kind, "Comparison", about, [*notes], {}, metrics, sections, folded))


def _tests(comparison: dict[str, Any], split: str, letter: str) -> list[dict[str, Any]]:
    return [
        {
            **test,
            "head": ", ".join(
                [test["head"], *[_VIEWS[test["view"]]] * (test["head"] != "species")]
            ),
            "change": test["difference"],
            "verdict": test["verdict"].replace("B ", f"{letter} "),
        }
        for test in rows(comparison["figures"], split + ".{head}.{view}")
    ]
