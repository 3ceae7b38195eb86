"""Every figure of an evaluation's summary against loops over `csv.DictReader`."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petface import files, metrics
from petface.evaluation.details import (
    DETAILS,
    DETAILS_FILE,
    MODELS,
    PER_IMAGE,
    PER_IMAGE_COLUMNS,
    describe_answers,
    empty_details,
    read_evaluation,
)
from petface.evaluation.summary import describe_summary, summarise
from petface.taxonomy import FEATURES
from tests.evaluation.made_evaluation import CLASSES, SPECIES, make_evaluation, write_models

Row = dict[str, Any]
HEADS = {species: tuple(heads) for species, heads in CLASSES.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, make_evaluation(folder)


@pytest.fixture(scope="module")
def folder(made: tuple[Path, list[Row]]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def photos(made: tuple[Path, list[Row]]) -> list[Row]:
    return made[1]


@pytest.fixture(scope="module")
def rows(folder: Path, photos: list[Row]) -> list[Row]:
    """The cells as the file has them; "p" from what made it."""
    with (folder / PER_IMAGE).open(newline="", encoding="utf-8") as handle:
        read = [{k: files.plain_cell(v) for k, v in r.items()} for r in csv.DictReader(handle)]
    return [{**row, "p": photo["p"]} for row, photo in zip(read, photos, strict=True)]


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    return summarise(read_evaluation(folder), resamples=0)


def figure(rows: Iterable[Row], column: str) -> dict[str, Any]:
    """Count by hand."""
    num = correct = 0
    for row in rows:
        if row[column] != "":
            num += 1
            correct += row[column] == "1"
    return {"num": num, "correct": correct, "accuracy": correct / num if num else None}


def tree(rows: list[Row]) -> dict[str, Any]:
    names = {row["species"] for row in rows}
    of = {name: [row for row in rows if row["species"] == name] for name in names}
    per_species = {
        name: {f: figure(of[name], f"{f}_correct") for f in FEATURES if any(
            row[f"{f}_correct"] for row in of[name])}
        for name in names
    }  # fmt: skip
    return {
        "stage1": {
            "overall": figure(rows, "species_correct"),
            "per_species": {name: figure(of[name], "species_correct") for name in names},
        },
        "stage2": {
            "per_feature": {f: figure(rows, f"{f}_correct") for f in FEATURES},
            "per_species": {name: figures for name, figures in per_species.items() if figures},
        },
    }


def test_counts_of_every_part(summary: dict[str, Any], rows: list[Row]) -> None:
    assert summary["num_images"] == len(rows) > 200
    assert summary["status_counts"] == Counter(row["status"] for row in rows)
    assert len(summary["status_counts"]) == 4
    assert {key: summary[key] for key in ("stage1", "stage2")} == tree(rows)
    for part in ("train", "val", "test"):
        own = [row for row in rows if row["split"] == part]
        assert summary["splits"][part] == {"num_images": len(own), **tree(own)}
    assert set(summary["stage2"]["per_species"]) == {"cat", "dog", "owl, barn", "ünicorn"}


def majority(train: list[str], test: list[str]) -> float:
    """Count right answers when the commonest training label is always given."""
    counts = Counter(train)
    commonest = max(sorted(counts), key=lambda name: counts[name]) if counts else None
    return sum(label == commonest for label in test)


def attribute(rows: list[Row], feature: str, species: set[str]) -> dict[str, Any] | None:
    """The held-out figures of one feature over some species, by hand."""
    known = [
        row for row in rows
        if row["species"] in species and feature in HEADS[row["species"]] and row[f"{feature}_true"]
    ]  # fmt: skip
    train = [row for row in known if row["split"] == "train"]
    test = [row for row in known if row["split"] == "test" and row["species_correct"]]
    if not test:
        return None
    asked = [row for row in test if row[f"{feature}_correct"]]
    right = sum(
        row["species_correct"] == "1" and row[f"{feature}_pred"] == row[f"{feature}_true"]
        for row in test
    )
    by_majority = sum(
        majority(*([r[f"{feature}_true"] for r in part if r["species"] == s] for part in
                   (train, test)))
        for s in species
    )  # fmt: skip
    return {
        "conditional": figure(asked, f"{feature}_correct"),
        "end_to_end": {"num": len(test), "correct": right, "accuracy": right / len(test)},
        "majority_baseline": pytest.approx(by_majority / len(test)),
    }  # fmt: skip


def test_held_out_species(summary: dict[str, Any], rows: list[Row]) -> None:
    train = [row["species"] for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test" and row["species_correct"]]
    found = dict(summary["test"]["species"])
    close(found, summary, "species", None)
    by_majority = majority(train, [row["species"] for row in test]) / len(test)
    assert found["majority_baseline"] == pytest.approx(by_majority)
    counted = figure(test, "species_correct")
    assert {key: found[key] for key in counted} == counted
    assert found["num"] < sum(row["split"] == "test" for row in rows)  # some were not answered


def close(found: dict[str, Any], summary: dict[str, Any], head: str, species: str | None) -> None:
    """What test_figures checks against loops is the same number here."""
    place = (
        summary["figures"]["test"] if species is None else summary["per_species"]["test"][species]
    )
    assert found["balanced_accuracy"] == place[head]["balanced_accuracy"]
    if species is None:
        fused, described = found["per_record"], summary["per_record"]["test"][head]
        assert (fused["num"], fused["accuracy"]) == (
            described["num_records"], described["accuracy_fused"],
        )  # fmt: skip


@pytest.mark.parametrize("feature", FEATURES)
def test_held_out_attributes(feature: str, summary: dict[str, Any], rows: list[Row]) -> None:
    for species in (None, *HEADS):
        expected = attribute(rows, feature, set(HEADS) if species is None else {species})
        place = summary["test"]["features"]
        place = place if species is None else summary["test"]["per_species"].get(species, {})
        assert (feature in place) == (expected is not None), species
        if expected is not None:
            found = place[feature]
            assert {key: found[key] for key in expected} == expected
            close(found, summary, feature, species)


def test_a_species_that_is_never_named_right_counts_as_missed(summary: dict[str, Any]) -> None:
    owl = summary["test"]["per_species"]["owl, barn"]["gender"]
    assert owl["end_to_end"]["num"] > 5 and owl["end_to_end"]["accuracy"] == 0
    assert owl["conditional"] == {"num": 0, "correct": 0, "accuracy": None}
    assert "'ibex" not in summary["test"]["per_species"]  # nobody could be asked


def test_intervals_are_over_records(folder: Path, rows: list[Row]) -> None:
    held_out = summarise(read_evaluation(folder), resamples=100)["test"]
    asked = [row for row in rows if row["split"] == "test" and row["breed_correct"]]
    sums: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in asked:
        sums[row["species"], row["record"]].append(int(row["breed_correct"]))
    keys = sorted(sums)
    expected = metrics.cluster_bootstrap_interval(
        [sum(sums[key]) for key in keys], [len(sums[key]) for key in keys], resamples=100
    )
    found = held_out["features"]["breed"]["conditional"]
    assert found["interval_95"] == list(expected) and found["num_records"] == len(keys)
    assert expected[0] < found["accuracy"] < expected[1]
    for entry in (held_out["species"], held_out["features"]["breed"]["end_to_end"]):
        assert entry["interval_95"][0] < entry["accuracy"] < entry["interval_95"][1]


def test_summary_is_json_and_reads_well(folder: Path, summary: dict[str, Any]) -> None:
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    text = describe_summary(summarise(read_evaluation(folder), resamples=50))
    lines = text.splitlines()
    assert lines[0].startswith(f"{summary['num_images']:,} images, ")
    assert [line.split()[0] for line in lines[2:8]] == ["species", *FEATURES]
    assert max(map(len, lines)) <= 120
    sure = summary["confidence"]["breed"]["all"]
    breed = next(line for line in lines if line.startswith("breed"))
    assert f"{summary['test']['features']['breed']['conditional']['accuracy'] * 100:.1f}" in breed
    assert " - " in breed
    for key in ("coverage", "accuracy_of_answered"):
        assert f" {sure[key] * 100:.1f} " in breed


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
def test_hardly_any_rows(row: Row | None, tmp_path: Path) -> None:
    """Nothing to divide by, nothing to fuse: null, and no crash."""
    write_a_row(tmp_path, row)
    if row and row["status"] == "no_specialist":
        models = json.loads((tmp_path / MODELS).read_text())
        files.write_json(tmp_path / MODELS, {**models, "specialists": {}})
    summary = summarise(read_evaluation(tmp_path))
    json.dumps(summary, allow_nan=False)
    assert summary["num_images"] == (row is not None)
    assert summary["test"]["features"] == summary["test"]["per_species"] == {}
    assert summary["stage2"]["per_feature"]["breed"]["accuracy"] is None
    assert "species" in describe_summary(summary)


def write_a_row(folder: Path, row: Row | None) -> None:
    """Write the files of an evaluation of one cat, or of nothing."""
    row = row and {**dict.fromkeys(PER_IMAGE_COLUMNS, ""), "species": "cat", "record": "1", **row}
    files.write_csv(folder / PER_IMAGE, PER_IMAGE_COLUMNS, [row.values()] if row else [])
    details = np.empty(len([row]) if row else 0, DETAILS)
    for head in DETAILS.names:
        details[head] = empty_details(len(details))
    if row and row.get("species_pred"):
        true = [SPECIES.index("cat")]
        found = np.eye(len(SPECIES))[[SPECIES.index(row["species_pred"])]]
        details["species"] = describe_answers(found, np.array(true), 1.0)
    np.save(folder / DETAILS_FILE, details)
    write_models(folder)


def test_a_specialist_that_was_never_asked_does_not_leave_the_denominator(tmp_path: Path) -> None:
    """Stage 1 knows no cat at all: every breed of a cat is missed, and none is left out."""
    write_a_row(
        tmp_path,
        {"status": "ok", "split": "test", "species_pred": "dog", "species_prob": "1.000000",
         "species_correct": "0", "breed_true": "x"},
    )  # fmt: skip
    test = summarise(read_evaluation(tmp_path))["test"]
    for found in (test["features"]["breed"], test["per_species"]["cat"]["breed"]):
        assert (found["end_to_end"]["num"], found["end_to_end"]["accuracy"]) == (1, 0)
        assert found["conditional"] == {"num": 0, "correct": 0, "accuracy": None}
