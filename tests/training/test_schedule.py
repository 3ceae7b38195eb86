"""Schedules against torch's own and hand calculations; early stopping against a naive rule."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from petface.errors import UserError
from petface.training.schedule import LR_KINDS, EarlyStopping, lr_factor, plateau_factor


def test_cosine_equals_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.05)
    for step in range(51):
        ours = lr_factor(step / 50, "cosine", final_frac=0.05)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_restarts_equal_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=10, T_mult=2, eta_min=0.05
    )
    for step in range(70):
        ours = lr_factor(step / 70, "restarts", final_frac=0.05)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        scheduler.step()
    assert lr_factor(1.0, "restarts", final_frac=0.05) == pytest.approx(0.05)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_plateau_equals_torch(mode: str, patience: int) -> None:
    figures = np.random.default_rng(patience).normal(size=40).cumsum()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    # torch waits for more than `patience` bad epochs, ours for as many
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, patience=patience - 1, threshold=0.0, eps=0.0
    )
    for number in range(40):
        ours = plateau_factor(figures[:number], patience, mode)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), number
        scheduler.step(figures[number])
    assert plateau_factor(figures, 0, mode) == 1.0


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.7, 0.4, 0.1]),
        ("step", [1.0, 0.1, 0.01, 0.01]),
        ("cosine", [1.0, 0.775, 0.325, 0.1]),  # 0.1 + 0.9 * (1 + cos(pi t)) / 2
    ],
)
def test_thirds_by_hand(kind: str, factors: list[float]) -> None:
    final_frac = 0.0 if kind == "step" else 0.1
    for third, expected in enumerate(factors):
        assert lr_factor(third / 3, kind, final_frac=final_frac) == pytest.approx(expected)


def test_step_never_falls_below_the_final_share() -> None:
    assert lr_factor(0.9, "step", final_frac=0.05) == pytest.approx(0.05)
    assert lr_factor(0.5, "step", final_frac=0.05) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", LR_KINDS)
def test_warmup_is_linear_positive_and_joins_without_a_jump(kind: str) -> None:
    assert lr_factor(0.0, kind, warmup_frac=0.2) > 0.0
    quarter, half = (lr_factor(p, kind, warmup_frac=0.2) for p in (0.05, 0.1))
    assert half == pytest.approx(0.01 + 0.99 / 2)
    assert half - quarter == pytest.approx(0.99 / 4)
    assert lr_factor(0.2 - 1e-9, kind, warmup_frac=0.2) == pytest.approx(1.0, abs=1e-6)
    assert lr_factor(0.2, kind, warmup_frac=0.2) == pytest.approx(1.0)
    # what follows is the schedule without warm-up, pressed into the rest
    without = lr_factor(0.5, kind, final_frac=0.1)
    assert lr_factor(0.6, kind, warmup_frac=0.2, final_frac=0.1) == pytest.approx(without)


@pytest.mark.parametrize("kind", LR_KINDS)
@pytest.mark.parametrize("warmup_frac", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("final_frac", [0.0, 0.2, 1.0])
def test_factor_stays_within_0_and_1(kind: str, warmup_frac: float, final_frac: float) -> None:
    factors = [lr_factor(i / 100, kind, warmup_frac, final_frac) for i in range(101)]
    assert all(0.0 <= f <= 1.0 for f in factors)
    assert all(f > 0.0 for f in factors[:-1])
    after = factors[math.ceil(100 * warmup_frac) :]
    assert kind == "restarts" or after == sorted(after, reverse=True)


def test_rounding_of_progress_is_forgiven_and_more_is_not() -> None:
    assert lr_factor(1.0 + 1e-12, "linear") == 0.0
    with pytest.raises(AssertionError):
        lr_factor(1.1, "linear")
    with pytest.raises(AssertionError):
        lr_factor(math.nan, "linear")


def test_unknown_kind_names_the_choices() -> None:
    with pytest.raises(
        UserError, match="'cosin'.*constant, cosine, restarts, linear, step, plateau"
    ):
        lr_factor(0.5, "cosin")


def naive_bests(values: list[float], sign: int, min_delta: float) -> list[bool]:
    best, flags = -math.inf, []
    for value in values:
        flags.append(math.isfinite(value) and sign * value > best + min_delta)
        best = sign * value if flags[-1] else best
    return flags


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("min_delta", [0.0, 0.1])
def test_best_flags_equal_a_naive_rule(mode: str, min_delta: float) -> None:
    values = np.random.default_rng(0).random(200).tolist()
    values[3], values[50], values[51] = math.nan, math.inf, -math.inf
    stopper = EarlyStopping(5, mode, min_delta)  # type: ignore[arg-type]
    flags = [stopper.update(value) for value in values]
    assert flags == naive_bests(values, 1 if mode == "max" else -1, min_delta)
    assert sum(flags) >= 2
    assert stopper.best == values[max(i for i, flag in enumerate(flags) if flag)]


def test_stops_after_patience_bad_epochs_in_a_row() -> None:
    stopper = EarlyStopping(patience=2)
    seen = []
    for value in (0.5, 0.4, 0.6, 0.6, 0.6):
        stopper.update(value)
        seen.append((stopper.num_bad_epochs, stopper.should_stop))
    assert seen == [(0, False), (1, False), (0, False), (1, False), (2, True)]
    assert stopper.best == 0.6


def test_nan_is_bad_even_when_it_comes_first() -> None:
    stopper = EarlyStopping(patience=3, mode="min")
    assert not stopper.update(math.nan)
    assert stopper.best is None and stopper.num_bad_epochs == 1
    assert stopper.update(2.0) and stopper.best == 2.0 and stopper.num_bad_epochs == 0


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


def test_a_state_of_the_other_mode_is_refused() -> None:
    with pytest.raises(UserError, match="'min'.*'max'"):
        EarlyStopping(3, "max").load_state_dict(EarlyStopping(3, "min").state_dict())
