"""The demo tree: the same bytes for the same arguments, and every label trap and odd file in it."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from petface.errors import SettingsError, UserError
from petface.taxonomy import SPECIES_FEATURES, canonical_record, is_unknown
from tests.naive import rows_of
from tools import make_demo_data
from tools.demo_animals import BREEDS, REAL
from tools.make_demo_data import annotation_rows, columns_of, main, num_photos, plan, record_counts

SMALL = ["--records", "60", "--size", "32", "--seed", "3"]


def hash_of_tree(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(str(path.relative_to(root)).encode() + b"\0")
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "tree"
    main([*SMALL, "--out", str(out), "--workers", "1"])
    return out


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    """Rows of the default demo, without drawing a photo."""
    return {
        species: [
            dict(zip(columns_of(species), row, strict=True)) for row in annotation_rows(records)
        ]
        for species, records in plan(900, 0).items()
    }


def known(rows: list[dict[str, str]], column: str) -> list[str]:
    return [row[column] for row in rows if not is_unknown(row[column])]


def test_same_tree_from_one_and_from_two_workers_and_another_from_another_seed(demo, tmp_path):
    main([*SMALL, "--out", str(tmp_path / "again"), "--workers", "2"])
    assert hash_of_tree(tmp_path / "again") == hash_of_tree(demo)
    assert plan(60, 3) == plan(60, 3) != plan(60, 4)


@pytest.mark.parametrize("records", [60, 100, 900, 20_000, 257_484])
def test_shares(records):
    counts = record_counts(records)
    assert sum(counts.values()) == records
    assert list(counts) == list(SPECIES_FEATURES)
    assert min(counts.values()) >= min(22, records // 30)
    assert sorted(counts, key=lambda name: -counts[name])[:2] == ["cat", "dog"]


TRAPS = {  # labels that break naive readers
    ("dog", "Breed"): {
        "Bulldog, Olde English Playground Bulldog mix", "Pitbull/X  Mixed Breed",
        "American pitbull terrier (APBT)", "German Shepherd", "Alsatian",
    },
    ("cat", "Breed"): {"Abbysinian"},
    ("chimp", "Breed"): {"P. t. verus"},
    ("guineapig", "Breed"): {"Unknown Longhair"},
    ("cat", "Color1"): {"BlackandWhite"},
    ("guineapig", "Color1"): {"Black and White"},
}  # fmt: skip


def test_columns_traps_and_unknown_labels_are_those_of_petface(rows):
    for species, header in {
        "cat": ["Name", "Gender", "Breed", "Color1", "Color2"],
        "ferret": ["Name", "Gender", "Color1", "Color2"],
        "javasparrow": ["Name", "Gender", "Color", "Color1", "Color2"],
    }.items():
        assert list(rows[species][0]) == header
    for (species, column), labels in TRAPS.items():
        assert labels <= set(known(rows[species], column))
    for species, (_, frac) in REAL.items():
        if species not in ("cat", "dog"):  # their odd rows move the count
            unknown = len(rows[species]) - len(known(rows[species], "Gender"))
            assert unknown == round(frac * len(rows[species]))
    cells = {cell for table in rows.values() for row in table for cell in list(row.values())[1:]}
    tokens = {cell for cell in cells if is_unknown(cell)}
    assert {token.lower() for token in tokens} == {"", "unknown", "unk", "na", "n/a", "nan"}
    assert {"unknown", "Unknown", "nan", "NaN"} <= tokens
    assert known(rows["ferret"], "Color2") == known(rows["hedgehog"], "Color2") == []
    assert 0.93 < len(known(rows["cat"], "Breed")) / len(rows["cat"]) < 0.97
    breeds = Counter(known(rows["dog"], "Breed"))
    assert 0.35 < breeds["Mixed Breed"] / breeds.total() < 0.6


def test_odd_names_and_duplicates(rows):
    assert {"7", "11.0"} < {row["Name"] for row in rows["cat"]}
    assert "7.0" in {row["Name"] for row in rows["dog"]}
    for species, is_same in (("cat", True), ("dog", False)):
        names = Counter(canonical_record(row["Name"]) for row in rows[species])
        (twice,) = [name for name, number in names.items() if number == 2]
        pair = [row for row in rows[species] if canonical_record(row["Name"]) == twice]
        assert (pair[0] == pair[1]) is is_same
    assert {row["Gender"] for row in pair} == {"Female", "Male"}


def test_folder_without_row_and_row_without_folder(demo):
    for species, num_rows, num_folders in (("cat", 1, 0), ("dog", 0, 1)):
        table = rows_of(demo / "annotations" / f"{species}.csv")
        names = {canonical_record(row["Name"]) for row in table}
        folders = {path.parent.name for path in (demo / "images" / species).glob("*/*.png")}
        assert (len(names - folders), len(folders - names)) == (num_rows, num_folders)


def kinds_of(photos: list[Path]) -> Counter[str]:
    """What each photo is when it is read; all have the right size."""
    kinds: Counter[str] = Counter()
    for path in photos:
        try:
            with Image.open(path) as photo:
                photo.load()
                kinds[f"{photo.format} {photo.mode}"] += 1
                assert photo.size == (32, 32)
        except OSError:
            kinds["empty" if path.stat().st_size == 0 else "broken"] += 1
    return kinds


def test_odd_files(demo):
    images = demo / "images"
    kinds = kinds_of(list(images.glob("*/*/[0-9][0-9].png")))
    odd = {"PNG I;16": 1, "PNG RGBA": 1, "JPEG RGB": 1, "empty": 1, "broken": 1}
    assert kinds == {**odd, "PNG RGB": num_photos(plan(60, 3)) - 5}
    strange = {path.name for path in images.rglob("*") if path.is_file() and path.suffix != ".png"}
    assert strange == {".DS_Store", "Thumbs.db", "notes.txt"}
    assert len(list(images.rglob("._00.png"))) == 1
    assert len(list(images.glob("*/*/*/00.png"))) == 1
    assert [p for p in images.glob("*/*") if p.is_dir() and not any(p.iterdir())]


def test_without_odd_files_every_file_is_a_plain_photo(tmp_path):
    main([*SMALL, "--out", str(tmp_path / "plain"), "--workers", "1", "--no-odd-files"])
    files = [path for path in (tmp_path / "plain/images").rglob("*") if path.is_file()]
    assert kinds_of(files) == {"PNG RGB": num_photos(plan(60, 3))}


def test_a_second_call_draws_nothing_and_other_folders_are_refused(demo, tmp_path, capsys):
    before = hash_of_tree(demo)
    main([*SMALL, "--out", str(demo)])
    printed = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert list(printed) == ["folder", "records", "photos", "seconds"]
    assert printed["folder"].endswith("(already there)") and printed["records"] == "60"
    with pytest.raises(UserError, match="--force"):
        main(["--records", "61", "--size", "32", "--out", str(demo)])
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"demo\.json"):
        main([*SMALL, "--out", str(tmp_path), "--force"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert hash_of_tree(demo) == before
    with pytest.raises(SettingsError, match="--records must be a whole number >= 60"):
        main(["--records", "5", "--out", str(tmp_path / "new")])


def test_a_stopped_drawing_changes_nothing_and_another_the_demo_alone(demo, tmp_path, monkeypatch):
    def stop(folder: Path, *_: object) -> None:
        (folder / "images").mkdir()
        raise KeyboardInterrupt

    out = shutil.copytree(demo, tmp_path / "tree")
    (out / "images/cat/000000/09.png").write_bytes(b"of another demo")
    (out / "mine.txt").write_text("kept")
    before, arguments = hash_of_tree(out), [*SMALL, "--out", str(out), "--workers", "1"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_demo_data, "draw_tree", stop)
        main([*arguments, "--force"])
    assert [*tmp_path.iterdir()] == [out] and hash_of_tree(out) == before
    shutil.rmtree(out / "annotations")
    main(arguments)  # a demo that lost a part is drawn anew
    assert (out / "mine.txt").read_text() == "kept"
    (out / "mine.txt").unlink()
    assert hash_of_tree(out) == hash_of_tree(demo)


def test_labels_without_mistakes_on_demand():
    def num_wrong(share: float) -> int:
        cats = plan(900, 0, share)["cat"]
        labelled = [(cat.look[0], cat.cells[1]) for cat in cats if cat.cells[1] in BREEDS["cat"]]
        return sum(look not in ("", label) for look, label in labelled)

    assert num_wrong(0.0) == 0 < num_wrong(0.05) < 0.1 * 409 < num_wrong(1.0)
