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
from petface.evaluation.details import HEADS, Evaluation, HeadAnswers
from petface.evaluation.figures import (
    MIN_PHOTOS,
    accuracy,
    count,
    describe_fusion,
    describe_reliability,
    figures,
    fuse,
    hardest_classes,
    interval,
    percent,
    top_confusions,
)
from petface.taxonomy import FEATURES

Table = dict[str, Any]  # values ready for JSON
_NAMED = 5  # classes of a head that are named in a line
_WITH_INTERVALS = ("val", "test")  # those of photos that were trained on would promise too much


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """Return the summary of an evaluation as a dictionary ready for JSON.

    Counts over all images and the same tree per split, from the table alone. `figures` of each
    split (see `figures.figures`); images that were not answered (unreadable) are left out. Of the
    test split alone: `test`, what a held-out claim needs, `per_species`, `per_record`
    (`figures.describe_fusion`), `confidence` (`figures.describe_reliability`), `top_confusions`
    and `hardest_classes`.
    """
    rows, heads = evaluation.rows, evaluation.heads
    found = {
        split: {
            head: figures(own, intervals=split in _WITH_INTERVALS)
            for head, answers in heads.items()
            if len(own := answers.of_split(split)) or head == "species"
        }
        for split in (*SPLITS, "all")
    }
    test = {head: answers.of_split("test") for head, answers in heads.items()}
    fused = {head: fuse(test[head]) for head in found["test"]}
    per_species: dict[str, Any] = {}
    for head, answers in test.items():
        count_metrics = accuracy if head == "species" else figures  # one species is one class
        for name, own in answers.per_species().items():
            per_species.setdefault(name, {})[head] = count_metrics(own, intervals=True)
    return {
        "num_images": len(rows),
        "contamination": describe_contamination(rows),
        "class_differences": evaluation.models.get("class_differences", {}),
        "status_counts": rows.groupby("status", observed=True).size().to_dict(),
        **_tree(rows),
        "splits": {
            split: {"num_images": len(own), **_tree(own)}
            for split in SPLITS
            for own in [rows[rows["split"] == split]]
        },
        "test": _held_out(test, fused, found["test"], per_species),
        "figures": found,
        "per_species": {"test": per_species},
        "per_record": {"test": {head: describe_fusion(table) for head, table in fused.items()}},
        "confidence": {head: describe_reliability(evaluation, own) for head, own in test.items()},
        "top_confusions": {head: top_confusions(own) for head, own in test.items()},
        "hardest_classes": {head: hardest_classes(own) for head, own in test.items()},
    }


def _tree(rows: pd.DataFrame) -> dict[str, Any]:
    """Count right answers per stage, feature and species; NaN, not predicted, does not count."""

    def counted(own: pd.DataFrame) -> dict[str, dict[str, Any]]:
        right = {head: own[f"{head}_correct"].dropna().to_numpy() == 1.0 for head in HEADS}
        return {head: count(truths) for head, truths in right.items()}

    species = {str(name): counted(own) for name, own in rows.groupby("species", observed=True)}
    stage1, every = {name: own.pop("species") for name, own in species.items()}, counted(rows)
    answered = {n: {f: own[f] for f in own if own[f]["num"]} for n, own in species.items()}
    return {
        "stage1": {"overall": every.pop("species"), "per_species": stage1},
        "stage2": {
            "per_feature": every,
            "per_species": {name: own for name, own in answered.items() if own},
        },
    }


def _held_out(
    test: dict[str, HeadAnswers], tables: dict[str, pd.DataFrame], found: Table, per_species: Table
) -> Table:
    """Pick from the metrics of the test split what a claim needs, pooled and per species."""
    named = tables["species"]
    claims = {head: _claim(test[head], table, named, found[head]) for head, table in tables.items()}
    by_species: Table = {}
    for head in FEATURES:
        for name, own in test[head].per_species().items():
            claim = _claim(own, fuse(own), named, per_species[name][head])
            by_species.setdefault(name, {})[head] = claim
    return {"species": claims.pop("species"), "features": claims, "per_species": by_species}


def _claim(answers: HeadAnswers, fused: pd.DataFrame, named: pd.DataFrame, figure: Table) -> Table:
    """Pick what a claim needs of a head; `named` is the fused species.

    For attributes `conditional` (stage 2 where stage 1 was right) and `end_to_end` (a wrong species
    counts as a wrong attribute), each with a 95 % interval over animals; `per_record`, all photos
    of an animal fused, its `end_to_end` right where the fused species is right too;
    `balanced_accuracy` and `majority_baseline`.
    """

    def per_record(is_right: np.ndarray, record: np.ndarray) -> Table:
        return {**count(is_right), "interval_95": metrics.accuracy_interval(is_right, record)}

    counts = ("num", "correct", "accuracy", "interval_95", "num_records")
    claim = {key: figure[key] for key in counts if key in figure}
    of_records = per_record(fused["is_right"].to_numpy(), fused["record"].to_numpy())
    if answers.head != "species":
        claim = {"conditional": claim, "end_to_end": figure["end_to_end"]}
        every = np.unique(answers.record)
        right = [np.isin(every, table["record"][table["is_right"]]) for table in (fused, named)]
        of_records["end_to_end"] = per_record(right[0] & right[1], every)
    keys = ("balanced_accuracy", "balanced_accuracy_interval_95", "majority_baseline")
    return {**claim, "per_record": of_records, **{key: figure[key] for key in keys}}


def describe_summary(summary: dict[str, Any]) -> str:
    """Format the held-out metrics as the table that an evaluation prints last.

    "sure" is the share of predictions at or above the threshold fitted for their species, "right if
    sure" their accuracy.
    """
    found, fused = summary["figures"]["test"], summary["per_record"]["test"]
    table = {
        name: {
            "images": f"{figure['num']:,}",
            "accuracy": percent(figure["accuracy"]),
            "95 % interval": interval(figure.get("interval_95")) or "too few",
            "top 5": percent(figure["top5"]),
            "end to end": percent(figure.get("end_to_end", {}).get("accuracy")),
            "per record": percent(fused[name]["accuracy_fused"]),
            "balanced": percent(figure["balanced_accuracy"]),
            "majority": percent(figure["majority_baseline"]),
            "sure": percent(sure.get("coverage")),
            "right if sure": percent(sure.get("accuracy_of_answered")),
            "kappa": "" if figure["kappa"] is None else f"{figure['kappa']:.2f}",
        }
        for name, figure in found.items()
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
        for k in classes[:1] if head != "species" else ():
            worst.append((k["recall"], f"{k['label']} of {k['species']}", k.get("num_records")))
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
