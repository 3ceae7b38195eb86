"""One animal under two names: identical files stay on one side, equal spellings are matched or
listed.
"""

import os
import unicodedata

import numpy as np
import pytest

from petface.data.annotations import spelling_twins
from petface.data.catalog import identical_records
from petface.data.dataset import fold_files, load_dataset
from petface.data.sources.petface import scan

NFC, NFD = "Bérgère", unicodedata.normalize("NFD", "Bérgère")


def make(root, folders, rows=("Name,Gender,Breed",), table="cat"):
    """Write record folders, {species/record: contents of its photos}, and one annotation file."""
    for name, contents in folders.items():
        (root / "images" / name).mkdir(parents=True)
        for number, content in enumerate(contents):
            (root / "images" / name / f"{number:02d}.png").write_bytes(content)
    (root / "annotations").mkdir()
    (root / "annotations" / f"{table}.csv").write_text("\n".join([*rows, ""]), encoding="utf-8")
    return root


def load(root, **options):
    return load_dataset(root / "images", root / "annotations", **options)


def notes(root):
    return "\n".join(load(root).notes)


@pytest.fixture
def linked(tmp_path):
    """60 cats and 20 dogs of own photos; some share one: as bytes, as links, across species."""
    own = {f"cat/{k:06d}": [b"cat%06d" % k, b"more%06d" % k] for k in range(60)}
    own |= {f"dog/{k:06d}": [b"dog%06d" % k] for k in range(20)}
    for k in range(0, 40, 4):  # in pairs, and each pair's second with the next one's first
        own[f"cat/{k + 1:06d}"].append(own[f"cat/{k:06d}"][0])
    own["dog/000003"].append(own["cat/000000"][1])
    own["cat/000050"][0] = own["cat/000051"][0] = b""  # empty files are no twins
    root = make(tmp_path / "data", own)
    os.link(root / "images/cat/000052/00.png", root / "images/cat/000053/09.png")
    (root / "images/cat/000054/09.png").symlink_to(root / "images/cat/000053/01.png")
    (root / "images/cat/linked").symlink_to(root / "images/dog/000007")
    return root


def pairs_of(dataset):
    names = dataset.catalog.record_names
    row = {
        (c, r): k for k, (c, r) in enumerate(zip(dataset.catalog.record_class, names, strict=True))
    }
    pairs = [(row[0, f"{k:06d}"], row[0, f"{k + 1:06d}"]) for k in range(0, 40, 4)]
    pairs += [(row[1, "000003"], row[0, "000000"]), (row[0, "linked"], row[1, "000007"])]
    return [*pairs, (row[0, "000052"], row[0, "000053"]), (row[0, "000053"], row[0, "000054"])]


def test_identical_files_keep_their_records_on_one_side(linked, tmp_path):
    splits = {tuple(d.record_split) for seed in range(3) for d in [load(
        linked, seed=seed, splits_file=tmp_path / f"{seed}.csv")]}  # fmt: skip
    assert len(splits) == 3
    dataset = load(linked)
    pairs = pairs_of(dataset)
    assert all(len({split[a], split[b]}) == 1 for split in splits for a, b in pairs)
    num = len({row for pair in pairs for row in pair})
    assert f"{num} records share a photo with another record" in "\n".join(dataset.notes)
    own = (linked / "splits.csv").read_bytes()
    arguments = linked / "images", linked / "annotations", tmp_path / "f"
    paths = fold_files(*arguments, num_folds=3, seed=0)
    written = [path.read_bytes() for path in paths]
    assert fold_files(*arguments, num_folds=3, seed=0) == paths
    assert [path.read_bytes() for path in paths] == written
    assert not {*fold_files(*arguments, num_folds=3, seed=1)} & {*paths}
    tested = np.zeros(dataset.catalog.num_records, int)
    for path in paths:
        split = load(linked, splits_file=path).record_split
        tested += split == 2
        assert all(split[a] == split[b] for a, b in pairs)
    assert (tested == 1).all() and (linked / "splits.csv").read_bytes() == own


def test_a_placeholder_of_many_records_ties_none(tmp_path):
    root = make(tmp_path / "data", {f"cat/{k:06d}": [b"no photo"] for k in range(30)})
    assert set(load(root).record_split.tolist()) == {0, 1, 2}


def test_own_files_share_nothing(tree):
    catalog = scan(tree.images).catalog
    assert (identical_records(catalog) == np.arange(catalog.num_records)).all()


def test_names_match_by_their_normal_form(tmp_path):
    rows = ("Name,Gender,Breed", f"{NFC},Male,A", "Rex,Male,B")
    species = unicodedata.normalize("NFD", "café")
    root = make(
        tmp_path / "data", {f"{species}/{NFD}": [b"1"], f"{species}/Rex": [b"2"]}, rows, "café"
    )
    dataset = load(root)
    assert dataset.catalog.classes == ("café",) and dataset.catalog.record_names[0] == NFC
    assert dataset.unmatched("café") == ([], [])
    assert dataset.catalog.relative_path(0).decode() == f"{species}/{NFD}/00.png"
    assert load(root, species=[species]).catalog.num_records == 2


def test_a_file_nearly_of_the_name_is_named(tmp_path):
    folders = {"cat/000000": [b"1"], "dog/000000": [b"2"]}
    root = make(tmp_path / "data", folders, ("Name,Gender", "0,Male"), "Cat")
    (root / "annotations/dogs.csv").write_text("Name\n")
    (root / "annotations/zebra.csv").write_text("Name\n")
    text = notes(root)
    assert "there is Cat.csv: rename it" in text and "there is dogs.csv" in text


def test_equal_spellings_and_labels_that_look_unknown_are_listed_and_aliases_merge(tmp_path):
    names = ["Rex", "rex", "Ｒｅｘ", "A\u00a0b", "a  B", "c"]
    breeds = ["Maine Coon", "maine  coon", NFC, NFD, "None", "?"]
    rows = ["Name,Gender,Breed", *(f"{n},Male,{b}" for n, b in zip(names, breeds, strict=True))]
    own = {f"cat/{n}": [n.encode()] for n in names}
    root = make(tmp_path / "data", own, rows)
    text = notes(root)
    assert "5 records differ from another only in the spelling" in text
    assert "2 groups of breed labels differ only in spelling" in text and "ALIASES_FILE" in text
    assert "'?', 'None' counts as a class" in text
    (root / "annotations/aliases.csv").write_text(
        "species,feature,label,alias_of\ncat,breed,maine  coon,Maine Coon\n", encoding="utf-8"
    )
    merged = load(root, aliases_file=root / "annotations/aliases.csv").notes
    assert "1 groups of breed labels" in "\n".join(merged)
    assert spelling_twins(["a", "b"]) == []
