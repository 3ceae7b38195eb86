"""A comparison of two evaluations as the text that is printed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from petface.analysis.paired import MIN_RECORDS

ROUGH = (
    f"*: B has more or fewer photos right than A in fewer than {MIN_RECORDS} records, so the "
    "interval is too narrow; go by p"
)
_EXPLANATIONS = (
    "conditional: photos whose species both named right; end to end: a wrong species counts as a "
    "wrong answer; only A, only B: photos that one alone has right; too few: fewer than "
    f"{MIN_RECORDS} records",
    ROUGH,
)
VIEWS = {"conditional": "conditional", "end_to_end": "end to end"}


def describe_comparison(comparison: dict[str, Any]) -> str:
    """Lay the comparison out in at most 110 columns: a table per part, then what to know."""
    a, b, images = comparison["a"], comparison["b"], comparison["images"]
    lines = [
        f"A: {a['folder']}",
        f"B: {b['folder']}",
        f"{images['common']:,} common images: {images['train']:,} train, {images['val']:,} val, "
        f"{images['test']:,} test",
    ]
    for part, heads in comparison["figures"].items():
        lines += ["", *_part(part, heads, comparison["num_tests"][part])]
    lines += ["", *wrapped(_EXPLANATIONS), *wrapped(f"note: {n}" for n in comparison["notes"])]
    return "\n".join(lines)


def wrapped(paragraphs: Iterable[str], width: int = 110) -> list[str]:
    """Break paragraphs into lines; file names stay whole."""
    return [
        line
        for paragraph in paragraphs
        for line in textwrap.wrap(
            paragraph, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    ]


def _part(part: str, heads: dict[str, Any], num_tests: int) -> Iterator[str]:
    if not heads:
        yield f"{part} part: no photo that both answered has a known label"
        return
    yield (
        f"{part} part, in %; p-values by flipping whole records, {num_tests} tests, adj. by Holm:"
    )
    yield (
        f"{'':20s} {'photos':>8s} {'records':>7s} {'A':>6s} {'B':>6s} {'B - A':>6s} "
        f"{'95 % interval':>15s} {'p':>7s} {'adj.':>7s}"
    )
    for name, test in named_tests(heads):
        yield (
            f"{name:20s} {test['num']:8,d} {test['num_records']:7,d} "
            f"{percent(test['accuracy_a']):>6s} {percent(test['accuracy_b']):>6s} "
            f"{points(test['difference']):>6s} {interval_of(test):>15s} "
            f"{p_text(test['p_value']):>7s} {p_text(test['p_holm']):>7s}"
        )
    yield (
        f"{'':20s} {'both right':>10s} {'only A':>7s} {'only B':>7s} {'both wrong':>10s} "
        f"{'balanced':>8s} {'95 % interval':>15s}  verdict"
    )
    for name, test in named_tests(heads):
        yield (
            f"{name:20s} {test['both_right']:10,d} {test['only_a']:7,d} {test['only_b']:7,d} "
            f"{test['both_wrong']:10,d} {points(test['balanced_difference']):>8s} "
            f"{interval_of(test, 'balanced_interval_95'):>15s}  {test['verdict']}"
        )


def named_tests(heads: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Go through the tests of a part, each with a readable name."""
    for head, views in heads.items():
        for view, test in views.items():
            yield head if head == "species" else f"{head}, {VIEWS[view]}", test


def percent(share: float | None) -> str:
    """Give a share in per cent."""
    return "" if share is None else f"{share * 100:.1f}"


def points(difference: float | None) -> str:
    """Give a difference of shares in points, with its sign."""
    if difference is None:
        return ""
    shown = f"{difference * 100:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown


def interval(limits: list[float] | None) -> str:
    """Give an interval in points, or say that there is none."""
    return "too few" if limits is None else f"{points(limits[0])} to {points(limits[1])}"


def interval_of(test: dict[str, Any], key: str = "interval_95") -> str:
    """Give a test's interval, with a star where too few records differ for it to hold."""
    is_rough = test[key] is not None and test["num_records_changed"] < MIN_RECORDS
    return interval(test[key]) + "*" * is_rough


def p_text(p: float) -> str:
    """Give a p-value; one that rounds to 0 is not 0."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"
