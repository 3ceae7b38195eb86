"""Schedules against torch's own and hand calculations; early stopping against a naive rule."""

from __future__ import annotations

import json
import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from petface.training.schedule import EarlyStopping, LrKind, lr_factor, plateau_factor


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize(
    ("kind", "num_steps", "make"),
    [
        ("cosine", 50, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=50)),
        ("restarts", 70, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, T_mult=2)),
    ],
)
def test_cosines_equal_torch(kind: str, num_steps: int, make) -> None:
    optimizer = sgd()
    scheduler = make(optimizer)
    for step in range(num_steps):
        expected = optimizer.param_groups[0]["lr"]
        assert lr_factor(step / num_steps, kind) == pytest.approx(expected, abs=1e-9), step
        optimizer.step()
        scheduler.step()
    assert lr_factor(1.0, kind) == pytest.approx(0.0)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_plateau_equals_torch(mode: str, patience: int) -> None:
    values = np.random.default_rng(patience).normal(size=40).cumsum()
    optimizer = sgd()
    # torch waits for more than `patience` bad epochs, ours for as many
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, patience=patience - 1, threshold=0.0, eps=0.0
    )
    for number in range(40):
        ours = plateau_factor(values[:number], patience, mode)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), number
        scheduler.step(values[number])
    assert plateau_factor(values, 0, mode) == 1.0


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 2 / 3, 1 / 3, 0.0]),
        ("step", [1.0, 0.1, 0.01, 0.01]),
    ],
)
def test_thirds_by_hand(kind: str, factors: list[float]) -> None:
    assert [lr_factor(third / 3, kind) for third in range(4)] == pytest.approx(factors)


@pytest.mark.parametrize("kind", get_args(LrKind))
def test_warmup_is_linear_positive_and_joins_without_a_jump(kind: str) -> None:
    assert lr_factor(0.0, kind, warmup_frac=0.2) == 0.01
    quarter, half = (lr_factor(p, kind, warmup_frac=0.2) for p in (0.05, 0.1))
    assert half == pytest.approx(0.01 + 0.99 / 2)
    assert half - quarter == pytest.approx(0.99 / 4)
    assert lr_factor(0.2 - 1e-9, kind, warmup_frac=0.2) == pytest.approx(1.0, abs=1e-6)
    assert lr_factor(0.2, kind, warmup_frac=0.2) == pytest.approx(1.0)
    # what follows is the schedule without warm-up, pressed into the rest
    assert lr_factor(0.6, kind, warmup_frac=0.2) == pytest.approx(lr_factor(0.5, kind))
    assert [lr_factor(p, kind, warmup_frac=1.0) for p in (0.5, 1.0)] == pytest.approx([0.505, 1.0])


def test_rounding_of_progress_is_forgiven_and_nothing_else() -> None:
    assert lr_factor(1.0 + 1e-12, "linear") == 0.0
    for progress, warmup_frac in ((1.1, 0.0), (math.nan, 0.0), (0.5, 1.5)):
        with pytest.raises(AssertionError):
            lr_factor(progress, "linear", warmup_frac)


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_best_flags_equal_a_naive_rule(mode: str, sign: int) -> None:
    values = np.random.default_rng(0).random(200).tolist()
    values[0], values[3], values[50], values[51] = math.nan, math.nan, math.inf, -math.inf
    stopper = EarlyStopping(5, mode)  # type: ignore[arg-type]
    best, num_bad = -math.inf, 0
    for value in values:
        is_best = math.isfinite(value) and sign * value > best
        best, num_bad = (sign * value, 0) if is_best else (best, num_bad + 1)
        assert stopper.update(value) == is_best
        assert stopper.num_bad_epochs == num_bad and stopper.should_stop == (num_bad >= 5)
    assert stopper.best == sign * best
    assert not stopper.update(stopper.best), "as good is not better"


def test_patience_zero_never_stops() -> None:
    stopper = EarlyStopping(patience=0)
    for _ in range(100):
        stopper.update(0.0)
    assert stopper.num_bad_epochs == 99 and not stopper.should_stop


def test_state_is_plain_and_a_resumed_count_goes_on() -> None:
    values = [0.5, 0.7, 0.6, 0.7, 0.65]
    straight, first, second = (EarlyStopping(3) for _ in range(3))
    for value in values:
        straight.update(np.float32(value))  # numpy must not leak into a checkpoint
    for value in values[:3]:
        first.update(np.float32(value))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for value in values[3:]:
        second.update(np.float32(value))
    assert second.state_dict() == straight.state_dict()
    assert type(straight.best) is float and second.should_stop
