"""The phases of a training, how far it is in them, and what it saves after every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import nn

from petface import distributed
from petface.data.loading import Samples
from petface.errors import SettingsError, UserError
from petface.models import checkpoints
from petface.models.architecture import HEAD_PREFIXES, unfreeze
from petface.models.backbones import STAGE_NAMES, describe
from petface.progress import LINE_EVERY_S
from petface.training.epoch import Progress
from petface.training.evaluate import Evaluation, Job
from petface.training.graphs import StepGraphs
from petface.training.recipe import WeightAverage
from petface.training.records import run_entry
from petface.training.runs import RunFolder
from petface.training.schedule import EarlyStopping, LrKind, lr_factor, plateau_factor

STAGES: Final = (*STAGE_NAMES, "all", "heads")  # what a phase may unfreeze


@dataclass(frozen=True)
class Phase:
    """What is unfrozen besides the heads, the learning rate, for how many epochs at most, and after
    how many without a better one it ends (0 = never early).
    """

    stages: tuple[str, ...]
    lr: float  # LR of stage 1, PHASE_LR of stage 2
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
    cuda_graphs: bool = False  # a step is one launch where a GPU is trained on alone


def make_phases(
    stages: Sequence[str],
    lr: float | Sequence[float],
    epochs: int | Sequence[int],
    patience: int | Sequence[int],
    backbone: str = "resnet18",
) -> list[Phase]:
    """Build a phase for each entry of `stages`, names joined by "+".

    The other values are one for all phases, or a list with one for each; `backbone` must be known.
    """
    describe(backbone)
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


def make_optimizer(
    model: nn.Module, lr: float, *, weight_decay: float, body_lr_factor: float = 1.0
) -> torch.optim.Optimizer:
    """Build AdamW over the parameters that are trained; those of the body take `body_lr_factor`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named]}]
    if body_lr_factor != 1:
        head = [p for name, p in named if name.startswith(HEAD_PREFIXES)]
        body = [p for name, p in named if not name.startswith(HEAD_PREFIXES)]
        groups = [{"params": head}, {"params": body, "lr_factor": body_lr_factor}]
        groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


class Training:
    """A network on its way through the phases, and the checkpoints that it leaves in its run.

    Each phase begins with the best weights so far, a new optimizer, and the metric to beat:
    `watched` finds it in a row of metrics.csv, `mode` says which of two values is better.
    `description` are the entries of both checkpoints besides the weights, `more` returns those of
    last.pt alone.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        optimization: Optimization,
        job: Job,
        run: RunFolder,
        description: Mapping[str, Any],
        watched: Callable[[dict[str, Any]], float],
        mode: Literal["max", "min"] = "min",
        more: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.phases, self.index = phases, 0
        self._began_s, self._told_s, self._pace_s = 0.0, -LINE_EVERY_S, 0.0
        self._how, self._job, self._run = optimization, job, run
        self._model = job.network.model
        self._description, self._more = description, more
        self._watched, self._mode = watched, mode
        self.progress = self._begin()
        job.rescue.append(self.save_last)

    def _begin(self, best: float | None = None) -> Progress:
        phase, how = self.phases[self.index], self._how
        unfreeze(self._model, phase.stages)
        rates = {"weight_decay": how.weight_decay, "body_lr_factor": how.body_lr_factor}
        optimizer = make_optimizer(self._model, phase.lr, **rates)
        stopping = EarlyStopping(phase.patience, self._mode, best=best)
        average = WeightAverage(self._model, how.ema_decay) if how.ema_decay else None
        network, graphs = self._job.network, None
        if how.cuda_graphs and network.device.type == "cuda" and distributed.world_size() == 1:
            graphs = StepGraphs(optimizer, network.device)
        return Progress(
            *(optimizer, network.grad_scaler(), stopping),
            average=average,
            graphs=graphs,
            left=self.time_left,
        )

    def announce(self, samples: Mapping[str, Samples]) -> None:
        """Print what is trained, and on how many images of each split."""
        job, images = self._job, [f"{name} {len(part):,}" for name, part in samples.items()]
        classes = [f"{head} {num}" for head, num in job.num_classes.items()]
        print(f"training on {job.network}{distributed.describe(job.batch_size)}")
        print(f"first weights: {self._description['pretrained']}")
        print(f"images: {', '.join(images)}; classes: {', '.join(classes)}")

    def time_left(self, share_done: float = 0.0) -> str:
        """Format how long the run takes at most, with this share of an epoch done; "" if unknown.

        An epoch with its validation takes as long as the one before.
        """
        phase, progress = self.phases[self.index], self.progress
        epochs: float = sum(after.epochs for after in self.phases[self.index + 1 :])
        epochs += self._run.later * sum(phase.epochs for phase in self.phases)
        if not progress.stopping.should_stop:
            epochs += phase.epochs - len(self.rows()) - share_done
        pace_s = self._pace_s or (share_done and progress.epoch.seconds / share_done)
        hours, minutes = divmod(math.ceil(pace_s * epochs / 60), 60)
        told = f"{hours} h {minutes} min" if hours else f"{minutes} min"
        return f", at most {told} left" if hours or minutes else ""

    def has_epoch(self) -> bool:
        """Check whether an epoch is left, in this phase or in a next one, which then begins.

        That is saved at once: a stop right after its first best weights must not begin it with
        those.
        """
        phase, self._began_s = self.phases[self.index], time.monotonic()
        if len(self.rows()) < phase.epochs and not self.progress.stopping.should_stop:
            return True
        if self.progress.stopping.best is None:
            raise UserError(
                f"{self._run.path}: no network was chosen, as in no epoch both the training loss "
                'and the validation were finite; lower the learning rate, set PRECISION = "fp32", '
                "or see in errors.csv whether images of the validation split can be read"
            )
        if self.index + 1 == len(self.phases):
            self._job.rescue.clear()  # from here on the network holds the best weights
            return False
        self.index += 1
        self._model.load_state_dict(checkpoints.load(self._run.best)["model"])
        before, self.progress = self.progress, self._begin(self.progress.stopping.best)
        self.progress.history, self.progress.epoch = before.history, before.epoch
        self.save_last()
        return True

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of this phase's epochs so far."""
        return [row for row in self.progress.history if row["phase"] == self.index + 1]

    def rate(self) -> Callable[[float], float]:
        """Return the learning rate as a function of the epochs done."""
        how, phase, rows = self._how, self.phases[self.index], self.rows()
        lr, first_epoch = phase.lr, self.progress.epoch.epoch - len(rows)
        if how.schedule == "plateau":
            lr *= plateau_factor(map(self._watched, rows), how.plateau_patience, self._mode)

        def rate(epochs: float) -> float:
            done = (epochs - first_epoch) / phase.epochs
            return lr * lr_factor(done, how.schedule, how.warmup_frac)

        return rate

    def end_epoch(self, val: Evaluation, accuracies: Mapping[str, float]) -> bool:
        """Write metrics.csv, last.pt and, where it is the best so far, best.pt; print a line.

        Returns whether it is the best.
        """
        progress, state = self.progress, self.progress.epoch
        row = {
            "phase": self.index + 1,
            "epoch": state.epoch + 1,
            "train_loss": state.mean_loss,
            "val_loss": val.loss,
            **accuracies,
            "learning_rate": progress.optimizer.param_groups[0]["lr"],
            "train_images_per_s": state.num_images / max(state.seconds, 1e-9),
            "train_s": state.seconds,
            "num_unreadable": state.num_unreadable,
            "num_skipped_steps": state.num_skipped_steps,
        }
        progress.history.append(row)
        # A network that saw no step, or that answers NaN, is not chosen, whatever else it answers.
        any_known = any(matrix.any() for matrix in val.confusions.values())
        losses = [row["train_loss"], *[val.loss] * any_known]
        is_sound = all(map(math.isfinite, losses)) and not val.num_non_finite
        is_best = progress.stopping.update(self._watched(row) if is_sound else math.nan)
        if is_best:
            weights = progress.measured(self._job).network.model.state_dict()
            made = {"figures": row, "run": run_entry(self._model, self._job.network.device, row)}
            self._run.save(self._run.best, {**self._description, "model": weights, **made})
        progress.epoch = state.next_epoch()
        self._run.tracking.write(self._run.path, row)
        self.save_last()
        self._run.write_metrics(progress.history)
        self._job.failures.write()
        now = time.monotonic()
        self._pace_s = now - self._began_s
        if not self._run.is_one_of_many or now - self._told_s >= LINE_EVERY_S:
            self._told_s = now
            print(self._line(row, accuracies, is_best))
        return is_best

    def _line(self, row: dict[str, Any], accuracies: Mapping[str, float], is_best: bool) -> str:
        names = [n.removeprefix("val_").removesuffix("_frac").replace("_", " ") for n in accuracies]
        told = [f"{n} {value:.3f}" for n, value in zip(names, accuracies.values(), strict=True)]
        phase = f"phase {row['phase']} " * (len(self.phases) > 1)
        val_loss = "" if math.isnan(row["val_loss"]) else f"val loss {row['val_loss']:.3f}  "
        return (
            f"{phase}epoch {row['epoch']:3d}  loss {row['train_loss']:.3f}  "
            f"{val_loss}{'  '.join(told)}  "
            f"{row['train_images_per_s']:.0f} img/s{'  best' * is_best}{self.time_left()}"
        )

    def save_last(self) -> None:
        """Write last.pt: what an exact resume needs, the weights included."""
        row = self.progress.history[-1] if self.progress.history else {}
        content = {
            "model": self._model.state_dict(),
            "run": run_entry(self._model, self._job.network.device, row),
            "phase": self.index,
            **self.progress.state_dict(),
            **self._more(),
            "failures": self._job.failures.messages,
        }
        self._run.save_last({**self._description, **content})

    def resume(self) -> dict[str, Any] | None:
        """Continue from last.pt, print where that is and return its content; None without one."""
        if not self._run.last.exists():
            return None
        last = checkpoints.load(self._run.last)
        if lacking := {"model", "phase", "optimizer", "scaler", "epoch_state"} - last.keys():
            what = f"lacks {', '.join(sorted(lacking))}: of an earlier version, or no last.pt"
            raise checkpoints.CheckpointError(self._run.last, what, "--force for a new run")
        self.index = last["phase"]
        self._model.load_state_dict(last["model"])
        self.progress = self._begin()
        self.progress.load_state_dict(last)
        self._job.failures.messages.update(last["failures"])
        epoch, many = self.progress.epoch, len(self.phases) > 1
        where = f" (phase {self.index + 1} of {len(self.phases)})" if many else ""
        print(f"resuming at epoch {epoch.epoch + 1}, step {epoch.step}{where}")
        return last
