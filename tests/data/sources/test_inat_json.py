"""iNaturalist's JSON: classes by folder or category, missing photos, paths that are refused."""

import json

import pytest

from petface.data.sources.inat_json import read_inat_json
from petface.errors import UserError
from tests.data.sources.made_sources import inat, tree

NAMES = ["train_val2018/Mammalia/12/a.jpg", "train_val2018/Aves/7/b.jpg", "train_val/owl/c.jpg"]


def test_the_class_is_the_folder_of_the_photo(tmp_path):
    tree(tmp_path, *NAMES)
    found = read_inat_json(tmp_path, inat(tmp_path / "t.json", NAMES))
    assert [(e.species, e.record, e.part) for e in found.entries] == [
        ("owl", "c", ""), ("7", "b", ""), ("12", "a", "")
    ]  # fmt: skip
    assert all(entry.path.startswith(str(tmp_path)) for entry in found.entries)
    assert found.notes == []


def test_categories_name_the_classes_where_they_fit(tmp_path):
    tree(tmp_path, *NAMES)
    categories = {"12": "Felis catus", "7": "Corvus corax", "owl": "Strix/aluco"}
    found = read_inat_json(tmp_path, inat(tmp_path / "t.json", NAMES, categories))
    assert found.classes == ["Corvus corax", "Felis catus", "owl"]  # no folder can be Strix/aluco


def test_categories_that_do_not_fit_the_folders_are_not_used(tmp_path):
    tree(tmp_path, *NAMES)
    categories = {"12": "Felis catus", "7": "Felis catus", "owl": "Strix aluco"}
    found = read_inat_json(tmp_path, inat(tmp_path / "t.json", NAMES, categories))
    assert found.classes == ["12", "7", "owl"]
    assert found.notes == [
        "categories and folders are not one to one: folder names are used for all classes"
    ]


def test_two_files_are_two_parts(tmp_path):
    tree(tmp_path, *NAMES)
    train, val = inat(tmp_path / "t.json", NAMES[:2]), inat(tmp_path / "v.json", NAMES[2:])
    found = read_inat_json(tmp_path, train, val)
    assert [(e.species, e.part) for e in found.entries] == [
        ("owl", "val"), ("7", "train"), ("12", "train")
    ]  # fmt: skip


def test_what_is_not_there_is_counted_and_listed(tmp_path):
    tree(tmp_path, *NAMES[:2], "train_val/owl/x.gif.txt")
    names = [*NAMES, NAMES[0], "train_val/owl/x.gif.txt", "train_val/unknown/d.jpg"]
    found = read_inat_json(tmp_path, inat(tmp_path / "t.json", names))
    assert len(found.entries) == 2
    assert dict(found.left_out) == {
        "train_val/owl/c.jpg": "in the JSON, and no such photo",
        "train_val/owl/x.gif.txt": "not an image suffix",
        "train_val/unknown/d.jpg": "a class name that means not known; rename it to use it",
    }
    assert found.notes == ["1 photos are listed twice, and used once"]


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd.jpg", "train_val/cat/../../x.jpg", "/etc/x/y.jpg", "train_val\\cat\\x.jpg",
     "train_val//x.jpg", "a/./b.jpg", "train_val/x.jpg", "x.jpg", "a/b/c\0.jpg", "", 7, None],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused(tmp_path, name):
    tree(tmp_path, *NAMES)
    with pytest.raises(UserError, match=r"t.json, images\[3\]: "):
        read_inat_json(tmp_path, inat(tmp_path / "t.json", [*NAMES, name]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [\n oops]}', ["t.json, line 2: not valid JSON"]),
        ("[]", ['no list "images"']),
        ('{"images": {}}', ['no list "images"']),
        (json.dumps({"images": ["a"]}), ["images[0]: no file_name"]),
        (json.dumps({"images": []}), ["none of the 0 photos"]),
        (json.dumps({"images": [{"file_name": "a/b/c.jpg"}]}), ["none of the 1 photos"]),
        (b"\xff\xfe", ["not JSON in UTF-8"]),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, words):
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "t.json").write_bytes(raw)
    with pytest.raises(UserError) as error:
        read_inat_json(tmp_path, tmp_path / "t.json")
    assert all(word in str(error.value) for word in words)


def test_a_photo_of_both_files_is_refused(tmp_path):
    tree(tmp_path, *NAMES)
    train, val = inat(tmp_path / "t.json", NAMES), inat(tmp_path / "v.json", NAMES[1:2])
    with pytest.raises(UserError, match=r"v.json, images\[0\]: 'train_val2018/Aves/7/b.jpg' is in"):
        read_inat_json(tmp_path, train, val)
    with pytest.raises(UserError, match="cannot read"):
        read_inat_json(tmp_path, tmp_path / "none.json")
    with pytest.raises(UserError, match="is not a folder"):
        read_inat_json(tmp_path / "none", train)
