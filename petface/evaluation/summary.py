"""From the files of an evaluation to its figures, and the table that is printed."""

from __future__ import annotations

from typing import Any

import pandas as pd

from petface.data.splits import SPLITS
from petface.evaluation.confusions import hardest_classes, top_confusions
from petface.evaluation.consistency import describe_consistency
from petface.evaluation.details import HEADS, Evaluation
from petface.evaluation.figures import figures, figures_by_species, interval, percent
from petface.evaluation.fusion import count, describe_fusion, fuse
from petface.evaluation.heads import HeadAnswers, read_heads
from petface.evaluation.reliability_figures import describe_trust
from petface.taxonomy import FEATURES

PARTS = (*SPLITS, "all")
_WITH_INTERVALS = ("val", "test")  # those of photos that were trained on would promise too much


def summarise(
    evaluation: Evaluation, resamples: int = 1000, heads: dict[str, HeadAnswers] | None = None
) -> dict[str, Any]:
    """Give the summary of an evaluation as a dictionary ready for JSON.

    Counts over all images and the same tree per part of the split, and, under `test`, what a
    held-out claim needs, all from the table alone. Then with the details: `figures` and
    `per_species` (see `figures.figures`), `per_record` (`fusion.describe_fusion`), `consistency`,
    and of the test part `confidence` (`trust.describe_trust`), `top_confusions` and
    `hardest_classes`. `resamples` of the bootstrap over animals; 0 = no intervals. `heads` as
    `read_heads` gives them, where they are there already.
    """
    rows = evaluation.rows
    heads = read_heads(evaluation) if heads is None else heads
    found: dict[str, Any] = {part: {} for part in PARTS}
    per_species: dict[str, Any] = {part: {} for part in PARTS}
    per_record: dict[str, Any] = {part: {} for part in PARTS}
    for part in PARTS:
        drawn = resamples if part in _WITH_INTERVALS else 0
        for head, answers in heads.items():
            own = answers.of_part(part)
            if not len(own) and head != "species":
                continue
            found[part][head] = figures(own, drawn)
            for name, entry in figures_by_species(own, drawn).items():
                per_species[part].setdefault(name, {})[head] = entry
            per_record[part][head] = describe_fusion(fuse(own))
    test = {head: answers.of_part("test") for head, answers in heads.items()}
    return {
        "num_images": len(rows),
        "status_counts": _counts(rows["status"]),
        **_tree(rows),
        "splits": {
            part: {
                "num_images": int((rows["split"] == part).sum()),
                **_tree(rows[rows["split"] == part]),
            }
            for part in SPLITS
        },
        "test": _held_out(test, found["test"], per_species["test"]),
        "figures": found,
        "per_species": per_species,
        "per_record": per_record,
        "consistency": describe_consistency(rows),
        "confidence": {head: describe_trust(evaluation, own) for head, own in test.items()},
        "top_confusions": {head: top_confusions(own) for head, own in test.items()},
        "hardest_classes": {head: hardest_classes(own) for head, own in test.items()},
    }


def _figure(correct: pd.Series) -> dict[str, Any]:
    """Count a column of 1, 0 and NaN (not asked) into the three numbers of the contract."""
    num, right = int(correct.notna().sum()), int(correct.sum())
    return {"num": num, "correct": right, "accuracy": right / num if num else None}


def _counts(column: pd.Series) -> dict[str, int]:
    return {str(name): int(num) for name, num in sorted(column.value_counts().items()) if num}


def _tree(rows: pd.DataFrame) -> dict[str, Any]:
    species = {str(n): part for n, part in rows.groupby("species", observed=True)}
    per_species: dict[str, Any] = {}
    for name, part in species.items():
        counted = {f: _figure(part[f"{f}_correct"]) for f in FEATURES}
        per_species[name] = {f: figure for f, figure in counted.items() if figure["num"]}
    return {
        "stage1": {
            "overall": _figure(rows["species_correct"]),
            "per_species": {n: _figure(part["species_correct"]) for n, part in species.items()},
        },
        "stage2": {
            "per_feature": {f: _figure(rows[f"{f}_correct"]) for f in FEATURES},
            "per_species": {n: figures for n, figures in per_species.items() if figures},
        },
    }


def _held_out(
    test: dict[str, HeadAnswers], found: dict[str, Any], per_species: dict[str, Any]
) -> dict[str, Any]:
    """Describe the test part; images that were not answered (unreadable) are left out.

    For the species and for each feature, pooled and per species: `conditional` (stage 2 where
    stage 1 was right) and `end_to_end` (a wrong species counts as a wrong attribute), each with a
    95 % interval from a bootstrap over animals; `per_record`, all photos of an animal fused;
    `majority_baseline`, the score of always giving the commonest training label of that species;
    and `balanced_accuracy`, the mean recall over the true classes.
    """
    result: dict[str, Any] = {
        "species": {**_claim(found["species"]), **_beside(test["species"], found["species"])},
        "features": {},
        "per_species": {},
    }
    for feature in FEATURES:
        if feature not in found:
            continue
        result["features"][feature] = _attribute(test[feature], found[feature])
        for name, part in test[feature].per_species().items():
            entry = _attribute(part, per_species[name][feature])
            result["per_species"].setdefault(name, {})[feature] = entry
    return result


def _attribute(answers: HeadAnswers, figure: dict[str, Any]) -> dict[str, Any]:
    return {
        "conditional": _claim(figure),
        "end_to_end": _claim(figure["end_to_end"]),
        **_beside(answers, figure),
    }


def _claim(figure: dict[str, Any]) -> dict[str, Any]:
    claim = {key: figure[key] for key in ("num", "correct", "accuracy")}
    if "bootstrap_95" in figure:
        claim |= {"interval_95": figure["bootstrap_95"], "num_records": figure["num_records"]}
    return claim


def _beside(answers: HeadAnswers, figure: dict[str, Any]) -> dict[str, Any]:
    return {
        "per_record": count(fuse(answers)),
        "balanced_accuracy": figure["balanced_accuracy"],
        "majority_baseline": figure["majority_baseline"],
    }


def describe_summary(summary: dict[str, Any]) -> str:
    """Lay the held-out figures out as the table that an evaluation prints last."""
    test = summary["test"]
    lines = [
        f"{summary['num_images']:,} images, {summary['splits']['test']['num_images']:,} of them in "
        "the test part; on the test part, in %:",
        f"{'':10s} {'images':>8s} {'accuracy':>9s} {'95 % interval':>15s} {'top 5':>6s} "
        f"{'end to end':>11s} {'per record':>11s} {'balanced':>9s} {'majority':>9s} {'kappa':>6s}",
    ]
    for name, entry in [("species", test["species"]), *test["features"].items()]:
        figure = summary["figures"]["test"][name]
        shown = interval(figure.get("interval_95"))
        kappa = "" if figure["kappa"] is None else f"{figure['kappa']:.2f}"
        end_to_end = figure.get("end_to_end", {}).get("accuracy")
        lines.append(
            f"{name:10s} {figure['num']:8,d} {percent(figure['accuracy']):>9s} {shown:>15s} "
            f"{percent(figure['top5']):>6s} {percent(end_to_end):>11s} "
            f"{percent(entry['per_record']['accuracy']):>11s} "
            f"{percent(entry['balanced_accuracy']):>9s} "
            f"{percent(entry['majority_baseline']):>9s} {kappa:>6s}"
        )
    return "\n".join(lines + [f"  {line}" for line in describe_confidence(summary)])


def describe_confidence(summary: dict[str, Any]) -> list[str]:
    """Say in a sentence per head how many photos it answers with confidence, and how rightly."""
    lines = []
    for head in HEADS:
        entry = summary["confidence"].get(head, {}).get("all")
        if entry is None:
            continue
        wanted = "what its species wants"
        if entry["wanted_accuracy"] is not None:
            wanted = f"{entry['wanted_accuracy'] * 100:g} %"
        if not entry["num_fitted"]:
            text = "no threshold was fitted"
        elif not entry["num_with_threshold"]:
            text = f"never sure: no threshold reaches {wanted} on the validation part"
        else:
            text = f"answers {percent(entry['coverage'])} % of photos at {wanted} (wanted)"
            right = entry["accuracy_of_answered"]
            if right is not None:
                text += f", {percent(right)} % right of these on the test part"
        lines.append(f"{head}: {text}")
    return lines
