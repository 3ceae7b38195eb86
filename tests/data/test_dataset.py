"""Images, labels and split of a dataset against a naive reading; `faults/` has the odd trees."""

import os
import random
import unicodedata

import numpy as np
import pytest

from petface.data import dataset as module
from petface.data.annotations import spelling_twins
from petface.data.catalog import identical_records
from petface.data.dataset import fold_files, load_dataset, sample_places
from petface.data.sources.petface import scan
from petface.data.splits import SPLITS, sample_evenly, write_splits
from petface.errors import UserError
from tests import naive


def build(root, species=("cat", "dog"), num_records=12):
    """A small tree with annotations."""
    draw = random.Random(0)
    (root / "annotations").mkdir()
    for name in species:
        rows = ["Name,Gender,Breed"]
        for number in range(num_records):
            breed, gender = draw.choice(["Pug", "Mix, other", "unknown"]), draw.choice("FM-")
            rows.append(f'{number},{gender.strip("-")},"{breed}"')
            for image in range(draw.randrange(1, 4)):
                path = root / f"images/{name}/{number:06d}/{image:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b".")
        (root / "annotations" / f"{name}.csv").write_text("\n".join(rows) + "\n")


def load(root, **options):
    return load_dataset(root / "images", root / "annotations", **options)


def noted(dataset):
    return "\n".join(dataset.notes)


def test_images_labels_and_split_agree_with_a_naive_reading(tree):
    data = load_dataset(tree.images, tree.annotations)
    split, known, seen = naive.splits(tree.root), naive.labels(tree.annotations), []
    for name in data.catalog.classes:
        images, labels = data.image_labels(name)
        for row, image in enumerate(images.tolist()):
            path = data.catalog.relative_path(image).decode()
            record, vocabularies = tuple(path.split("/")[:2]), data.annotations.get(name)
            own = {f: int(codes[row]) for f, codes in labels.items() if codes[row] >= 0}
            own = {f: vocabularies.vocabularies[f][code] for f, code in own.items()}
            assert own == known.get(record, {})
            assert SPLITS[data.image_split[image]] == split[record]
            seen.append(path)
    assert seen == naive.photos(tree.images)
    assert len(split) == data.catalog.num_records
    assert data.record_split.dtype == data.image_split.dtype == np.int8


def test_the_split_is_made_once_for_the_whole_tree_and_then_kept(tmp_path):
    build(tmp_path)
    some = load(tmp_path, species=["dog"], seed=1)
    assert some.catalog.classes == ("dog",) and list(some.annotations) == ["dog"]
    text = (tmp_path / "splits.csv").read_bytes()
    whole = load(tmp_path, seed=2)
    assert whole.catalog.num_records == 24
    dogs = whole.catalog.record_class == 1
    assert whole.record_split[dogs].tolist() == some.record_split.tolist()
    assert (tmp_path / "splits.csv").read_bytes() == text
    assert any("seed 1" in note and "and is kept" in note for note in whole.notes)
    assert not any("and is kept" in note for note in load(tmp_path, seed=1).notes)


def test_strata_are_the_first_attribute_with_a_known_class(tmp_path):
    build(tmp_path, species=("cat",), num_records=40)
    data = load(tmp_path)
    labels = data.annotations["cat"].align(data.catalog.record_names)["breed"]
    for stratum in (-1, 0, 1):
        assert set(data.record_split[labels == stratum].tolist()) == {0, 1, 2}
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
    assert "1 records have no row" in noted(data)
    assert "2 rows have no record" in noted(data)
    images, labels = data.image_labels("dog")
    of_record = data.catalog.record_names[data.catalog.record_index[images]] == "000002"
    assert of_record.any() and set(labels["breed"][of_record].tolist()) == {-1}


def test_species_without_annotations_have_images_no_labels_and_few_notes(tmp_path):
    build(tmp_path, species=["cat", *(f"kind{n:02d}" for n in range(20))], num_records=1)
    for path in (tmp_path / "annotations").glob("kind*"):
        path.unlink()
    data = load(tmp_path)
    images, labels = data.image_labels("kind07")
    assert len(images) > 0 and labels == {} and data.unmatched("kind07") == (["000000"], [])
    assert sum("NO specialist" in note for note in data.notes) == 13
    assert "... and the same for 7 more species" in data.notes
    (tmp_path / "annotations/cat.csv").unlink()
    assert ["no table of labels" in note for note in load(tmp_path).notes] == [True]
    with pytest.raises(UserError, match="did you mean 'cat'"):
        data.image_labels("cats")


def test_a_split_of_a_file_or_of_official_lists_says_where_it_was_taken_from(tmp_path):
    build(tmp_path, species=("dog",), num_records=4)
    (tmp_path / "split/dog").mkdir(parents=True)
    (tmp_path / "split/dog/train.csv").write_text("filename,label\ndog/000000/00.png,0\n")
    (tmp_path / "split/dog/val.txt").write_text("dog/000001/00.png\n")
    (tmp_path / "split/dog/test.txt").write_text("dog/000002/00.png\n")
    official = load(tmp_path, splits_file=tmp_path / "split")
    assert [SPLITS[code] for code in official.record_split] == ["train", "val", "test", "train"]
    assert "1 records are in no official list" in noted(official)
    assert not (tmp_path / "splits.csv").exists()
    path, records = tmp_path / "own.csv", official.catalog.record_names
    species, split = np.array(["dog"] * 4), np.array([2, 1, 0, 0], np.int8)
    write_splits(path, species, records, split, seed=0, origin="the best lists")
    data = load(tmp_path, splits_file=path, seed=7)
    assert f"the split in {path} was taken from the best lists" in data.notes
    assert data.record_split.tolist() == split.tolist()
    assert "was made with seed" not in noted(data)


def test_paths_that_cannot_be_used_are_named(tmp_path):
    build(tmp_path)
    with pytest.raises(UserError, match="SPLITS_FILE .* neither a folder"):
        load(tmp_path, splits_file=tmp_path / "splitt")
    with pytest.raises(UserError, match="set SPLITS_FILE"):
        load(tmp_path, splits_file=tmp_path / "annotations/cat.csv/splits.csv")
    for given in (tmp_path / "gone", ""):
        with pytest.raises(UserError, match="annotations/<species>.csv"):
            load_dataset(tmp_path / "images", given)
    with pytest.raises(UserError, match=f"use {tmp_path / 'annotations'} instead"):
        load_dataset(tmp_path / "images", tmp_path)


@pytest.mark.parametrize("most", [0, 1, 10, 40, 137, 500])
def test_samples_are_even_over_the_classes_and_always_the_same(most):
    sizes = [3, 100, 30, 4]
    labels = np.random.default_rng(0).permutation(np.repeat(range(4), sizes))
    chosen = sample_evenly(labels, most, seed=2)
    assert chosen.tolist() == sorted(set(chosen.tolist())) and len(chosen) == min(most, 137)
    counts = np.bincount(labels[chosen], minlength=4)
    for size, count in zip(sizes, counts, strict=True):  # whole, or within one of the largest
        assert count == size or count >= counts.max() - 1
    assert sample_evenly(labels, most, seed=2).tolist() == chosen.tolist()


def test_a_sample_of_photos_comes_from_one_split_and_even_strata(tmp_path):
    build(tmp_path, num_records=40)
    data = load(tmp_path)
    for species, classes in ((None, data.catalog.class_index), ("dog", None)):
        places = sample_places(data, "train", species, 12)
        assert len(places) == 12 and (data.image_split[places] == 0).all()
        if classes is None:
            images, labels = data.image_labels("dog")
            classes = dict(zip(images.tolist(), labels["breed"].tolist(), strict=True))
        counts = np.unique([classes[place] for place in places.tolist()], return_counts=True)[1]
        assert counts.min() == counts.max()


# one animal under two names: identical files stay on one side, equal spellings are listed

NFC, NFD = "Bérgère", unicodedata.normalize("NFD", "Bérgère")


def make(root, folders, rows=("Name,Gender,Breed",), table="cat"):
    """Write record folders, {species/record: contents of its photos}, and one annotation file."""
    for name, contents in folders.items():
        (root / "images" / name).mkdir(parents=True)
        for number, content in enumerate(contents):
            (root / "images" / name / f"{number:02d}.png").write_bytes(content)
    (root / "annotations").mkdir()
    (root / "annotations" / f"{table}.csv").write_text("\n".join([*rows, ""]), encoding="utf-8")
    return root


@pytest.fixture
def linked(tmp_path):
    """60 cats and 20 dogs of own photos; some share one: as bytes, as links, across species."""
    own = {f"cat/{k:06d}": [b"cat%06d" % k, b"more%06d" % k] for k in range(60)}
    own |= {f"dog/{k:06d}": [b"dog%06d" % k] for k in range(20)}
    for k in range(0, 40, 4):  # in pairs, and each pair's second with the next one's first
        own[f"cat/{k + 1:06d}"].append(own[f"cat/{k:06d}"][0])
    own["dog/000003"].append(own["cat/000000"][1])
    own["cat/000050"][0] = own["cat/000051"][0] = b""  # empty files are no twins
    for k in (56, 57):  # nor are files with the same end
        own[f"cat/{k:06d}"].append(b"%d" % k + b"x" * 2000)
    root = make(tmp_path / "data", own)
    os.link(root / "images/cat/000052/00.png", root / "images/cat/000053/09.png")
    (root / "images/cat/000054/09.png").symlink_to(root / "images/cat/000053/01.png")
    (root / "images/cat/linked").symlink_to(root / "images/dog/000007")
    return root


def pairs_of(dataset):
    names = dataset.catalog.record_names
    row = {
        (c, r): k for k, (c, r) in enumerate(zip(dataset.catalog.record_class, names, strict=True))
    }
    pairs = [(row[0, f"{k:06d}"], row[0, f"{k + 1:06d}"]) for k in range(0, 40, 4)]
    pairs += [(row[1, "000003"], row[0, "000000"]), (row[0, "linked"], row[1, "000007"])]
    return [*pairs, (row[0, "000052"], row[0, "000053"]), (row[0, "000053"], row[0, "000054"])]


def test_identical_files_keep_their_records_on_one_side(linked, tmp_path):
    splits = {tuple(d.record_split) for seed in range(3) for d in [load(
        linked, seed=seed, splits_file=tmp_path / f"{seed}.csv")]}  # fmt: skip
    assert len(splits) == 3
    dataset = load(linked)
    pairs = pairs_of(dataset)
    assert all(len({split[a], split[b]}) == 1 for split in splits for a, b in pairs)
    assert {56, 57} <= {*identical_records(dataset.catalog).tolist()}
    num = len({row for pair in pairs for row in pair})
    assert f"{num} records share a photo with another record" in noted(dataset)
    own = (linked / "splits.csv").read_bytes()
    arguments = linked / "images", linked / "annotations", tmp_path / "f"
    paths = fold_files(*arguments, num_folds=3, seed=0)
    written = [path.read_bytes() for path in paths]
    paths[0].unlink()
    assert fold_files(*arguments, num_folds=3, seed=0) == paths
    assert [path.read_bytes() for path in paths] == written
    assert not {*fold_files(*arguments, num_folds=3, seed=1)} & {*paths}
    tested = np.zeros(dataset.catalog.num_records, int)
    for path in paths:
        split = load(linked, splits_file=path).record_split
        tested += split == 2
        assert all(split[a] == split[b] for a, b in pairs)
    assert (tested == 1).all() and (linked / "splits.csv").read_bytes() == own


def test_a_placeholder_of_many_records_ties_none(tmp_path):
    root = make(tmp_path / "data", {f"cat/{k:06d}": [b"no photo"] for k in range(30)})
    assert set(load(root).record_split.tolist()) == {0, 1, 2}


def test_own_files_share_nothing(tree):
    catalog = scan(tree.images).catalog
    assert (identical_records(catalog) == np.arange(catalog.num_records)).all()


def test_names_match_by_their_normal_form(tmp_path):
    rows = ("Name,Gender,Breed", f"{NFC},Male,A", "Rex,Male,B")
    species = unicodedata.normalize("NFD", "café")
    root = make(
        tmp_path / "data", {f"{species}/{NFD}": [b"1"], f"{species}/Rex": [b"2"]}, rows, "café"
    )
    dataset = load(root)
    assert dataset.catalog.classes == ("café",) and dataset.catalog.record_names[0] == NFC
    assert dataset.unmatched("café") == ([], [])
    assert dataset.catalog.relative_path(0).decode() == f"{species}/{NFD}/00.png"
    assert load(root, species=[species]).catalog.num_records == 2


def test_a_file_nearly_of_the_name_is_named(tmp_path):
    folders = {"cat/000000": [b"1"], "dog/000000": [b"2"]}
    root = make(tmp_path / "data", folders, ("Name,Gender", "0,Male"), "Cat")
    (root / "annotations/dogs.csv").write_text("Name\n")
    (root / "annotations/zebra.csv").write_text("Name\n")
    text = noted(load(root))
    assert "there is Cat.csv: rename it" in text and "there is dogs.csv" in text
    (root / "annotations/dog.csv").symlink_to("/nowhere.csv")
    assert "there is dog.csv" not in noted(load(root))


def test_equal_spellings_and_labels_that_look_unknown_are_listed_and_aliases_merge(tmp_path):
    names = ["Rex", "rex", "Ｒｅｘ", "A\u00a0b", "a  B", "c"]
    breeds = ["Maine Coon", "maine  coon", NFC, NFD, "None", "?"]
    rows = ["Name,Gender,Breed", *(f"{n},Male,{b}" for n, b in zip(names, breeds, strict=True))]
    own = {f"cat/{n}": [n.encode()] for n in names} | {"dog/0": [b"dog"]}
    root = make(tmp_path / "data", own, rows)
    text = noted(load(root))
    assert "5 records differ from another only in the spelling" in text
    assert "2 groups of breed labels differ only in spelling" in text and "ALIASES_FILE" in text
    assert "'?', 'None' counts as a class" in text
    (root / "annotations/aliases.csv").write_text(
        "species,feature,label,alias_of\ncat,breed,maine  coon,Maine Coon\n", encoding="utf-8"
    )
    (root / "annotations/dog.csv").write_text("Name,Gender,Breed\n0,Male,maine  coon\n")
    merged = load(root, aliases_file=root / "annotations/aliases.csv")
    assert "1 groups of breed labels" in noted(merged)
    assert merged.annotations["dog"].vocabularies["breed"] == ("maine  coon",), "of cats alone"
    assert spelling_twins(["a", "b"]) == []
