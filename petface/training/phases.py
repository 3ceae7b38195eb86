"""The phases of a training: what is unfrozen, how fast it learns and when it ends; and where a
training is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import nn

from petface.errors import SettingsError
from petface.models import checkpoints
from petface.models.backbones import STAGE_NAMES
from petface.models.multi_head import unfreeze
from petface.settings import Settings
from petface.training import recipe
from petface.training.epoch import Job, Progress
from petface.training.runs import RunFolder
from petface.training.schedule import EarlyStopping, lr_factor, plateau_factor

STAGES: Final = (*STAGE_NAMES, "all", "heads")  # what may stand in PHASE_STAGES


@dataclass(frozen=True)
class Phase:
    """What is unfrozen besides the heads, the learning rate, for how many epochs at most, and after
    how many without a better one it ends (0 = never early).
    """

    stages: tuple[str, ...]
    lr: float
    epochs: int
    patience: int


def make_phases(s: Settings, lr: str, epochs: str, patience: str) -> list[Phase]:
    """Read PHASE_STAGES and the constants of these names, each one value for all phases or a list
    with one for each.
    """
    all_stages = [tuple(entry.split("+")) for entry in s.PHASE_STAGES]
    unknown = [stage for stages in all_stages for stage in stages if stage not in STAGES]
    if unknown:
        known = ", ".join(STAGES)
        raise SettingsError(f"PHASE_STAGES has {unknown[0]!r}; known, joined by +: {known}")
    if not all_stages:
        raise SettingsError('PHASE_STAGES is empty; ["all"] is one phase that trains everything')
    columns = []
    for name in (lr, epochs, patience):
        value = s.as_dict()[name]
        column = list(value) if isinstance(value, (list, tuple)) else [value] * len(all_stages)
        if len(column) != len(all_stages):
            raise SettingsError(
                f"{name} has {len(column)} entries, PHASE_STAGES {len(all_stages)}: give one for "
                "each phase"
            )
        columns.append(column)
    return [Phase(*row) for row in zip(all_stages, *columns, strict=True)]


class PhasedTraining:
    """A network on its way through the phases. Each begins with the best weights so far, a new
    optimizer, and the figure to beat.

    `mode` says which of two watched figures is better.
    """

    def __init__(
        self,
        s: Settings,
        phases: Sequence[Phase],
        model: nn.Module,
        job: Job,
        mode: Literal["max", "min"],
    ) -> None:
        self.phases = phases
        self.index = 0
        self._s, self._model, self._job, self._mode = s, model, job, mode
        self.progress = self._begin()

    def _begin(self, best: float | None = None) -> Progress:
        phase = self.phases[self.index]
        unfreeze(self._model, phase.stages)
        optimizer = recipe.make_optimizer(self._s, self._model, phase.lr)
        stopping = EarlyStopping(phase.patience, self._mode, best=best)
        scaler, average = self._job.network.grad_scaler(), recipe.make_average(self._s, self._model)
        return Progress(optimizer, scaler, stopping, average=average)

    def has_epoch(self, run: RunFolder, save: Callable[[], None]) -> bool:
        """Tell whether an epoch is left, in this phase or in a next one, which then begins.

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
        """Give the rows of this phase's epochs so far."""
        return [row for row in self.progress.history if row["phase"] == self.index + 1]

    def rate(self, watched: Callable[[dict[str, Any]], float]) -> Callable[[float], float]:
        """Give the learning rate as a function of the epochs done; `watched` finds in a row what
        "plateau" looks at.
        """
        s, phase, rows = self._s, self.phases[self.index], self.rows()
        lr, first_epoch = phase.lr, self.progress.epoch.epoch - len(rows)
        if s.SCHEDULE == "plateau":
            lr *= plateau_factor(map(watched, rows), s.PLATEAU_PATIENCE, self._mode)

        def rate(epochs: float) -> float:
            done = (epochs - first_epoch) / phase.epochs
            return lr * lr_factor(done, s.SCHEDULE, s.WARMUP_FRAC)

        return rate

    def state_dict(self) -> dict[str, Any]:
        """Give what an exact resume needs, the weights included."""
        weights = self._model.state_dict()
        return {"model": weights, "phase": self.index, **self.progress.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave, and say where that is."""
        self.index = state.get("phase", 0)
        self._model.load_state_dict(state["model"])
        self.progress = self._begin()
        self.progress.load_state_dict(dict(state))
        for row in self.progress.history:  # stage 1 once had no phases
            row.setdefault("phase", 1)
        epoch, many = self.progress.epoch, len(self.phases) > 1
        where = f" (phase {self.index + 1} of {len(self.phases)})" if many else ""
        print(f"going on at epoch {epoch.epoch + 1}, step {epoch.step}{where}")
