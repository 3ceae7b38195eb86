"""The one draw behind splits and folds, and files of splits: kept, checked, refused once edited."""

import csv
import json
import random

import numpy as np
import pandas
import pytest

from petface.data.splits import (
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    make_folds,
    make_splits,
    read_official,
    read_splits,
    side_file,
    untestable_classes,
    write_splits,
)
from petface.errors import UserError


def arrays(rows):
    species, records, strata = zip(*rows, strict=True)
    return np.array(species), np.array(records), np.array(strata)


def random_species(name, seed, sizes):
    """Rows (species, record, stratum) with the given stratum sizes, shuffled."""
    draw = random.Random(seed)
    strata = [stratum for stratum, size in enumerate(sizes, start=-1) for _ in range(size)]
    rows = [(name, f"{i:06d}", stratum) for i, stratum in enumerate(strata)]
    draw.shuffle(rows)
    return rows


def split_of(rows, **options):
    result = make_splits(*arrays(rows), **{"seed": 0, **options})
    return {row[:2]: int(split) for row, split in zip(rows, result, strict=True)}


def count(rows, split):
    """{stratum: [train, val, test]}"""
    counts = {}
    for species, record, stratum in rows:
        counts.setdefault(stratum, [0, 0, 0])[split[species, record]] += 1
    return counts


@pytest.mark.parametrize("seed", range(30))
def test_every_class_size_keeps_the_promises(seed):
    draw = random.Random(seed)
    sizes = [draw.choice([1, 2, 3, 4, 5, 9, 14, 15, 25, 60]) for _ in range(draw.randrange(1, 40))]
    rows = random_species("cat", seed, sizes)
    counts = count(rows, split_of(rows, seed=seed))
    for stratum, size in enumerate(sizes, start=-1):
        train, val, test = counts[stratum]
        assert train + val + test == size and train >= 1
        assert (test >= 1) == (size >= 3) and (val >= 1) == (size >= 4)
        # never far from the fraction: within half of it, and the rounding
        assert test <= max(1, 0.15 * size + 0.5) and val <= max(1, 0.15 * size + 0.5)
        assert test >= 0.05 * size - 0.5 and val >= 0.05 * size - 0.5


def test_sizes_from_one_to_nine_by_hand():
    rows = random_species("cat", 0, list(range(1, 10)))
    counts = count(rows, split_of(rows))
    expected = [[1, 0, 0], [2, 0, 0], [2, 0, 1], [2, 1, 1], [3, 1, 1], [4, 1, 1], [5, 1, 1],
                [6, 1, 1], [7, 1, 1]]  # fmt: skip
    assert [counts[stratum] for stratum in range(-1, 8)] == expected


@pytest.mark.parametrize(
    ("sizes", "val_and_test"),
    [
        ([1000], 0.1),
        ([14] * 70, 0.1),  # each alone rounds 1.4 to 1
        ([16] * 70, 0.1),  # each alone rounds 1.6 to 2
        ([1] * 300 + [2000, 1500], 0.1),  # 300 records that cannot be tested
        ([3] * 60 + [2500], 0.1),  # 60 tests out of 180 records
        ([6] * 100, 1 / 6),  # what the promise costs
    ],
)
def test_totals_are_close_to_the_fractions(sizes, val_and_test):
    rows = random_species("cat", 1, sizes)
    shares = np.bincount(list(split_of(rows).values()), minlength=3) / len(rows)
    assert shares[1:] == pytest.approx([val_and_test] * 2, abs=0.006)


def test_a_record_stays_put_when_the_order_or_another_species_changes():
    cats, dogs = random_species("cat", 0, [5, 40, 9]), random_species("dog", 1, [30, 7])
    alone = split_of(cats)
    both = split_of([*dogs, *cats])
    assert {key: both[key] for key in alone} == alone
    assert split_of(sorted(cats)) == split_of(cats[::-1]) == alone
    assert split_of(cats, seed=1) != alone


def test_the_draw_is_the_same_on_every_machine_and_version():
    split = split_of(random_species("cat", 0, [10, 10]))
    # worked out apart: sha256 of "0\ncat\n<record>", smallest first in each stratum
    drawn = {record: SPLITS[code] for (_, record), code in split.items() if code}
    assert drawn == {"000001": "test", "000009": "val", "000010": "test", "000018": "val"}


def test_other_fractions_and_nonsense():
    rows = random_species("cat", 0, [100])
    shares = np.bincount(list(split_of(rows, fractions=(0.5, 0.0, 0.5)).values()), minlength=3)
    assert shares.tolist() == [50, 0, 50]
    tiny = random_species("cat", 0, [3, 4, 5])
    for fractions in [(0.1, 0.45, 0.45), (0.1, 0.1, 0.8), (0.1, 0.8, 0.1)]:
        counts = count(tiny, split_of(tiny, fractions=fractions))
        assert all(train >= 1 and test >= 1 for train, _, test in counts.values())
        assert counts[0][1] >= 1 and counts[1][1] >= 1
    # a place is kept free for val only where there will be one; one record stays in train
    counts = count(tiny, split_of(tiny, fractions=(0.1, 0.0, 0.9)))
    assert counts == {-1: [1, 0, 2], 0: [1, 0, 3], 1: [1, 0, 4]}
    three = random_species("cat", 0, [3])
    assert count(three, split_of(three, fractions=(0.1, 0.1, 0.8))) == {-1: [1, 0, 2]}
    for bad in [(0.8, 0.1), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5)]:
        with pytest.raises(AssertionError):
            split_of(rows, fractions=bad)
    with pytest.raises(AssertionError, match="twice"):
        split_of([("cat", "1", 0), ("cat", "1", 0)])


def test_untestable_classes_are_listed():
    labels = np.array([0, 0, 0, 1, 1, 2, -1, -1, -1])
    assert untestable_classes(labels, ("a", "b", "c", "d")) == [("b", 2), ("c", 1), ("d", 0)]


# ---- folds ----

TWO_SPECIES = arrays(
    [("cat", f"{n:06d}", n % 7) for n in range(90)]
    + [("dog", f"{n:06d}", n % 3 - 1) for n in range(41)]
)


@pytest.mark.parametrize("num_folds", [2, 3, 5, 10])
def test_every_record_is_in_the_test_part_of_one_fold(num_folds):
    species, _, strata = TWO_SPECIES
    found = np.stack(make_folds(*TWO_SPECIES, num_folds=num_folds, seed=0))
    assert ((found == TEST).sum(axis=0) == 1).all()
    sizes = (found == TEST).sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    for split in found:
        assert 0.04 < (split == VAL).mean() < 0.16 and (split == TRAIN).sum() > 0
        for name, stratum in set(zip(species.tolist(), strata.tolist(), strict=True)):
            of_class = (species == name) & (strata == stratum)
            assert abs((split[of_class] == TEST).sum() - of_class.sum() / num_folds) < 1
    order = np.random.default_rng(0).permutation(len(species))
    shuffled = [column[order] for column in TWO_SPECIES]
    assert (make_folds(*shuffled, num_folds=num_folds, seed=0) == found[:, order]).all()
    assert (make_folds(*TWO_SPECIES, num_folds=num_folds, seed=1) != found).any()
    for impossible in (1, 132):
        with pytest.raises(UserError, match="FOLDS must lie between 2 and the 131 records"):
            make_folds(*TWO_SPECIES, num_folds=impossible, seed=0)


# ---- files ----

ODD_NAMES = ["=1+1", "+7a", "-x", "@y", "'q", 'say "hi"', "a,b", "two\nlines", "🐕", "\\xe9"]


@pytest.fixture
def written(tmp_path):
    """Path, species, records and split of a file that was just written."""
    rows = random_species("cat", 0, [5, 40, 9]) + random_species("dog", 1, [30, 7])
    species, records, strata = arrays([*rows, *(("dog", name, 0) for name in ODD_NAMES)])
    split = make_splits(species, records, strata, seed=3)
    write_splits(tmp_path / "splits.csv", species, records, split, seed=3)
    return tmp_path / "splits.csv", species, records, split


def test_what_is_written_is_read_in_any_order_and_by_species(written):
    path, species, records, split = written
    order = np.random.default_rng(0).permutation(len(species))
    got = read_splits(path, species[order], records[order])
    assert got.dtype == np.int8 and got.tolist() == split[order].tolist()
    dogs = species == "dog"
    assert read_splits(path, species[dogs], records[dogs]).tolist() == split[dogs].tolist()
    table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    assert table.columns.tolist() == ["species", "record", "split"]
    assert len(table) == len(species) and set(table["split"]) == set(SPLITS)
    assert not any(str(cell).startswith(("=", "+", "-", "@")) for cell in table["record"])
    facts = json.loads(side_file(path).read_text())
    assert facts["seed"] == 3 and facts["fractions"] == [0.8, 0.1, 0.1]
    assert facts["species"]["cat"]["records"] == 54


def test_a_side_file_that_is_newer_damaged_or_gone_is_refused_with_the_way_out(written):
    path, species, records, _ = written
    for side, words in (('{"format": 99}', "format 99, newer"), ("{", "read.*delete")):
        side_file(path).write_text(side)
        with pytest.raises(UserError, match=words):
            read_splits(path, species, records)
    side_file(path).unlink()
    with pytest.raises(UserError, match="splits.json.*cannot be read"):
        read_splits(path, species, records)


def test_edited_files_and_changed_data_are_refused_with_examples(written):
    path, species, records, _ = written
    changed = records.copy()
    dog, cat = np.flatnonzero(species == "dog")[0], np.flatnonzero(species == "cat")[0]
    changed[dog], changed[cat] = "999998", "999999"
    with pytest.raises(UserError) as caught:
        read_splits(path, species, changed)
    message = str(caught.value)
    assert "dog: 1 records (999998) new" in message and "cat: 1 records (999999) new" in message
    assert f"dog: 1 records ({records[dog]}) gone" in message and "delete" in message
    with pytest.raises(UserError, match=r"hen: 1 records \(000000\) new"):
        read_splits(path, np.array(["hen"]), np.array(["000000"]))
    with pytest.raises(UserError, match="does not exist"):
        read_splits(path.with_name("other.csv"), species, records)
    path.write_text(path.read_text().replace(",train", ",test", 1))
    with pytest.raises(UserError, match="was edited.*delete"):
        read_splits(path, species, records)


def make_official(folder, **lists):
    (folder / "dog").mkdir(parents=True, exist_ok=True)
    for name, records in lists.items():
        images = [f"dog/{record:06d}/{i:02d}.png" for record in records for i in range(2)]
        if name in ("train", "reidentification"):
            with (folder / f"dog/{name}.csv").open("w", newline="") as handle:
                csv.writer(handle).writerows([("filename", "label"), *((i, "5") for i in images)])
        else:
            (folder / f"dog/{name}.txt").write_text("\n".join(images) + "\n")


def test_official_lists(tmp_path):
    make_official(tmp_path, train=[1, 2], reidentification=[2, 3], val=[4], test=[5, 6])
    names = np.array([f"{i:06d}" for i in (6, 5, 4, 3, 2, 1, 7)])
    split, notes = read_official(tmp_path, np.array(["dog"] * 7), names)
    assert [SPLITS[code] for code in split] == ["test", "test", "val", *["train"] * 4]
    assert notes == ["dog: 1 records are in no official list and go into train"]
    _, notes = read_official(tmp_path, np.array(["dog"] * 2), names[:2])
    assert notes == ["dog: 4 records in the official lists have no image"]


def test_official_lists_that_contradict_themselves_are_refused(tmp_path):
    make_official(tmp_path, train=[1], reidentification=[9], val=[4], test=[4])

    def refused(words):
        with pytest.raises(UserError, match=words):
            read_official(tmp_path, np.array(["dog"]), np.array(["000001"]))

    refused(r"test.txt, line 1: record 000004 is in test and, in val")
    make_official(tmp_path, test=[9])
    refused("record 000009 is in test and, in reidentification")
    (tmp_path / "dog/test.txt").write_text("dog/000005/00.png\ncat/000006/00.png\n")
    refused("test.txt, line 2: 'cat/000006/00.png' is not dog/")
    (tmp_path / "dog/test.txt").unlink()
    refused("test.txt")
    (tmp_path / "dog/train.csv").write_text("file,label\n")
    refused("line 1: the header must be filename,label")
