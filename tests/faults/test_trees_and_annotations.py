"""Odd trees, odd annotation files and odd splits: clear errors, nothing lost in silence."""

import os
import subprocess
import sys

import pandas
import pytest

from petface.data.annotations import write_conflicts
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


# only regular image files, and the rest neither hangs nor crashes


def test_odd_entries_neither_hang_nor_count(tree):
    record = tree / "images/dog/000000"
    (record / ".DS_Store").write_bytes(b"")
    (record / "._00.png").write_bytes(b"")
    (record / "Thumbs.db").write_bytes(b"")
    (record / "x.png").mkdir()
    (record / "nested").mkdir()
    (record / "nested/00.png").write_bytes(b".")
    os.mkfifo(record / "fifo.png")
    (record / "loop.png").symlink_to("loop.png")
    (tree / "images/dog/round").symlink_to(tree / "images")
    (tree / "images/again").symlink_to("again")
    with open(os.fsencode(record) + b"/\xff\xfe.png", "wb"):  # noqa: PTH123 (a bytes path)
        pass
    code = (
        "import sys, os; from petface.data.dataset import load_dataset;"
        "data = load_dataset(sys.argv[1] + '/images', sys.argv[1] + '/annotations');"
        "print(len(data.catalog), os.fsencode(data.catalog.path(14)), data.notes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tree)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("25 b'")
    assert r"\xff\xfe.png" in done.stdout and "entries of the tree are no image" in done.stdout


# trees of the wrong shape


@pytest.mark.parametrize("given", [".", "images/dog", "images/dog/000000", "pictures"])
def test_the_wrong_level_shows_the_tree_and_the_right_folder(tree, given):
    with pytest.raises(UserError) as caught:
        load_dataset(tree / given, tree / "annotations")
    assert f"use this folder instead: {tree / 'images'}" in str(caught.value)
    assert "images/<species>/<record>/<image>.png" in str(caught.value)


def test_empty_species_and_record_folders_are_counted(tree):
    (tree / "images/hen").mkdir()
    (tree / "images/dog/000099").mkdir()
    data = load(tree)
    assert data.catalog.classes == ("cat", "dog") and data.catalog.num_records == 12
    assert any("without an image: hen" in note for note in data.notes)
    assert any("1 record folders without an image" in note for note in data.notes)


def test_a_species_without_annotations_is_kept_and_said(tree):
    (tree / "images/yak/000000").mkdir(parents=True)
    (tree / "images/yak/000000/00.png").write_bytes(b".")
    data = load(tree)
    assert "yak" in data.catalog.classes and "yak" not in data.annotations
    assert any(note.startswith("yak") and "NO specialist" in note for note in data.notes)


# names of records


def test_spellings_of_one_record_and_contradictory_rows(tree):
    rows = ["7,F,Pug", "7.0,F,Pug", "000007,F,Pug", " 000007 ,F,Pug", "3,F,Pug", "3,F,Boxer"]
    set_rows(tree, "\n".join(["Name,Gender,Breed", *rows, "4,M,Boxer"]))
    table = load(tree).annotations["dog"]
    assert table.records.tolist() == ["000003", "000004", "000007"]
    assert table.labels["breed"].tolist() == [-1, 0, 1]
    write_conflicts(tree / "label_conflicts.csv", [table])
    back = pandas.read_csv(tree / "label_conflicts.csv", dtype=str, keep_default_na=False)
    assert back.iloc[0].tolist() == ["dog", "000003", "breed", "Pug | Boxer", "6 7"]
    assert len(back) == 1


# annotation files


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_line_ends_and_quoted_commas_are_read(tree, mark, end):
    rows = ["Name,Gender,Breed", '0,F,"Bulldog, Olde"', "1,M,Pug"]
    set_rows(tree, mark + end.join(rows) + end)
    table = load(tree).annotations["dog"]
    assert table.vocabularies["breed"] == ("Bulldog, Olde", "Pug")
    assert table.labels["breed"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Name,Gender,Breed\n1,F,Pinscher é\n".encode("latin-1"), "dog.csv, line 2: .*not UTF-8"),
        ("Name,Gender,Breed\n1,F,a\n2,F\n", "dog.csv, line 3: 2 cells"),
        ("Name,Gender,Breed\n1,F,a,b\n", "dog.csv, line 2: 4 cells"),
        ('Name,Gender,Breed\n1,F,"a\n', "dog.csv, line 2: .*quote"),
        ("", "dog.csv is empty"),
        ("Gender,Breed\nF,a\n", "dog.csv, line 1: no column Name"),
    ],
)
def test_anything_else_is_an_error_with_file_and_line(tree, data, message):
    set_rows(tree, data)
    with pytest.raises(UserError, match=message):
        load(tree)


def test_a_missing_column_drops_its_head_and_an_extra_one_is_ignored(tree):
    set_rows(tree, "Name,Gender,Weight\n0,F,3\n1,M,4\n")
    data = load(tree)
    assert data.annotations["dog"].features == ("gender",)
    assert any("no column Breed" in note and "NO breed head" in note for note in data.notes)
    assert any("ignored" in note and "'Weight'" in note for note in data.notes)


# records and rows that do not meet


def test_records_without_a_row_and_rows_without_a_record(tree):
    set_rows(tree, "Name,Gender,Breed\n0,F,Pug\n99,M,Pug\n")
    data = load(tree)
    assert len(data.image_labels("dog")[0]) == 12  # all kept
    no_row, no_record = data.unmatched("dog")
    assert len(no_row) == 5 and no_record == ["000099"]


# a head with no known label


def test_a_head_without_a_known_label_has_no_class(tree):
    set_rows(tree, "Name,Gender,Breed\n0,F,unknown\n1,M,\n")
    data = load(tree)
    assert data.annotations["dog"].vocabularies["breed"] == ()
    assert any("no known breed at all" in note for note in data.notes)


# the split


def test_small_classes_are_tested_from_three_records_on_and_listed_below(tree):
    set_rows(tree, "Name,Gender,Breed\n0,F,A\n1,F,A\n2,F,A\n3,F,B\n4,F,B\n5,F,C\n")
    data = load(tree)
    splits = [SPLITS[code] for code in data.record_split[data.catalog.record_class == 1]]
    assert sorted(splits[:3]) == ["test", "train", "train"] and splits[3:] == ["train"] * 3
    assert any("2 of 3 breed classes" in note and "'B', 'C'" in note for note in data.notes)


def test_an_edited_split_and_changed_data_are_refused_with_the_way_out(tree):
    load(tree)
    path = tree / "splits.csv"
    whole = path.read_text()
    path.write_text(whole.replace("test", "train", 1))
    with pytest.raises(UserError, match="edited.*delete .*splits.csv"):
        load(tree)
    path.write_text(whole)
    (tree / "images/dog/000099").mkdir()
    (tree / "images/dog/000099/00.png").write_bytes(b".")
    with pytest.raises(UserError, match=r"dog: 1 records \(000099\) new.*delete"):
        load(tree)
    assert load(tree, species=["cat"]).catalog.num_records == 6


# labels that break naive files


@pytest.mark.parametrize(
    "label", ["=1+1", "+x", "-x", "@x", "two\nlines", 'a "b"', "🐕", "\u200fabc", "<script>"]
)
def test_odd_labels_keep_their_spelling_and_are_neutral_in_reports(tree, label):
    quoted = '"' + label.replace('"', '""') + '"'
    set_rows(tree, f"Name,Gender,Breed\n0,F,{quoted}\n1,F,{quoted}\n1,F,zz\n")
    table = load(tree).annotations["dog"]
    assert table.vocabularies["breed"] == (label,)
    write_conflicts(tree / "label_conflicts.csv", [table])
    back = pandas.read_csv(tree / "label_conflicts.csv", dtype=str, keep_default_na=False)
    value = back["values"][0]
    assert not value.startswith(("=", "+", "-", "@"))
    assert value.removeprefix("'") == f"{label} | zz"


# names that lead out of the tree


@pytest.mark.parametrize("name", ["../cat", "/etc/passwd", "..", "cat/../dog"])
def test_a_species_name_that_is_a_path_is_refused(tree, name):
    with pytest.raises(UserError, match="refused"):
        load(tree, species=[name])
