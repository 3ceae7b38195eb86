"""Phases: read from the constants, taken one after the other, and gone on with after a stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from petface.errors import SettingsError
from petface.models.architecture import Architecture, build_classifier
from petface.training.phases import Optimization, Phase, PhasedTraining, make_phases

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
        ((STAGES, (0.1, 0.2), 1, 1), "PHASE_STAGES has 3 entries, the list of learning rates 2"),
        ((("all",), 0.1, (3, 4), 1), "PHASE_STAGES has 1 entries, the list of epochs 2"),
        ((STAGES, 0.1, 1, (3,)), "PHASE_STAGES has 3 entries, the list of patience 1"),
        ((("layr4",), 0.1, 1, 1), "PHASE_STAGES has 'layr4'; known, joined by [+]: "),
        ((("heads+", "all"), 0.1, 1, 1), "PHASE_STAGES has ''"),
        (((), 0.1, 1, 1), "PHASE_STAGES is empty"),
    ],
)
def test_lists_that_do_not_fit_and_unknown_stages_are_refused(values, words):
    with pytest.raises(SettingsError, match=words):
        make_phases(*values)


class Run:
    """Where the best weights lie, and how often the state was saved."""

    def __init__(self, folder, model):
        self.best, self.model, self.saves = folder / "best.pt", model, 0

    def keep(self):
        torch.save({"model": self.model.state_dict()}, self.best)

    def save(self):
        self.saves += 1


@pytest.fixture
def training(tmp_path):
    """Heads for two epochs at most, then everything for three."""
    phases = make_phases(("heads", "all"), (0.2, 0.1), (2, 3), (1, 0))
    model = build_classifier(Architecture("mobilenet_v3_small"), 3)
    job = SimpleNamespace(network=SimpleNamespace(grad_scaler=lambda: torch.amp.GradScaler("cpu")))
    how = Optimization(schedule="cosine", ema_decay=0.5)
    made = PhasedTraining(phases, how, model, job, "max")
    return made, model, Run(tmp_path, model)


def epoch(training, figure):
    progress = training.progress
    progress.history.append({"phase": training.index + 1, "figure": figure})
    progress.epoch = progress.epoch.next_epoch()
    return progress.stopping.update(figure)


def test_a_phase_begins_with_the_best_weights_and_the_figure_to_beat(training):
    made, model, run = training
    head = {n for n, p in model.named_parameters() if n.startswith("classifier.")}
    assert made.has_epoch(run, run.save)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == head
    assert epoch(made, 0.5)
    run.keep()
    assert made.has_epoch(run, run.save) and run.saves == 0
    with torch.no_grad():
        next(model.parameters()).add_(1)  # worse
    assert not epoch(made, 0.4)
    first = made.progress
    assert made.has_epoch(run, run.save) and (run.saves, made.index) == (1, 1)
    assert torch.equal(next(model.parameters()), next(iter(torch.load(run.best)["model"].values())))
    assert all(p.requires_grad for p in model.parameters())
    assert made.progress.optimizer is not first.optimizer and made.progress.epoch.epoch == 2
    assert made.progress.stopping.best == 0.5 and len(made.progress.history) == 2
    assert made.progress.average is not first.average and made.rows() == []
    for _ in range(3):
        assert made.has_epoch(run, run.save) and not epoch(made, 0.3)  # patience is off
    assert not made.has_epoch(run, run.save) and run.saves == 1


def test_a_phase_ends_early_by_its_patience(training):
    made, _, run = training
    epoch(made, float("nan"))
    run.keep()
    assert made.has_epoch(run, run.save) and made.index == 1


def test_the_rate_follows_the_schedule_over_each_phase(training):
    made, _, run = training
    rate = made.rate(lambda row: row["figure"])
    assert [rate(0), rate(1), rate(2)] == pytest.approx([0.2, 0.1, 0.0])
    epoch(made, 0.5)
    epoch(made, 0.6)
    run.keep()
    assert made.has_epoch(run, run.save)
    rate = made.rate(lambda row: row["figure"])
    assert [rate(2), rate(3.5), rate(5)] == pytest.approx([0.1, 0.05, 0.0])


def test_the_rate_falls_on_a_plateau():
    how = Optimization(schedule="plateau", plateau_patience=2)
    phases = make_phases(("all",), 0.2, 50, 7)
    job = SimpleNamespace(network=SimpleNamespace(grad_scaler=lambda: None))
    for figures, factor in (([0.5], 1), ([0.5, 0.4, 0.4], 0.1), ([0.5] * 5, 0.01)):
        model = build_classifier(Architecture("mobilenet_v3_small"), 3)
        made = PhasedTraining(phases, how, model, job, "max")
        for figure in figures:
            epoch(made, figure)
        rate = made.rate(lambda row: row["figure"])
        assert rate(len(figures)) == pytest.approx(0.2 * factor)


def test_a_state_without_phases_is_one_of_the_first(training, capsys):
    made, model, run = training
    epoch(made, 0.5)
    state = made.state_dict()
    del state["phase"], state["history"][0]["phase"]
    made.load_state_dict(state)
    assert made.index == 0 and made.rows() == [{"figure": 0.5, "phase": 1}]
    assert capsys.readouterr().out == "resuming at epoch 2, step 0 (phase 1 of 2)\n"
