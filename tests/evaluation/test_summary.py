"""Every figure of an evaluation's summary against loops over `csv.DictReader`."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from petface import files
from petface.evaluation import details
from petface.evaluation import summary as summary_module
from petface.evaluation.summary import describe_summary, summarise, worst_of
from petface.taxonomy import FEATURES
from tests.evaluation.made_evaluation import SPECIES, write_models

Row = dict[str, Any]


def count(rows, column):
    """Count by hand."""
    marks = [row[column] == "1" for row in rows if row[column] != ""]
    num, correct = len(marks), sum(marks)
    return {"num": num, "correct": correct, "accuracy": correct / num if num else None}


def tree(rows):
    of = {name: [r for r in rows if r["species"] == name] for name in {r["species"] for r in rows}}
    answered = {
        name: {
            f: count(own, f"{f}_correct") for f in FEATURES if any(r[f"{f}_correct"] for r in own)
        }
        for name, own in of.items()
    }
    return {
        "stage1": {
            "overall": count(rows, "species_correct"),
            "per_species": {name: count(own, "species_correct") for name, own in of.items()},
        },
        "stage2": {
            "per_feature": {f: count(rows, f"{f}_correct") for f in FEATURES},
            "per_species": {name: counts for name, counts in answered.items() if counts},
        },
    }


def test_counts_of_every_part(summary, photos):
    assert summary["num_images"] == len(photos) > 200
    assert summary["status_counts"] == Counter(row["status"] for row in photos)
    assert len(summary["status_counts"]) == 4
    assert {key: summary[key] for key in ("stage1", "stage2")} == tree(photos)
    for part in ("train", "val", "test"):
        own = [row for row in photos if row["split"] == part]
        assert summary["splits"][part] == {"num_images": len(own), **tree(own)}
    assert set(summary["stage2"]["per_species"]) == {"cat", "dog", "owl, barn", "ünicorn"}


def test_held_out_claims_are_the_metrics_of_the_test_split(summary):
    """`figures` and `per_species` hold the same numbers, which test_figures.py counts in loops."""
    test, figures = summary["test"], summary["figures"]["test"]
    places = [(test["species"], test["species"], figures["species"])]
    pairs = [(test["features"], figures)]
    pairs += [(own, summary["per_species"]["test"][n]) for n, own in test["per_species"].items()]
    for entries, wholes in pairs:
        places += [(entry, entry["conditional"], wholes[f]) for f, entry in entries.items()]
        places += [
            (entry, entry["end_to_end"], wholes[f] | wholes[f]["end_to_end"])
            for f, entry in entries.items()
        ]
    assert len(places) > 20
    for entry, claim, whole in places:
        for key in ("balanced_accuracy", "majority_baseline"):
            assert entry[key] == whole[key]
        for key in ("num", "correct", "accuracy"):
            assert claim[key] == whole[key]
    for head, entry in {"species": test["species"], **test["features"]}.items():
        fused, described = entry["per_record"], summary["per_record"]["test"][head]
        assert fused["num"] == described["num_records"]
        assert fused["accuracy"] == described["accuracy_fused"]
        if head != "species":  # right where its species is too
            whole = fused["end_to_end"]
            assert whole["num"] == entry["end_to_end"]["num_records"], head
            assert whole["correct"] <= fused["correct"] and whole["accuracy"] <= fused["accuracy"]


def test_a_species_that_is_never_named_right_counts_as_missed(summary):
    test = summary["per_species"]["test"]
    owl = test["owl, barn"]["gender"]
    assert owl["end_to_end"]["num"] > 5 and owl["end_to_end"]["accuracy"] == 0
    assert (owl["num"], owl["correct"], owl["accuracy"]) == (0, 0, None)
    assert list(test["'ibex"]) == ["species"]  # nobody could be asked


def test_summary_is_json_and_reads_well(summary):
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    text = describe_summary(summary)
    lines = text.splitlines()
    assert lines[0].startswith(f"{summary['num_images']:,} images, ")
    assert [line.split()[0] for line in lines[2:8]] == ["species", *FEATURES]
    assert max(map(len, lines)) <= 120 and "unreadable 19" in text
    sure = summary["confidence"]["breed"]["all"]
    breed = next(line for line in lines if line.startswith("breed"))
    assert f"{summary['figures']['test']['breed']['accuracy'] * 100:.1f}" in breed
    assert " - " in breed
    worst = summary["hardest_classes"]["breed"][0]
    name = f"{worst['label']} of {worst['species']} {worst['recall'] * 100:.1f} %"
    (line,) = (line for line in lines if line.startswith("worst of breed: "))
    assert line.endswith(f", {name} ({worst['num_records']} animals)")
    own = {
        n: heads["breed"] for n, heads in summary["per_species"]["test"].items() if "breed" in heads
    }
    assert line.startswith(f"worst of breed: {min(own, key=lambda n: own[n]['accuracy'])} ")
    for key in ("coverage", "accuracy_of_answered"):
        assert f" {sure[key] * 100:.1f} " in breed


@pytest.mark.parametrize(
    ("recall", "expected"),
    [(1.0, {}), (0.9996, {}), (0.999, {"color": "Normal of javasparrow 99.9 % (9 animals)"})],
)
def test_nothing_is_worst_that_is_written_as_100_percent(recall, expected):
    hard = {"label": "Normal", "species": "javasparrow", "recall": recall, "num_records": 9}
    found = worst_of({"hardest_classes": {"color": [hard]}, "per_species": {"test": {}}})
    assert found == expected


def test_the_worst_species_is_one_of_several_whose_animals_are_counted():
    own = {"color": {"num": 99, "accuracy": 0.5, "num_records": 9}}
    few = {"color": {"num": 4, "accuracy": 0.1, "num_records": 2}}
    old = {"color": {"num": 99, "accuracy": 0.5}}  # an earlier version counted no animals
    found = {"hardest_classes": {"color": [{"label": "x", "species": "cat", "recall": 0.5}]}}
    for other, expected in ((few, {}), (own, {"color": "cat 50.0 % (9 animals)"}), (old, {})):
        species = {"cat": old if other is old else own, "dog": other}
        assert worst_of(found | {"per_species": {"test": species}}) == expected


def test_what_networks_have_seen_is_counted_by_animals_and_told():
    columns = ["split", "species", "record", "contaminated"]
    marks = [("test", "1"), ("test", "1"), ("test", ""), ("test", "0"), ("val", "1"), ("val", "")]
    rows = [(split, "cat", str(max(k, 1)), mark) for k, (split, mark) in enumerate(marks)]
    found = summary_module.describe_contamination(pd.DataFrame(rows, columns=columns))
    assert found == {"contaminated": "1 of 3 records", "num": 1, "not_known": 1}
    told = summary_module.contamination_lines({"contamination": found})
    assert [line.partition(" ")[0] for line in told] == ["contaminated:", "not"]
    clean = {"contaminated": "0 of 3 records", "num": 0, "not_known": 0}
    assert summary_module.contamination_lines({"contamination": clean}) == []


def test_classes_that_only_the_data_or_the_network_has_are_told_with_the_nearest():
    dataset = SimpleNamespace(
        catalog=SimpleNamespace(classes=["cat", "dog"]),
        annotations={"cat": SimpleNamespace(vocabularies={"breed": ["Manx", "Persian"]})},
    )
    heads = {"breed": ["Manx", "Persan", "Siamese"]}
    models = {"stage1": {"heads": {"species": ["cat", "dog"]}}}
    models["specialists"] = {"cat": {"heads": heads}, "yak": {"heads": heads}}
    found = summary_module.class_differences(dataset, models)
    assert found == {
        "cat breed": {
            "not_in_the_network": {"Persian": "Persan"},
            "not_in_the_data": {"Persan": "Persian", "Siamese": ""},
        }
    }
    assert summary_module.difference_lines(found) == [
        "cat breed: not in the network: 'Persian' (nearest: 'Persan')",
        "cat breed: not in the data: 'Persan' (nearest: 'Persian'), 'Siamese'",
    ]


@pytest.mark.parametrize(
    "row",
    [
        None,
        {"status": "unreadable", "split": "test"},
        {"status": "no_specialist", "split": "test", "species_pred": "cat",
         "species_prob": "0.5", "species_correct": "1", "breed_true": "x"},
        {"status": "ok", "split": "val", "species_pred": "dog", "species_prob": "1.000000",
         "species_correct": "0"},
    ],
)  # fmt: skip
def test_hardly_any_rows(row, tmp_path):
    """Nothing to divide by, nothing to fuse: null, and no crash."""
    write_a_row(tmp_path, row)
    if row and row["status"] == "no_specialist":
        models = json.loads((tmp_path / details.MODELS).read_text())
        files.write_json(tmp_path / details.MODELS, {**models, "specialists": {}})
    summary = summarise(details.read_evaluation(tmp_path))
    json.dumps(summary, allow_nan=False)
    assert summary["num_images"] == (row is not None)
    assert summary["figures"]["test"].keys() == {"species"}
    assert summary["stage2"]["per_feature"]["breed"]["accuracy"] is None
    assert "species" in describe_summary(summary)


def write_a_row(folder, row):
    """Write the files of an evaluation of one cat, or of nothing."""
    whole = dict.fromkeys(details.PER_IMAGE_COLUMNS, "") | {"species": "cat", "record": "1"}
    rows = [(whole | row).values()] if row else []
    files.write_csv(folder / details.PER_IMAGE, details.PER_IMAGE_COLUMNS, rows)
    own = details.empty_details(1 if row else 0)
    if row and row.get("species_pred"):
        true = [SPECIES.index("cat")]
        found = np.eye(len(SPECIES))[[SPECIES.index(row["species_pred"])]]
        own["species"] = details.describe_answers(found, np.array(true), 1.0)
    np.save(folder / details.DETAILS_FILE, own)
    write_models(folder)


def test_a_specialist_that_was_never_asked_does_not_leave_the_denominator(tmp_path):
    """Stage 1 knows no cat at all: every breed of a cat is missed, and none is left out."""
    write_a_row(
        tmp_path,
        {"status": "ok", "split": "test", "species_pred": "dog", "species_prob": "1.000000",
         "species_correct": "0", "breed_true": "x"},
    )  # fmt: skip
    summary = summarise(details.read_evaluation(tmp_path))
    for found in (summary["figures"]["test"], summary["per_species"]["test"]["cat"]):
        own = found["breed"]
        assert (own["end_to_end"]["num"], own["end_to_end"]["accuracy"]) == (1, 0)
        assert (own["num"], own["correct"], own["accuracy"]) == (0, 0, None)
