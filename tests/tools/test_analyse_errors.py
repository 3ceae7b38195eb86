"""The error analysis as a user runs it, on the tiny evaluation."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from petface.analysis.errors import PROBES
from tests import scripts
from tests.conftest import BOMB, EMPTY, TRUNCATED
from tests.naive import rows_of

FLAGS = ("--device", "cpu", "--workers", 0, "--batch-size", 8)


def run(scratch, *arguments):
    return scripts.run_forked("tools/analyse_errors.py", arguments, scratch)


@pytest.fixture(scope="module")
def out(evaluation_run, tmp_path_factory):
    """A copy of the evaluation, to be written into."""
    folder = tmp_path_factory.mktemp("analysed") / "evaluation"
    shutil.copytree(evaluation_run.folder, folder)
    return folder


@pytest.fixture(scope="module")
def done(out, tmp_path_factory):
    stale = out / "analysis/photos/gradcam_gender_mistakes_of_old.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    result = run(tmp_path_factory.mktemp("streams"), "--out-dir", out, *FLAGS)
    assert result.code == 0, result.err
    return result, json.loads((out / "analysis/analysis.json").read_text())


@pytest.fixture(scope="module")
def held_out(out):
    return [row for row in rows_of(out / "petface_eval_per_image.csv") if row["split"] == "test"]


def test_what_it_counts_is_in_the_evaluation(done, held_out):
    found = done[1]
    bad = sum(row["image"] in (TRUNCATED, BOMB, EMPTY) for row in held_out)
    assert found["num_test"] == found["sample"] == len(held_out)
    assert found["num_unreadable"] == bad
    for head in ("species", "breed", "gender"):
        asked = [row for row in held_out if row[f"{head}_correct"] != ""]
        right = sum(row[f"{head}_correct"] == "1" for row in asked)
        if not asked:  # which animals the tiny stage 1 gets right depends on the processor
            assert head not in found["probes"] and head not in found["slices"]
            continue
        baseline = found["probes"][head]["baseline"]
        assert baseline["num"] == len(asked)
        assert baseline["accuracy"] == pytest.approx(right / len(asked))
        for entry in found["slices"][head].values():
            assert sum(b["num"] for b in entry["bins"]) == len(asked)
            correct = sum(b["num"] * b["accuracy"] for b in entry["bins"])
            assert correct == pytest.approx(right)
        assert len(found["mistakes"].get(head, [])) == min(20, len(asked) - right)
        assert len(found["probes"][head]["probes"]) == len(PROBES)
        assert {"name", "change", "interval_95"} < set(found["probes"][head]["probes"][0])


def test_its_files_can_be_opened_and_photos_lie_apart(done, out, evaluation_run):
    result, _ = done
    folder = out / "analysis"
    for path in evaluation_run.folder.glob("petface_eval_*"):  # it changes nothing of these
        assert (out / path.name).read_bytes() == path.read_bytes()
    on_disk = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    pictures = {name for name in on_disk if name.endswith(".png")}
    assert on_disk - pictures == {"analysis.json", "mistakes.csv"}
    assert not any(name.endswith("_of_old.png") for name in pictures)  # of an earlier analysis
    assert "photos/gradcam_breed_mistakes.png" in pictures
    for name in pictures:
        assert name.startswith("photos/") and np.asarray(Image.open(folder / name)).std() > 5
    last = dict(line.split(": ") for line in result.out.strip().splitlines()[-3:])
    assert last["report"] == str(out / "report.html")
    assert last["analysis"] == str(folder / "analysis.json") and float(last["seconds"]) > 0


def test_a_sample_and_other_places_of_the_files(
    out, tree, held_out, stage1_run, stage2_run, tmp_path
):
    moved = tree.copy(tmp_path / "moved")
    (moved.images / held_out[0]["image"]).write_bytes(b"damaged since")
    shutil.copy(stage1_run.folder / "best.pt", tmp_path / "species.pt")
    copy = tmp_path / "evaluation"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns("analysis"))
    models = json.loads((copy / "petface_eval_models.json").read_text())
    models["images_root"] = models["stage1"]["path"] = "gone"
    (copy / "petface_eval_models.json").write_text(json.dumps(models))
    result = run(
        tmp_path, "--out-dir", copy, *FLAGS, "--images-root", moved.images, "--sample", 12,
        "--stage1-checkpoint", tmp_path / "species.pt",
        "--stage2-folder", stage2_run.folder,
    )  # fmt: skip
    assert result.code == 0, result.err
    found = json.loads((copy / "analysis/analysis.json").read_text())
    assert (found["sample"], found["num_unreadable"]) == (12, 1)
    assert found["probes"]["species"]["baseline"]["num"] == 11


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--images-root", "/nowhere"], "no test photo below /nowhere can be read"),
        (["--stage1-checkpoint", "SPECIALIST"], "is not the checkpoint that was evaluated"),
        (["--stage2-folder", "/nowhere"], "/nowhere"),
        (["--sampel", "3"], "--sample"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(out, stage2_run, tmp_path, flags, words):
    specialist = next(stage2_run.folder.glob("*/*_best.pt"))
    flags = [str(specialist) if flag == "SPECIALIST" else flag for flag in flags]
    result = run(tmp_path, "--out-dir", out, *FLAGS, "--sample", 2, *flags)
    assert result.code in (1, 2)
    assert words in result.err and "Traceback" not in result.err
