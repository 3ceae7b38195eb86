"""One training epoch and one evaluation pass, shared by both stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from petface import metrics
from petface.augment import AugmentMode, AugmentRegime, augment_batch
from petface.batches import Batch, ImageReader, Samples, batches
from petface.errors import UserError
from petface.models.multi_head import train_mode
from petface.network import Network, Outputs
from petface.runs import FailureLog
from petface.schedule import EarlyStopping

MAX_BAD_STEPS = 10  # non-finite steps in a row before a run stops


@dataclass(frozen=True, eq=False)
class Job:
    """What every pass of a run shares. `num_classes` names the heads in output order."""

    network: Network
    num_classes: dict[str, int]
    loss: Callable[[Outputs, Batch], Tensor]
    source: ImageReader
    batch_size: int
    num_workers: int
    failures: FailureLog
    freeze_batchnorm: bool = False  # statistics stay as they came with the first weights
    augment_mode: AugmentMode = "exact"

    def batches(self, samples: Samples, order: np.ndarray, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of a pass; unreadable images go into the failure log."""
        for batch in batches(
            self.source,
            samples,
            order,
            self.batch_size,
            self.network.device,
            num_workers=self.num_workers,
            first_step=first_step,
        ):
            self.failures.add(batch.failures)
            yield batch


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
        """Give the start of the epoch after this one; bad steps in a row count across the two."""
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

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "early_stopping": self.stopping.state_dict(),
            "epoch": self.epoch.epoch,
            "epoch_state": asdict(self.epoch),
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.stopping.load_state_dict(state["early_stopping"])
        self.epoch = EpochState(**state["epoch_state"])
        self.history = state["history"]


def train_epoch(
    job: Job,
    progress: Progress,
    samples: Samples,
    order: np.ndarray,
    regimes: tuple[AugmentRegime, AugmentRegime],
    *,
    seed: int,
    rate: Callable[[float], float],
    stop: Callable[[], bool] = bool,
) -> bool:
    """Run the rest of an epoch over `order` (n,); True when it ended, False when `stop` asked to
    leave.

    `rate(t)` gives the learning rate at t = epochs done so far, a fraction included. Augmentation
    and dropout draw from a generator seeded by (seed, epoch, step), so that a resumed epoch draws
    what the straight one would have drawn.
    """
    state = progress.epoch
    train_mode(job.network.model, job.freeze_batchnorm)
    generator = torch.Generator()
    num_steps = -(-len(order) // job.batch_size)
    begun, seconds_before = time.perf_counter(), state.seconds
    done = state.num_images + state.num_unreadable
    with _bar(f"epoch {state.epoch + 1} train", len(order), done) as bar:
        for batch in job.batches(samples, order, state.step):
            for group in progress.optimizer.param_groups:
                group["lr"] = rate(state.epoch + batch.step / num_steps)
            if len(batch.positions):
                step_seed = _step_seed(seed, state.epoch, batch.step)
                torch.manual_seed(step_seed)  # dropout
                x = augment_batch(
                    batch.images,
                    batch.is_tail,
                    *regimes,
                    generator.manual_seed(step_seed),
                    mode=job.augment_mode,
                )
                value = job.loss(job.network(x), batch)
                finite = _update(value, progress.optimizer, progress.scaler)
                _account(state, len(batch.positions), value, finite)
            state.num_unreadable += len(batch.failures)
            state.step = batch.step + 1
            state.seconds = seconds_before + time.perf_counter() - begun
            best = progress.stopping.best
            shown = "" if best is None else f", best so far {best:.3f}"
            bar.set_postfix_str(f"loss {state.mean_loss:.3f}{shown}", refresh=False)
            bar.update(len(batch.positions) + len(batch.failures))
            if stop():
                return False
    return True


def _update(value: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Step the optimizer unless the loss or a gradient is not finite; False if it was skipped."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(value).backward()
    scaler.unscale_(optimizer)
    gradients = [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = bool(torch.isfinite(norm) & torch.isfinite(value))
    if finite:
        scaler.step(optimizer)
    scaler.update()
    return finite


def _account(state: EpochState, num_images: int, value: Tensor, finite: bool) -> None:
    if finite:
        state.num_bad_in_a_row = 0
        state.loss_sum += value.item() * num_images
        state.num_images += num_images
        return
    state.num_skipped_steps += 1
    state.num_bad_in_a_row += 1
    if state.num_bad_in_a_row >= MAX_BAD_STEPS:
        raise UserError(
            f"loss or gradients were not finite in {MAX_BAD_STEPS} steps in a row, the last in "
            f"epoch {state.epoch + 1}, step {state.step} (loss {value.item()}); lower LR, or set "
            'PRECISION = "fp32"; best.pt is whole'
        )


class Answers(NamedTuple):
    """What one head answered to the readable images of a part, and to whom."""

    logits: np.ndarray  # (N, K) float32; rows that are not finite are among them
    labels: np.ndarray  # (N,) int64, -1 unknown
    records: np.ndarray  # (N,) int32 into the catalog's records


@dataclass(frozen=True)
class Evaluation:
    """What a pass over a part showed: one (K, K) confusion matrix per head, mean loss, counts.

    The loss is NaN where no label was known: an average of nothing, not a loss of 0. `answers` is
    empty unless it was asked for.
    """

    confusions: dict[str, np.ndarray]
    loss: float
    num_images: int
    num_unreadable: int
    num_non_finite: int  # images with a NaN or infinite logit: out of every matrix
    answers: dict[str, Answers] = field(default_factory=dict)

    def accuracy(self, head: str) -> float:
        """Share of known labels that were answered rightly; NaN where none is known."""
        return metrics.accuracy(self.confusions[head])

    def balanced_accuracy(self, head: str) -> float:
        """Mean recall over the classes with support."""
        return metrics.balanced_accuracy(self.confusions[head])


def evaluate(job: Job, samples: Samples, title: str, *, keep_answers: bool = False) -> Evaluation:
    """Pass once over `samples` without gradients; `keep_answers` keeps every logit."""
    sizes = job.num_classes
    kept_logits: list[list[np.ndarray]] = []  # per batch and head
    kept_positions: list[np.ndarray] = []
    confusions = {head: np.zeros((size, size), np.int64) for head, size in sizes.items()}
    loss_sum, num_seen, num_unreadable, num_non_finite = 0.0, 0, 0, 0
    job.network.model.eval()
    with _bar(title, len(samples)) as bar:
        for batch in job.batches(samples, np.arange(len(samples))):
            num_unreadable += len(batch.failures)
            bar.update(len(batch.positions) + len(batch.failures))
            if not len(batch.positions):
                continue
            outputs = job.network.logits(batch.images)
            finite = torch.stack([torch.isfinite(o).all(dim=1) for o in outputs]).all(dim=0)
            num_non_finite += int((~finite).sum())
            for head, logits in zip(sizes, outputs, strict=True):
                true = torch.where(finite, batch.labels[head], -1).cpu().numpy()
                predicted = logits.argmax(dim=1).cpu().numpy()
                confusions[head] += metrics.confusion_matrix(true, predicted, sizes[head])
            loss_sum += float(job.loss(outputs, batch)) * len(batch.positions)
            num_seen += len(batch.positions)
            if keep_answers:
                kept_logits.append([logits.cpu().numpy() for logits in outputs])
                kept_positions.append(batch.positions)
    any_known = any(confusion.any() for confusion in confusions.values())
    mean_loss = loss_sum / num_seen if any_known else math.nan
    answers = {}
    if keep_answers:
        positions = np.concatenate([np.empty(0, np.int64), *kept_positions])
        records = job.source.catalog.record_index[samples.images[positions]]
        for number, (head, size) in enumerate(sizes.items()):
            rows = [np.empty((0, size), np.float32), *(batch[number] for batch in kept_logits)]
            labels = samples.labels[head][positions].astype(np.int64)
            answers[head] = Answers(np.concatenate(rows), labels, records)
    return Evaluation(confusions, mean_loss, num_seen, num_unreadable, num_non_finite, answers)


def _step_seed(seed: int, epoch: int, step: int) -> int:
    """Mix three numbers into one 63-bit seed."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1, np.uint64)[0] >> 1)


def _bar(title: str, total: int, initial: int = 0) -> tqdm:
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit="img",
        leave=False,
        mininterval=0.5,
        delay=0.5,
    )
