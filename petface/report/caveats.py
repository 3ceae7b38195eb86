"""What must be said beside the figures of an evaluation, found in the figures themselves."""

from __future__ import annotations

from typing import Any, Final

from petface.analysis.audit import ClassCount
from petface.report.card_facts import Facts, ModelFacts, get

FEW_PHOTOS: Final = 100
_MOST_NAMES = 8


def caveats(facts: Facts, classes: list[ClassCount]) -> list[str]:
    """List the caveats that apply, each a sentence or two."""
    found = [
        "Only figures of the test part speak of new animals. Figures of the train part show how "
        "well the networks remember; they are not accuracy.",
        *_small(facts.summary),
        *_not_better(facts.summary),
        *_untestable(facts, classes),
        *_guard(facts),
        *_calibration(facts),
    ]
    counts = facts.summary.get("status_counts", {})
    if unanswered := {k: n for k, n in counts.items() if k not in ("ok", "no_specialist") and n}:
        listed = ", ".join(f"{num:,} {name}" for name, num in unanswered.items())
        found.append(f"Images without an answer are in no accuracy: {listed}.")
    if num := counts.get("no_specialist"):
        found.append(f"{num:,} images are of a species without a specialist: no attributes.")
    return found


def heads_of(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give each head's test figures: `accuracy`, `num`, ... with newer figures over older ones.

    `accuracy` of an attribute is conditional on the right species; `end_to_end` is beside it.
    """
    test = summary.get("test", {})
    older = {"species": test.get("species", {}), **test.get("features", {})}
    newer = get(summary, "figures", "test") or {}
    found = {}
    for head in dict.fromkeys([*older, *newer]):
        entry = dict(older.get(head) or {})
        entry |= entry.pop("conditional", {})
        for key, value in (newer.get(head) or {}).items():
            if value is not None or key not in entry:
                entry[key] = value
        if entry.get("num"):
            found[head] = entry
    return found


def calibrations(facts: Facts) -> list[tuple[str, str, dict[str, Any]]]:
    """List (species or "", head, what the end of training measured) over all networks."""
    every = [("", facts.stage1), *facts.specialists.items()]
    return [
        (species, head, figures)
        for species, model in every
        for head, figures in (model.final.get("calibration") or {}).items()
        if isinstance(figures, dict)
    ]


def guard_of(model: ModelFacts) -> dict[str, Any]:
    """Give the measured rates of the guard against photos of no known species; {} if none."""
    found = model.final.get("guard")
    return found if isinstance(found, dict) else {}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write nested entries as `outer inner`, lists left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            found |= flat(value, f"{name} ")
        elif not isinstance(value, list):
            found[name] = value
    return found


def _small(summary: dict[str, Any]) -> list[str]:
    small = [
        f"{head} ({entry['num']:,})"
        for head, entry in heads_of(summary).items()
        if entry["num"] < FEW_PHOTOS
    ]
    found = []
    if small:
        found.append(
            f"The test part is small: fewer than {FEW_PHOTOS} photos of {', '.join(small)}. Such "
            "figures can move by many points by chance alone."
        )
    per_species = get(summary, "splits", "test", "stage1", "per_species") or {}
    few = [f"{name} ({entry['num']:,})" for name, entry in per_species.items()
           if entry.get("num", 0) < FEW_PHOTOS]  # fmt: skip
    if few:
        found.append(f"Fewer than {FEW_PHOTOS} test photos of the species {_some(few)}.")
    return found


def _not_better(summary: dict[str, Any]) -> list[str]:
    found = []
    for head, entry in heads_of(summary).items():
        baseline = entry.get("majority_baseline")
        figure = entry.get("end_to_end") or entry  # the baseline counts the same photos
        interval = figure.get("interval_95")
        low = interval[0] if interval else figure.get("accuracy")
        if baseline is not None and low is not None and low <= baseline:
            found.append(
                f"{head} is not shown to be better than always giving the commonest training "
                f"label ({baseline * 100:.1f} %): its accuracy is {figure['accuracy'] * 100:.1f} %"
                + (f", 95 % interval {low * 100:.1f} to {interval[1] * 100:.1f} %." if interval
                   else ".")
            )  # fmt: skip
    return found


def _untestable(facts: Facts, classes: list[ClassCount]) -> list[str]:
    if classes:
        names = [f"{c.species} {c.feature} {c.name!r}" for c in classes if c.is_untestable]
        num, total = len(names), len(classes)
        listed = f": {_some(names)}" if names else ""
    else:
        heads = [h for per in facts.audit.get("heads", {}).values() for h in per.values()]
        num = sum(head.get("untestable_classes", 0) for head in heads)
        total, listed = sum(head.get("classes", 0) for head in heads), ""
    if not num:
        return []
    return [f"{num:,} of {total:,} classes have no test record, so nothing says how well they are "
            f"recognised{listed}."]  # fmt: skip


def _guard(facts: Facts) -> list[str]:
    if guard_of(facts.stage1):
        return []
    return [
        "How often a photo of no known species is noticed is not measured. Such a photo may get a "
        "confident answer."
    ]


def _calibration(facts: Facts) -> list[str]:
    found = []
    measured = calibrations(facts)
    if not measured:
        return ["Whether the probabilities can be believed is not measured."]
    worse = [
        f"{species} {head}".strip()
        for species, head, figures in measured
        if None not in (figures.get("ece_before"), figures.get("ece_after"))
        and figures["ece_after"] > figures["ece_before"]
    ]
    if worse:
        found.append(
            "Calibration made the gap between confidence and accuracy on the test part larger for "
            f"{_some(worse)} (chance where the test part is small)."
        )
    silent = [
        f"{species} {head}".strip()
        for species, head, figures in measured
        if "fitted" in figures and get(figures, "fitted", "threshold") is None
    ]
    if silent:
        found.append(
            "On the validation part no confidence was high enough for the wanted accuracy, so no "
            f"answer counts as sure: {_some(silent)}."
        )
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
