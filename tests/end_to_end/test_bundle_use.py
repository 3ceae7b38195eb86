"""A bundle takes the place of the checkpoints: in the evaluation, in predict, for single photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from inference_engine import Stage1Model, Stage2Model, TwoStageInference
from petface.errors import UserError
from petface.models.checkpoints import CheckpointError
from tests import naive, scripts


@pytest.fixture(scope="module")
def bundle(tree, model_flags, module_folder) -> Path:
    """What `python -m tools.export` makes of the trained tiny networks."""
    out = module_folder / "bundle"
    flags = [*tree.flags, *model_flags[:4], "--out", out]
    done = scripts.run_fresh("tools/export.py", flags).checked()
    assert "no specialist in" in done.out and "yak" in done.out
    listed = json.loads((out / "bundle.json").read_text())
    models = ["stage1", *(f"stage2/{name}" for name in listed["specialists"])]
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} - {"bundle.json"}
    assert there == set(listed["files"])
    assert there == {f"{name}.{suffix}" for name in models for suffix in ("onnx", "json")}
    assert done.figures()["models"] == str(len(models)) and done.figures()["int8"] == "0"
    return out


@pytest.fixture(scope="module")
def answers(bundle, stage1_run, stage2_run, tree) -> list[tuple[dict, dict]]:
    """Answers of the checkpoints and of the bundle for the same photos."""
    stored = TwoStageInference(stage1_run.folder / "best.pt", stage2_run.folder, "cpu")
    exports = TwoStageInference(bundle)
    photos = sorted(tree.images.rglob("*.png"))[::4] + sorted(tree.images.glob("yak/*/*.png"))
    return [(stored.infer(photo), exports.infer(photo)) for photo in photos]


def test_single_photos_get_the_checkpoints_answers(answers):
    assert {one["status"] for one, _ in answers} >= {"ok", "no_specialist"}
    for one, other in answers:
        assert one["status"] == other["status"] and one.get("message") == other.get("message")
        assert one["attributes"].keys() == other["attributes"].keys()
        for head in ("species", *one["attributes"]):
            a, b = ((x["attributes"] | {"species": x["species"]})[head] for x in (one, other))
            if a is None:
                assert b is None
                continue
            assert [label for label, _ in a["topk"]] == [label for label, _ in b["topk"]]
            assert [p for _, p in a["topk"]] == pytest.approx([p for _, p in b["topk"]], abs=1e-4)
            assert {**a, "topk": 0} == {**b, "topk": 0}


def test_each_class_takes_a_bundle_or_a_file_of_it(bundle, stage1_run, tree):
    photo = sorted(tree.images.glob("cat/*/*.png"))[0]
    label = Stage1Model(stage1_run.folder / "best.pt", "cpu").predict(photo).label
    assert Stage1Model(bundle).predict(photo).label == label
    assert Stage1Model(bundle / "stage1.onnx").predict(photo).label == label
    cat = Stage2Model.load_for_species("cat", bundle)
    assert cat.predict(photo).keys() == set(cat.heads)
    with pytest.raises(CheckpointError, match="specialist for cat"):
        Stage2Model.load_for_species("dog", bundle / "stage2" / "cat.onnx")
    with pytest.raises(UserError, match="cannot be explained"):
        TwoStageInference(bundle).explain(photo)
    assert TwoStageInference(bundle).describe()["engine"] == "onnxruntime"


def test_the_evaluation_of_a_bundle_is_that_of_its_checkpoints(
    bundle, evaluation_flags, evaluation_run, script, tmp_path
):
    flags = [*evaluation_flags, "--precision", "auto", "--stage1-checkpoint", bundle]
    flags += ["--out-dir", tmp_path / "evaluation"]
    done = script("inference_engine.py", flags).checked()
    folders = evaluation_run.folder, tmp_path / "evaluation"
    tables = [naive.rows_of(folder / "petface_eval_per_image.csv") for folder in folders]
    for one, other in zip(*tables, strict=True):
        for column, cell in one.items():
            if column.endswith("_prob") and cell:
                assert float(other[column]) == pytest.approx(float(cell), abs=1e-4)
            else:
                assert other[column] == cell
    models = json.loads((tmp_path / "evaluation/petface_eval_models.json").read_text())
    assert models["engine"] == "onnxruntime" and "onnxruntime" in models["packages"]
    other = [*flags, "--precision", "bf16", "--out-dir", tmp_path / "other"]
    done = script("inference_engine.py", other)
    assert done.code == 2 and "as they were exported" in done.err


def test_predict_takes_a_bundle_and_every_command_refuses_a_changed_one(
    bundle, tree, script, tmp_path
):
    predict = ["predict", tree.images / "cat", "--out", tmp_path / "answers.csv"]
    script(scripts.INFERENCE, [*predict, "--stage1-checkpoint", bundle]).checked()
    engine = TwoStageInference(bundle)
    for row in naive.rows_of(tmp_path / "answers.csv")[::5]:
        answer = engine.infer(row["image"])
        assert row["status"] == answer["status"]
        if answer["species"]:
            assert row["species_pred"] == answer["species"]["label"]
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    content = bytearray((changed / "stage1.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (changed / "stage1.onnx").write_bytes(content)
    evaluate = ["evaluate", *tree.flags, "--out-dir", tmp_path / "evaluation"]
    for words in ([*predict, "--force"], [tree.images / "cat/000000/00.png"], evaluate):
        done = script(scripts.INFERENCE, [*words, "--stage1-checkpoint", changed])
        scripts.assert_refused(done, "checksum")
