"""The learning-rate finder: its arithmetic on made-up losses, and both trainers' real jobs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import train_resnet_minority_aug_dynamic as stage1
from petface.errors import SettingsError
from petface.settings import read_settings
from petface.training import epoch, losses
from petface.training.augment.mixing import Mixing
from petface.training.runs import RunFolder
from tests.conftest import TINY_STAGE1, TINY_STAGE2
from tests.naive import rows_of
from tests.tools.test_sweep import preset_of
from tools import find_lr


def test_the_steepest_fall_and_the_lowest_loss_are_found():
    rates = np.geomspace(1e-6, 1, 101).tolist()  # a step is a factor of 10 ** 0.06
    at = np.log10(rates)
    falling = 3 - 2 / (1 + np.exp(-4 * (at + 3)))  # steepest at 1e-3
    rising = np.where(at > -1, 20 * (at + 1) ** 2, 0)  # lowest at 1e-1
    noise = np.random.default_rng(0).normal(0, 0.01, 101)
    steepest, careful = find_lr.suggestions(rates, (falling + rising + noise).tolist())
    assert 5e-4 < steepest < 2e-3
    assert 4e-3 < careful < 2e-2


def test_the_average_of_equal_losses_is_that_loss_from_the_first_step_on():
    assert find_lr.smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    two = find_lr.smoothed([1.0, 2.0])
    assert two[1] == pytest.approx((0.09 * 1 + 0.1 * 2) / 0.19)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_both_trainers_jobs_rise_to_the_end_or_break(stage, tree, tmp_path, monkeypatch, capsys):
    flags = TINY_STAGE1 if stage == "stage1" else [*TINY_STAGE2, "--weights", "none"]
    flags = [*flags, "--mix", "both"]  # a step has one loss, also where it is that of pairs
    preset = preset_of(tmp_path, stage, [*tree.flags, *flags])
    words = [preset, "--steps", 24, "--low", "1e-5", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["find_lr", *map(str, words)])
    find_lr.main()
    told = dict(line.split(": ") for line in capsys.readouterr().out.splitlines()[-4:])
    rates = [float(row["learning_rate"]) for row in rows_of(tmp_path / "out/lr_finder.csv")]
    assert int(told["steps"]) == len(rates) and 10 <= len(rates) <= 24
    wanted = [1e-5 * 10 ** (5 * k / 23) for k in range(len(rates))]
    assert rates == pytest.approx(wanted, rel=1e-3)
    assert 1e-5 <= float(told["steepest"]) <= 1.0
    assert (tmp_path / "out/lr_finder.png").read_bytes()[:4] == b"\x89PNG"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"lr_finder.csv", "lr_finder.png"}


def tiny_settings(tree, *flags):
    return read_settings(stage1, list(map(str, [*tree.flags, *TINY_STAGE1, *flags])))


@pytest.mark.parametrize("sampler", ["weighted", "shuffle"])
def test_the_order_and_the_loss_are_those_of_the_first_epoch(sampler, tree, tmp_path):
    s = tiny_settings(tree, "--sampler", sampler, "--logit-adjustment", 1.0)
    _, train, order = find_lr.species_job(stage1, s, RunFolder(tmp_path))
    counts = np.bincount(train.labels["species"])
    weights = stage1.make_sampler(s, train, len(counts)).weights
    assert len(set(weights)) > 1
    is_each_once = sorted(order.tolist()) == list(range(len(train)))
    assert is_each_once == (sampler == "shuffle")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "logit_adjustment", lambda *a: seen.append(a) or torch.zeros(1))
        find_lr.species_job(stage1, s, RunFolder(tmp_path))
    ((shown, strength),) = seen
    assert strength == 1.0
    assert shown == pytest.approx(counts * (weights if sampler == "weighted" else 1.0))


def test_batches_are_mixed_as_in_training(tree, tmp_path, monkeypatch):
    s = tiny_settings(tree, "--mix", "cutmix", "--mix-probability", 0.4, "--mix-adapts", "false")
    seen = []
    monkeypatch.setattr(epoch, "mix_batch", lambda *a: seen.append(a[1]))
    job, train, order = find_lr.species_job(stage1, s, RunFolder(tmp_path))
    rates, values = find_lr.rise(job, train, order, s, 1e-6, 1e-5, 4)
    assert seen == [Mixing("cutmix", 0.4, s.MIX_ALPHA)] * 4
    assert rates == pytest.approx([1e-6 * 10 ** (k / 3) for k in range(4)]) and len(values) == 4


@pytest.mark.parametrize(("num_skipped", "wanted"), [(3, [3, 4, 5]), (100, [])])
def test_skipped_steps_leave_gaps_and_only_a_row_of_them_ends_it(
    num_skipped, wanted, tree, tmp_path, monkeypatch
):
    s = tiny_settings(tree)
    job, train, order = find_lr.species_job(stage1, s, RunFolder(tmp_path))
    steps = []
    monkeypatch.setattr(
        epoch,
        "_update",
        lambda *a: steps.append(a) or torch.tensor(float(len(steps) > num_skipped)),
    )
    num_steps = 6 if wanted else 20
    rates, values = find_lr.rise(job, train, order, s, 1e-6, 1e-5, num_steps)
    assert rates == pytest.approx([1e-6 * 10 ** (k / (num_steps - 1)) for k in wanted])
    assert len(values) == len(wanted)
    assert len(steps) == (6 if wanted else epoch.MAX_BAD_STEPS - 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one preset"),
        (["configs/stage1/demo.toml", "--low", "1", "--high", "0.1"], "is not below HIGH"),
        (["configs/stage1/demo.toml", "--steps", "5"], "STEPS must be at least 20"),
    ],
)
def test_mistakes_are_said(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["find_lr", *words])
    with pytest.raises(SettingsError, match=message):
        find_lr.main()
