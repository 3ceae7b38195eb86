"""`inference_engine.py predict` against single photos, on odd folders and after kills."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from inference_engine import TwoStageInference
from petface.files import plain_cell
from petface.inference.predict import COLUMNS
from petface.taxonomy import FEATURES
from tests import scripts
from tests.conftest import BOMB, EMPTY, TRUNCATED
from tests.naive import rows_of

BAD = {TRUNCATED: "unreadable", EMPTY: "unreadable", BOMB: "too_large"}
SMALL_SLICES = partial(scripts.set_constant, "petface.inference.predict", "SLICE_PHOTOS", 16)


@pytest.fixture(scope="module")
def tables(tree, model_flags, tmp_path_factory) -> tuple[Path, Path]:
    """The whole tree as CSV and as JSON lines, as a user writes them."""
    folder = tmp_path_factory.mktemp("predict")
    paths = folder / "answers.csv", folder / "answers.jsonl"
    for path in paths:
        done = scripts.run_fresh(
            scripts.INFERENCE, ["predict", tree.images, *model_flags, "--out", path, "--topk", 2]
        ).checked()
    assert done.figures()["unreadable"] == "2" and done.figures()["too_large"] == "1"
    return paths


def photos_of(tree) -> list[str]:
    return sorted(map(str, tree.images.rglob("*.png")))


def test_json_lines_are_what_infer_says_of_each_photo(tree, stage1_run, stage2_run, tables):
    engine = TwoStageInference(stage1_run.folder / "best.pt", stage2_run.folder, "cpu")
    answers = [json.loads(line) for line in tables[1].read_text(encoding="utf-8").splitlines()]
    assert sorted(answer["image"] for answer in answers) == photos_of(tree)
    assert {answer["status"] for answer in answers} >= {"ok", "unreadable", "too_large"}
    for answer in answers:
        alone = json.loads(json.dumps(engine.infer(answer["image"], 2)))
        entries = {"species": answer["species"], **answer["attributes"]}
        others = {"species": alone["species"], **alone["attributes"]}
        assert entries.keys() == others.keys()
        for head, entry in entries.items():
            if entry is not None:
                topk, other = entry.pop("topk"), others[head].pop("topk")
                assert [label for label, _ in topk] == [label for label, _ in other]
                assert [p for _, p in topk] == pytest.approx([p for _, p in other], abs=1e-5)
        assert answer == alone


def test_the_csv_holds_the_best_answers_of_the_json_lines(tree, tables):
    rows = rows_of(tables[0])
    answers = [json.loads(line) for line in tables[1].read_text(encoding="utf-8").splitlines()]
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(answers) == len(photos_of(tree))
    for row, answer in zip(rows, answers, strict=True):
        assert (plain_cell(row["image"]), row["status"]) == (answer["image"], answer["status"])
        assert plain_cell(row["message"]) == answer.get("message", "")
        for head in ("species", *FEATURES):
            entry = answer["species"] if head == "species" else answer["attributes"].get(head)
            cells = [row[f"{head}_{what}"] for what in ("pred", "prob", "sure")]
            if entry is None:
                assert cells == ["", "", ""]
                continue
            assert plain_cell(cells[0]) == entry["label"]
            assert float(cells[1]) == pytest.approx(entry["topk"][0][1], abs=1e-6)
            assert cells[2] == {None: "", True: "1", False: "0"}[entry["sure"]]
    bad = {row["image"].partition("/images/")[2]: row["status"] for row in rows if row["message"]}
    assert bad == BAD


@pytest.mark.parametrize(
    ("suffix", "share"),
    [(".csv", 0.6), (".jsonl", 0.0), pytest.param(".jsonl", 0.6, marks=pytest.mark.slow)],
)
def test_a_killed_table_goes_on_and_is_the_same(tree, model_flags, script, tmp_path, suffix, share):
    straight, killed = tmp_path / f"straight{suffix}", tmp_path / f"killed{suffix}"
    own = tree.copy(tmp_path / "PetFace")
    arguments = ["predict", own.images, *model_flags, "--out"]
    assert script("inference_engine.py", [*arguments, straight], SMALL_SLICES).code == 0
    kill = scripts.KillWhileWritingRows(4, share)
    assert script("inference_engine.py", [*arguments, killed], SMALL_SLICES, kill).code == -9
    assert not killed.exists()
    other = script("inference_engine.py", [*arguments, killed, "--topk", 1], SMALL_SLICES)
    assert other.code == 1 and "begun with other checkpoints, data or settings" in other.err
    photo = own.images / "yak/000000/00.png"
    os.utime(photo, ns=(5, 5))  # as another photo of this name would come
    other = script("inference_engine.py", [*arguments, killed], SMALL_SLICES)
    assert other.code == 1 and "checkpoints, data or settings (photos)" in other.err
    shutil.copystat(tree.images / "yak/000000/00.png", photo)
    done = script("inference_engine.py", [*arguments, killed], SMALL_SLICES).checked()
    assert killed.read_bytes() == straight.read_bytes()
    assert done.figures()["unreadable"] == "2"  # over the whole table, not the second start's part
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("killed")) == [
        killed.name
    ]
    again = script("inference_engine.py", [*arguments, killed])
    assert again.code == 1 and "--force" in again.err
    assert script("inference_engine.py", [*arguments, killed, "--force"]).code == 0


def test_bad_input_is_named_before_anything_is_asked(model_flags, script, tmp_path):
    photo = tmp_path / "a.png"
    photo.write_bytes(b"")
    out = tmp_path / "answers.txt"
    for words, message, code in (
        ([tmp_path / "nowhere"], "nowhere: no such file or folder", 1),
        ([], "no photo to predict", 2),
        ([photo, "--out", out], "written as .csv or .jsonl", 1),
        ([photo, "--precision", "int8"], "--precision must be", 2),
    ):
        done = script("inference_engine.py", ["predict", *words, *model_flags[:6]])
        assert (done.code, "Traceback" in done.err) == (code, False), done.err
        assert message in done.err
    assert not out.exists()


def test_names_that_are_formulas_or_no_text_keep_their_rows(tree, model_flags, script, tmp_path):
    whole = Path(photos_of(tree)[0]).read_bytes()
    for name in (b"=1+1.png", b'a,"b".png', b"line\nbreak.png", b"caf\xe9.png", b"<script>.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(whole)
    for suffix in (".csv", ".jsonl"):
        out = tmp_path / f"answers{suffix}"
        done = script("inference_engine.py", ["predict", tmp_path, *model_flags, "--out", out])
        assert done.code == 0 and done.figures()["ok"] == "5", done.err
    names = [Path(plain_cell(row["image"])).name for row in rows_of(tmp_path / "answers.csv")]
    assert names == ["<script>.png", "=1+1.png", 'a,"b".png', "caf\\udce9.png", "line\nbreak.png"]
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Path(json.loads(line)["image"]).name for line in lines][1] == "=1+1.png"
