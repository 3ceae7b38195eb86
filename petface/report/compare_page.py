"""Two or more evaluations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from petface.evaluation.figures import interval, points
from petface.report import charts
from petface.report import folders as read
from petface.report.page import Metric, Page, Section, Strip, leaves, render, table

_VIEWS = {"conditional": "species right in both", "end_to_end": "end to end"}
_METHOD = (
    "Photos of one animal are right or wrong together, so everything is counted by record. "
    "Intervals: whole records drawn again. p-values: the two answers swapped in whole records, "
    "adjusted for the number of tests by Holm's method; the verdict is at 5 %."
)


def comparison_page(comparisons: Sequence[dict[str, Any]]) -> str:
    """Return the page of comparisons of one A with one B or more."""
    first = comparisons[0]
    folders = [first["a"]["folder"], *(each["b"]["folder"] for each in comparisons)]
    about = " · ".join(f"{chr(65 + k)}: {folder}" for k, folder in enumerate(folders))
    notes = dict.fromkeys(note for each in comparisons for note in each["notes"])
    page = Page(f"{len(folders)} {first['kind']}", "Comparison", about, list(notes))
    for k, comparison in enumerate(comparisons):
        _add_pair(page, comparison, chr(66 + k))
    return render(page)


def _add_pair(page: Page, comparison: dict[str, Any], letter: str) -> None:
    test, val = (_tests(comparison, part, letter) for part in ("test", "val"))
    pair = f"{letter} minus A"
    page.metrics += [
        Metric(
            f"{letter} - A, {t['head'].partition(',')[0]}",
            f"{points(t['difference'])} points",
            [f"95 %: {interval(t['interval_95'], points) or 'too few animals'}", t["verdict"]],
        )
        for t in test
        if _VIEWS["conditional"] not in t["head"]
    ]
    marks = [(t["head"], t["difference"], t["interval_95"], None) for t in test]
    drawn = charts.intervals(f"Accuracy, {pair}", marks, "points, 95 % intervals")
    page.sections.append(Section(f"{pair}, test part", [Strip([drawn]), table(test, _TEST_KEYS)]))
    page.folded += [
        Section(f"{pair}: who is right", [table(test, _MORE_KEYS)]),
        Section(f"{pair}: validation part", [table(val, _TEST_KEYS)]),
        Section(
            f"What differs between A and {letter}, and how it was done",
            [_METHOD, table(_sides(comparison)), table(leaves(comparison["options"]))],
        ),
    ]


_TEST_KEYS = "head num num_records accuracy_a accuracy_b change change_interval p_holm verdict"
_MORE_KEYS = "head both_right only_a only_b both_wrong"


def _tests(comparison: dict[str, Any], part: str, letter: str) -> list[dict[str, Any]]:
    return [
        {
            **test,
            "head": test["head"]
            + ("" if test["head"] == "species" else f", {_VIEWS[test['view']]}"),
            "change": test["difference"],
            "change_interval": test["interval_95"],
            "verdict": test["verdict"].replace("B ", f"{letter} "),
        }
        for test in read.rows(comparison["figures"][part], "head", "view")
    ]


def _sides(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    a, b = (
        {leaf["what"]: leaf["value"] for leaf in leaves(comparison[side])} for side in ("a", "b")
    )
    rows = [{"what": k, "A": a.get(k, "none"), "other": b.get(k, "none")} for k in {**a, **b}]
    return [row for row in rows if row["A"] != row["other"]]
