"""Class folders: every layout, odd names, and everything that is no photo, by reason; iNaturalist's
JSON: missing photos, refused paths; Oxford-IIIT Pets, and what is said where they cannot be had.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from petface.data.sources.readers import (
    HOME,
    download_oxford_pets,
    read_image_folder,
    read_inat_json,
    read_oxford_pets,
)
from petface.errors import UserError
from tests.data.sources.made_sources import OXFORD_BREEDS, files_of, inat, oxford, tree


def rows_of(found):
    return [
        (e.part, e.species, e.record, Path(e.path).relative_to(found.source).as_posix())
        for e in found.entries
    ]


def test_one_folder_where_photos_and_animals_lie_in_the_classes(tmp_path):
    tree(tmp_path, "dog/a.jpg", "cat/2.png", "cat/1.png", "cat/007/x.png", "cat/007/y.PNG")
    found = read_image_folder(tmp_path)
    assert rows_of(found) == [
        ("", "cat", "000007", "cat/007/x.png"),
        ("", "cat", "000007", "cat/007/y.PNG"),
        ("", "cat", "1", "cat/1.png"),
        ("", "cat", "2", "cat/2.png"),
        ("", "dog", "a", "dog/a.jpg"),
    ]
    assert len({entry.animal for entry in found.entries}) == 4
    assert found.parts == set() and found.left_out == [] and found.notes == []


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_the_parts_keep_their_photos(tmp_path, name):
    tree(tmp_path, "train/cat/1.png", f"{name}/cat/1.png", "Test/cat/1.png", "Test/yak/1.png")
    tree(tmp_path, "notes/cat/2.png", "readme.txt")
    found = read_image_folder(tmp_path)
    assert [row[:2] for row in rows_of(found)] == [
        ("train", "cat"), ("val", "cat"), ("test", "cat"), ("test", "yak")
    ]  # fmt: skip
    assert found.left_out == [
        ("notes", "a folder beside train, val and test"),
        ("readme.txt", "a file where a folder belongs"),
    ]
    assert found.notes == [], "photos of one name are no animal"


def test_what_is_no_photo_is_listed_by_reason_and_the_source_stays_as_it_is(tmp_path):
    tree(tmp_path, "cat/1.png", "cat/notes.txt", "cat/._1.png", "cat/2/deep/3.png", "cat/2/1.png")
    tree(tmp_path, "cat/3/x.txt", "photo.png", ".git/x/1.png", "unknown/1.png", "hen/x.txt")
    (tmp_path / "cat/gone.png").symlink_to("nothing.png")
    os.mkfifo(tmp_path / "cat/fifo.png")
    tree(tmp_path, b"cat/\xff.png", b"\xff/1.png")
    before = files_of(tmp_path)
    found = read_image_folder(tmp_path)
    assert files_of(tmp_path) == before
    paths = [os.fsencode(row[3]) for row in rows_of(found)]
    assert paths == [b"cat/1.png", b"cat/2/1.png", b"cat/\xff.png"]
    assert dict(found.left_out) == {
        "cat/notes.txt": "not an image suffix",
        "cat/._1.png": "hidden",
        "cat/2/deep": "a folder inside a record folder",
        "cat/3/x.txt": "not an image suffix",
        "cat/3": "a record folder without a photo",
        "cat/gone.png": "broken link",
        "cat/fifo.png": "not a regular file",
        "photo.png": "a file where a folder belongs",
        ".git": "hidden",
        "unknown": "a class name that means unknown; rename it to use it",
        "hen/x.txt": "not an image suffix",
        "hen": "a class folder without a photo",
        "\\xff": "a class name that is not UTF-8",
    }


def test_spellings_of_one_class_are_one_and_an_animal_in_two_parts_is_noted(tmp_path):
    tree(tmp_path, "train/caf\u00e9/1.png", "test/cafe\u0301/2.png", "train/Cat/7/1.png")
    tree(tmp_path, "train/cafe\u0301/3.png", "test/cat/4.png", "test/Cat/007/1.png")
    found = read_image_folder(tmp_path)
    assert found.classes == ["Cat", "caf\u00e9", "cat"]
    (animal,) = found.notes
    assert animal.startswith("1 record folders") and "Cat/000007" in animal


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([], "does not exist"),
        (["1.png", "2.png"], "holds photos and no class folders"),
        (["cat/x.txt"], "holds no photo"),
        (["train/1.png"], "holds photos and no class folders"),
        (["val/cat/1.png", "valid/cat/1.png"], "two folders for the val split, val and valid"),
    ],
)
def test_a_wrong_tree_is_named(tmp_path, paths, words):
    with pytest.raises(UserError, match=f"--source {tmp_path}/pets .*{words}"):
        read_image_folder(tree(tmp_path / "pets", *paths))


# iNaturalist's JSON

NAMES = ["train_val2018/Mammalia/12/a.jpg", "train_val2018/Aves/7/b.jpg", "train_val/owl/c.jpg"]


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path, *NAMES)


def test_two_files_are_two_parts_and_a_photo_is_in_one(root):
    train, val = inat(root / "t.json", NAMES[:2]), inat(root / "v.json", NAMES[2:])
    found = read_inat_json(root, train, val)
    assert [(e.species, e.part) for e in found.entries] == [
        ("owl", "val"), ("7", "train"), ("12", "train")
    ]  # fmt: skip
    inside = read_inat_json(root, "t.json", "v.json")  # as named inside the source
    assert [e.path for e in inside.entries] == [e.path for e in found.entries]
    alone = read_inat_json(root, train)
    assert [(e.record, e.part) for e in alone.entries] == [("b", ""), ("a", "")]
    assert all(entry.path.startswith(str(root)) for entry in alone.entries)
    val = inat(root / "v.json", NAMES[1:2])
    with pytest.raises(UserError, match=r"v.json, images\[0\]: 'train_val2018/Aves/7/b.jpg' is in"):
        read_inat_json(root, train, val)
    with pytest.raises(UserError, match="cannot read"):
        read_inat_json(root, root / "none.json")


def test_what_is_not_there_is_counted_and_listed(root):
    (root / NAMES[2]).unlink()
    tree(root, "train_val/owl/x.gif.txt", "train_val/dup/owl/e.jpg", "train_val/owl/e.jpg")
    names = ["train_val/owl/x.gif.txt", "train_val/unknown/d.jpg", "train_val/dup/owl/e.jpg"]
    names += [*NAMES, NAMES[0], "train_val/owl/e.jpg"]
    found = read_inat_json(root, inat(root / "t.json", names))
    assert len(found.entries) == 4
    assert dict(found.left_out) == {
        "train_val/owl/c.jpg": "in the JSON, and no such photo",
        "train_val/owl/x.gif.txt": "not an image suffix",
        "train_val/unknown/d.jpg": "a class name that means unknown; rename it to use it",
    }
    assert found.notes == ["1 photos are listed twice, and used once"]


ELSEWHERE = [
    "../../etc/passwd.jpg", "train_val/cat/../../x.jpg", "/etc/x/y.jpg", "train_val\\cat\\x.jpg",
    "train_val//x.jpg", "a/./b.jpg", "train_val/x.jpg", "x.jpg", "a/b/c\0.jpg", "", 7, None,
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"images": [\n oops]}', "t.json, line 2: not valid JSON"),
        (b"[]", 'no list "images"'),
        (b'{"images": {}}', 'no list "images"'),
        (b'{"images": ["a"]}', r"images\[0\]: no file_name"),
        (b'{"images": []}', "none of the 0 photos"),
        (b"\xff\xfe", "not JSON in UTF-8"),
        *((name, r"t.json, images\[3\]: ") for name in ELSEWHERE),
    ],
)
def test_a_file_of_another_kind_and_paths_that_lead_elsewhere_are_named(root, content, words):
    if isinstance(content, bytes):
        (root / "t.json").write_bytes(content)
    else:
        inat(root / "t.json", [*NAMES, content])
    with pytest.raises(UserError, match=words):
        read_inat_json(root, root / "t.json")


# Oxford-IIIT Pets


def test_one_stage_has_breeds_as_classes_and_keeps_the_official_lists(tmp_path):
    root = oxford(tmp_path / "pets")
    for number in (3, 14):
        (root / f"images/Abyssinian_{number}.jpg").unlink()
    found = read_oxford_pets(root, "one")
    assert found.classes == sorted(OXFORD_BREEDS)
    for breed, (_, _, num_train, num_test) in OXFORD_BREEDS.items():
        gone = breed == "Abyssinian"
        parts = [entry.part for entry in found.entries if entry.species == breed]
        assert parts == ["train"] * (num_train - gone) + ["test"] * (num_test - gone)
    assert {entry.breed for entry in found.entries} == {""}
    assert dict(found.left_out) == {
        "images/._Abyssinian_1.jpg": "hidden",
        "images/Abyssinian_100.mat": "not an image suffix",
        "images/Bengal_7.jpg": "a photo in no official list",
        "Abyssinian_3.jpg": "in trainval.txt, and no such photo",
        "Abyssinian_14.jpg": "in test.txt, and no such photo",
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("Abyssinian_900 1", "'Abyssinian_900 1 nan nan' is no photo of"),
        ("Abyssinian 1 1 1", "is no photo of"),
        ("Abyssinian_900 1 3 1", "is no photo of"),
        ("Abyssinian_2 1 1 1", "lists Abyssinian_2 twice"),
        ("Abyssinian_900 1 1 1 1", "fields"),
        ("\udcff", "utf-8"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(tmp_path, row, words):
    root = oxford(tmp_path / "pets")
    with (root / "annotations/test.txt").open("ab") as handle:
        handle.write(row.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(UserError, match=f"pets/annotations.*{words}.*download the list again"):
        read_oxford_pets(root, "one")


def test_a_folder_that_is_not_the_data_set_says_what_to_fetch(tmp_path):
    with pytest.raises(UserError, match="does not exist") as error:
        read_oxford_pets(tmp_path / "none", "one")
    assert HOME in str(error.value) and "images.tar.gz" in str(error.value)
    root = oxford(tmp_path / "pets")
    (root / "annotations/test.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="holds no photo of test.txt"):
        read_oxford_pets(root, "one")
    (root / "annotations/test.txt").unlink()
    with pytest.raises(UserError, match="cannot read .*test.txt"):
        read_oxford_pets(root, "one")


@pytest.fixture
def torchvision(monkeypatch):
    """Stands in for torchvision's module of data sets."""
    module = ModuleType("torchvision.datasets")
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    return module


def test_the_download_lands_where_it_is_read(tmp_path, torchvision):
    def fetch(root, *, download):
        assert download
        oxford(Path(root) / "oxford-iiit-pet")

    torchvision.OxfordIIITPet = fetch
    download_oxford_pets(tmp_path)
    found = read_oxford_pets(tmp_path, "two")
    assert {(entry.species, entry.breed) for entry in found.entries} == {
        ("cat", "Abyssinian"), ("cat", "Egyptian_Mau"), ("dog", "american_bulldog")
    }  # fmt: skip


def test_without_a_network_it_says_what_to_do_by_hand(tmp_path, torchvision):
    def fail(*_, **__):
        raise RuntimeError("no route to host\nsecond line")

    torchvision.OxfordIIITPet = fail
    with pytest.raises(UserError) as error:
        download_oxford_pets(tmp_path)
    text = str(error.value)
    assert "could not be downloaded (no route to host)" in text
    assert HOME in text and f"{tmp_path}/annotations/trainval.txt" in text
