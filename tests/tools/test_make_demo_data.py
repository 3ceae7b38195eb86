"""The demo tree: the same bytes for the same arguments, and every label trap and odd file in it."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from petface.errors import SettingsError, UserError
from petface.taxonomy import SPECIES, SPECIES_CONFIG, canonical_record, is_unknown
from tools import make_demo_data
from tools.demo_animals import BREEDS
from tools.make_demo_data import annotation_rows, columns_of, main, plan, record_counts

SMALL = ["--records", "60", "--size", "32", "--seed", "3"]


def hash_of_tree(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(str(path.relative_to(root)).encode() + b"\0")
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "tree"
    main([*SMALL, "--out", str(out), "--workers", "1"])
    return out


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    """Rows of the default demo, written by csv and read back by csv, without drawing a photo."""
    tree = plan(900, 0)
    return {
        species: [
            dict(zip(columns_of(species), row, strict=True)) for row in annotation_rows(records)
        ]
        for species, records in tree.items()
    }


def known(rows: list[dict[str, str]], column: str) -> list[str]:
    return [row[column] for row in rows if not is_unknown(row[column])]


def test_same_tree_from_one_and_from_two_workers(demo: Path, tmp_path: Path) -> None:
    main([*SMALL, "--out", str(tmp_path / "again"), "--workers", "2"])
    assert hash_of_tree(tmp_path / "again") == hash_of_tree(demo)


def test_another_seed_draws_other_photos_and_labels() -> None:
    assert plan(60, 3) == plan(60, 3) != plan(60, 4)


def test_columns_are_those_of_petface(demo: Path) -> None:
    expected = {
        "cat": "Name,Gender,Breed,Color1,Color2",
        "dog": "Name,Gender,Breed",
        "ferret": "Name,Gender,Color1,Color2",
        "javasparrow": "Name,Gender,Color,Color1,Color2",
    }
    for species, header in expected.items():
        text = (demo / "annotations" / f"{species}.csv").read_text(encoding="utf-8")
        assert text.splitlines()[0] == header


@pytest.mark.parametrize("records", [60, 100, 900, 20_000, 257_484])
def test_shares(records: int) -> None:
    counts = record_counts(records)
    assert sum(counts.values()) == records
    assert tuple(counts) == SPECIES
    assert min(counts.values()) >= min(22, records // 30)
    assert sorted(counts, key=lambda name: -counts[name])[:2] == ["cat", "dog"]


def test_label_traps(rows: dict[str, list[dict[str, str]]]) -> None:
    dogs = set(known(rows["dog"], "Breed"))
    assert {
        "Bulldog, Olde English Playground Bulldog mix",
        "Pitbull/X  Mixed Breed",
        "American pitbull terrier (APBT)",
        "German Shepherd",
        "Alsatian",
    } <= dogs
    assert "Abbysinian" in known(rows["cat"], "Breed")
    assert "P. t. verus" in known(rows["chimp"], "Breed")
    assert "Unknown Longhair" in known(rows["guineapig"], "Breed")
    for species, spelling in (
        ("cat", "BlackandWhite"),
        ("rabbit", "BlackandWhite"),
        ("guineapig", "Black and White"),
        ("pig", "Black and White"),
    ):
        assert spelling in known(rows[species], "Color1")
    breeds = Counter(known(rows["dog"], "Breed"))
    assert 0.35 < breeds["Mixed Breed"] / breeds.total() < 0.6


def test_unknown_fractions_and_tokens(rows: dict[str, list[dict[str, str]]]) -> None:
    for species, expected in SPECIES_CONFIG.items():
        if species not in ("cat", "dog"):  # their odd rows move the count
            unknown = len(rows[species]) - len(known(rows[species], "Gender"))
            assert unknown == round(expected.gender_unknown_frac * len(rows[species]))
    tokens = {
        cell
        for table in rows.values()
        for row in table
        for column, cell in row.items()
        if column != "Name" and is_unknown(cell)
    }
    assert {token.lower() for token in tokens} == {"", "unknown", "unk", "na", "n/a", "nan"}
    assert {"unknown", "Unknown", "nan", "NaN"} <= tokens
    for species in ("ferret", "hedgehog"):
        assert known(rows[species], "Color2") == []
    share = len(known(rows["cat"], "Breed")) / len(rows["cat"])
    assert 0.93 < share < 0.97


def test_odd_names_and_duplicates(rows: dict[str, list[dict[str, str]]]) -> None:
    cats, dogs = rows["cat"], rows["dog"]
    assert {"7", "11.0"} < {row["Name"] for row in cats}
    assert "7.0" in {row["Name"] for row in dogs}
    for table, same in ((cats, True), (dogs, False)):
        names = Counter(canonical_record(row["Name"]) for row in table)
        (twice,) = [name for name, number in names.items() if number == 2]
        first, second = [row for row in table if canonical_record(row["Name"]) == twice]
        assert (first == second) is same
    assert {first["Gender"], second["Gender"]} == {"Female", "Male"}


def test_folder_without_row_and_row_without_folder(demo: Path) -> None:
    def both(species: str) -> tuple[set[str], set[str]]:
        path = demo / "annotations" / f"{species}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            names = {canonical_record(row["Name"]) for row in csv.DictReader(file)}
        folders = {path.parent.name for path in (demo / "images" / species).glob("*/*.png")}
        return names, folders

    cat_rows, cat_folders = both("cat")
    dog_rows, dog_folders = both("dog")
    assert len(cat_rows - cat_folders) == 1
    assert cat_folders <= cat_rows
    assert len(dog_folders - dog_rows) == 1
    assert dog_rows <= dog_folders


def test_odd_files(demo: Path) -> None:
    images = demo / "images"
    kinds: Counter[str] = Counter()
    for path in images.glob("*/*/[0-9][0-9].png"):
        try:
            with Image.open(path) as photo:
                photo.load()
                kinds[f"{photo.format} {photo.mode}"] += 1
                assert photo.size == (32, 32)
        except OSError:
            kinds["empty" if path.stat().st_size == 0 else "broken"] += 1
    ordinary = kinds.pop("PNG RGB")
    assert kinds == {"PNG I;16": 1, "PNG RGBA": 1, "JPEG RGB": 1, "empty": 1, "broken": 1}
    planned = sum(r.num_photos for records in plan(60, 3).values() for r in records)
    assert ordinary == planned - 5
    strange = {path.name for path in images.rglob("*") if path.is_file() and path.suffix != ".png"}
    assert strange == {".DS_Store", "Thumbs.db", "notes.txt"}
    assert len(list(images.rglob("._00.png"))) == 1
    assert len(list(images.glob("*/*/*/00.png"))) == 1
    assert [p for p in images.glob("*/*") if p.is_dir() and not any(p.iterdir())]


def test_without_odd_files_every_file_is_a_plain_photo(tmp_path: Path) -> None:
    main([*SMALL, "--out", str(tmp_path / "plain"), "--workers", "1", "--no-odd-files"])
    files = [path for path in (tmp_path / "plain/images").rglob("*") if path.is_file()]
    assert len(files) == sum(r.num_photos for records in plan(60, 3).values() for r in records)
    for path in files:
        with Image.open(path) as photo:
            photo.load()
            assert (photo.format, photo.mode, photo.size) == ("PNG", "RGB", (32, 32))


def test_second_call_draws_nothing_and_a_contact_sheet(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hash_of_tree(demo)
    sheet = tmp_path / "sheet.png"
    main([*SMALL, "--out", str(demo), "--contact-sheet", str(sheet)])
    printed = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert list(printed) == ["folder", "records", "photos", "seconds"]
    assert printed["folder"].endswith("(already there)")
    assert printed["records"] == "60"
    assert hash_of_tree(demo) == before
    with Image.open(sheet) as picture:
        assert picture.width > 13 * 96


def test_other_arguments_and_foreign_folders_are_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--force"):
        main(["--records", "61", "--size", "32", "--out", str(demo)])
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="demo.json"):
        main([*SMALL, "--out", str(tmp_path), "--force"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(SettingsError, match="--records must be a whole number >= 60"):
        main(["--records", "5", "--out", str(tmp_path / "new")])


def test_an_interrupted_drawing_is_drawn_anew(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tree"

    def stop(*_: object) -> None:
        (out / "images" / "cat" / "000000").mkdir(parents=True)
        (out / "images" / "cat" / "000000" / "09.png").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make_demo_data, "draw_tree", stop)
        with pytest.raises(KeyboardInterrupt):
            main([*SMALL, "--out", str(out)])
    assert json.loads((out / "demo.json").read_text())["finished"] is False
    (out / "mine.txt").write_text("kept")
    main([*SMALL, "--out", str(out), "--workers", "1"])
    assert (out / "mine.txt").read_text() == "kept"
    (out / "mine.txt").unlink()
    assert hash_of_tree(out) == hash_of_tree(demo)


def test_labels_without_mistakes_on_demand():
    wrong = {
        share: sum(
            record.look[0] not in ("", record.cells[1]) and record.cells[1] in BREEDS["cat"]
            for record in plan(900, 0, share)["cat"]
        )
        for share in (0.0, 0.05, 1.0)
    }
    assert wrong[0.0] == 0 < wrong[0.05] < 0.1 * 409 < wrong[1.0], wrong
