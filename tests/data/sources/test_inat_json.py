"""iNaturalist's JSON: classes by folder or category, missing photos, paths that are refused."""

import json

import pytest

from petface.data.sources.inat_json import read_inat_json
from petface.errors import UserError
from tests.data.sources.made_sources import inat, tree

NAMES = ["train_val2018/Mammalia/12/a.jpg", "train_val2018/Aves/7/b.jpg", "train_val/owl/c.jpg"]


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path, *NAMES)


@pytest.mark.parametrize(
    ("categories", "classes"),
    [
        (None, ["12", "7", "owl"]),
        ({"12": "Felis catus", "7": "Corvus corax", "owl": "Strix aluco"}, None),
        ({"12": "Felis", "7": "Corvus", "owl": "Strix/aluco"}, ["Corvus", "Felis", "owl"]),
        ({"12": "Felis catus", "7": "Felis catus", "owl": "Strix"}, ["Felis catus", "Strix"]),
    ],
)
def test_categories_name_the_classes_where_they_fit_the_folders(root, categories, classes):
    found = read_inat_json(root, inat(root / "t.json", NAMES, categories))
    assert found.classes == (classes or sorted(categories.values()))
    assert [(entry.record, entry.part) for entry in found.entries] == [
        ("c", ""), ("b", ""), ("a", "")
    ]  # fmt: skip
    assert all(entry.path.startswith(str(root)) for entry in found.entries)


def test_two_files_are_two_parts_and_a_photo_is_in_one(root):
    train, val = inat(root / "t.json", NAMES[:2]), inat(root / "v.json", NAMES[2:])
    found = read_inat_json(root, train, val)
    assert [(e.species, e.part) for e in found.entries] == [
        ("owl", "val"), ("7", "train"), ("12", "train")
    ]  # fmt: skip
    inside = read_inat_json(root, "t.json", "v.json")  # as named inside the source
    assert [e.path for e in inside.entries] == [e.path for e in found.entries]
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


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd.jpg", "train_val/cat/../../x.jpg", "/etc/x/y.jpg", "train_val\\cat\\x.jpg",
     "train_val//x.jpg", "a/./b.jpg", "train_val/x.jpg", "x.jpg", "a/b/c\0.jpg", "", 7, None],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused(root, name):
    with pytest.raises(UserError, match=r"t.json, images\[3\]: "):
        read_inat_json(root, inat(root / "t.json", [*NAMES, name]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"images": [\n oops]}', "t.json, line 2: not valid JSON"),
        (b"[]", 'no list "images"'),
        (b'{"images": {}}', 'no list "images"'),
        (json.dumps({"images": ["a"]}).encode(), r"images\[0\]: no file_name"),
        (json.dumps({"images": []}).encode(), "none of the 0 photos"),
        (b"\xff\xfe", "not JSON in UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_named(root, content, words):
    (root / "t.json").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_inat_json(root, root / "t.json")
