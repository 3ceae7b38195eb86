"""One training epoch: what its steps draw, and what an exact resume of it needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petface import distributed
from petface.data.loading import Batch, Samples, own_share
from petface.errors import UserError
from petface.models.architecture import train_mode
from petface.training.augment.exact import Table, augment_by
from petface.training.augment.mixing import Mixed, Mixing, draw_mix
from petface.training.augment.regimes import AugmentRegime, draw_parameters
from petface.training.evaluate import Job, bar_of
from petface.training.graphs import StepGraphs
from petface.training.recipe import WeightAverage
from petface.training.records import BatchPicture
from petface.training.schedule import EarlyStopping
from petface.training.step import Share, backward, shared, summing

NO_MIXING = Mixing()
MAX_BAD_STEPS = 10  # non-finite steps in a row before a run stops
_NUM_KEPT = 50  # steps whose losses a GPU keeps before they are copied


@dataclass
class EpochState:
    """How far an epoch is, in plain values: what an exact resume in its middle needs."""

    epoch: int = 0
    step: int = 0  # the next step to run
    loss_sum: float = 0.0  # over images
    num_images: int = 0
    num_unreadable: int = 0
    num_skipped_steps: int = 0
    num_bad_in_a_row: int = 0
    seconds: float = 0.0

    def next_epoch(self) -> EpochState:
        """Return the start of the epoch after this one; bad steps in a row count across the two."""
        return EpochState(epoch=self.epoch + 1, num_bad_in_a_row=self.num_bad_in_a_row)

    @property
    def mean_loss(self) -> float:
        """Mean over the images seen, NaN before the first."""
        return self.loss_sum / self.num_images if self.num_images else math.nan


@dataclass(eq=False)
class Progress:
    """Everything besides the weights that an exact resume needs."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    stopping: EarlyStopping
    epoch: EpochState = field(default_factory=EpochState)
    history: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch
    num_parts: int = 1  # of a batch that does not fit into memory at once; not kept
    average: WeightAverage | None = None  # of the weights, where it is what is measured
    graphs: StepGraphs | None = None  # a GPU's alone
    left: Callable[[float], str] = "".format  # tells the time left, with this share of it done
    settle: Callable[[], object] = bool  # lets the epoch's state know of all steps so far

    def measured(self, job: Job) -> Job:
        """Return the job with the network that is measured: the average where there is one."""
        if self.average is None:
            return job
        return replace(job, network=replace(job.network, model=self.average.model))

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        self.settle()
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "early_stopping": self.stopping.state_dict(),
            "epoch": self.epoch.epoch,
            "epoch_state": asdict(self.epoch),
            "history": self.history,
            **({} if self.average is None else {"average": self.average.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # of a run in fp16: others have none, and a new one finds its own
            self.scaler.load_state_dict(state["scaler"])
        self.stopping.load_state_dict(state["early_stopping"])
        self.epoch = EpochState(**state["epoch_state"])
        self.history = state["history"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for the images of a step."""

    table: Table
    mix: partial[Mixed] | None
    dropout_seed: int

    @property
    def uploads(self) -> list[Tensor]:
        """The tensors on the device."""
        return [self.table.rows, *([self.mix.keywords["partner"]] if self.mix else [])]


@dataclass(frozen=True)
class Lots:
    """What the draws of an epoch's steps depend on."""

    seed: int
    epoch: int
    regimes: tuple[AugmentRegime, AugmentRegime]
    mixing: Mixing

    def draw(self, batch: Batch, share: Share | None = None) -> Draws:
        """Draw for a batch; with a share of a common one, what the common one would draw."""
        num, device = len(batch.images), batch.images.device
        share = share or Share(0, num, num, [])
        own = slice(share.first, share.first + num)
        is_tail = torch.zeros(share.num_images, dtype=torch.bool)
        is_tail[own] = batch.is_tail
        numbers = self.seed, self.epoch, batch.step
        generator = torch.Generator().manual_seed(step_seed(*numbers))
        parameters = draw_parameters(is_tail, *self.regimes, generator)[own]
        height, width = batch.images.shape[2:]
        return Draws(
            Table.of(parameters, height, width, device),
            draw_mix(num, self.mixing, generator, device),
            step_seed(*numbers, *distributed.place()),
        )


def step_seed(*numbers: int) -> int:
    """Mix numbers into one 63-bit seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from; `torch.manual_seed` takes longer for all."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def train_epoch(
    job: Job,
    progress: Progress,
    samples: Samples,
    order: np.ndarray,
    regimes: tuple[AugmentRegime, AugmentRegime],
    *,
    seed: int,
    rate: Callable[[float], float],
    mixing: Mixing = NO_MIXING,
    picture: BatchPicture | None = None,
    stop: Callable[[], bool] = bool,
) -> bool:
    """Run the rest of an epoch over `order` (n,); False when `stop` asked to leave.

    `rate(t)` gives the learning rate at t = epochs done so far, a fraction included; a parameter
    group takes it times its "lr_factor". Augmentation, mixing and dropout draw from a generator
    seeded by (seed, epoch, step): a resumed epoch draws what the straight one would have drawn.
    Several processes take each step together, and `stop` must answer all of them alike. On a GPU
    the state learns of losses, and of steps that were not finite, some steps late.
    """
    state = progress.epoch
    train_mode(job.network.model, job.freeze_batchnorm)
    optimizer, scaler = progress.optimizer, progress.scaler
    lots = Lots(seed, state.epoch, regimes, mixing)
    finish = Tensor.float if mixing.kind != "none" else job.network.prepare
    ahead = lots.draw if distributed.world_size() == 1 else None  # else others have images, too
    num_steps = -(-len(order) // (job.batch_size * distributed.world_size()))
    begun, seconds_before = time.perf_counter(), state.seconds
    done = state.num_images + state.num_unreadable
    losses = _Losses(state, job.network.device)
    progress.settle = losses.settle

    def step(batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss, and whether it was finite."""
        draws: Draws = batch.draws
        x = augment_by(draws.table, batch.images, finish)
        mixed = draws.mix(x) if draws.mix else None
        if mixing.kind != "none":  # pixels are mixed, not what the network makes of them
            x = job.network.prepare(x if mixed is None else mixed.images)
        if picture and state.epoch == batch.step == 0 and distributed.is_main():
            picture.draw(batch, job.network.unprepared(x), mixed)
        value, progress.num_parts = backward(job, batch, x, mixed, scaler, progress.num_parts, sums)
        if sums is not None:
            sums.finish(value, share.num_own / share.num_images)
        return value, _update(value, optimizer, scaler, job.clip_norm)

    with (
        bar_of(f"epoch {state.epoch + 1} train", len(order), done) as bar,
        summing(job.network.model) as sums,
    ):
        own = job.batches(samples, order, own_share, state.step, ahead)
        for batch, share in shared(job, samples, own):
            for group in optimizer.param_groups:
                group["lr"] = rate(state.epoch + batch.step / num_steps) * group.get("lr_factor", 1)
            job.failures.add(share.failures)
            if share.num_images:
                if batch.draws is None:
                    batch = replace(batch, draws=lots.draw(batch, share))
                seed_dropout(batch.draws.dropout_seed, job.network.device)
                if progress.num_parts > 1:
                    progress.graphs = None  # and their memory
                is_usual = mixing.kind == "none" and share.num_images > 1
                graphs = progress.graphs if is_usual else None
                value, good = graphs.take(batch, step) if graphs else step(batch)
                if progress.average is not None:
                    progress.average.update(job.network.model, good)
                losses.note(value, good, share.num_images)
            state.num_unreadable += len(share.failures)
            state.step = batch.step + 1
            state.seconds = seconds_before + time.perf_counter() - begun
            best = progress.stopping.best
            shown = "" if best is None else f", best so far {best:.3f}"
            left = progress.left(state.step / num_steps)
            bar.set_postfix_str(f"loss {state.mean_loss:.3f}{shown}{left}", refresh=False)
            bar.update(share.num_images + len(share.failures))
            if stop():
                return False
    losses.settle()
    return True


def _update(
    value: Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float = 0.0,
) -> Tensor:
    """Step the optimizer unless the loss or a gradient is not finite; () float, 0 if it was not.

    That is decided on the device, by the fused optimizer, which then changes nothing: the program
    does not wait. Gradients whose common norm is above `clip_norm` are scaled down to it; 0 = as
    they are.
    """
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    good = (norm * 0 + value * 0 == 0).float()  # NaN where one of them is not finite
    if clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    optimizer.found_inf = 1 - good  # type: ignore[attr-defined]
    optimizer.step()
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return good


class _Losses:
    """The losses of steps on their way into the state; a GPU is not waited for to copy them."""

    def __init__(self, state: EpochState, device: torch.device) -> None:
        self.state, is_gpu = state, device.type == "cuda"
        self.kept = torch.zeros(_NUM_KEPT if is_gpu else 1, 2, device=device)
        self.copy = torch.zeros(self.kept.shape).pin_memory() if is_gpu else self.kept
        self.copied = torch.cuda.Event() if is_gpu else None
        self.num_images: list[int] = []  # of each step that is kept
        self.arriving: list[int] = []  # of each step that is being copied

    def note(self, value: Tensor, good: Tensor, num_images: int) -> None:
        """Keep the loss of a step, whether it counts, and its number of images."""
        torch.stack((value, good), out=self.kept[len(self.num_images)])
        self.num_images.append(num_images)
        if len(self.num_images) == len(self.kept):
            self._turn()
        if len(self.kept) == 1:
            self._read()

    def settle(self) -> None:
        """Account for all steps so far."""
        self._turn()
        self._read()

    def _turn(self) -> None:
        """Read what has arrived, and start to copy what is kept."""
        self._read()
        self.arriving, self.num_images = self.num_images, []
        if self.copied is not None:
            self.copy.copy_(self.kept, non_blocking=True)
            self.copied.record()

    def _read(self) -> None:
        if not self.arriving:
            return
        if self.copied is not None:
            self.copied.synchronize()
        steps, state = zip(self.arriving, self.copy.tolist(), strict=False), self.state
        self.arriving = []
        for num_images, (value, good) in steps:
            if good:
                state.num_bad_in_a_row = 0
                state.loss_sum += value * num_images
                state.num_images += num_images
                continue
            state.num_skipped_steps += 1
            state.num_bad_in_a_row += 1
            if state.num_bad_in_a_row >= MAX_BAD_STEPS:
                raise UserError(
                    f"loss or gradients were not finite in {MAX_BAD_STEPS} steps in a row, the "
                    f"last in epoch {state.epoch + 1}, step {state.step} (loss {value}); lower LR, "
                    'or set PRECISION = "fp32"; best.pt is whole'
                )
