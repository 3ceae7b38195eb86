"""Odd trees, odd annotation files and odd splits: clear errors, nothing lost in silence."""

import pytest

from petface.data.dataset import load_dataset
from petface.data.splits import SPLITS
from petface.errors import UserError


@pytest.fixture
def tree(tmp_path):
    """Two species of six records, two images each, in PetFace's shape."""
    for species in ("cat", "dog"):
        for record in range(6):
            folder = tmp_path / "images" / species / f"{record:06d}"
            folder.mkdir(parents=True)
            for image in range(2):
                (folder / f"{image:02d}.png").write_bytes(b".")
        rows = [f"{record:06d},Female,Pug,White,Tabby" for record in range(6)]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / "annotations" / f"{species}.csv"
        path.write_text("\n".join(["Name,Gender,Breed,Color1,Color2", *rows]) + "\n")
    return tmp_path


def load(tree, **options):
    return load_dataset(tree / "images", tree / "annotations", **options)


def set_rows(tree, data):
    data = data if isinstance(data, bytes) else data.encode("utf-8")
    (tree / "annotations/dog.csv").write_bytes(data)


def test_empty_folders_and_what_is_no_image_are_counted(tree):
    (tree / "images/dog/000000/note.txt").write_bytes(b"")
    (tree / "images/hen").mkdir()
    (tree / "images/dog/000099").mkdir()
    data = load(tree)
    assert data.catalog.classes == ("cat", "dog") and data.catalog.num_records == 12
    assert any("without images: hen" in note for note in data.notes)
    assert any("1 record folders without images" in note for note in data.notes)
    assert any("entries of the tree are no image" in note for note in data.notes)


def test_a_missing_column_drops_its_head_and_an_extra_one_is_ignored(tree):
    set_rows(tree, "Name,Gender,Weight\n0,F,3\n1,M,4\n")
    data = load(tree)
    assert data.annotations["dog"].features == ("gender",)
    assert any("no column Breed" in note and "NO breed head" in note for note in data.notes)
    assert any("ignored" in note and "'Weight'" in note for note in data.notes)


def test_small_classes_are_tested_from_three_records_on_and_listed_below(tree):
    set_rows(tree, "Name,Gender,Breed\n0,F,A\n1,F,A\n2,F,A\n3,F,B\n4,F,B\n5,F,C\n")
    data = load(tree)
    splits = [SPLITS[code] for code in data.record_split[data.catalog.record_class == 1]]
    assert sorted(splits[:3]) == ["test", "train", "train"] and splits[3:] == ["train"] * 3
    assert any("2 of 3 breed classes" in note and "'B', 'C'" in note for note in data.notes)


@pytest.mark.parametrize("name", ["../cat", "/etc/passwd", "..", "cat/../dog"])
def test_a_species_name_that_is_a_path_is_refused(tree, name):
    with pytest.raises(UserError, match="refused"):
        load(tree, species=[name])
