"""The figures of an evaluation as tables and charts: test part, parts, species, records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from petface.report.dots import Dot, dots, stacked
from petface.report.page import table, text
from petface.report.plots import Frame, Line, chart
from petface.report.report_parts import (
    EARLIER,
    absent,
    dig,
    entries,
    fold,
    interval,
    is_number,
    listed,
    note,
    number,
    pale,
    percent,
)
from petface.report.run_files import held_out
from petface.taxonomy import FEATURES

_HEADS = ("species", *FEATURES)
_ANY = "any"
_SHORT = 6  # columns of a table that fit a phone
_PARTS = {
    "test": "test",
    "val": "validation",
    "train": "train (seen)",
    "all": "all (with train)",
}


def test_section(summary: dict[str, Any]) -> str:
    rows, drawn = [], []
    for head in _HEADS:
        own, asked, end = held_out(summary, head)
        if not asked.get("num") and not end.get("num"):
            continue
        base = own.get("majority_baseline")
        ends = asked.get("interval_95")
        if head == "species":
            drawn.append(Dot(head, asked.get("accuracy"), ends, base, asked.get("num")))
        else:
            drawn.append(Dot(f"{head}, end to end", end.get("accuracy"), end.get("interval_95"),
                             base, end.get("num")))  # fmt: skip
            words = f"{head}, where the species is right"
            drawn.append(Dot(words, asked.get("accuracy"), ends, base, asked.get("num")))
        more = entries(summary, "figures", "test", head)
        rows.append(
            (head, number(asked.get("num")), number(asked.get("num_records")),
             percent(asked.get("accuracy")), interval(ends), percent(end.get("accuracy")),
             percent(dig(own, "per_record", "accuracy")), percent(own.get("balanced_accuracy")),
             percent(more.get("macro_f1")), percent(more.get("top3")), percent(more.get("top5")),
             number(more.get("kappa")), percent(base))
        )  # fmt: skip
    if not rows:
        return ""
    header = ("head", "photos", "records", "right", "95 % interval", "end to end", "per record",
              "balanced", "macro F1", "top 3", "top 5", "kappa", "commonest")  # fmt: skip
    words = (
        "Animals that nothing was trained or chosen on. Heads other than the species are asked "
        "only where the species is right; end to end counts a wrong species as a wrong answer. "
        "The intervals allow for photos of one animal being alike."
    )
    baseline = "always the commonest class of the train part"
    return (
        pale(words)
        + dots(drawn, baseline=baseline)
        + table(header, 1, _filled(rows))
        + ("" if entries(summary, "figures") else absent(summary))
    )


def _filled(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Write a dash where a figure is missing, so that a narrow layout has no empty labels."""
    return [tuple(cell or "-" for cell in row) for row in rows]


def lost_section(summary: dict[str, Any]) -> str:
    figures = entries(summary, "figures", "test")
    rows = {
        head: (dig(own, "end_to_end", "accuracy"), own.get("lost_in_stage2"),
               own.get("lost_in_stage1"))
        for head, own in figures.items()
        if isinstance(own, dict) and head != "species"
    }  # fmt: skip
    names = ("right", "lost by the specialist", "lost because the species was wrong")
    drawn = stacked(rows, names, ("var(--c0)", "var(--c1)", "var(--c3)"))
    if not drawn:
        return absent(summary)
    rescued = [
        f"{head} {share}"
        for head, own in figures.items()
        if (share := percent(dig(own, "rescued_by_top5")))
    ]
    words = f"Of the wrong answers, the truth is among the five best in: {', '.join(rescued)}."
    return (
        pale("Test part, photos with a known label, in % of them.")
        + drawn
        + (pale(words) if rescued else "")
    )


def parts_section(summary: dict[str, Any]) -> str:
    rows = []
    for head in _HEADS:
        for part, words in _PARTS.items():
            own = entries(summary, "figures", part, head) or _old_figure(summary, part, head)
            if not own.get("num"):
                continue
            rows.append(
                (head, words, number(own["num"]), percent(own.get("accuracy")),
                 percent(dig(own, "end_to_end", "accuracy")), percent(own.get("balanced_accuracy")),
                 interval(own.get("interval_95")), percent(own.get("macro_f1")),
                 number(own.get("kappa")), percent(own.get("majority_baseline")))
            )  # fmt: skip
    if not rows:
        return ""
    header = ("head", "part", "photos", "right", "end to end", "balanced",
              "95 % interval", "macro F1", "kappa", "commonest")  # fmt: skip
    words = (
        "Figures of the train part, and of all photos, which hold it, are NOT accuracy on unseen "
        "animals: the networks have seen these photos. Validation chose the epoch and fitted the "
        "confidence. Only the test part tells of new animals; a train part far above it tells of "
        "overfitting."
    )
    every = _filled(rows)
    short = table(header[:_SHORT], 2, [row[:_SHORT] for row in every])
    return note(words) + short + fold("More figures of each part", table(header, 2, every))


def _old_figure(summary: dict[str, Any], part: str, head: str) -> dict[str, Any]:
    tree = summary if part == "all" else entries(summary, "splits", part)
    if head == "species":
        return entries(tree, "stage1", "overall")
    return entries(tree, "stage2", "per_feature", head)


def species_section(summary: dict[str, Any]) -> str:
    """Draw each head's species as dots; the full table is folded."""
    species = entries(summary, "per_species", "test")
    drawn, rows = [], []
    for head in _HEADS:
        lines = []
        for name, heads in species.items():
            own = entries(heads, head)
            value = own.get("accuracy")
            if not is_number(value):
                continue
            end = entries(own, "end_to_end")
            lines.append(Dot(name, value, own.get("interval_95"), own.get("majority_baseline"),
                             own.get("num")))  # fmt: skip
            rows.append(
                (f"{name} {head}", number(own.get("num")), number(own.get("num_classes")),
                 percent(value), interval(own.get("interval_95")), percent(end.get("accuracy")),
                 percent(own.get("balanced_accuracy")), percent(own.get("macro_f1")),
                 percent(own.get("top3")), number(own.get("kappa")),
                 percent(own.get("majority_baseline")))
            )  # fmt: skip
        if lines:
            base = "" if head == "species" else "always the commonest class of the train part"
            drawn.append(f"<div><h3>{text(head)}</h3>{dots(lines, baseline=base)}</div>")
    if not drawn:
        return _old_species(summary)
    header = ("species and head", "photos", "classes", "right", "95 % interval", "end to end",
              "balanced", "macro F1", "top 3", "kappa", "commonest")  # fmt: skip
    words = "Test part; attributes where the species is right. For the species itself: its recall."
    return (
        pale(words)
        + f"<div class=two>{''.join(drawn)}</div>"
        + fold("The same as a table", table(header, 1, _filled(rows)))
    )


def _old_species(summary: dict[str, Any]) -> str:
    rows = []
    for name, heads in entries(summary, "test", "per_species").items():
        for head in heads if isinstance(heads, dict) else ():
            own, asked = entries(heads, head), entries(heads, head, "conditional")
            rows.append(
                (f"{name} {head}", number(asked.get("num")), percent(asked.get("accuracy")),
                 interval(asked.get("interval_95")), percent(dig(own, "end_to_end", "accuracy")),
                 percent(own.get("majority_baseline")))
            )  # fmt: skip
    if not rows:
        return ""
    header = ("species and head", "photos", "right", "95 % interval", "end to end", "commonest")
    return pale(f"More figures are not in this evaluation: {EARLIER}.") + table(header, 1, rows)


def record_section(summary: dict[str, Any]) -> str:
    drawn, rows = [], []
    for head, own in entries(summary, "per_record", "test").items():
        groups = [g for g in listed(own, "by_num_photos") if isinstance(g, dict)]
        names = [str(g.get("photos", "")) for g in groups]
        lines = [
            Line("one photo", [(k, _one_photo(g)) for k, g in enumerate(groups)], color=1,
                 has_dots=True),
            Line("photos fused", [(k, g.get("accuracy_fused")) for k, g in enumerate(groups)],
                 has_dots=True),
        ]  # fmt: skip
        frame = Frame("photos of the record", "right", y_span=(0, 1), y_share=True, x_names=names)
        drawn.append(chart(head, lines, frame))
        rows += [
            (head, g.get("photos", ""), number(g.get("records")),
             percent(_one_photo(g)) or "-", percent(g.get("accuracy_fused")) or "-")
            for g in [{**entries({"": own}, ""), "photos": _ANY,
                       "records": dig(own, "num_records")}, *groups]
        ]  # fmt: skip
    if not rows:
        return absent(summary)
    words = (
        "Test part. The photos of a record vote with their probabilities; what that gains over one "
        "photo, by the number of photos. Groups of few records jump up and down."
    )
    header = ("head", "photos of the record", "records", "one photo", "fused")
    every = [row for row in rows if row[1] == _ANY]
    return (
        pale(words)
        + table(header, 2, every)
        + f"<div class=charts>{''.join(drawn)}</div>"
        + fold("By the number of photos, as a table", table(header, 2, rows))
    )


def _one_photo(group: dict[str, Any]) -> Any:
    """Take the mean over animals, which the fused figure compares with; else over photos."""
    return group.get("accuracy_one_photo", group.get("accuracy_per_photo"))
