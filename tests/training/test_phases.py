"""Phases: read from the constants, taken one after the other, saved, and resumed after a stop."""

from __future__ import annotations

import math
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas
import pytest
import torch

from petface.data.images import Preprocessing
from petface.errors import SettingsError, UserError
from petface.models import checkpoints
from petface.models.architecture import Architecture, build_classifier
from petface.models.network import Network
from petface.training.evaluate import Evaluation, Job
from petface.training.phases import Optimization, Phase, Training, make_phases
from petface.training.runs import FailureLog, RunFolder

STAGES = ("heads", "layer4+layer3", "all")


def test_one_value_is_for_all_phases_and_a_list_for_each():
    assert make_phases(("all",), 1e-3, 50, 7) == [Phase(("all",), 1e-3, 50, 7)]
    assert make_phases(STAGES, (0.1, 0.2, 0.3), 4, (0, 1, 2)) == [
        Phase(("heads",), 0.1, 4, 0),
        Phase(("layer4", "layer3"), 0.2, 4, 1),
        Phase(("all",), 0.3, 4, 2),
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((STAGES, (0.1, 0.2), 1, 1), "3 entries, the list of learning rates 2"),
        ((("all",), 0.1, (3, 4), 1), "1 entries, the list of epochs 2"),
        ((STAGES, 0.1, 1, (3,)), "3 entries, the list of patience 1"),
        ((("layr4",), 0.1, 1, 1), "'layr4'; known, joined by [+]: "),
        ((("heads+", "all"), 0.1, 1, 1), "PHASE_STAGES has ''"),
        (((), 0.1, 1, 1), "PHASE_STAGES is empty"),
    ],
)
def test_lists_that_do_not_fit_and_unknown_stages_are_refused(values, words):
    with pytest.raises(SettingsError, match=words):
        make_phases(*values)


def training_of(folder, phases, **how):
    run = RunFolder(folder)
    model = build_classifier(Architecture("mobilenet_v3_small"), 3)
    job = Job(
        network=Network.build(model, Preprocessing(32), "cpu", "fp32"),
        num_classes={"species": 3},
        loss=None,
        source=None,
        batch_size=1,
        num_workers=0,
        failures=FailureLog(run, SimpleNamespace(classes=("cat",), class_index=[0] * 9), 9, 1.0),
    )
    more = {"description": {"kind": "stage1"}, "more": lambda: {"sampler_weights": [1.0]}}
    watched = lambda row: row["accuracy"]  # noqa: E731
    made = Training(phases, Optimization(**how), job, run, watched=watched, mode="max", **more)
    return made, model, run


@pytest.fixture
def training(tmp_path):
    """Heads for two epochs at most, then everything for three."""
    phases = make_phases(("heads", "all"), (0.2, 0.1), (2, 3), (1, 0))
    return training_of(tmp_path, phases, schedule="cosine", ema_decay=0.5)


KNOWN = {"species": np.eye(3, dtype=np.int64)}
GOOD = Evaluation(KNOWN, 0.5, 3, 0, 0)


def end_epoch(made, accuracy, loss=2.0, val=GOOD):
    made.progress.epoch.loss_sum, made.progress.epoch.num_images = 3 * loss, 3
    return made.end_epoch(val, {"accuracy": accuracy})


def test_a_phase_begins_with_the_best_weights_and_the_metric_to_beat(training):
    made, model, run = training
    head = {n for n, p in model.named_parameters() if n.startswith("classifier.")}
    assert made.has_epoch()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == head
    assert end_epoch(made, 0.5)
    assert made.has_epoch() and made.index == 0
    with torch.no_grad():
        next(model.parameters()).add_(1)  # worse
    assert not end_epoch(made, 0.4)
    first = made.progress
    assert made.has_epoch() and made.index == 1
    assert checkpoints.load(run.last)["phase"] == 1  # at once
    assert torch.equal(next(model.parameters()), next(iter(torch.load(run.best)["model"].values())))
    assert all(p.requires_grad for p in model.parameters())
    assert made.progress.optimizer is not first.optimizer and made.progress.epoch.epoch == 2
    assert made.progress.stopping.best == 0.5 and len(made.progress.history) == 2
    assert made.progress.average is not first.average and made.rows() == []
    for _ in range(3):
        assert made.has_epoch() and not end_epoch(made, 0.3)  # patience is off
    assert not made.has_epoch()


def test_a_phase_ends_early_by_its_patience(training):
    made, model, run = training
    run.save(run.best, {"model": model.state_dict()})
    made.progress.stopping.best = 0.5
    end_epoch(made, math.nan)
    assert made.has_epoch() and made.index == 1


@pytest.mark.parametrize(
    "seen",
    [
        {"loss": math.nan},  # every step of the epoch was skipped
        {"val": Evaluation(KNOWN, math.nan, 3, 0, 0)},
        {"val": Evaluation(KNOWN, 0.5, 3, 0, 1)},  # one answer is NaN, the others are right
        {"accuracy": math.nan},
    ],
    ids=["training", "loss", "answers", "figure"],
)
def test_an_epoch_that_is_not_finite_chooses_no_network(training, seen):
    made, _, run = training
    assert not end_epoch(made, **{"accuracy": 1.0, **seen}) and not run.best.exists()
    with pytest.raises(UserError, match="no network was chosen, as in no epoch both"):
        made.has_epoch()


def test_a_validation_split_without_a_label_chooses_by_what_is_watched(training):
    made, _, run = training
    nothing = Evaluation({"species": np.zeros((3, 3), np.int64)}, math.nan, 0, 0, 0)
    assert end_epoch(made, 0.5, val=nothing) and run.best.exists()


def test_the_best_epoch_keeps_the_average_of_the_weights_and_the_row(training):
    made, model, run = training
    run.tracking = mock.Mock()
    with torch.no_grad():
        next(model.parameters()).add_(1)  # since the average was made
    assert end_epoch(made, 0.5)
    run.tracking.write.assert_called_once_with(run.path, made.progress.history[0])
    best, last = checkpoints.load(run.best), checkpoints.load(run.last)
    name = next(iter(best["model"]))
    assert torch.equal(best["model"][name] + 1, last["model"][name])
    assert (best["kind"], best["figures"]) == ("stage1", made.progress.history[0])
    assert (last["epoch"], last["sampler_weights"], last["failures"]) == (1, [1.0], {})
    (row,) = pandas.read_csv(run.path / "metrics.csv").to_dict("records")
    assert (row["phase"], row["epoch"], row["train_loss"], row["val_loss"]) == (1, 1, 2.0, 0.5)
    assert (row["accuracy"], row["learning_rate"]) == (0.5, 0.2)
    assert not end_epoch(made, 0.4) and checkpoints.load(run.best)["figures"]["epoch"] == 1


def test_the_rate_follows_the_schedule_over_each_phase(training):
    made, _, _ = training
    rate = made.rate()
    assert [rate(0), rate(1), rate(2)] == pytest.approx([0.2, 0.1, 0.0])
    made._pace_s = 1200.0  # an epoch, of which five are left
    assert made.time_left() == ", at most 1 h 40 min left"
    for accuracy in (0.5, 0.6):
        end_epoch(made, accuracy)
    assert made.has_epoch()
    rate = made.rate()
    assert [rate(2), rate(3.5), rate(5)] == pytest.approx([0.1, 0.05, 0.0])


def test_the_rate_falls_on_a_plateau(tmp_path, capsys):
    made, _, _ = training_of(
        tmp_path, make_phases(("all",), 0.2, 50, 7), schedule="plateau", plateau_patience=2
    )
    factors = []
    for accuracy in (0.5, 0.4, 0.4, 0.5, 0.5):
        end_epoch(made, accuracy)
        factors.append(made.rate()(len(factors) + 1) / 0.2)
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert made.resume() and made.rate()(5) == pytest.approx(0.002)
    assert capsys.readouterr().out.endswith("resuming at epoch 6, step 0\n")


def test_a_run_resumes(training, capsys):
    made, _, run = training
    assert made.resume() is None
    made.progress.epoch.step = 3
    made._job.failures.messages[4] = "bad"
    end_epoch(made, 0.5)
    made._job.failures.messages.clear()
    assert made.resume()["sampler_weights"] == [1.0]
    assert made._job.failures.messages == {4: "bad"}
    assert made.index == 0 and made.rows() == [{**made.rows()[0], "phase": 1, "accuracy": 0.5}]
    assert capsys.readouterr().out.endswith("resuming at epoch 2, step 0 (phase 1 of 2)\n")
    older = {key: v for key, v in checkpoints.load(run.last).items() if key != "phase"}
    checkpoints.save(run.last, older)
    with pytest.raises(
        checkpoints.CheckpointError, match="lacks phase: of an earlier version.*--force"
    ):
        made.resume()
