"""Oxford-IIIT Pets from a local folder, and what is said where it cannot be had."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from petface.data.sources.oxford_pets import HOME, download_oxford_pets, read_oxford_pets
from petface.errors import UserError
from tests.data.sources.made_sources import OXFORD_BREEDS, oxford


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
