import os
import random

import numpy as np
import pandas
import pytest

from petface.data import dataset as module
from petface.data.dataset import load_dataset
from petface.data.splits import SPLITS, write_splits
from petface.errors import UserError

GENDERS = ["F", "M", ""]


def build(root, species=("cat", "dog"), num_records=12, seed=0):
    """A small tree with annotations; returns {(species, record): (images, breed, gender)}."""
    draw, truth = random.Random(seed), {}
    for name in species:
        rows = ["Name,Gender,Breed"]
        for number in range(num_records):
            record = f"{number:06d}"
            images = draw.randrange(1, 4)
            (root / "images" / name / record).mkdir(parents=True)
            for image in range(images):
                (root / "images" / name / record / f"{image:02d}.png").write_bytes(b".")
            breed, gender = draw.choice(["Pug", "Mix, other", "unknown"]), draw.choice(GENDERS)
            truth[name, record] = (images, breed, gender)
            rows.append(f'{number},{gender},"{breed}"')
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return truth


def load(root, **options):
    return load_dataset(root / "images", root / "annotations", **options)


def test_images_labels_and_split_agree_with_a_naive_reading(tmp_path):
    truth = build(tmp_path)
    data = load(tmp_path)
    table = pandas.read_csv(tmp_path / "splits.csv", dtype=str, keep_default_na=False)
    split = {(row.species, row.record): row.split for row in table.itertuples()}
    assert set(split) == set(truth) and len(table) == len(truth)
    for name in ("cat", "dog"):
        images, labels = data.image_labels(name)
        vocabularies = data.annotations[name].vocabularies
        expected = [
            (f"{name}/{record}/{i:02d}.png", breed, gender, split[name, record])
            for (species, record), (num_images, breed, gender) in sorted(truth.items())
            for i in range(num_images)
            if species == name
        ]
        got = [
            (
                data.catalog.relative_path(image).decode(),
                vocabularies["breed"][breed] if breed >= 0 else "unknown",
                {0: "F", 1: "M", -1: ""}[gender],
                SPLITS[data.image_split[image]],
            )
            for image, breed, gender in zip(
                images.tolist(), labels["breed"].tolist(), labels["gender"].tolist(), strict=True
            )
        ]
        assert got == expected
    assert data.record_split.dtype == data.image_split.dtype == np.int8


def test_the_split_is_made_once_and_then_kept(tmp_path):
    build(tmp_path)
    first = load(tmp_path, seed=1)
    text = (tmp_path / "splits.csv").read_bytes()
    again = load(tmp_path, seed=2)
    assert again.record_split.tolist() == first.record_split.tolist()
    assert (tmp_path / "splits.csv").read_bytes() == text
    assert any("seed 1" in note and "stays as it is" in note for note in again.notes)
    assert not any("stays as it is" in note for note in load(tmp_path, seed=1).notes)


def test_a_split_made_for_one_species_serves_the_whole_tree(tmp_path):
    build(tmp_path)
    some = load(tmp_path, species=["dog"])
    assert some.catalog.classes == ("dog",) and list(some.annotations) == ["dog"]
    whole = load(tmp_path)
    assert whole.catalog.num_records == 24
    dogs = whole.catalog.record_class == 1
    assert whole.record_split[dogs].tolist() == some.record_split.tolist()


def test_strata_are_the_first_attribute_with_a_known_class(tmp_path):
    build(tmp_path, species=("cat",), num_records=40)
    data = load(tmp_path)
    labels = data.annotations["cat"].align(data.catalog.record_names)["breed"]
    for stratum in (-1, 0, 1):
        splits = data.record_split[labels == stratum]
        assert set(splits.tolist()) == {0, 1, 2}
    assert module.primary_attribute(data.annotations["cat"]) == "breed"
    rows = [f"{i},{'FM'[i % 2]},unknown" for i in range(40)]
    (tmp_path / "annotations/cat.csv").write_text("\n".join(["Name,Gender,Breed", *rows]))
    assert module.primary_attribute(load(tmp_path).annotations["cat"]) == "gender"


def test_unmatched_records_and_rows_are_listed_and_counted(tmp_path):
    build(tmp_path, species=("dog",), num_records=5)
    text = (tmp_path / "annotations/dog.csv").read_text().splitlines()
    del text[3]  # the row of 000002
    (tmp_path / "annotations/dog.csv").write_text("\n".join([*text, "77,F,Pug", "78,F,Pug"]))
    data = load(tmp_path)
    assert data.unmatched("dog") == (["000002"], ["000077", "000078"])
    assert any("1 records have no row" in note for note in data.notes)
    assert any("2 rows have no record" in note for note in data.notes)
    images, labels = data.image_labels("dog")
    of_record = data.catalog.record_names[data.catalog.record_index[images]] == "000002"
    assert of_record.any() and set(labels["breed"][of_record].tolist()) == {-1}


def test_a_species_without_an_annotation_file_has_images_and_no_labels(tmp_path):
    build(tmp_path, species=("cat", "yak"), num_records=5)
    (tmp_path / "annotations/yak.csv").unlink()
    data = load(tmp_path)
    images, labels = data.image_labels("yak")
    assert len(images) > 0 and labels == {}
    assert data.unmatched("yak")[1] == []
    assert any("yak" in note and "NO specialist" in note for note in data.notes)
    with pytest.raises(UserError, match="did you mean 'cat'"):
        data.image_labels("cats")


def test_many_species_without_annotations_are_not_a_page_of_notes(tmp_path):
    build(tmp_path, species=[f"kind{n:02d}" for n in range(20)], num_records=1)
    for path in (tmp_path / "annotations").iterdir():
        path.unlink()
    notes = load(tmp_path).notes
    assert sum("NO specialist" in note for note in notes) == 13
    assert "... and so it is for 7 species more" in notes


def test_a_split_says_where_it_was_taken_from(tmp_path):
    build(tmp_path, num_records=5)
    catalog = load(tmp_path).catalog
    path = tmp_path / "official.csv"
    species = np.array(catalog.classes)[catalog.record_class]
    split = np.arange(catalog.num_records, dtype=np.int8) % 3
    write_splits(path, species, catalog.record_names, split, seed=0, origin="the official lists")
    data = load(tmp_path, splits_file=path, seed=7)
    assert f"the split in {path} is that of the official lists" in data.notes
    assert data.record_split.tolist() == split.tolist()
    assert not any("was made with seed" in note for note in data.notes)


def test_aliases_reach_their_species(tmp_path):
    build(tmp_path)
    (tmp_path / "aliases.csv").write_text("species,feature,label,alias_of\ndog,breed,Pug,Mops\n")
    data = load(tmp_path, aliases_file=tmp_path / "aliases.csv")
    assert "Mops" in data.annotations["dog"].vocabularies["breed"]
    assert "Pug" in data.annotations["cat"].vocabularies["breed"]


def test_official_lists_are_used_where_the_split_is_a_folder(tmp_path):
    build(tmp_path, species=("dog",), num_records=4)
    folder = tmp_path / "split/dog"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("filename,label\ndog/000000/00.png,0\n")
    (folder / "val.txt").write_text("dog/000001/00.png\n")
    (folder / "test.txt").write_text("dog/000002/00.png\n")
    data = load(tmp_path, splits_file=tmp_path / "split")
    assert [SPLITS[code] for code in data.record_split] == ["train", "val", "test", "train"]
    assert any("1 records are in no official list" in note for note in data.notes)
    assert not (tmp_path / "splits.csv").exists()


def test_a_split_that_cannot_be_made_names_the_setting(tmp_path):
    build(tmp_path)
    with pytest.raises(UserError, match="SPLITS_FILE .* neither a folder"):
        load(tmp_path, splits_file=tmp_path / "splitt")
    with pytest.raises(UserError, match="set SPLITS_FILE"):
        load(tmp_path, splits_file=tmp_path / "annotations/cat.csv/splits.csv")


def test_a_missing_or_misplaced_annotations_folder_shows_the_tree(tmp_path):
    build(tmp_path)
    for given in (tmp_path / "gone", ""):
        with pytest.raises(UserError, match="annotations/<species>.csv"):
            load_dataset(tmp_path / "images", given)
    with pytest.raises(UserError, match=f"use {tmp_path / 'annotations'} instead"):
        load_dataset(tmp_path / "images", tmp_path)


def test_a_tree_of_petfaces_shape_is_small_in_memory(tmp_path):
    for number in range(4_000):
        place = tmp_path / "tree/images" / f"species{number % 13:02d}" / f"{number // 52:06d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number // 13 % 4:02d}.png").write_bytes(b".")
    (tmp_path / "tree/annotations").mkdir()
    data = load(tmp_path / "tree")
    assert len(data.catalog) == 4_000 and len(data.catalog.classes) == 13
    arrays = [value for value in vars(data.catalog).values() if isinstance(value, np.ndarray)]
    bytes_per_image = sum(array.nbytes for array in arrays) / 4_000
    assert bytes_per_image < 60  # a million: 60 MB
    assert os.path.exists(data.catalog.path(3_999))
    shares = np.bincount(data.record_split) / len(data.record_split)
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.06)
