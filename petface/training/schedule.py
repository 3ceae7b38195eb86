"""How fast to learn and when to stop: pure functions of progress, early stopping in plain state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

LrKind = Literal["constant", "cosine", "restarts", "linear", "step", "plateau"]
_CYCLES: Final = (1, 2, 4)  # lengths of the cosines of "restarts"
_WARMUP_START = 0.01  # not 0: at progress 0 the first step would otherwise change nothing
_ROUNDING = 1e-9  # how far a sum of step lengths may overshoot 0..1


def lr_factor(progress: float, kind: LrKind = "constant", warmup_frac: float = 0.0) -> float:
    """Return the factor on the learning rate at `progress` (0 first step, 1 end of training).

    For the first `warmup_frac` of training the factor climbs linearly from 0.01 to 1, whatever the
    kind; over the rest, t from 0 to 1, it follows

    - "constant": 1, and "plateau" too, to which `plateau_factor` belongs;
    - "cosine": half a cosine from 1 to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983, no
      restart);
    - "restarts": three such cosines, each twice as long as the one before (the same paper);
    - "linear": a straight line from 1 to 0;
    - "step": divided by 10 at t = 1/3 and at t = 2/3 (He et al. 2016, arXiv 1512.03385, who divide
      at 30 and 60 of 90 epochs).
    """
    assert 0.0 <= warmup_frac <= 1.0, warmup_frac
    assert -_ROUNDING <= progress <= 1.0 + _ROUNDING, progress
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup_frac:
        return _WARMUP_START + (1.0 - _WARMUP_START) * progress / warmup_frac
    t = (progress - warmup_frac) / (1.0 - warmup_frac) if warmup_frac < 1.0 else 0.0
    if kind in ("cosine", "restarts"):
        t = _in_cycle(t) if kind == "restarts" else t
        return 0.5 * (1.0 + math.cos(math.pi * t))
    if kind == "linear":
        return 1.0 - t
    if kind == "step":
        return 0.1 ** int((t >= 1 / 3) + (t >= 2 / 3))
    return 1.0


def _in_cycle(t: float) -> float:
    """Return how far t in 0..1 is within its cosine, 0..1; the end of the last one is 1."""
    begin = 0.0
    for length in (cycle / sum(_CYCLES) for cycle in _CYCLES):
        if t < begin + length:
            return (t - begin) / length
        begin += length
    return 1.0


def plateau_factor(figures: Iterable[float], patience: int, mode: Literal["max", "min"]) -> float:
    """Return the factor on the learning rate after epochs that ended with `figures`.

    A tenth each time `patience` epochs in a row have brought nothing better, 0 = never; that is
    torch's `ReduceLROnPlateau` with threshold 0.
    """
    watch, factor = EarlyStopping(patience, mode), 1.0
    for figure in figures:
        watch.update(figure)
        if watch.should_stop:
            factor, watch.num_bad_epochs = factor / 10, 0
    return factor


@dataclass
class EarlyStopping:
    """Count the epochs since the watched metric improved; stop after `patience`, 0 = never.

    NaN and infinities are never the best and count as bad epochs.
    """

    patience: int
    mode: Literal["max", "min"] = "max"
    best: float | None = None  # what to beat; None until a finite value came
    num_bad_epochs: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        assert self.mode in ("max", "min"), self.mode
        assert self.patience >= 0, self.patience

    def update(self, value: float) -> bool:
        """Take in the value of one epoch; return whether it is the best so far."""
        value = float(value)
        sign = 1 if self.mode == "max" else -1
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best):
            self.best = value
            self.num_bad_epochs = 0
            return True
        self.num_bad_epochs += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Check whether `patience` bad epochs in a row have passed."""
        return 0 < self.patience <= self.num_bad_epochs

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs, as plain Python; patience stays a setting."""
        return {"mode": self.mode, "best": self.best, "num_bad_epochs": self.num_bad_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, in the same mode: that is the run's setting."""
        self.best, self.num_bad_epochs = state["best"], state["num_bad_epochs"]
