"""Class folders: every layout, odd names, and everything that is no photo, by reason."""

import os
from pathlib import Path

import pytest

from petface.data.sources.image_folder import read_image_folder
from petface.errors import UserError
from tests.data.sources.made_sources import files_of, tree


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


def test_what_is_no_photo_is_counted_by_reason_and_the_source_stays_as_it_is(tmp_path):
    tree(tmp_path, "cat/1.png", "cat/notes.txt", "cat/.DS_Store", "cat/._1.png", "cat/2/deep/3.png")
    tree(tmp_path, "cat/2/1.png", "cat/2/Thumbs.db", "cat/3/x.txt", "photo.png", ".git/x/1.png")
    tree(tmp_path, "unknown/1.png", "hen/x.txt")
    (tmp_path / "yak").mkdir()
    (tmp_path / "cat/gone.png").symlink_to("nothing.png")
    (tmp_path / "cat/loop.png").symlink_to("loop.png")
    (tmp_path / "lost").symlink_to("nowhere")
    os.mkfifo(tmp_path / "cat/fifo.png")
    before = files_of(tmp_path)
    found = read_image_folder(tmp_path)
    assert files_of(tmp_path) == before
    assert [row[3] for row in rows_of(found)] == ["cat/1.png", "cat/2/1.png"]
    reasons = dict(found.left_out)
    assert reasons.pop("cat/loop.png").startswith("cannot be followed")
    assert reasons == {
        "cat/notes.txt": "not an image suffix",
        "cat/.DS_Store": "hidden",
        "cat/._1.png": "hidden",
        "cat/2/deep": "a folder inside a record folder",
        "cat/2/Thumbs.db": "not an image suffix",
        "cat/3/x.txt": "not an image suffix",
        "cat/3": "a record folder without a photo",
        "cat/gone.png": "broken link",
        "cat/fifo.png": "not a regular file",
        "photo.png": "a file where a folder belongs",
        ".git": "hidden",
        "lost": "broken link",
        "unknown": "a class name that means not known; rename it to use it",
        "hen/x.txt": "not an image suffix",
        "hen": "a class folder without a photo",
        "yak": "a class folder without a photo",
    }


def test_spellings_of_one_class_are_one_and_cases_stay_apart(tmp_path):
    tree(tmp_path, "train/caf\u00e9/1.png", "test/cafe\u0301/2.png", "train/Cat/1.png")
    tree(tmp_path, "train/cafe\u0301/3.png", "test/cat/4.png")
    found = read_image_folder(tmp_path)
    assert found.classes == ["Cat", "caf\u00e9", "cat"]
    assert len(found.notes) == 2
    assert "spellings of one name" in found.notes[0] and "Cat, cat" in found.notes[1]


def test_names_that_are_not_utf8_are_kept_or_named(tmp_path):
    for path in (b"cat/\xff.png", b"cat/\xe9/1.png", b"\xff/1.png"):
        full = os.path.join(os.fsencode(tmp_path), path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        Path(os.fsdecode(full)).write_bytes(b".")
    found = read_image_folder(tmp_path)
    assert len(found.entries) == 2 and all(os.path.exists(e.path) for e in found.entries)
    assert found.left_out == [("\\xff", "a class name that is not UTF-8")]


def test_animals_of_one_name_in_two_parts_are_different_and_it_is_said(tmp_path):
    tree(tmp_path, "train/cat/7/1.png", "test/cat/007/1.png", "test/cat/8/1.png")
    (note,) = read_image_folder(tmp_path).notes
    assert note.startswith("1 record folders") and "cat/000007" in note


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([], ["does not exist", "<source>/<class>/<image>"]),
        (["1.png", "2.png"], ["holds photos and no class folders"]),
        (["cat/x.txt"], ["holds no photo"]),
        (["train/1.png"], ["holds photos and no class folders"]),
        (["val/cat/1.png", "valid/cat/1.png"], ["two folders for the val part, val and valid"]),
    ],
)
def test_a_wrong_tree_is_named_with_the_right_one(tmp_path, paths, words):
    with pytest.raises(UserError) as error:
        read_image_folder(tree(tmp_path / "pets", *paths))
    assert all(word in str(error.value) for word in [*words, str(tmp_path / "pets")])
