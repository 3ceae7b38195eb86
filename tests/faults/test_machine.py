"""A machine that lets a run down: memory, loading processes, network, a broken install."""

import os
import subprocess
import sys
from functools import partial

import pandas
import pytest
import torch

from tests import scripts
from tests.conftest import TINY_STAGE1
from tests.sameness import assert_same


@pytest.fixture
def flags(tree, tmp_path):
    return [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path / "runs", "--run-name", "run"]


# out of memory on the device


def test_passes_that_measure_halve_the_batch_and_find_the_same(script, flags, stage1_run, tmp_path):
    """Batches of 8 and a device that takes 3 when it answers: the training is the straight one."""
    done = script(scripts.STAGE1, flags, scripts.Cramped(3, training=False)).checked()
    found, straight = (
        torch.load(folder / "best.pt", weights_only=True)
        for folder in (tmp_path / "runs/run", stage1_run.folder)
    )
    assert all(torch.equal(found["model"][name], w) for name, w in straight["model"].items())
    for name, figure in straight["figures"].items():
        if name not in ("train_s", "train_images_per_s"):
            assert found["figures"][name] == pytest.approx(figure, rel=1e-5), name
    figures, expected = done.figures(), stage1_run.result.figures()
    for name in ("test_accuracy", "test_balanced_accuracy", "test_images", "num_unreadable"):
        assert figures[name] == expected[name]


def test_a_training_batch_that_does_not_fit_goes_through_in_parts(script, flags, tmp_path):
    cramped = scripts.Cramped(4, training=True)
    done = script(scripts.STAGE1, [*flags, "--epochs", 1], cramped).checked()
    assert done.err.count("out of memory: batches of 8 go through in 2 parts from now on") == 1
    assert pandas.read_csv(tmp_path / "runs/run/metrics.csv")["num_skipped_steps"].tolist() == [0]


def test_a_device_that_takes_no_two_photos_ends_the_run_in_one_line(script, flags):
    done = script(scripts.STAGE1, flags, scripts.Cramped(1, training=True))
    scripts.assert_refused(done, "not enough memory on cpu for 2 images at once")


def test_an_evaluation_halves_the_batch_and_writes_the_same(
    script, evaluation_flags, evaluation_run, tmp_path
):
    flags = [*evaluation_flags, "--out-dir", tmp_path / "out"]
    script(scripts.INFERENCE, flags, scripts.Cramped(3, training=False)).checked()
    before, now = (
        pandas.read_csv(folder / "petface_eval_per_image.csv", dtype=str, keep_default_na=False)
        for folder in (evaluation_run.folder, tmp_path / "out")
    )
    is_number = [name for name in before if name.endswith("_prob")]
    pandas.testing.assert_frame_equal(before.drop(columns=is_number), now.drop(columns=is_number))
    for name in is_number:  # sums of other lengths differ in the last digit
        pandas.testing.assert_series_equal(
            pandas.to_numeric(before[name]), pandas.to_numeric(now[name]), atol=2e-6
        )


# loading processes that die


def test_a_training_survives_a_loading_process_that_dies(script, flags, stage1_run, tmp_path):
    hook = partial(scripts.kill_loader, tmp_path)
    done = script(scripts.STAGE1, [*flags, "--num-workers", 2], hook).checked()
    assert done.err.count("a loading process failed") == 1 and "1 workers continue" in done.err
    assert "Traceback" not in done.err
    assert_same(stage1_run.folder, tmp_path / "runs/run")


def test_an_evaluation_survives_loading_processes_that_all_die(
    script, evaluation_flags, evaluation_run, tmp_path
):
    flags = [*evaluation_flags, "--num-workers", 2, "--out-dir", tmp_path / "out"]
    done = script(scripts.INFERENCE, flags, partial(scripts.kill_loader, tmp_path, 99)).checked()
    assert done.err.count("a loading process failed") == 2  # not for every part again
    assert "a thread of this process continues" in done.err and "Traceback" not in done.err
    assert_same(evaluation_run.folder, tmp_path / "out")


# no network, packages that do not fit


def set_environment(**values):
    os.environ |= values


@pytest.mark.parametrize("pretrained", ["auto", "require"])
def test_without_a_network_weights_are_random_and_said_or_the_run_stops(
    script, stage2_flags, tmp_path, pretrained
):
    """Every download goes to a port where nobody listens, and earlier ones are forgotten."""
    nowhere = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path / "cache")}
    flags = [*stage2_flags, "--runs-root", tmp_path, "--species", "chimp", "--phase-epochs", 1, 1]
    flags += ["--weights", "torchvision", "--pretrained", pretrained]
    done = script(scripts.STAGE2, flags, partial(set_environment, **nowhere))
    words = "ImageNet weights for resnet18 could not be had"
    if pretrained == "require":
        scripts.assert_refused(done, f"{words} (", 'PRETRAINED = "auto"', "local file")
        assert not (tmp_path / "stage2/chimp/chimp_last.pt").exists()
        return
    best = torch.load(tmp_path / "stage2/chimp/chimp_best.pt", weights_only=True)
    assert best["pretrained"].startswith(f"random ({words}: ")
    assert f"first weights: {best['pretrained']}" in done.checked().out


def refusal_of(path, script):
    """Start a script with a folder of made-up packages in front."""
    done = subprocess.run(
        [sys.executable, str(scripts.REPOSITORY / script), "--help"],
        capture_output=True,
        text=True,
        cwd=path,
        env={**os.environ, **scripts.ENVIRONMENT, "PYTHONPATH": str(path)},
    )
    assert done.returncode == 1 and done.stdout == "", done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "python -m pip install -r requirements.txt" in done.stderr
    return done.stderr


def test_a_torchvision_that_was_built_for_another_torch_is_one_line(tmp_path):
    (tmp_path / "torchvision").mkdir()
    text = 'raise RuntimeError("operator torchvision::nms does not exist\\nmore")'
    (tmp_path / "torchvision/__init__.py").write_text(text)
    said = refusal_of(tmp_path, scripts.STAGE1)
    assert f"with torch {torch.__version__.split('+')[0]}" in said and "torchvision 0." in said
    assert "does not load (operator torchvision::nms does not exist); " in said


@pytest.mark.parametrize("script", [scripts.INFERENCE, "tools/report.py"])
def test_a_torch_below_the_floor_is_one_line(tmp_path, script):
    (tmp_path / "torch-2.10.3.dist-info").mkdir()
    text = "Metadata-Version: 2.1\nName: torch\nVersion: 2.10.3+cu128\n"
    (tmp_path / "torch-2.10.3.dist-info/METADATA").write_text(text)
    if script.startswith("tools/"):  # as python -m tools.report does
        text = f"import sys; sys.path.insert(0, {str(scripts.REPOSITORY)!r}); import petface"
        (tmp_path / "report.py").write_text(text)
        script = tmp_path / "report.py"
    said = refusal_of(tmp_path, script)
    assert "torch 2.10.3+cu128 is too old, 2.11 is the lowest" in said


def test_the_floor_is_the_one_that_the_requirements_name():
    from petface.errors import TORCH_FLOOR

    text = (scripts.REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    assert f"torch {'.'.join(map(str, TORCH_FLOOR))} " in text
