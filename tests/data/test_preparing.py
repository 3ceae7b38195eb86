"""From entries to a tree: parts, classes of a checkpoint, names, links, a split that holds."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from petface.data import preparing
from petface.data.dataset import load_dataset
from petface.data.preparing import cut_parts, lay_out, settle_parts
from petface.data.sources import layout
from petface.data.sources.entries import Entry, Found
from petface.data.sources.image_folder import read_image_folder
from petface.data.sources.layout import name_photos
from petface.data.sources.oxford_pets import read_oxford_pets
from petface.data.splits import SPLITS
from petface.errors import UserError
from tests.data.sources.made_sources import files_of, oxford, tree


def made(*rows: tuple[str, str, int], breed: str = "") -> Found:
    """Entries (part, class, number of photos) of a source that is not on disk."""
    found = Found("image_folder", Path("/source"))
    for part, species, num in rows:
        for number in range(num):
            path = f"/source/{part}/{species}/{number}.png"
            found.entries.append(Entry(species, str(number), path, path, part, breed))
    return found


def counts(entries) -> dict[tuple[str, str], int]:
    return dict(Counter((entry.part, entry.species) for entry in entries))


def prepare(found: Found, out: Path, *, link="symbolic", seed=0, classes=None, val_as="test"):
    settle_parts(found, checkpoint_classes=classes, val_as=val_as)
    photos, notes = cut_parts(name_photos(found.entries), seed)
    found.notes += notes
    lay_out(found, photos, out, link=link, seed=seed)
    return photos


def loaded(out: Path):
    return load_dataset(out / "images", out / "annotations")


# ---- parts and classes ----


def test_a_val_part_alone_becomes_the_test_part_unless_asked_otherwise():
    found = made(("train", "cat", 2), ("val", "cat", 3))
    settle_parts(found, checkpoint_classes=None, val_as="test")
    assert counts(found.entries) == {("train", "cat"): 2, ("test", "cat"): 3}
    found = made(("train", "cat", 2), ("val", "cat", 3))
    settle_parts(found, checkpoint_classes=None, val_as="val")
    assert counts(found.entries) == {("train", "cat"): 2, ("val", "cat"): 3}
    found = made(("val", "cat", 3), ("test", "cat", 1))
    settle_parts(found, checkpoint_classes=None, val_as="test")
    assert counts(found.entries) == {("val", "cat"): 3, ("test", "cat"): 1}


def test_classes_without_a_training_photo_leave_val_and_test():
    found = made(("train", "cat", 2), ("val", "hen", 1), ("test", "cat", 2), ("test", "Catt", 3))
    settle_parts(found, checkpoint_classes=None, val_as="test")
    assert counts(found.entries) == {("train", "cat"): 2, ("test", "cat"): 2}
    assert found.notes == [
        "1 classes of the test part are not in the train part: Catt (3 photos, is it 'cat'?)",
        "1 classes of the val part are not in the train part: hen (1 photos)",
    ]
    assert len(found.left_out) == 4
    assert ("val/hen/0.png", "of the val part, and its class is not in the train part") in (
        found.left_out
    )


def test_a_test_part_alone_may_hold_any_class():
    found = made(("test", "cat", 2), ("test", "hen", 3))
    settle_parts(found, checkpoint_classes=None, val_as="test")
    assert len(found.entries) == 5 and found.notes == []


def test_classes_unknown_to_the_checkpoint_leave_the_test_part_only():
    found = made(("train", "cat", 2), ("train", "hen", 2), ("test", "cat", 1), ("test", "hen", 1))
    settle_parts(found, checkpoint_classes=("dog", "cat"), val_as="test")
    assert counts(found.entries) == {
        ("train", "cat"): 2, ("train", "hen"): 2, ("test", "cat"): 1
    }  # fmt: skip
    assert found.notes == [
        "1 classes of the test part are not known to the checkpoint: hen (1 photos)",
        "1 classes of the checkpoint have no photo: dog",
    ]


def test_a_folder_for_evaluation_alone_holds_the_known_classes_alone():
    found = made(("", "cat", 2), ("", "hen", 2), ("", "caf\u00e9", 1))
    settle_parts(found, checkpoint_classes=("cat", "cafe\u0301"), val_as="test")
    assert counts(found.entries) == {("test", "cat"): 2, ("test", "cafe\u0301"): 1}
    assert found.notes[0] == "no parts, and a checkpoint: every photo goes into the test part"
    with pytest.raises(UserError, match="no photo is left of /source: the known classes are yak"):
        settle_parts(made(("", "cat", 2)), checkpoint_classes=("yak",), val_as="test")


@pytest.mark.parametrize(
    ("parts", "lacking"),
    [(("train", "test"), {"val"}), (("train", "val"), {"test"}), (("train",), {"val", "test"})],
)
def test_what_is_lacking_is_cut_from_train_by_record(parts, lacking):
    found = made(*((part, name, 40) for part in parts for name in ("cat", "dog")))
    photos, notes = cut_parts(name_photos(found.entries), seed=0)
    by_part = Counter(photo.entry.part for photo in photos)
    for part in SPLITS:
        given = 80 * (part in parts)
        cut = {"train": -8 * len(lacking)}.get(part, 8 * (part in lacking))
        assert by_part[part] == given + cut
    for name in ("cat", "dog"):  # 10 % of each class
        assert sum(p.entry.species == name and p.entry.part in lacking for p in photos) == 4 * len(
            lacking
        )
    assert len(notes) == len(lacking)
    again, _ = cut_parts(name_photos(found.entries), seed=0)
    other, _ = cut_parts(name_photos(found.entries), seed=1)
    assert again == photos and other != photos


def test_an_animal_is_never_cut_in_two():
    found = made()
    for number in range(60):
        for photo in range(3):
            path = f"/source/train/cat/{number}/{photo}.png"
            found.entries.append(Entry("cat", str(number), f"folder {number}", path, "train"))
    photos, _ = cut_parts(name_photos(found.entries), seed=0)
    assert all(len(parts) == 1 for parts in parts_of_records(photos).values())
    assert {p.entry.part for p in photos} == set(SPLITS)


def parts_of_records(photos) -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {}
    for photo in photos:
        parts.setdefault(photo.record, set()).add(photo.entry.part)
    return parts


def test_nothing_is_cut_where_there_is_no_train_part_or_nothing_is_lacking():
    for rows in ([("", "cat", 9)], [("test", "cat", 9)], [(p, "cat", 9) for p in SPLITS]):
        photos = name_photos(made(*rows).entries)
        assert cut_parts(photos, seed=0) == (photos, [])


# ---- the tree ----


def test_oxford_is_loaded_with_its_official_test_part(tmp_path):
    source = oxford(tmp_path / "pets")
    prepare(read_oxford_pets(source, "one"), tmp_path / "out", val_as="val")
    data = loaded(tmp_path / "out")
    assert data.catalog.classes == ("Abyssinian", "Egyptian_Mau", "american_bulldog")
    official = {
        row.split()[0]
        for row in (source / "annotations/test.txt").read_text().splitlines()
        if not row.startswith("#")
    }
    names = data.catalog.record_names[data.catalog.record_index]
    assert set(names[data.image_split == SPLITS.index("test")].tolist()) == official
    per_class = {
        name: np.bincount(data.image_split[data.catalog.class_index == k], minlength=3).tolist()
        for k, name in enumerate(data.catalog.classes)
    }
    # 25 photos in trainval: one in val of each breed that has at least four
    assert per_class["Abyssinian"] == [11, 1, 5] and per_class["american_bulldog"] == [9, 1, 6]
    assert per_class["Egyptian_Mau"] == [3, 0, 2]
    assert any("is that of oxford_pets in" in note for note in data.notes)
    assert not any("was made with seed" in note for note in data.notes)


def test_two_stages_have_breeds_as_labels(tmp_path):
    found = read_oxford_pets(oxford(tmp_path / "pets"), "two")
    prepare(found, tmp_path / "out", val_as="val")
    data = loaded(tmp_path / "out")
    assert data.catalog.classes == ("cat", "dog")
    assert data.annotations["cat"].vocabularies["breed"] == ("Abyssinian", "Egyptian_Mau")
    images, labels = data.image_labels("cat")
    names = data.catalog.record_names[data.catalog.record_index[images]]
    for name, label in zip(names.tolist(), labels["breed"].tolist(), strict=True):
        assert name.startswith(("Abyssinian", "Egyptian_Mau")[label])
    rare = data.image_split[images][labels["breed"] == 1]
    assert rare.tolist() == [0, 0, 0, 2, 2]  # three in trainval: too few for a val photo


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
    assert len(data.catalog) == len(ODD)
    assert data.catalog.classes == ("=cmd", "Bulldog, Olde mix", "caf\u00e9.v2", "cat")
    with (tmp_path / "out/sources.csv").open(encoding="utf-8", newline="") as handle:
        rows = {row["source"]: row for row in csv.DictReader(handle)}
    targets = set()
    for i in range(len(data.catalog)):
        target = os.readlink(data.catalog.path(i))
        part = SPLITS[data.image_split[i]]
        assert rows[target]["part"] == part == Path(target).relative_to(source).parts[0]
        assert rows[target]["image"] == Path(data.catalog.path(i)).name
        targets.add(str(Path(target).relative_to(source)))
    assert targets == set(ODD)
    folded = [name.casefold() for name in data.catalog.record_names.tolist()]
    pairs = list(zip(data.catalog.record_class.tolist(), folded, strict=True))
    assert len(set(pairs)) == len(pairs)


def test_one_folder_is_split_when_it_is_first_loaded(tmp_path):
    source = tree(tmp_path / "source", *(f"cat/{n}.png" for n in range(20)))
    prepare(read_image_folder(source), tmp_path / "out")
    assert not (tmp_path / "out/splits.csv").exists()
    assert np.bincount(loaded(tmp_path / "out").image_split).tolist() == [16, 2, 2]


@pytest.mark.parametrize("link", ["symbolic", "hard", "copy"])
def test_links_and_copies(tmp_path, link):
    source = tree(tmp_path / "source", "cat/1.png", "dog/1.png")
    (source / "dog/2.png").symlink_to("../cat/1.png")
    prepare(read_image_folder(source), tmp_path / "out", link=link)
    places = sorted((tmp_path / "out/images").rglob("*.png"))
    assert [place.read_bytes() for place in places] == [b"."] * 3
    assert all(place.is_symlink() == (link == "symbolic") for place in places)
    one = os.stat(tmp_path / "source/cat/1.png")
    assert one.st_nlink == {"symbolic": 1, "hard": 3, "copy": 1}[link]


def test_where_links_are_not_possible_photos_are_copied_and_it_is_said(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(layout, "_link", fail)
    found = read_image_folder(tree(tmp_path / "source", "cat/1.png", "cat/2.png"))
    prepare(found, tmp_path / "out")
    assert len(found.notes) == 1 and "photos are copied instead" in found.notes[0]
    assert not any(p.is_symlink() for p in (tmp_path / "out/images").rglob("*.png"))


# ---- whole or not at all ----


def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path):
    source = tree(tmp_path / "source", "cat/1.png")
    out = tmp_path / "out"
    prepare(read_image_folder(source), out)
    before = files_of(out)
    with pytest.raises(UserError, match="holds a prepared tree already: .* another --out"):
        prepare(read_image_folder(source), out)
    assert files_of(out) == before
    tree(tmp_path / "other", "mine.txt")
    with pytest.raises(UserError, match="exists already"):
        prepare(read_image_folder(source), tmp_path / "other")
    with pytest.raises(UserError, match="lies in the source"):
        prepare(read_image_folder(source), source / "deep/out")
    (tmp_path / "empty").mkdir()
    prepare(read_image_folder(source), tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "other", "out", "source"]


def test_what_a_kill_left_is_begun_anew(tmp_path, monkeypatch):
    source = tree(tmp_path / "source", *(f"cat/{n}.png" for n in range(9)))
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        os.symlink(*arguments[:2])

    monkeypatch.setattr(layout, "_link", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(read_image_folder(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.unfinished").rglob("*.png"))) == 4
    monkeypatch.undo()
    prepare(read_image_folder(source), tmp_path / "out")
    assert len(loaded(tmp_path / "out").catalog) == 9
    assert not (tmp_path / "out.unfinished").exists()


def test_a_folder_of_somebody_else_in_the_way_is_left_alone(tmp_path):
    source = tree(tmp_path / "source", "cat/1.png")
    mine = tree(tmp_path / "out.unfinished", "mine.txt")
    with pytest.raises(UserError, match="is in the way, and not of this tool"):
        prepare(read_image_folder(source), tmp_path / "out")
    assert (mine / "mine.txt").exists()


def test_two_at_once_are_refused(tmp_path):
    source = tree(tmp_path / "source", "cat/1.png")
    with (
        layout.unfinished(tmp_path / "out"),
        pytest.raises(UserError, match="in use by"),
        layout.unfinished(tmp_path / "out"),
    ):
        pass
    shutil.rmtree(tmp_path / "out")
    prepare(read_image_folder(source), tmp_path / "out")


def test_a_full_disk_names_path_and_free_bytes_and_leaves_nothing(tmp_path, monkeypatch):
    source = tree(tmp_path / "source", "cat/1.png")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout, "_link", full)
    with pytest.raises(UserError, match=r"cannot write .*out.*No space left.* bytes free"):
        prepare(read_image_folder(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    prepare(read_image_folder(source), tmp_path / "out")


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path):
    source = tree(tmp_path / "source", "cat/1.png", "cat/2.png")
    found = read_image_folder(source)
    (source / "cat/1.png").unlink()
    with pytest.raises(UserError, match="holds 1 photos where 2 were placed"):
        prepare(found, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_a_photo_that_cannot_be_copied_is_named(tmp_path):
    source = tree(tmp_path / "source", "cat/1.png")
    found = read_image_folder(source)
    (source / "cat/1.png").unlink()
    with pytest.raises(UserError, match="cannot read .*source/cat/1.png"):
        prepare(found, tmp_path / "out", link="copy")


def test_the_marker_tells_what_was_prepared(tmp_path):
    source = tree(tmp_path / "source", "cat/1.png", "cat/x.txt")
    prepare(read_image_folder(source), tmp_path / "out")
    facts = json.loads((tmp_path / "out" / preparing.MARKER).read_text(encoding="utf-8"))
    assert facts == {
        "kind": "image_folder", "finished": True, "source": str(source), "photos": 1, "notes": []
    }  # fmt: skip
    text = (tmp_path / "out/left_out.csv").read_text(encoding="utf-8")
    assert text == "what,reason\ncat/x.txt,not an image suffix\n"
