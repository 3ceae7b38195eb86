"""The scan of a tree against a naive walk; `faults/` has the odd trees."""

import os
import random
from pathlib import Path

import pytest

from petface.data.sources.petface import scan
from petface.errors import UserError
from tests.data.sources.made_sources import tree


def paths_of(result):
    return [result.catalog.relative_path(i) for i in range(len(result.catalog))]


def naive_scan(root):
    """Independent walk: image files at exactly depth three, ordered as documented."""
    rows = []
    for path in Path(root).rglob("*"):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") for part in parts)
        image = path.suffix.lower() in (".png", ".jpeg")
        if len(parts) == 3 and path.is_file() and image and not hidden:
            rows.append((parts[0], parts[1].zfill(6), "/".join(parts).encode()))
    return sorted(rows)


@pytest.mark.parametrize("seed", range(8))
def test_a_random_tree_equals_a_naive_walk(tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(60):
        depth = draw.choice([1, 2, 3, 3, 3, 3, 4])
        folders = [
            draw.choice(["cat", "dog", ".hid", "hen"]),
            str(draw.randrange(12)).zfill(draw.choice([1, 6])),
            "sub",
        ]
        name = draw.choice(["0.png", "1.PNG", "2.jpeg", "Thumbs.db", "._0.png", "a.txt", "png"])
        tree(tmp_path, "/".join([*folders[: depth - 1], name]))
    tree(tmp_path, "cat/000001/0.png")
    result = scan(tmp_path)
    expected = naive_scan(tmp_path)
    assert paths_of(result) == [path for _, _, path in expected]
    names = result.catalog.record_names[result.catalog.record_index].tolist()
    assert names == [record for _, record, _ in expected]


def test_what_is_not_an_image_is_a_stray_with_a_reason(tmp_path):
    tree(tmp_path, "cat/000000/00.png", "cat/000000/.DS_Store", "cat/000001/note.txt", "cat/a.png")
    tree(tmp_path, "cat/000000/deep/01.png", b"\xff/000000/00.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "cat/000002").mkdir()
    os.mkfifo(tmp_path / "cat/000000/fifo.png")
    (tmp_path / "cat/000000/gone.png").symlink_to("nothing.png")
    (tmp_path / "cat/000000/loop.png").symlink_to("loop.png")
    (tmp_path / "cat/loop").symlink_to("loop")
    (tmp_path / "cat/link").symlink_to("a.png")
    result = scan(tmp_path)
    assert paths_of(result) == [b"cat/000000/00.png"]
    reasons = dict(result.strays)
    assert reasons.pop(b"cat/000000/loop.png").startswith("cannot be followed")
    assert reasons.pop(b"cat/loop").startswith("cannot be followed")
    assert reasons == {
        b"\xff": "not a usable species name",
        b"cat/a.png": "a file where a folder belongs",
        b"cat/link": "a file where a folder belongs",
        b"cat/000000/.DS_Store": "hidden",
        b"cat/000001/note.txt": "not an image suffix",
        b"cat/000000/deep": "a folder inside a record folder",
        b"cat/000000/gone.png": "broken link",
        b"cat/000000/fifo.png": "not a regular file",
    }
    assert result.catalog.classes == ("cat",) and result.catalog.num_records == 1
    assert result.empty_species == ["dog"]
    assert result.empty_records == [b"cat/000001", b"cat/000002"]
    assert result.stray_counts["broken link"] == 1 and result.stray_counts.total() == 10


def test_folders_of_one_record_are_one_record_and_links_are_followed(tmp_path):
    tree(tmp_path / "tree", "cat/7/0.png", "cat/000007/1.png", "cat/7.0/2.png", "cat/000008/0.png")
    tree(tmp_path / "tree", b"cat/\xe9/\xff.png")
    tree(tmp_path / "elsewhere", "dogs/000000/0.png", "record/0.png")
    (tmp_path / "tree/dog").symlink_to(tmp_path / "elsewhere/dogs")
    (tmp_path / "tree/cat/000001").symlink_to(tmp_path / "elsewhere/record")
    result = scan(tmp_path / "tree")
    # a name that is not UTF-8 is text that any file can hold
    assert result.catalog.record_names.tolist() == ["000001", "000007", "000008", "\\xe9", "000000"]
    assert result.catalog.record_index.tolist() == [0, 1, 1, 1, 2, 3, 4]
    assert paths_of(result)[1:4] == [b"cat/000007/1.png", b"cat/7.0/2.png", b"cat/7/0.png"]
    assert paths_of(result)[-2:] == [b"cat/\xe9/\xff.png", b"dog/000000/0.png"]
    assert all(os.path.exists(result.catalog.path(i)) for i in range(7))
    assert result.num_merged_folders == 2


def test_species_restricts_the_scan(tmp_path):
    tree(tmp_path, "cat/0/0.png", "dog/0/0.png", "hen/0/0.png")
    assert scan(tmp_path, ["hen", "cat"]).catalog.classes == ("cat", "hen")
    assert scan(tmp_path, "hen").catalog.classes == ("hen",)
    with pytest.raises(UserError, match="did you mean 'cat'.*cat, dog, hen"):
        scan(tmp_path, ["catt"])
    (tmp_path / "pig").mkdir()
    with pytest.raises(UserError, match="'pig' in .* has no image"):
        scan(tmp_path, ["pig"])
    for name in ("../cat", "..", ".", "", "a\\b", "a\0b"):
        with pytest.raises(UserError, match="refused"):
            scan(tmp_path, [name])


TREE = ("PetFace/images/cat/000000/00.png", "PetFace/annotations/cat.csv")


@pytest.mark.parametrize("species", [None, ["cat"]])
@pytest.mark.parametrize(
    ("paths", "given", "meant"),
    [
        *((TREE, given, "PetFace/images") for given in (".", "PetFace", "PetFace/gone")),
        *((TREE, f"PetFace/images/{given}", "PetFace/images") for given in ("cat", "cat/000000")),
        (("PetFace/cat/000000/00.png",), "PetFace/images", "PetFace"),  # unpacked one level off
    ],
)
def test_the_wrong_level_is_answered_with_the_right_folder(tmp_path, paths, given, meant, species):
    tree(tmp_path, *paths)
    with pytest.raises(UserError) as caught:
        scan(tmp_path / given, species)
    assert f"use this folder instead: {tmp_path / meant}\n" in str(caught.value)
    assert "images/<species>/<record>/<image>.png" in str(caught.value)


def test_a_few_images_do_not_hide_the_wrong_level_and_nothing_shows_the_tree(tmp_path):
    with pytest.raises(UserError, match="expected tree") as caught:
        scan(tmp_path)
    assert "use this folder" not in str(caught.value)
    tree(tmp_path, "images/cat/0/0.png", "images/dog/0/0.png", "images/cat/lost.png", "a_file")
    with pytest.raises(UserError, match=f"use this folder instead: {tmp_path / 'images'}\n"):
        scan(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        scan(tmp_path / "a_file")
