"""The official lists, read from a made tree in the released layout; and lists made of a split."""

from types import SimpleNamespace

import numpy as np
import pytest

from petface.data.dataset import load_dataset
from petface.errors import UserError
from petface.identity import protocols


@pytest.fixture(scope="module")
def dataset(tree):
    return load_dataset(tree.images, tree.annotations)


def names(dataset, places):
    return [dataset.catalog.relative_path(int(k)).decode() for k in places]


def lists(folder, **files):
    (folder / "dog").mkdir(exist_ok=True, parents=True)
    for name, lines in files.items():
        (folder / "dog" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_official_lists_are_read(dataset, tmp_path):
    folder = lists(
        tmp_path,
        verification=[
            "filename1,filename2,label",
            "dog/000001/00.png,dog/000001/01.png,1",
            "dog/000001/00.png,dog/000003/00.png,0",
            "dog/000001/00.png,dog/999999/00.png,0",
        ],
        train=["filename,label", *(f"dog/00000{k}/00.png,{k}" for k in (1, 3, 4))],
        reidentification=["filename,label", "dog/000001/01.png,1", "dog/000003/01.png,3"],
    )
    pairs, notes = protocols.official_pairs(folder, dataset.catalog)
    assert names(dataset, pairs.left) == ["dog/000001/00.png"] * 2
    assert names(dataset, pairs.right) == ["dog/000001/01.png", "dog/000003/00.png"]
    assert pairs.is_same.tolist() == [True, False] and pairs.is_official
    assert notes == [f"{folder}/dog/verification.csv: 1 pairs have a photo that is not there"]
    search, notes = protocols.official_search(folder, dataset.catalog)
    assert names(dataset, search.gallery) == ["dog/000001/00.png", "dog/000003/00.png"]
    assert names(dataset, search.queries) == ["dog/000001/01.png", "dog/000003/01.png"]
    assert not notes


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dog/000001/00.png,dog/000001/01.png,yes", "line 2: ends in 'yes'"),
        ("cat/000001/00.png,dog/000001/01.png,1", "line 2: 'cat/000001/00.png' is not dog/"),
        ("dog/000001/00.png,1", "line 2: 2 cells"),
    ],
)
def test_what_is_no_pair_is_refused(dataset, tmp_path, line, words):
    folder = lists(tmp_path, verification=["filename1,filename2,label", line])
    with pytest.raises(UserError, match=words):
        protocols.official_pairs(folder, dataset.catalog)


def test_a_label_that_contradicts_the_folders_is_told(dataset, tmp_path):
    row = "dog/000001/00.png,dog/000003/01.png,1"
    _, notes = protocols.official_pairs(
        lists(tmp_path, verification=["a,b,c", row]), dataset.catalog
    )
    assert notes == ["1 of 1 listed pairs contradict the folders of their photos"]


def test_made_pairs_are_balanced_within_the_species_and_repeat(dataset):
    photos = protocols.photos_of_split(dataset, "train")
    catalog, pairs = dataset.catalog, protocols.made_pairs(dataset.catalog, photos, 5)
    record, species = catalog.record_index, catalog.class_index
    assert (pairs.is_same == (record[pairs.left] == record[pairs.right])).all()
    assert pairs.is_same.mean() == 0.5
    assert (species[pairs.left] == species[pairs.right]).all()
    assert (pairs.left != pairs.right).all() and np.isin(pairs.left, photos).all()
    counts = np.bincount(record[photos])
    assert pairs.is_same.sum() == (counts * (counts - 1) // 2).sum()
    again = protocols.made_pairs(catalog, photos, 5)
    assert (again.right == pairs.right).all()
    assert not np.array_equal(protocols.made_pairs(catalog, photos, 6).right, pairs.right)


def test_a_made_gallery_has_one_photo_of_each_animal(dataset):
    photos = protocols.photos_of_split(dataset, "test")
    search = protocols.made_search(dataset.catalog, photos, 5)
    record = dataset.catalog.record_index
    assert sorted(record[search.gallery]) == sorted(set(record[photos]))
    assert sorted([*search.gallery, *search.queries]) == sorted(photos)


def test_animals_to_learn_need_two_photos(dataset):
    record = dataset.catalog.record_index
    photos = protocols.photos_of_split(dataset, "train", at_least=3)
    assert np.bincount(record[photos])[np.unique(record[photos])].min() == 3


@pytest.mark.parametrize("photos", [[], [0]])
def test_nothing_to_verify_is_said(dataset, photos):
    with pytest.raises(UserError, match="in the val split: two animals of a species"):
        protocols.made_pairs(dataset.catalog, np.array(photos, int), 0, "the val split")


def test_an_animal_of_very_many_photos_gives_a_few_pairs_at_once():
    record = np.repeat([0, 1, 2], [5, 300_000, 9])
    catalog = SimpleNamespace(record_index=record, class_index=np.zeros_like(record))
    pairs = protocols.made_pairs(catalog, np.arange(len(record)), 0)
    first, second = record[pairs.left], record[pairs.right]
    assert np.bincount(first[pairs.is_same]).tolist() == [10, 45, 36]
    assert ((first == second) == pairs.is_same).all() and (pairs.left != pairs.right).all()


def test_a_photo_listed_twice_is_looked_up_once(dataset, tmp_path):
    rows = [f"dog/000001/0{k}.png,1" for k in (0, 0, 1, 1)]
    folder = lists(tmp_path, train=["filename,label", *rows[:2]],
                   reidentification=["filename,label", *rows[2:]])  # fmt: skip
    search, _ = protocols.official_search(folder, dataset.catalog)
    assert len(search.gallery) == len(search.queries) == 1
