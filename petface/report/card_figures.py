"""The figures of a model card, each from a file or "not measured"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from petface.report.card_facts import NOT_MEASURED, Facts, ModelFacts, get
from petface.report.caveats import calibrations, flat, guard_of, heads_of
from petface.report.document import Block, Grid, Heading, Paragraph


def analyses(facts: Facts) -> Iterator[Block]:
    """Lay out the figures: test part, per species, confidence, guard, fit."""
    yield Heading("Quantitative analyses")
    yield Heading("Test part, in %", 3)
    header = ("head", "photos", "animals", "accuracy", "95 % interval", "end to end", "per animal",
              "balanced", "majority")  # fmt: skip
    heads = heads_of(facts.summary)
    rows = [
        (
            head,
            count(entry["num"]),
            count(entry.get("num_records")),
            percent(entry.get("accuracy")),
            interval(entry.get("interval_95")),
            percent(get(entry, "end_to_end", "accuracy")) if head != "species" else "",
            percent(get(entry, "per_record", "accuracy")),
            percent(entry.get("balanced_accuracy")),
            percent(entry.get("majority_baseline")),
        )
        for head, entry in heads.items()
    ]
    yield Grid(header, 1, rows) if rows else Paragraph(f"Test figures: {NOT_MEASURED}.")
    yield Heading("Test part: ranks and probabilities", 3)
    names = ("top3", "top5", "macro_f1", "kappa", "nll", "brier", "ece")
    more = [
        (head, *(_defined(entry, k, percent if k in names[:3] else decimal) for k in names))
        for head, entry in heads.items()
        if any(entry.get(k) is not None for k in names)
    ]
    columns = ("head", "top 3 %", "top 5 %", "macro F1 %", "kappa", "log loss", "Brier", "ECE")
    yield (
        Grid(columns, 1, more)
        if more
        else Paragraph(
            f"Ranks, F1, kappa, log loss, Brier score and calibration error: {NOT_MEASURED}."
        )
    )
    yield from _per_species(facts.summary)
    yield from _confidence(facts)
    yield from _guard(facts)
    yield from _train_fit(facts.summary)


def _defined(entry: dict[str, Any], key: str, show: Callable[[Any], str]) -> str:
    """Show a figure that may be undefined, as the top 5 of two classes is."""
    return "undefined" if key in entry and entry[key] is None else show(entry.get(key))


def _per_species(summary: dict[str, Any]) -> Iterator[Block]:
    recall = get(summary, "splits", "test", "stage1", "per_species") or {}
    attributes = get(summary, "test", "per_species") or {}
    heads = [h for h in heads_of(summary) if h != "species"]
    rows = [
        (
            name,
            count(entry.get("num")),
            percent(entry.get("accuracy")),
            *(_attribute(get(attributes, name, head, "conditional")) for head in heads),
        )
        for name, entry in recall.items()
    ]
    yield Heading("Test part per species, in %", 3)
    yield Paragraph(
        "Share of the species' photos named right; then each attribute where the species was "
        "right, with its photos in brackets."
    )
    yield Grid(("species", "photos", "named right", *heads), 1, rows)


def _attribute(figure: dict[str, Any] | None) -> str:
    if not figure or figure.get("accuracy") is None:
        return ""
    return f"{percent(figure['accuracy'])} ({figure['num']:,})"


def _confidence(facts: Facts) -> Iterator[Block]:
    yield Heading("Confidence: calibration before and after, on the test part", 3)
    rows = [
        (
            species or "all", head, count(figures.get("num")), decimal(figures.get("ece_before")),
            decimal(figures.get("ece_after")), percent(figures.get("coverage")),
            percent(figures.get("accuracy")) if figures.get("coverage") != 0 else "none sure",
            percent(figures.get("conformal_coverage"))
            if get(figures, "fitted", "conformal_quantile") is not None else "no sets",
        )
        for species, head, figures in calibrations(facts)
    ]  # fmt: skip
    if not rows:
        yield Paragraph(f"Calibration: {NOT_MEASURED}.")
        return
    header = ("species", "head", "photos", "ECE before", "ECE after", "sure answers %",
              "right of those %", "truth in the set %")  # fmt: skip
    yield Grid(header, 2, rows)


def _guard(facts: Facts) -> Iterator[Block]:
    yield Heading("Photos of no known species", 3)
    rows = [(name, shown(value)) for name, value in flat(guard_of(facts.stage1)).items()]
    yield (
        Grid(("guard", "value"), 2, rows)
        if rows
        else Paragraph(
            f"How many are noticed, and how many known ones are refused: {NOT_MEASURED}."
        )
    )


def _train_fit(summary: dict[str, Any]) -> Iterator[Block]:
    rows = [
        (part, count(get(found, "num")), percent(get(found, "accuracy")))
        for part in ("train", "val")
        if (found := get(summary, "splits", part, "stage1", "overall"))
    ]
    if rows:
        yield Heading("Species on the parts that were learned from: fit, not accuracy", 3)
        yield Grid(("part", "photos", "named right %"), 1, rows)


def shown(value: object) -> str:
    """Show a fact; an absent one is not measured."""
    if value is None or value == "":
        return NOT_MEASURED
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def count(value: int | None) -> str:
    """Show a count."""
    return NOT_MEASURED if value is None else f"{value:,}"


def percent(share: float | None) -> str:
    """Show a share in per cent with one digit."""
    return NOT_MEASURED if share is None else f"{share * 100:.1f}"


def decimal(value: float | None) -> str:
    """Show a figure with four digits after the point."""
    return NOT_MEASURED if value is None else f"{value:.4f}"


def interval(limits: list[float] | None) -> str:
    """Show an interval of shares in per cent; one without width comes from too few photos."""
    if not limits:
        return NOT_MEASURED
    shown = " to ".join(f"{value * 100:.1f}" for value in limits)
    return shown if limits[0] < limits[1] else f"{shown} (too few)"


def minutes(model: ModelFacts) -> str:
    """Show how long a training took."""
    value = model.final.get("train_minutes")
    return NOT_MEASURED if value is None else f"{value:.1f}"
