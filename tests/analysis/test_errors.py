"""Mistakes and slices of a made-up evaluation against loops over its rows."""

import csv
import math
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest

from petface.analysis import errors
from petface.evaluation.details import read_evaluation
from petface.files import plain_cell
from petface.metrics import accuracy_interval
from tests.analysis.evaluations import make_evaluation, make_images, read_cells


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An evaluation without genders, and its rows."""
    folder = tmp_path_factory.mktemp("evaluation")
    heads = {"cat": ("breed",), "dog": ("breed",), "'emu": ()}
    make_evaluation(folder, make_images(num_records=120), 0.5, 1, heads_of=heads)
    return read_evaluation(folder), read_cells(folder)


def asked_rows(rows, head):
    return [k for k, r in enumerate(rows) if r["split"] == "test" and r[f"{head}_correct"] != ""]


@pytest.mark.parametrize("head", ["species", "breed"])
def test_every_wrong_answer_of_the_test_part_the_surest_first(made, head):
    evaluation, rows = made
    asked = asked_rows(rows, head)
    assert errors.asked_places(evaluation, head).tolist() == asked
    wrong = [k for k in asked if rows[k][f"{head}_correct"] == "0"]
    wrong.sort(key=lambda k: -float(rows[k][f"{head}_prob"]))
    found = errors.worst_mistakes(evaluation, head)
    assert found["place"].tolist() == wrong and len(wrong) > 10
    for column, key in (("image", "image"), ("predicted", f"{head}_pred")):
        assert found[column].tolist() == [rows[k][key] for k in wrong]
    true = "species" if head == "species" else "breed_true"
    for k, p, rank in zip(wrong, found["true_probability"], found["rank"], strict=True):
        names = evaluation.class_names(head, rows[k]["species"])
        if rows[k][true] == "Unheard":
            assert math.isnan(p) and rank > len(names)
        else:
            details = evaluation.details[head][k]
            assert rank == 1 + details["top"].tolist().index(names.index(rows[k][true])) > 1
            assert p == pytest.approx(details["top_prob"][rank - 1], rel=1e-4)
    assert errors.worst_mistakes(evaluation, head, 3)["place"].tolist() == wrong[:3]


def test_the_files_of_mistakes(made, tmp_path):
    evaluation, rows = made
    worst = errors.write_mistakes(tmp_path / "mistakes.csv", evaluation, 5)
    with (tmp_path / "mistakes.csv").open(newline="", encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    assert list(worst) == ["species", "breed"]  # heads that were never asked are left out
    by_image = {row["image"]: row for row in rows}
    for row in table:
        predicted = by_image[plain_cell(row["image"])][f"{row['head']}_pred"]
        assert plain_cell(row["predicted"]) == predicted and not row["predicted"].startswith("=")
    assert any(row["predicted"] == "'=Mix" for row in table)
    for head, entries in worst.items():
        own = [r for r in table if r["head"] == head]
        assert len(entries) == 5 and len(own) == len(errors.worst_mistakes(evaluation, head))
        for entry, row in zip(entries, own[:5], strict=True):
            cells = ["" if v is None else str(v) for v in entry.values()]
            assert cells == [plain_cell(v) for v in row.values()]


@pytest.fixture(scope="module")
def result(made):
    return errors.make_slices(made[0])


def check(bins, rows, places_of_bin, head):
    """Compare bins with the rows that a loop put into each, in the same order."""
    places_of_bin = [places for places in places_of_bin if places]
    assert [b["num"] for b in bins] == [len(places) for places in places_of_bin]
    every = [int(rows[k][f"{head}_correct"]) for places in places_of_bin for k in places]
    for entry, places in zip(bins, places_of_bin, strict=True):
        right, num = defaultdict(int), Counter()
        for k in places:
            key = rows[k]["species"], rows[k]["record"]
            right[key] += int(rows[k][f"{head}_correct"])
            num[key] += 1
        assert entry["num_records"] == len(num)
        assert entry["accuracy"] == pytest.approx(sum(right.values()) / len(places))
        if len(num) < 10:
            assert entry["interval_95"] is None and not entry["stands_out"]
            continue
        animals = [hash((rows[k]["species"], rows[k]["record"])) for k in places]
        own = [rows[k][f"{head}_correct"] == "1" for k in places]
        assert entry["interval_95"] == pytest.approx(
            accuracy_interval(np.array(own), np.array(animals))
        )
        low, high = entry["interval_95"]
        assert entry["stands_out"] == (not low <= sum(every) / len(every) <= high)


@pytest.mark.parametrize("head", ["species", "breed"])
def test_slices_by_photos_of_a_record_and_of_the_label(made, result, head):
    assert list(result) == ["species", "breed"]  # heads that were not asked have none
    rows = made[1]
    photos = Counter((row["species"], row["record"]) for row in rows)
    groups = {"1": [1], "2": [2], "3": [3], "4-5": [4, 5], "6+": range(6, 99)}
    asked = asked_rows(rows, head)
    places = [
        [k for k in asked if photos[rows[k]["species"], rows[k]["record"]] in sizes]
        for sizes in groups.values()
    ]
    bins = result[head]["photos_per_record"]["bins"]
    check(bins, rows, places, head)
    assert [b["bin"] for b in bins] == ["up to 1", "up to 2", "up to 3", "up to 5", "above 5"]
    true = "species" if head == "species" else "breed_true"
    trained = Counter((r["species"], r[true]) for r in rows if r["split"] == "train")
    of_row = {k: trained[rows[k]["species"], rows[k][true]] for k in asked}
    sizes = sorted(trained[key] for key in {(rows[k]["species"], rows[k][true]) for k in asked})
    low, high = sizes[-(-len(sizes) // 3) - 1], sizes[-(-2 * len(sizes) // 3) - 1]
    places = [
        [k for k in asked if start < of_row[k] <= end]
        for start, end in ((-1, low), (low, high), (high, math.inf))
    ]
    check(result[head]["training_photos_of_label"]["bins"], rows, places, head)


def test_names_of_bins_tell_them_apart_and_equal_values_never_part():
    cut = errors.cut_at(np.array([0, 0, 1, 2, 3, 12]), [0, 0, 2])
    assert list(cut.categories) == ["up to 0", "up to 2", "above 2"]
    assert cut.codes.tolist() == [0, 0, 1, 1, 2, 2]
    assert list(errors.cut_at(np.array([5] * 2), [5] * 2)) == ["up to 5"] * 2
    assert "up to 1,000,001" in errors.cut_at(np.array([1]), [1_000_001]).categories


def test_a_bin_stands_out_only_with_enough_records():
    correct = np.array([1.0] * 60 + [0.0] * 15 + [1.0] * 15)
    cut = pd.Categorical(np.repeat(["easy", "hard"], [60, 30]))
    bins = errors.bin_figures(correct, np.arange(90), cut)
    assert [b["stands_out"] for b in bins] == [True, True]
    assert bins[0]["interval_95"][0] == pytest.approx(0.025 ** (1 / 57.8), abs=1e-3)  # all right
    few = errors.bin_figures(correct, np.arange(90) % 9, cut)
    assert [b["interval_95"] for b in few] == [None, None]
    assert not any(b["stands_out"] for b in few)
    correct = np.array([1.0] * 12 + [0.0] * 8 + [1.0] * 80)
    cut = pd.Categorical(np.repeat(["1 small", "2 rest"], [12, 88]))
    small, _ = errors.bin_figures(correct, np.arange(100), cut)
    assert small["accuracy"] == 1 and not small["stands_out"]  # 12 of 12 beside 92 %


def test_the_table_of_slices_and_the_count(result, tmp_path):
    errors.write_slices(tmp_path / "slices.csv", result)
    with (tmp_path / "slices.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    entries = [e["bins"] for own in result.values() for e in own.values()]
    bins = [b for own in entries for b in own]
    assert [int(row["num"]) for row in table] == [b["num"] for b in bins]
    assert [row["low_95"] == "" for row in table] == [b["interval_95"] is None for b in bins]
    several = [b for own in entries for b in own if len(own) > 1 and b["interval_95"]]
    counted = errors.count_standing_out(result)
    assert counted["bins"] == len(several)
    assert counted["stand_out"] == sum(b["stands_out"] for b in several)
