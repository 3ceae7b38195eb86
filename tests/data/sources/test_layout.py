"""From entries to a tree: names, parts, classes of a checkpoint, links, a split that holds."""

from __future__ import annotations

import csv
import errno
import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from petface.data.dataset import load_dataset
from petface.data.sources import layout
from petface.data.sources.layout import (
    Entry,
    Found,
    class_name,
    cut_parts,
    name_photos,
    prepare,
    safe_name,
    settle_parts,
    take_name,
)
from petface.data.sources.readers import read_image_folder, read_oxford_pets
from petface.data.splits import SPLITS
from petface.errors import UserError
from petface.taxonomy import canonical_record, is_unknown
from tests.data.sources.made_sources import files_of, oxford, tree


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("IMG 0001 (copy)", "IMG_0001_copy"),
        ("7", "000007"),
        ("7.0", "7_0"),
        ("...", "photo"),
        ("NaN", "NaN_photo"),
        ("n/a", "n_a"),
        ("=cmd()|x", "cmd_x"),
        ("../../etc", "etc"),
        ("снег 1", "снег_1"),
        ("e\u0301", "é"),
        ("\udcff", "photo"),
        ("é" * 300, "é" * 40),
    ],
)
def test_a_safe_name(text, name):
    assert safe_name(text) == name
    assert safe_name(name) == canonical_record(name) == name and not is_unknown(name)


def test_names_stay_apart_whatever_their_case_and_form():
    names: dict[str, int] = {}
    wanted = ["a", "A", "a_2", "a", "é", unicodedata.normalize("NFD", "É"), "000007", "000007"]
    taken = [take_name(names, name) for name in wanted]
    folded = {unicodedata.normalize("NFC", name.casefold()) for name in taken}
    assert len(folded) == len(wanted)
    assert taken[:4] == ["a", "A_2", "a_2_2", "a_3"]
    many = [take_name(names, "same") for _ in range(2000)]
    assert len(set(many)) == 2000 and many[-1] == "same_2000"


@pytest.mark.parametrize("text", [" NaN ", ".cat", "a/b", "a\nb", "\udcff", "é" * 101])
def test_what_cannot_be_a_class_or_a_folder_is_refused(text):
    with pytest.raises(UserError, match="class name"):
        class_name(text)
    for kept in (" Bulldog, Olde mix. ", "e\u0301", "=1+1", "é" * 100):
        assert class_name(kept) == unicodedata.normalize("NFC", kept.strip())


# ---- parts and classes ----


def made(*rows: tuple[str, str, int]) -> Found:
    """Entries (part, class, number of photos) of a source that is not on disk."""
    found = Found("image_folder", Path("/source"))
    for part, species, num in rows:
        for number in range(num):
            path = f"/source/{part}/{species}/{number}.png"
            found.entries.append(Entry(species, str(number), path, path, part))
    return found


def settled(*rows, classes=None, val_as="test") -> Found:
    found = made(*rows)
    settle_parts(found, checkpoint_classes=classes, val_as=val_as)
    return found


def counts(found: Found) -> set[tuple[str, str, int]]:
    pairs = Counter((entry.part, entry.species) for entry in found.entries)
    return {(part, species, num) for (part, species), num in pairs.items()}


def test_a_val_part_alone_becomes_the_test_part_unless_asked_otherwise():
    for parts, val_as, wanted in [
        (["train", "val"], "test", ["train", "test"]),
        (["train", "val"], "val", ["train", "val"]),
        (["val", "test"], "test", ["val", "test"]),
        (["test"], "test", ["test"]),
    ]:
        found = settled(*((part, "cat", num) for num, part in enumerate(parts, 2)), val_as=val_as)
        assert counts(found) == {(part, "cat", num) for num, part in enumerate(wanted, 2)}
        assert len(found.notes) == (parts != wanted)


def test_classes_without_a_training_photo_or_unknown_to_the_checkpoint_leave():
    found = settled(("train", "cat", 2), ("val", "hen", 1), ("test", "cat", 2), ("test", "Catt", 3))
    assert counts(found) == {("train", "cat", 2), ("test", "cat", 2)}
    assert len(found.notes) == 2 and "Catt (3 photos, is it 'cat'?)" in found.notes[0]
    assert len(found.left_out) == 4 and "val/hen/0.png" in dict(found.left_out)
    rows = [("train", "cat", 2), ("train", "hen", 2), ("test", "cat", 1)]
    found = settled(*rows, ("test", "hen", 1), classes=("dog", "cat"))
    assert counts(found) == set(rows), "the test part alone is asked of the checkpoint"
    assert ["hen" in note for note in found.notes] == [True, False] and "dog" in found.notes[1]
    rows = [("train", "cat", 2), ("test", "hen", 1)]
    found = settled(*rows, ("val", "hen", 1), classes=("cat", "hen"))
    assert counts(found) == set(rows), "a val photo is of a class that trains"


def test_a_folder_for_evaluation_alone_holds_the_known_classes_alone():
    rows = [("", "cat", 2), ("", "hen", 2), ("", "caf\u00e9", 1)]
    found = settled(*rows, classes=("cat", "cafe\u0301"))
    assert counts(found) == {("test", "cat", 2), ("test", "cafe\u0301", 1)}
    with pytest.raises(UserError, match="no photo of /source is left; the known classes are yak"):
        settled(("", "cat", 2), classes=("yak",))


def cut(found: Found, seed: int = 0) -> Found:
    found.entries = name_photos(found.entries)
    cut_parts(found, seed)
    return found


@pytest.mark.parametrize(
    ("parts", "lacking"),
    [(("train", "test"), {"val"}), (("train", "val"), {"test"}), (("train",), {"val", "test"})],
)
def test_what_is_lacking_is_cut_from_train_by_record(parts, lacking):
    rows = [(part, name, 40) for part in parts for name in ("cat", "dog")]
    found = cut(made(*rows))
    wanted = dict.fromkeys(parts, 40) | dict.fromkeys(lacking, 4)  # 10 % of each class
    wanted["train"] -= 4 * len(lacking)
    assert counts(found) == {(p, name, num) for p, num in wanted.items() for name in ("cat", "dog")}
    assert len(found.notes) == len(lacking)
    assert cut(made(*rows)).entries == found.entries != cut(made(*rows), seed=1).entries


def test_records_that_share_a_file_are_cut_to_one_side(tmp_path):
    """The same bytes under two names would be learnt and asked."""
    places = [(label, number) for label in ("cat", "dog") for number in range(40)]
    for label, number in places:
        path = tmp_path / f"pets/train/{label}/{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{label} {number // 2}".encode() * 20)
    prepare(read_image_folder(tmp_path / "pets"), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out/sources.csv").open()))
    part_of = {
        Path(row["source"]).relative_to(tmp_path / "pets/train"): row["part"] for row in rows
    }
    for label, number in places:
        pair = [part_of[Path(f"{label}/{n:02d}.png")] for n in (number, number ^ 1)]
        assert pair[0] == pair[1]
    assert set(part_of.values()) == set(SPLITS)


def test_nothing_is_cut_where_there_is_no_train_part_or_nothing_is_lacking():
    for parts in ([""], ["test"], SPLITS):
        rows = [(part, "cat", 9) for part in parts]
        assert counts(cut(made(*rows))) == set(rows)


# ---- the tree ----


def loaded(out: Path):
    return load_dataset(out / "images", out / "annotations")


def test_oxford_is_loaded_with_its_official_test_part(tmp_path):
    source = oxford(tmp_path / "pets")
    prepare(read_oxford_pets(source, "one"), tmp_path / "out")
    data = loaded(tmp_path / "out")
    assert data.catalog.classes == ("Abyssinian", "Egyptian_Mau", "american_bulldog")
    rows = (source / "annotations/test.txt").read_text().splitlines()
    official = {row.split()[0] for row in rows if not row.startswith("#")}
    names = data.catalog.record_names[data.catalog.record_index]
    assert set(names[data.image_split == SPLITS.index("test")].tolist()) == official
    per_class = [
        np.bincount(data.image_split[data.catalog.class_index == k], minlength=3).tolist()
        for k in range(3)
    ]
    # 25 photos in trainval: one in val of each breed that has at least four
    assert per_class == [[11, 1, 5], [3, 0, 2], [9, 1, 6]]
    assert any("was taken from oxford_pets in" in note for note in data.notes)
    assert not any("was made with seed" in note for note in data.notes)
    prepare(read_oxford_pets(source, "two"), tmp_path / "two")
    data = loaded(tmp_path / "two")
    assert data.annotations["cat"].vocabularies["breed"] == ("Abyssinian", "Egyptian_Mau")
    images, labels = data.image_labels("cat")
    is_rare = labels["breed"] == 1
    names = data.catalog.record_names[data.catalog.record_index[images]]
    assert is_rare.tolist() == [name.startswith("Egyptian_Mau") for name in names.tolist()]
    assert data.image_split[images][is_rare].tolist() == [0, 0, 0, 2, 2]  # too few for a val photo


ODD = [
    "train/cat/a.png", "train/cat/A.png", "train/cat/a.jpg", "train/cat/7.png", "train/cat/007.png",
    "train/cat/x/1.png", "train/cat/x/1.jpg", "train/cat/nan.png", "train/cat/b,c.png",
    "train/cat/=1+1.png", "train/cat/  .png", "train/cat/\u4e2d\u6587.png", "train/cat/a_2.png",
    "train/Bulldog, Olde mix/1.png", "train/=cmd/1.png", "train/caf\u00e9.v2/1.png",
    "test/cat/a.png", "test/cat/x/1.png", "test/=cmd/1.png", "test/Bulldog, Olde mix/1.png",
    "val/cat/a.png", "val/caf\u00e9.v2/2.png",
]  # fmt: skip


def test_odd_names_make_a_tree_that_loads_and_lead_back_to_their_photos(tmp_path):
    source = tree(tmp_path / "source", *ODD)
    before = files_of(source)
    prepare(read_image_folder(source), tmp_path / "out")
    assert files_of(source) == before
    data = loaded(tmp_path / "out")
    assert data.catalog.classes == ("=cmd", "Bulldog, Olde mix", "caf\u00e9.v2", "cat")
    with (tmp_path / "out/sources.csv").open(encoding="utf-8", newline="") as handle:
        rows = {row["source"]: row for row in csv.DictReader(handle)}
    targets = []
    for i in range(len(data.catalog)):
        target = os.readlink(data.catalog.path(i))
        part = SPLITS[data.image_split[i]]
        assert rows[target]["part"] == part == Path(target).relative_to(source).parts[0]
        assert rows[target]["image"] == Path(data.catalog.path(i)).name
        targets.append(str(Path(target).relative_to(source)))
    assert sorted(targets) == sorted(ODD)
    folded = [name.casefold() for name in data.catalog.record_names.tolist()]
    assert len(set(zip(data.catalog.record_class.tolist(), folded, strict=True))) == len(folded)


@pytest.mark.parametrize("link", ["symbolic", "hard", "copy"])
def test_links_and_copies(tmp_path, link):
    """Without parts, the tree is split when it is first loaded."""
    source = tree(tmp_path / "source", "cat/1.png", "dog/1.png")
    (source / "dog/2.png").symlink_to("../cat/1.png")
    prepare(read_image_folder(source), tmp_path / "out", link=link)
    places = sorted((tmp_path / "out/images").rglob("*.png"))
    assert [place.read_bytes() for place in places] == [b"cat/1.png", b"dog/1.png", b"cat/1.png"]
    assert all(place.is_symlink() == (link == "symbolic") for place in places)
    assert not (tmp_path / "out/splits.csv").exists() and len(loaded(tmp_path / "out").catalog) == 3
    one = os.stat(tmp_path / "source/cat/1.png")
    assert one.st_nlink == {"symbolic": 1, "hard": 3, "copy": 1}[link]


# ---- whole or not at all ----


@pytest.fixture
def source(tmp_path) -> Path:
    return tree(tmp_path / "source", "cat/1.png", "cat/2.png", "cat/x.txt")


def test_where_links_are_not_possible_photos_are_copied_and_it_is_said(
    source, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", fail)
    found = read_image_folder(source)
    prepare(found, tmp_path / "out")
    assert len(found.notes) == 1 and "photos are copied instead" in found.notes[0]
    assert not any(p.is_symlink() for p in (tmp_path / "out/images").rglob("*.png"))


def test_the_marker_tells_what_was_prepared(source, tmp_path):
    prepare(read_image_folder(source), tmp_path / "out")
    facts = json.loads((tmp_path / "out" / layout.MARKER).read_text(encoding="utf-8"))
    assert facts == {
        "kind": "image_folder", "finished": True, "source": str(source), "photos": 2,
        "left_out": 1, "notes": [],
    }  # fmt: skip
    text = (tmp_path / "out/left_out.csv").read_text(encoding="utf-8")
    assert text == "what,reason\ncat/x.txt,not an image suffix\n"


def test_a_folder_that_exists_is_refused_and_left_alone(source, tmp_path):
    out = tmp_path / "out"
    prepare(read_image_folder(source), out)
    tree(tmp_path / "other", "mine.txt")
    before = [files_of(folder) for folder in (out, tmp_path / "other")]
    for path, words in {
        out: "holds a prepared tree already: .* another --out",
        tmp_path / "other": "exists already",
        source / "deep/out": "lies inside the source",
    }.items():
        with pytest.raises(UserError, match=words):
            prepare(read_image_folder(source), path)
    assert [files_of(folder) for folder in (out, tmp_path / "other")] == before
    (tmp_path / "empty").mkdir()
    prepare(read_image_folder(source), tmp_path / "empty")


@pytest.mark.parametrize("kind", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_an_interruption_leaves_nothing_behind(source, tmp_path, monkeypatch, kind):
    def stop(photo, place, _):
        if Path(photo).name == "2.png":
            raise kind
        os.symlink(photo, place)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, UserError)) as error:
        patch.setattr(layout, "_place", stop)
        prepare(read_image_folder(source), tmp_path / "out")
    assert not isinstance(kind, OSError) or "bytes free" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    prepare(read_image_folder(source), tmp_path / "out")
    assert len(loaded(tmp_path / "out").catalog) == 2


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("symbolic", "holds 1 photos where 2 were placed"),
        ("copy", "cannot read .*source/cat/1.png"),
    ],
)
def test_a_source_that_changes_meanwhile_is_noticed(source, tmp_path, link, words):
    found = read_image_folder(source)
    (source / "cat/1.png").unlink()
    with pytest.raises(UserError, match=words):
        prepare(found, tmp_path / "out", link=link)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
