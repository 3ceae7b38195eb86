"""From the files of an evaluation to its summary, and the table that is printed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from petface import metrics
from petface.data.annotations import spelling
from petface.data.dataset import Dataset
from petface.data.fingerprint import contaminated
from petface.data.splits import SPLITS
from petface.evaluation.details import Evaluation, HeadAnswers, read_heads
from petface.evaluation.figures import (
    MIN_PHOTOS,
    count,
    describe_fusion,
    figures,
    figures_by_species,
    fuse,
    hardest_classes,
    interval,
    percent,
    top_confusions,
)
from petface.evaluation.reliability import describe_reliability
from petface.taxonomy import FEATURES

_NAMED = 5  # classes of a head that are named in a line
_WITH_INTERVALS = ("val", "test")  # those of photos that were trained on would promise too much


def summarise(
    evaluation: Evaluation, heads: dict[str, HeadAnswers] | None = None
) -> dict[str, Any]:
    """Return the summary of an evaluation as a dictionary ready for JSON.

    Counts over all images and the same tree per split, and, under `test`, what a held-out claim
    needs, all from the table alone. Then with the details: `figures` and `per_species` (see
    `figures.figures`), `per_record` (`figures.describe_fusion`), and of the test split
    `confidence` (`reliability.describe_reliability`), `top_confusions` and `hardest_classes`.
    `heads` as `read_heads` returns them, where they are there already.
    """
    rows = evaluation.rows
    heads = read_heads(evaluation) if heads is None else heads
    found: dict[str, Any] = {split: {} for split in (*SPLITS, "all")}
    per_species: dict[str, Any] = {split: {} for split in found}
    per_record: dict[str, Any] = {split: {} for split in found}
    for split in found:
        intervals = split in _WITH_INTERVALS
        for head, answers in heads.items():
            own = answers.of_split(split)
            if not len(own) and head != "species":
                continue
            found[split][head] = figures(own, intervals=intervals)
            for name, entry in figures_by_species(own, intervals=intervals).items():
                per_species[split].setdefault(name, {})[head] = entry
            per_record[split][head] = describe_fusion(fuse(own))
    test = {head: answers.of_split("test") for head, answers in heads.items()}
    status = rows["status"].value_counts()
    return {
        "num_images": len(rows),
        "contamination": describe_contamination(rows),
        "class_differences": evaluation.models.get("class_differences", {}),
        "status_counts": {str(name): int(num) for name, num in sorted(status.items())},
        **_tree(rows),
        "splits": {
            split: {
                "num_images": int((rows["split"] == split).sum()),
                **_tree(rows[rows["split"] == split]),
            }
            for split in SPLITS
        },
        "test": _held_out(test, found["test"], per_species["test"]),
        "figures": found,
        "per_species": per_species,
        "per_record": per_record,
        "confidence": {head: describe_reliability(evaluation, own) for head, own in test.items()},
        "top_confusions": {head: top_confusions(own) for head, own in test.items()},
        "hardest_classes": {head: hardest_classes(own) for head, own in test.items()},
    }


def _tree(rows: pd.DataFrame) -> dict[str, Any]:
    """Count right answers per stage, feature and species; NaN, not predicted, does not count."""
    species = {str(name): own for name, own in rows.groupby("species", observed=True)}

    def counted(own: pd.DataFrame, head: str) -> dict[str, Any]:
        return count((own[f"{head}_correct"].dropna() == 1.0).to_numpy())

    features = {
        name: {f: entry for f in FEATURES if (entry := counted(own, f))["num"]}
        for name, own in species.items()
    }
    return {
        "stage1": {
            "overall": counted(rows, "species"),
            "per_species": {name: counted(own, "species") for name, own in species.items()},
        },
        "stage2": {
            "per_feature": {f: counted(rows, f) for f in FEATURES},
            "per_species": {name: entry for name, entry in features.items() if entry},
        },
    }


def _held_out(
    test: dict[str, HeadAnswers], found: dict[str, Any], per_species: dict[str, Any]
) -> dict[str, Any]:
    """Describe the test split; images that were not answered (unreadable) are left out.

    For the species and for each feature, pooled and per species: `conditional` (stage 2 where
    stage 1 was right) and `end_to_end` (a wrong species counts as a wrong attribute), each with a
    95 % interval over animals; `per_record`, all photos of an animal fused, its
    `end_to_end` right where the fused species is right too;
    `majority_baseline`, the score of always giving the commonest training label of that species;
    and `balanced_accuracy`, the mean recall over the true classes.
    """

    def claim(figure: dict[str, Any]) -> dict[str, Any]:
        keys = ("num", "correct", "accuracy", "interval_95", "num_records")
        return {key: figure[key] for key in keys if key in figure}

    def per_record(is_right: np.ndarray, record: np.ndarray) -> dict[str, Any]:
        return {**count(is_right), "interval_95": metrics.accuracy_interval(is_right, record)}

    def described(answers: HeadAnswers, figure: dict[str, Any]) -> dict[str, Any]:
        claims, fused = claim(figure), fuse(answers)
        of_records = per_record(fused.is_right, fused.record)
        if answers.head != "species":
            claims = {"conditional": claims, "end_to_end": claim(figure["end_to_end"])}
            every = np.unique(answers.record)
            right = [np.isin(every, f.record[f.is_right]) for f in (fused, species)]
            of_records["end_to_end"] = per_record(right[0] & right[1], every)
        return {
            **claims,
            "per_record": of_records,
            "balanced_accuracy": figure["balanced_accuracy"],
            "balanced_accuracy_interval_95": figure.get("balanced_accuracy_interval_95"),
            "majority_baseline": figure["majority_baseline"],
        }

    species = fuse(test["species"])
    of_species: dict[str, Any] = {}
    features = {f: test[f] for f in FEATURES if f in found}
    for f, answers in features.items():
        for name, own in answers.per_species().items():
            of_species.setdefault(name, {})[f] = described(own, per_species[name][f])
    return {
        "species": described(test["species"], found["species"]),
        "features": {f: described(answers, found[f]) for f, answers in features.items()},
        "per_species": of_species,
    }


def describe_summary(summary: dict[str, Any]) -> str:
    """Format the held-out metrics as the table that an evaluation prints last.

    "sure" is the share of predictions at or above the threshold fitted for their species, "right if
    sure" their accuracy.
    """
    test, found = summary["test"], summary["figures"]["test"]
    table = {
        name: {
            "images": f"{found[name]['num']:,}",
            "accuracy": percent(found[name]["accuracy"]),
            "95 % interval": interval(found[name].get("interval_95")) or "too few",
            "top 5": percent(found[name]["top5"]),
            "end to end": percent(found[name].get("end_to_end", {}).get("accuracy")),
            "per record": percent(entry["per_record"]["accuracy"]),
            "balanced": percent(entry["balanced_accuracy"]),
            "majority": percent(entry["majority_baseline"]),
            "sure": percent(sure.get("coverage")),
            "right if sure": percent(sure.get("accuracy_of_answered")),
            "kappa": "" if found[name]["kappa"] is None else f"{found[name]['kappa']:.2f}",
        }
        for name, entry in [("species", test["species"]), *test["features"].items()]
        for sure in [summary["confidence"][name].get("all", {})]
    }
    num_test = summary["splits"]["test"]["num_images"]
    unknown = [
        f"{name}: {entry['num_not_a_class']} of these are of classes that the network does not "
        f"know; accuracy without them {percent(entry['known_classes']['accuracy'])}"
        for name, entry in found.items()
        if entry.get("known_classes")
    ]
    states = ", ".join(f"{name} {num:,}" for name, num in summary["status_counts"].items())
    return "\n".join(
        [
            f"{summary['num_images']:,} images, {num_test:,} of them in the test split; on the "
            "test split, in %:",
            pd.DataFrame.from_dict(table, orient="index").to_string(),
            f"status of all images: {states}",
            *difference_lines(summary.get("class_differences", {})),
            *(f"worst of {head}: {worst}" for head, worst in worst_of(summary).items()),
            *unknown,
            *contamination_lines(summary),
        ]
    )


def worst_of(summary: dict[str, Any]) -> dict[str, str]:
    """List the species and the class where each head is weakest, of those with photos enough."""
    found = {}
    for head, classes in summary.get("hardest_classes", {}).items():
        places = [
            (own[head]["accuracy"], name, own[head].get("num_records"))
            for name, own in summary["per_species"]["test"].items()
            if own.get(head, {}).get("num", 0) >= MIN_PHOTOS
        ]
        worst = [min(places)] if len(places) > 1 else []
        for first in classes[:1] if head != "species" else ():
            name = f"{first['label']} of {first['species']}"
            worst.append((first["recall"], name, first.get("num_records")))
        shown = ((percent(p), f"{name} {percent(p)} % ({n} animals)") for p, name, n in worst if n)
        if text := ", ".join(text for written, text in shown if written != "100.0"):
            found[head] = text
    return found


# ---- Whether an evaluation fits its networks ----


def describe_contamination(rows: pd.DataFrame) -> dict[str, Any]:
    """Count the test records that a network has seen, and those of which that is not known."""
    test = rows[rows["split"] == "test"].drop_duplicates(["species", "record"])
    num = int((test["contaminated"] == "1").sum())
    return {
        "contaminated": contaminated(num, len(test)),
        "num": num,
        "not_known": int((test["contaminated"] == "").sum()),
    }


def contamination_lines(summary: dict[str, Any]) -> list[str]:
    """Format what forbids to call the test split unseen; none where nothing does."""
    found = summary.get("contamination")
    if not isinstance(found, dict) or not {"contaminated", "num", "not_known"} <= found.keys():
        return ["contaminated: not known, the summary is of an earlier version"]
    told = f"contaminated: {found['contaminated']} of the test split are known to the networks"
    lines = [f"{told}, which learnt from them or were chosen by them"] * (found["num"] > 0)
    what = f"not known whether the networks have seen {found['not_known']} records of the test "
    return lines + [f"{what}split: a checkpoint does not say it"] * (found["not_known"] > 0)


def class_differences(dataset: Dataset, models: dict[str, Any]) -> dict[str, Any]:
    """Compare the classes of data and networks: per head what each lacks, with the nearest name."""
    pairs = {"species": (models["stage1"]["heads"]["species"], dataset.catalog.classes)}
    for name, model in models["specialists"].items():
        if table := dataset.annotations.get(name):
            heads = {head: own for head, own in table.vocabularies.items() if own}
            pairs |= {f"{name} {h}": (model["heads"].get(h, ()), own) for h, own in heads.items()}
    found = {}
    for head, (known, there) in pairs.items():
        new = {name: _nearest(name, known) for name in there if name not in known}
        gone = {name: _nearest(name, there) for name in known if name not in there}
        if known and (new or gone):
            found[head] = {"not_in_the_network": new, "not_in_the_data": gone}
    return found


def difference_lines(found: dict[str, Any]) -> list[str]:
    """Format `class_differences`, a line for each head and side."""
    lines = []
    for head, sides in found.items():
        for side, names in sides.items():
            told = [
                f"{name!r}" + f" (nearest: {near!r})" * bool(near) for name, near in names.items()
            ]
            more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
            what = f"{head}: {side.replace('_', ' ')}: {', '.join(told[:_NAMED])}{more}"
            lines += [what] * bool(told)
    return lines


def _nearest(name: str, others: Sequence[str]) -> str:
    plain = {spelling(other): other for other in others}
    near = difflib.get_close_matches(spelling(name), list(plain), n=1)
    return plain[near[0]] if near else ""
