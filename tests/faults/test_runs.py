"""Faults of a run, on the real scripts: numbers that are not finite, rivals, finished runs."""

import os
import signal
from functools import partial

import pandas
import pytest
import torch

import train_resnet_minority_aug_dynamic as trainer
from petface.settings import read_settings
from petface.training.runs import open_run
from tests import scripts
from tests.conftest import TINY_STAGE1
from tests.scripts import assert_refused


@pytest.fixture
def flags(tree, tmp_path):
    return [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path, "--run-name", "run"]


@pytest.fixture
def stage1(script, flags):
    return lambda *more, hook=None: script(scripts.STAGE1, [*flags, *more], hook)


def test_losses_that_stay_nan_stop_the_run_and_best_stays_whole(stage1, tmp_path):
    """Epoch 1 calls the loss 12 times for training and 3 times for validation; then it is NaN."""
    done = stage1("--mix", "none", hook=scripts.NanLoss("masked_focal_loss", 16, 10**9))
    assert_refused(
        done, "not finite in 10 steps in a row", "epoch 2, step 9", "loss nan", "lower LR"
    )
    best = torch.load(tmp_path / "run/best.pt", weights_only=True)
    assert best["figures"]["epoch"] == 1
    assert all(value.isfinite().all() for value in best["model"].values())
    last = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert last["epoch"] == 1 and last["epoch_state"]["step"] == 0


def test_single_steps_that_are_not_finite_are_skipped_and_counted(stage1, tmp_path):
    stage1("--epochs", 1, hook=scripts.NanLoss("masked_focal_loss", 3, 5)).checked()
    row = pandas.read_csv(tmp_path / "run/metrics.csv").iloc[0]
    assert row["num_skipped_steps"] == 3 and row["train_loss"] > 0
    last = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert all(value.isfinite().all() for value in last["model"].values())
    assert last["optimizer"]["state"][0]["step"] == 12 - 3


def test_a_second_process_is_refused_and_told_who_holds_the_run(stage1, flags, tmp_path):
    settings = read_settings(trainer, [str(flag) for flag in flags], switches={"force": ""})
    with open_run(tmp_path / "run", settings.as_toml()):
        assert_refused(stage1(), str(tmp_path / "run"), f"is in use by process {os.getpid()} on ")
        assert_refused(stage1("--force"), "is in use by")


def test_a_run_whose_process_was_killed_is_free_at_once_although_it_had_workers(stage1):
    """The loader workers notice the death of their parent only after seconds."""
    more = ["--num-workers", 2]
    assert stage1(*more, hook=scripts.SignalAtStep(2, signal.SIGKILL)).code == -9
    done = stage1(*more, hook=scripts.SignalAtStep(1, signal.SIGTERM))
    assert done.code == 143, done.err


def test_a_finished_run_is_not_touched_without_force(script, stage1_run, tree):
    folder = stage1_run.folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix != ".lock"}
    run = partial(script, scripts.STAGE1)
    flags = [*tree.flags, "--runs-root", folder.parent, "--run-name", folder.name]
    assert_refused(run([*flags, *TINY_STAGE1]), "holds a finished run", "--force")
    assert_refused(run([*flags, "--epochs", 1]), "holds a finished run", "--force")
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir() if p.suffix != ".lock"} == before


def test_an_unfinished_run_goes_on_only_with_its_own_settings(stage1, tmp_path):
    assert stage1(hook=scripts.SignalAtStep(2, signal.SIGTERM)).code == 143
    before = (tmp_path / "run/last.pt").read_bytes()
    assert_refused(stage1("--lr", 0.5), "LR: 0.001 -> 0.5", "settings.toml", "--force")
    assert (tmp_path / "run/last.pt").read_bytes() == before
    # the way out that the message names
    preset = ["--config", tmp_path / "run/settings.toml"]
    done = stage1(*preset, hook=scripts.SignalAtStep(1, signal.SIGTERM))
    assert done.code == 143 and "resuming at epoch 1, step 2" in done.out
    forced = stage1("--lr", 0.5, "--force", hook=scripts.SignalAtStep(1, signal.SIGTERM))
    assert forced.code == 143 and "going on" not in forced.out
