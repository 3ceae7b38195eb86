"""The phases of a training, and how far a training is in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import nn

from petface.errors import SettingsError
from petface.models import checkpoints
from petface.models.backbones import STAGE_NAMES
from petface.models.multi_head import unfreeze
from petface.training.epoch import Progress
from petface.training.evaluate import Job
from petface.training.recipe import WeightAverage, make_optimizer
from petface.training.runs import RunFolder
from petface.training.schedule import EarlyStopping, LrKind, lr_factor, plateau_factor

STAGES: Final = (*STAGE_NAMES, "all", "heads")  # what a phase may unfreeze


@dataclass(frozen=True)
class Phase:
    """What is unfrozen besides the heads, the learning rate, for how many epochs at most, and after
    how many without a better one it ends (0 = never early).
    """

    stages: tuple[str, ...]
    lr: float
    epochs: int
    patience: int


@dataclass(frozen=True)
class Optimization:
    """How a network is optimised, the same in every phase."""

    weight_decay: float = 0.0
    body_lr_factor: float = 1.0  # the body's rate is the phase's times this
    schedule: LrKind = "constant"  # over each phase
    warmup_frac: float = 0.0
    plateau_patience: int = 0
    ema_decay: float = 0.0  # of the average of the weights, which is then measured; 0 = off


def make_phases(
    stages: Sequence[str],
    lr: float | Sequence[float],
    epochs: int | Sequence[int],
    patience: int | Sequence[int],
) -> list[Phase]:
    """Build a phase for each entry of `stages`, names joined by "+".

    The other values are one for all phases, or a list with one for each.
    """
    all_stages = [tuple(entry.split("+")) for entry in stages]
    unknown = [stage for phase in all_stages for stage in phase if stage not in STAGES]
    if unknown:
        known = ", ".join(STAGES)
        raise SettingsError(f"PHASE_STAGES has {unknown[0]!r}; known, joined by +: {known}")
    if not all_stages:
        raise SettingsError('PHASE_STAGES is empty; ["all"] is one phase that trains everything')
    columns = []
    for what, value in (("learning rates", lr), ("epochs", epochs), ("patience", patience)):
        column = list(value) if isinstance(value, Sequence) else [value] * len(all_stages)
        if len(column) != len(all_stages):
            raise SettingsError(
                f"PHASE_STAGES has {len(all_stages)} entries, the list of {what} {len(column)}: "
                "give one value for all phases, or one for each"
            )
        columns.append(column)
    return [Phase(*row) for row in zip(all_stages, *columns, strict=True)]


class PhasedTraining:
    """A network on its way through the phases.

    Each phase begins with the best weights so far, a new optimizer, and the metric to beat. `mode`
    says which of two values of the watched metric is better.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        optimization: Optimization,
        model: nn.Module,
        job: Job,
        mode: Literal["max", "min"],
    ) -> None:
        self.phases = phases
        self.index = 0
        self._how, self._model, self._job, self._mode = optimization, model, job, mode
        self.progress = self._begin()

    def _begin(self, best: float | None = None) -> Progress:
        phase, how = self.phases[self.index], self._how
        unfreeze(self._model, phase.stages)
        optimizer = make_optimizer(
            self._model,
            phase.lr,
            weight_decay=how.weight_decay,
            body_lr_factor=how.body_lr_factor,
        )
        stopping = EarlyStopping(phase.patience, self._mode, best=best)
        average = WeightAverage(self._model, how.ema_decay) if how.ema_decay else None
        return Progress(optimizer, self._job.network.grad_scaler(), stopping, average=average)

    def has_epoch(self, run: RunFolder, save: Callable[[], None]) -> bool:
        """Check whether an epoch is left, in this phase or in a next one, which then begins.

        That is saved at once: a stop right after its first best weights must not begin it with
        those.
        """
        phase = self.phases[self.index]
        if len(self.rows()) < phase.epochs and not self.progress.stopping.should_stop:
            return True
        if self.index + 1 == len(self.phases):
            return False
        self.index += 1
        self._model.load_state_dict(checkpoints.load(run.best)["model"])
        before, self.progress = self.progress, self._begin(self.progress.stopping.best)
        self.progress.history, self.progress.epoch = before.history, before.epoch
        save()
        return True

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of this phase's epochs so far."""
        return [row for row in self.progress.history if row["phase"] == self.index + 1]

    def rate(self, watched: Callable[[dict[str, Any]], float]) -> Callable[[float], float]:
        """Return the learning rate as a function of the epochs done.

        `watched` finds in a row what "plateau" looks at.
        """
        how, phase, rows = self._how, self.phases[self.index], self.rows()
        lr, first_epoch = phase.lr, self.progress.epoch.epoch - len(rows)
        if how.schedule == "plateau":
            lr *= plateau_factor(map(watched, rows), how.plateau_patience, self._mode)

        def rate(epochs: float) -> float:
            done = (epochs - first_epoch) / phase.epochs
            return lr * lr_factor(done, how.schedule, how.warmup_frac)

        return rate

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs, the weights included."""
        weights = self._model.state_dict()
        return {"model": weights, "phase": self.index, **self.progress.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, and print where that is."""
        self.index = state.get("phase", 0)
        self._model.load_state_dict(state["model"])
        self.progress = self._begin()
        self.progress.load_state_dict(dict(state))
        for row in self.progress.history:  # stage 1 once had no phases
            row.setdefault("phase", 1)
        epoch, many = self.progress.epoch, len(self.phases) > 1
        where = f" (phase {self.index + 1} of {len(self.phases)})" if many else ""
        print(f"resuming at epoch {epoch.epoch + 1}, step {epoch.step}{where}")
