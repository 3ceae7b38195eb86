"""What an audit finds in a small tree whose faults are known."""

import re
import time

import numpy as np
import pytest
from PIL import Image

from petface.analysis.audit import (
    Audit,
    find_duplicates,
    make_audit,
    quick_audit_line,
)
from petface.analysis.duplicates import look_at
from petface.data.dataset import Dataset, load_dataset
from petface.data.sources.petface import scan
from petface.data.splits import write_splits
from tests.analysis.test_duplicates import photo

HOSTILE = "<script>alert(1)</script>"


def save(root, path, pixels, **options):
    target = root / "images" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(target, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """12 cats of two photos, 4 dogs, and one fault of each kind."""
    root = tmp_path_factory.mktemp("audit")
    for number in range(12):
        for k in range(2):
            save(root, f"cat/{number:06d}/{k:02d}.png", photo(100 + 2 * number + k, 48))
    for number in range(4):
        save(root, f"dog/{number:06d}/00.png", photo(200 + number, 64))
    save(root, "cat/000001/02.png", photo(100, 48))  # the pixels of cat/000000/00.png
    save(root, "cat/000002/02.png", photo(104, 48))  # the same record's: not a duplicate
    save(root, "dog/000000/01.jpg", photo(106, 48), quality=80)  # near cat/000003/00.png
    save(root, "dog/000001/01.png", np.full((40, 40), 1, np.uint8))  # dark and flat
    save(root, "dog/000002/01.png", photo(300, 64)[:16])  # small and elongated
    (root / "images/dog/000003/01.png").write_bytes(b"<html>")
    (root / "images/dog/000003/.DS_Store").write_bytes(b"")
    (root / f"images/dog/000003/{'=' + HOSTILE.replace('/', ' ')}").write_bytes(b"")
    (root / "images/dog/000009").mkdir()
    rows = [f"{n},{'Rare' if n < 3 else 'Tabby'},{'Male' if n else ''}" for n in range(11)]
    conflict, no_photo = f'10,"{HOSTILE}",Male', "77,Tabby,Male"
    (root / "annotations").mkdir()
    (root / "annotations/cat.csv").write_text("\n".join(
        ["Name,Breed,Gender", *rows, conflict, no_photo]) + "\n", encoding="utf-8")  # fmt: skip
    species = np.array(["cat"] * 12 + ["dog"] * 4)
    records = np.array([f"{n:06d}" for n in [*range(12), *range(4)]])
    split = np.array([0, 2, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], np.int8)
    write_splits(root / "splits.csv", species, records, split, seed=0)
    return root


@pytest.fixture(scope="module")
def dataset(root) -> Dataset:
    return load_dataset(root / "images", root / "annotations")


@pytest.fixture(scope="module")
def audit(root, dataset) -> Audit:
    photos = look_at(dataset.catalog, np.arange(len(dataset.catalog)), 0)
    return make_audit(dataset, scan(root / "images"), photos)


def where(audit, kind):
    return set(audit.issues.loc[audit.issues["kind"] == kind, "path_or_record"])


def test_every_fault_of_the_tree_is_listed_once(audit):
    assert where(audit, "unreadable") == {"dog/000003/01.png"}
    assert where(audit, "dark") == where(audit, "flat") == {"dog/000001/01.png"}
    assert where(audit, "small") == where(audit, "elongated") == {"dog/000002/01.png"}
    assert where(audit, "empty_record") == {"dog/000009"}
    assert len(where(audit, "stray")) == 2 and "dog/000003/.DS_Store" in where(audit, "stray")
    assert where(audit, "record_without_row") == {"cat/000011"}
    assert where(audit, "row_without_photo") == {"cat/000077"}
    assert where(audit, "label_conflict") == {"cat/000010"}
    assert where(audit, "no_annotation_file") == {"dog"}
    assert len(audit.issues) == 12


def test_only_pairs_of_different_records_are_duplicates_and_split_pairs_stand_first(audit):
    shown = ["kind", "path_a", "split_a", "path_b", "split_b"]
    assert audit.duplicates[shown].to_numpy().tolist() == [
        ["exact", "cat/000000/00.png", "train", "cat/000001/02.png", "test"],
        ["near", "cat/000003/00.png", "train", "dog/000000/01.jpg", "train"],
    ]
    counts = audit.summary["duplicates"]
    assert (counts["exact"], counts["exact_across_splits"]) == (1, 1)
    assert (counts["near"], counts["near_across_splits"]) == (1, 0)
    assert 0 < audit.duplicates["difference"][1] < 0.1


def test_figures_agree_with_a_count_by_hand(audit):
    summary = audit.summary
    assert (summary["photos"], summary["records"], summary["looked_at"]) == (34, 16, 34)
    assert summary["photos_per_record"] == {"1": 0, "2": 14, "3": 2}
    assert summary["sizes"] == {"48x48": 27, "64x64": 4, "40x40": 1, "64x16": 1}
    assert sum(summary["brightness_histogram"]) == 33 and summary["brightness_histogram"][0] == 1
    cat = summary["per_species"]["cat"]
    assert cat["records_per_split"] == {"train": 9, "val": 1, "test": 2}
    assert summary["per_species"]["dog"]["unreadable"] == 1
    # of 12 cats: no row 1, in conflict 1; gender empty 1, no row 1
    assert summary["heads"]["cat"]["breed"] == {
        "classes": 2, "records_known": 10, "unknown_frac": 0.1667,
        "rare_classes": 2, "untestable_classes": 0,
    }  # fmt: skip
    assert summary["heads"]["cat"]["gender"]["records_known"] == 10
    assert audit.classes.drop(columns="species").to_numpy().tolist() == [
        ["breed", "Rare", 3, 2, 0, 1],
        ["breed", "Tabby", 7, 5, 1, 1],
        ["gender", "female", 0, 0, 0, 0],
        ["gender", "male", 10, 7, 1, 2],
    ]
    assert summary["heads"]["cat"]["gender"]["untestable_classes"] == 1


def test_no_thumbnail_is_kept_and_a_photo_that_is_gone_by_the_end_is_in_no_near_pair(root, dataset):
    photos = look_at(dataset.catalog, np.arange(len(dataset.catalog)), 0)
    assert photos.seen.itemsize <= 88  # bytes; a thumbnail would take 1024
    copy = root / "images/dog/000000/01.jpg"
    content = copy.read_bytes()
    copy.unlink()
    pairs, search = find_duplicates(dataset, photos)
    copy.write_bytes(content)
    assert search["candidates"] == 1 and pairs["kind"].tolist() == ["exact"]


def test_the_quick_line_says_what_a_trainer_should_know(dataset, root, monkeypatch):
    labels = str(root / "annotations")
    line = quick_audit_line(dataset, labels, 0)
    assert "\n" not in line
    for words in (
        "16 records, 34 photos;",
        "1 of 34 sampled photos cannot be read",
        "1 classes have no test record",
        f"--images-root {root / 'images'} --annotations-root {labels}",
    ):
        assert words in line
    monkeypatch.setattr(
        "petface.analysis.audit.images.decode", lambda _: time.sleep(0.02) or np.zeros((64, 80, 3))
    )
    monkeypatch.setattr("petface.analysis.audit.QUICK_LIMIT_S", 0.1)
    assert int(re.search(r"of (\d+) sampled", quick_audit_line(dataset, labels, 0))[1]) < 10
    for size_px, hint in ((96, ""), (224, "px: --image-size-px 64 trains 12 times as fast as 224")):
        line = quick_audit_line(dataset, labels, size_px)
        assert line.partition("\nphotos are 64 ")[2] == hint
