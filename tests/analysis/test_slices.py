"""Slices against loops over rows."""

import csv
from collections import Counter, defaultdict

import numpy as np
import pytest

from petface.analysis import slices
from petface.analysis.photo_statistics import MEASURED, STATISTICS
from petface.data.loading import OK, UNREADABLE
from petface.metrics import cluster_bootstrap_interval
from tests.analysis.error_cases import make_evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_evaluation(tmp_path_factory.mktemp("evaluation") / "out")


@pytest.fixture(scope="module")
def measured(made):
    """Drawn statistics of two thirds of the test rows; a few could not be read."""
    evaluation, _ = made
    draw = np.random.default_rng(1)
    test = np.flatnonzero((evaluation.rows["split"] == "test").to_numpy())
    sample = np.sort(draw.choice(test, len(test) * 2 // 3, replace=False))
    found = np.zeros(len(sample), MEASURED)
    for name in STATISTICS:
        found[name] = draw.gamma(2.0, 20.0, len(sample))
    found["aspect_ratio"] = 1
    found["black_border"] = np.where(draw.random(len(sample)) < 0.6, 0, found["black_border"])
    found["status"][:4] = UNREADABLE
    found["brightness"][:4] = np.nan
    return sample, found


@pytest.fixture(scope="module")
def result(made, measured):
    return slices.make_slices(made[0], *measured, resamples=200)


def check(bins, rows, places_of_bin, head):
    """Compare bins with the rows that a loop put into each, in the same order."""
    places_of_bin = [places for places in places_of_bin if places]
    assert [b["num"] for b in bins] == [len(places) for places in places_of_bin]
    every = [rows[k][f"{head}_correct"] for places in places_of_bin for k in places]
    for entry, places in zip(bins, places_of_bin, strict=True):
        right, num = defaultdict(int), defaultdict(int)
        for k in places:
            key = rows[k]["species"], rows[k]["record"]
            right[key] += rows[k][f"{head}_correct"]
            num[key] += 1
        assert entry["num_records"] == len(num)
        assert entry["accuracy"] == pytest.approx(sum(right.values()) / len(places))
        if len(num) < 10:
            assert entry["interval_95"] is None and not entry["stands_out"]
            continue
        low, high = cluster_bootstrap_interval(
            [right[key] for key in num], list(num.values()), resamples=200
        )
        if low < high:
            assert entry["interval_95"] == pytest.approx([low, high])
        overall = sum(every) / len(every)
        low, high = entry["interval_95"]
        assert entry["stands_out"] == (overall < low or overall > high)


@pytest.mark.parametrize("head", ["species", "breed"])
def test_photos_per_record(made, result, head):
    rows = made[1]
    photos = Counter((row["species"], row["record"]) for row in rows)
    groups = {"1": [1], "2": [2], "3": [3], "4-5": [4, 5], "6+": range(6, 99)}
    places = [
        [
            k
            for k, row in enumerate(rows)
            if row["split"] == "test"
            and row[f"{head}_correct"] != ""
            and photos[row["species"], row["record"]] in sizes
        ]
        for sizes in groups.values()
    ]
    entry = result[head]["photos_per_record"]
    check(entry["bins"], rows, places, head)
    names = [name for name, own in zip(groups, places, strict=True) if own]
    assert [b["bin"] for b in entry["bins"]] == names and len(names) == 5


def test_training_photos_of_the_label(made, result):
    rows = made[1]
    trained = Counter((r["species"], r["breed_true"]) for r in rows if r["split"] == "train")
    asked = [k for k, r in enumerate(rows) if r["split"] == "test" and r["breed_correct"] != ""]
    keys = {(rows[k]["species"], rows[k]["breed_true"]) for k in asked}
    sizes = sorted(trained[key] for key in keys)
    low, high = sizes[-(-len(sizes) // 3) - 1], sizes[-(-2 * len(sizes) // 3) - 1]
    of_row = {k: trained[rows[k]["species"], rows[k]["breed_true"]] for k in asked}
    places = [
        [k for k in asked if of_row[k] <= low],
        [k for k in asked if low < of_row[k] <= high],
        [k for k in asked if high < of_row[k]],
    ]
    check(result["breed"]["training_photos_of_label"]["bins"], rows, places, "breed")
    assert all(places)


@pytest.mark.parametrize("head", ["species", "breed"])
@pytest.mark.parametrize("name", ["brightness", "black_border", "aspect_ratio"])
def test_statistics_are_cut_at_the_quartiles_of_the_sample(made, measured, result, head, name):
    rows, (sample, found) = made[1], measured
    values = {
        k: float(v)
        for k, v, status in zip(sample.tolist(), found[name], found["status"], strict=True)
        if status == OK
    }
    edges = sorted({float(e) for e in np.quantile(list(values.values()), (0.25, 0.5, 0.75))})
    places = [[] for _ in range(len(edges) + 1)]
    for k, value in values.items():
        if rows[k][f"{head}_correct"] != "":
            places[sum(value > edge for edge in edges)].append(k)
    entry = result[head][name]
    check(entry["bins"], rows, places, head)
    assert entry["num"] == sum(map(len, places))
    assert len(entry["bins"]) == {"brightness": 4, "black_border": 3, "aspect_ratio": 1}[name]


def test_heads_that_were_not_asked_have_no_slices(result):
    assert list(result) == ["species", "breed"]


def test_names_of_bins_tell_them_apart():
    cut = slices.quartile_cut([0, 0, 0, 0, 0, 0, 1, 2, 3, 12.34567], "%")
    assert cut.names == ["0 %", "0-1.75 %", "1.75-12.3 %"]
    assert cut.bin_of.tolist() == [0] * 6 + [1, 2, 2, 2]
    assert slices.quartile_cut([224] * 5, "px").names == ["224 px"]
    names = slices.quartile_cut([10001.0, 10002, 10003, 10004]).names
    assert len(set(names)) == 4
    assert slices.quartile_cut([]).names == []


def test_terciles_of_classes_keep_equal_ones_together():
    cut = slices.tercile_cut(np.array([0, 5, 5, 9, 70]), np.array([0, 5, 5, 5, 9, 70]))
    assert [cut.names[b] for b in cut.bin_of] == ["up to 5"] * 3 + ["above 5"] * 2


def test_a_bin_stands_out_only_with_enough_records():
    correct = np.array([1.0] * 60 + [0.0] * 15 + [1.0] * 15)
    one_each = np.arange(90)
    cut = slices.Cut(["easy", "hard"], np.repeat([0, 1], [60, 30]))
    bins = slices.bin_figures(correct, one_each, cut)
    assert [b["stands_out"] for b in bins] == [True, True]
    assert bins[0]["interval_95"][0] == pytest.approx(60 / (60 + 1.959964**2))  # Wilson, all right
    few = slices.bin_figures(correct, one_each % 9, cut)
    assert [b["interval_95"] for b in few] == [None, None]
    assert not any(b["stands_out"] for b in few)


def test_all_right_in_a_few_records_does_not_stand_out():
    correct = np.array([1.0] * 12 + [0.0] * 8 + [1.0] * 80)
    cut = slices.Cut(["small", "rest"], np.repeat([0, 1], [12, 88]))
    small, _ = slices.bin_figures(correct, np.arange(100), cut)
    assert small["accuracy"] == 1 and not small["stands_out"]  # 12 of 12 beside 92 %


def test_the_table_and_the_count(result, tmp_path):
    slices.write_slices(tmp_path / "slices.csv", result)
    with (tmp_path / "slices.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    bins = [b for entries in result.values() for e in entries.values() for b in e["bins"]]
    assert [int(row["num"]) for row in table] == [b["num"] for b in bins]
    assert [row["low_95"] == "" for row in table] == [b["interval_95"] is None for b in bins]
    counted = slices.count_standing_out(result)
    several = [
        b
        for entries in result.values()
        for e in entries.values()
        for b in e["bins"]
        if len(e["bins"]) > 1 and b["interval_95"]
    ]
    assert counted["bins"] == len(several)
    assert counted["stand_out"] == sum(b["stands_out"] for b in several)
