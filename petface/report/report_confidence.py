"""How far the confidence of an evaluation can be believed: sentences, charts and a table."""

from __future__ import annotations

from typing import Any

from petface.report.page import table, text
from petface.report.plots import Frame, Line, chart
from petface.report.report_parts import (
    MIN_PHOTOS,
    dig,
    entries,
    fold,
    is_number,
    listed,
    number,
    pale,
    percent,
)

_ALL = "all"  # the key of all species together
_MAX_OPEN = 2  # species of a head whose charts stand open


def confidence_section(summary: dict[str, Any]) -> str:
    """Show each head's reliability, what leaving out unsure answers gains, and its answer sets."""
    parts, rows = [], []
    for head, species in entries(summary, "confidence").items():
        own = {k: v for k, v in species.items() if isinstance(v, dict) and v.get("num")} if (
            isinstance(species, dict)
        ) else {}  # fmt: skip
        shown = {name: _charts(_title(head, name), each) for name, each in own.items()}
        rows += [_row(_title(head, name), each) for name, each in own.items()]
        whole = shown.pop(_ALL, "")
        if whole and len(shown) == 1:
            shown = {}  # the only species: the same again
        folded = "".join(shown.values())
        if len(shown) > _MAX_OPEN or whole:
            folded = fold(f"{head}: each species", folded)
        if whole or folded:
            parts.append(f"<h3>{text(head)}</h3>{_losses(summary, head)}{whole}{folded}")
    if not rows:
        return ""
    header = ("head", "photos", "threshold", "wanted", "answered", "right of these",
              "sets hold truth", "wanted of sets", "mean set size")  # fmt: skip
    words = (
        "Test part; threshold and temperature were fitted on the validation part. Left: how often "
        "answers of a confidence are right, with 95 % intervals; on the dashed line they are as "
        "often right as they say. Right: the fewer photos are answered, the surest first, the "
        "more answers are right."
    )
    return pale(words) + "".join(parts) + fold("All heads as a table", table(header, 1, rows))


def _title(head: str, species: str) -> str:
    return head if species == _ALL else f"{species} {head}"


def _losses(summary: dict[str, Any], head: str) -> str:
    own = entries(summary, "figures", "test", head)
    pieces = [
        f"{name} {number(own.get(f'raw_{key}'))} before, {number(own.get(key))} after"
        for key, name in (("ece", "ECE"), ("nll", "NLL"), ("brier", "Brier score"))
        if is_number(own.get(key)) and is_number(own.get(f"raw_{key}"))
    ]
    return pale(f"{'; '.join(pieces)} the temperature was fitted.") if pieces else ""


def _row(title: str, fitted: dict[str, Any]) -> tuple[str, ...]:
    alpha = dig(fitted, "conformal", "alpha")
    return (
        title,
        number(fitted.get("num")),
        number(fitted.get("threshold")) or ("own" if fitted.get("num_with_threshold") else "none"),
        percent(fitted.get("wanted_accuracy")) or "-",
        percent(fitted.get("coverage")) or "-",
        percent(fitted.get("accuracy_of_answered")) or "-",
        percent(dig(fitted, "conformal", "coverage")) or "-",
        percent(1 - alpha) if is_number(alpha) else "-",
        number(dig(fitted, "conformal", "mean_size"), 1) or "-",
    )


def _charts(title: str, fitted: dict[str, Any]) -> str:
    guide = (((0.0, 0.0), (1.0, 1.0)),)
    before = _reliability(fitted, "raw_reliability")
    after = _reliability(fitted, "reliability")
    lines = [
        Line("as trained", [point[:2] for point in before], color=1, is_dashed=True, has_dots=True),
        Line("after calibration", [point[:2] for point in after],
             [point[3:5] for point in after], has_dots=True),
    ]  # fmt: skip
    share = Frame("confidence", "right", (0, 1), (0, 1), x_share=True, y_share=True)
    drawn = chart(f"{title}: reliability", lines, share, guides=guide)
    curve = [point for point in listed(fitted, "curve") if isinstance(point, list)]
    heights = [point[1] for point in curve if len(point) > 1 and is_number(point[1])]
    wanted = fitted.get("wanted_accuracy")
    low = min([*heights, wanted if is_number(wanted) else 1.0], default=0.0)
    bottom = max(0.0, low - 0.1)
    drawn += chart(
        f"{title}: leaving out the unsure",
        [Line("any threshold", curve)],
        Frame("photos answered", "right of these", (0, 1), (bottom, 1), x_share=True, y_share=True),
        guides=(((0.0, wanted), (1.0, wanted)),) if is_number(wanted) else (),
        mark=_chosen(fitted),
    )
    return pale(_sentence(title, fitted)) + f"<div class=charts>{drawn}</div>"


def _reliability(fitted: dict[str, Any], key: str) -> list[list[Any]]:
    return [point for point in listed(fitted, key) if isinstance(point, list) and len(point) >= 2]


def _chosen(fitted: dict[str, Any]) -> tuple[str, Any, Any] | None:
    if not is_number(fitted.get("threshold")) or not is_number(fitted.get("accuracy_of_answered")):
        return None
    name = f"chosen threshold {number(fitted['threshold'])}"
    return name, fitted.get("coverage"), fitted["accuracy_of_answered"]


def _sentence(title: str, fitted: dict[str, Any]) -> str:
    """Say in words what leaving out the unsure gains, and how large the sets of answers are."""
    num = fitted.get("num_fitted", fitted.get("num"))
    wanted = percent(fitted.get("wanted_accuracy"))
    is_few = is_number(num) and num < MIN_PHOTOS
    few = f"too few photos to rely on ({number(num)}); " if is_few else ""
    threshold, right = fitted.get("threshold"), percent(fitted.get("accuracy_of_answered"))
    many = fitted.get("num_with_threshold")
    if not is_number(threshold) and not (is_number(many) and many):
        words = f"no answer counts as sure: in validation no threshold gave {wanted} right"
    else:
        least = f"at least {number(threshold)}" if is_number(threshold) else "by each species' own"
        words = (
            f"{percent(fitted.get('coverage'))} of {number(num)} photos count as sure (confidence "
            f"{least}), and {right or 'none'} of these are right"
        )
        words += f"; wanted was {wanted}" if wanted else ""
    sets = entries(fitted, "conformal")
    if is_number(sets.get("coverage")):
        more = "or more " if sets.get("is_lower_bound") else ""
        words += (
            f". Sets of {number(sets.get('mean_size'), 1)} {more}answers on average hold the truth "
            f"in {percent(sets['coverage'])} of the photos"
        )
    return f"{title}: {few}{words}."
