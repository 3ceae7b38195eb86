"""The finder as a user runs it, on photos whose classes are easy to tell apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petface.data.dataset import load_dataset
from petface.data.fingerprint import describe_data
from petface.errors import UserError
from petface.models import checkpoints
from tests import reference_networks as reference
from tests.naive import rows_of
from tools import find_label_errors

NUM, WRONG = 60, (7, 23)  # records of each species; whose label is not what the photos show


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    """Cats with a bar left, middle or right, their breed; two labels are wrong, one unknown."""
    root = tmp_path_factory.mktemp("finder")
    draw = np.random.default_rng(0)
    rows = ["Name,Breed,Gender"]
    names = ['"=Left, very"', "Middle", "Right"]
    for number in range(NUM):
        folder = root / "images/cat" / f"{number:06d}"
        folder.mkdir(parents=True)
        breed = number % 3
        for photo in range(1 + number % 2):
            pixels = draw.normal(120, 15, (32, 32, 3))
            pixels[:, breed * 11 : breed * 11 + 10] += 90
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{photo}.png")
        given = (breed + 1) % 3 if number in WRONG else breed
        label = "unknown" if number == 5 else names[given]
        rows.append(f"{number},{label},{'MF'[int(draw.integers(2))]}")
    (root / "images/cat/000008/0.png").write_bytes(b"")
    (root / "annotations").mkdir()
    (root / "annotations/cat.csv").write_text("\n".join(rows) + "\n")
    rule = {"size_px": 32, "resize": "stretch", "mean": None, "std": None}
    content = {"model": reference.classifier(2, 0), "class_to_index": {"cat": 0, "dog": 1}}
    checkpoints.save(root / "best.pt", {**content, "preprocessing": rule})
    return [
        "--images-root", str(root / "images"), "--annotations-root", str(root / "annotations"),
        "--checkpoint", str(root / "best.pt"), "--device", "cpu", "--num-workers", "0",
    ]  # fmt: skip


@pytest.fixture
def finder(flags, tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)

    def run(*arguments: str) -> str:
        line = ["find_label_errors", *flags, "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr("sys.argv", line)
        find_label_errors.main()
        return capsys.readouterr().out

    return run


def test_wrong_labels_come_first_and_no_annotation_changes(finder, flags, tmp_path) -> None:
    annotations = Path(flags[3], "cat.csv")
    before = annotations.read_bytes()
    out = finder()
    assert annotations.read_bytes() == before
    rows = rows_of(tmp_path / "out/label_errors.csv")
    assert {row["record"] for row in rows[:2]} == {f"{n:06d}" for n in WRONG}
    names = ["'=Left, very", "Middle", "Right"]  # the formula is neutralised
    for row in rows[:2]:
        shown = int(row["record"]) % 3
        assert (row["suggested"], row["label"]) == (names[shown], names[(shown + 1) % 3])
        assert (row["feature"], row["species"], row["confident"]) == ("breed", "cat", "1")
        assert row["num_photos"] == str(1 + int(row["record"]) % 2)
        assert row["image"] == f"cat/{row['record']}/0.png" and row["split"]
        p, other = float(row["p_label"]), float(row["p_suggested"])
        assert p < 0.2 < 0.5 < other and float(row["margin"]) == pytest.approx(p - other, abs=1e-5)
    assert [float(row["p_label"]) for row in rows] == sorted(float(row["p_label"]) for row in rows)
    told = json.loads((tmp_path / "out/label_errors.json").read_text())
    breed = next(head for head in told["heads"] if head["feature"] == "breed")
    assert breed["num_known"] == NUM - 1 and breed["can_judge"]
    # but for the record whose one photo cannot be read
    assert f"cat breed: {NUM - 2} of {NUM - 1} labelled records judged" in out


def test_records_that_the_features_learnt_from_are_counted_and_marked(
    finder, flags, tmp_path
) -> None:
    assert "contaminated: not known, the checkpoint does not say" in finder("--features", "breed")
    dataset = load_dataset(flags[1], flags[3])
    content = checkpoints.load(flags[5])
    checkpoints.save(tmp_path / "told.pt", {**content, "data": describe_data(dataset)})
    out = finder("--features", "breed", "--checkpoint", str(tmp_path / "told.pt"))
    train = dataset.catalog.record_names[dataset.record_split == 0]
    rows = rows_of(tmp_path / "out/label_errors.csv")
    assert rows and all(r["contaminated"] == str(int(r["record"] in train)) for r in rows)
    num = sum(name not in ("000005", "000008") for name in train)  # both are not judged
    assert f"(contaminated: {num} of {NUM - 2} records" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "bread"], "one of breed, .*'bread'"),
        (["--folds", "1"], "--folds must be a whole number >= 2"),
        (["--species", "cats"], "no species 'cats'"),
        (["--features", "color1"], "nothing to judge"),
    ],
)
def test_what_cannot_be_judged_is_refused(finder, tmp_path, arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        finder(*arguments)
    assert not (tmp_path / "out").exists()
