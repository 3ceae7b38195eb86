"""Runs that are stopped and killed, again and again, equal the straight run bit for bit."""

import json
import signal
from functools import partial

import pytest
import torch

from tests import naive, scripts
from tests.conftest import TINY_STAGE1
from tests.sameness import assert_same

TIMINGS = {"train_images_per_s", "train_s"}


def rows_of(path):
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in naive.rows_of(path)]


def loads(path):
    """A checkpoint that is whole can be read; its epoch and step."""
    state = torch.load(path, weights_only=True)["epoch_state"]
    return state["epoch"], state["step"]


@pytest.fixture
def stage1(script, tree, tmp_path):
    flags = [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path / "runs", "--run-name", "broken"]
    return partial(script, scripts.STAGE1, flags)


def test_stage_1_stopped_and_killed_six_times_equals_the_straight_run(stage1, stage1_run, tmp_path):
    """An epoch has 12 steps. Each start goes on where the last left whole."""
    folder = tmp_path / "runs/broken"
    assert stage1(scripts.KillWhileSaving("best.pt")).code == -9  # of the first epoch
    assert not (folder / "last.pt").exists() and not (folder / "best.pt").exists()
    assert len(list(folder.glob("best.pt.*"))) == 1  # a torn temporary file

    done = stage1(scripts.SignalAtStep(5, signal.SIGTERM))  # in the middle of the first epoch
    assert done.code == 143 and "stopped in epoch 1" in done.out
    assert loads(folder / "last.pt") == (0, 5)

    done = stage1(scripts.SignalAtStep(3, signal.SIGINT))
    assert done.code == 130 and "resuming at epoch 1, step 5" in done.out
    assert loads(folder / "last.pt") == (0, 8)

    done = stage1(scripts.SignalAtStep(2, signal.SIGTERM, times=2))  # leaves at once
    assert done.code == 143 and "stopped in epoch" not in done.out
    assert loads(folder / "last.pt") == (0, 8)

    # steps 9 to 12 of epoch 1, then 6 of epoch 2
    assert stage1(scripts.SignalAtStep(4 + 6, signal.SIGKILL)).code == -9
    assert loads(folder / "last.pt") == (1, 0)

    assert stage1(scripts.KillWhileSaving("last.pt")).code == -9  # of epoch 2
    assert loads(folder / "last.pt") == (1, 0)  # the old one, whole
    torch.load(folder / "best.pt", weights_only=True)

    # all epochs are done and saved, the table of metrics is not
    assert stage1(scripts.KillBeforeCall("petface.files", "write_csv", 3)).code == -9
    assert loads(folder / "last.pt") == (3, 0)
    assert len(rows_of(folder / "metrics.csv")) == 2

    assert stage1(scripts.KillWhileSaving("best.pt")).code == -9  # with its calibration
    assert "calibration" not in torch.load(folder / "best.pt", weights_only=True)
    assert stage1(scripts.KillBeforeCall("petface.files", "write_json", 2)).code == -9
    assert "calibration" in torch.load(folder / "best.pt", weights_only=True)
    assert not (folder / "final.json").exists()

    done = stage1().checked()
    assert_same(stage1_run.folder, folder)
    assert done.figures()["test_accuracy"] == stage1_run.result.figures()["test_accuracy"]


@pytest.mark.slow
def test_phases_of_stage_1_stopped_and_killed_equal_the_straight_run(script, tree, tmp_path):
    """Two epochs of the head, then two of its last stage; an epoch has 12 steps."""
    flags = [*tree.flags, *TINY_STAGE1, "--phase-stages", "heads", "layer4", "--epochs", 2]
    flags += ["--lr", 1e-2, 1e-3, "--patience", 0, "--ema-decay", 0.9, "--schedule", "constant"]
    flags += ["--select-by", "loss"]
    flags += ["--runs-root", tmp_path, "--run-name"]
    script(scripts.STAGE1, [*flags, "straight"]).checked()
    rows = rows_of(tmp_path / "straight/metrics.csv")
    assert [(row["phase"], row["learning_rate"]) for row in rows] == [
        ("1", "0.01"), ("1", "0.01"), ("2", "0.001"), ("2", "0.001"),
    ]  # fmt: skip
    lowest = min(rows, key=lambda row: float(row["val_loss"]))
    final = json.loads((tmp_path / "straight/final.json").read_text())
    assert final["best_epoch"] == int(lowest["epoch"])

    broken = partial(script, scripts.STAGE1, [*flags, "broken"])
    assert broken(scripts.SignalAtStep(5, signal.SIGTERM)).code == 143
    assert broken(scripts.SignalAtStep(7 + 12 + 3, signal.SIGKILL)).code == -9  # in phase 2
    assert loads(tmp_path / "broken/last.pt") == (2, 0)
    done = broken(scripts.SignalAtStep(15, signal.SIGTERM))
    assert done.code == 143 and "resuming at epoch 3, step 0 (phase 2 of 2)" in done.out
    assert broken().code == 0
    assert_same(tmp_path / "straight", tmp_path / "broken")


def test_stage_2_stopped_and_killed_equals_the_straight_run(
    script, stage2_flags, stage2_run, tmp_path
):
    """Cat alone: 4 steps an epoch, two epochs in phase 1, one in phase 2."""
    flags = [*stage2_flags, "--runs-root", tmp_path / "runs", "--run-name", "broken"]
    stage2 = partial(script, scripts.STAGE2, [*flags, "--species", "cat"])
    folder = tmp_path / "runs/broken/cat"
    done = stage2(scripts.SignalAtStep(2, signal.SIGTERM))
    assert done.code == 143 and loads(folder / "cat_last.pt") == (0, 2)

    assert stage2(scripts.SignalAtStep(2 + 3, signal.SIGKILL)).code == -9  # in epoch 2
    assert loads(folder / "cat_last.pt") == (1, 0)

    done = stage2(scripts.SignalAtStep(1, signal.SIGINT))
    assert done.code == 130 and loads(folder / "cat_last.pt") == (1, 1)

    assert stage2(scripts.SignalAtStep(3 + 2, signal.SIGKILL)).code == -9  # in phase 2
    assert loads(folder / "cat_last.pt") == (2, 0)
    assert torch.load(folder / "cat_last.pt", weights_only=True)["phase"] == 1

    done = stage2(scripts.SignalAtStep(2, signal.SIGTERM))
    assert done.code == 143 and "resuming at epoch 3, step 0 (phase 2 of 2)" in done.out

    done = stage2().checked()
    assert_same(stage2_run.folder / "cat", folder)


def test_all_specialists_go_on_after_a_kill_in_the_second(
    script, stage2_flags, stage2_run, tmp_path
):
    flags = [*stage2_flags, "--runs-root", tmp_path / "runs", "--run-name", "broken"]
    straight, broken = stage2_run.folder, tmp_path / "runs/broken"
    hook = scripts.SignalAtStep(3 * 4 + 5, signal.SIGKILL)  # cat takes 12 steps
    assert script(scripts.STAGE2, flags, hook).code == -9
    assert (broken / "cat/final.json").exists() and not (broken / "chimp/final.json").exists()
    cat = (broken / "cat/cat_best.pt").stat().st_mtime_ns
    done = script(scripts.STAGE2, flags).checked()
    assert "cat: finished before, left alone" in done.out
    assert (broken / "cat/cat_best.pt").stat().st_mtime_ns == cat
    for species in ("cat", "chimp", "dog"):
        assert_same(straight / species, broken / species)
