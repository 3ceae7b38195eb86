"""One training epoch and one evaluation pass, shared by both stages; device and precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from petface import metrics
from petface.augment import AugmentRegime, augment_batch, normalise, to_float
from petface.batches import Batch, FileImages, Samples, batches
from petface.errors import UserError
from petface.images import Preprocessing
from petface.models.multi_head import train_mode
from petface.runs import FailureLog
from petface.schedule import EarlyStopping

MAX_BAD_STEPS = 10  # non-finite steps in a row before a run stops

Outputs = tuple[Tensor, ...]  # one (B, K) tensor of logits per head


@dataclass(frozen=True)
class Precision:
    """Compute type of convolutions; None is float32. fp16 needs its gradients scaled."""

    dtype: torch.dtype | None

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Context in which forward passes run."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)

    def grad_scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Scaler for fp16; a pass-through for the others."""
        return torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]


def choose_device(wanted: str) -> torch.device:
    """Resolve "auto" to the GPU where there is one; a named device that is missing is refused."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UserError(
            f"DEVICE {wanted!r} cannot be used ({reason}); try 'auto' or 'cpu'"
        ) from error
    return device


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve "auto": fp16 on CUDA (bf16 where built in), bf16 on CPUs that compute in it, else
    fp32.
    """
    if wanted == "auto":
        if device.type == "cuda":
            wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            wanted = "bf16" if _cpu_has_bf16() else "fp32"
    return Precision({"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted])


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@dataclass(frozen=True, eq=False)
class Job:
    """What every pass of a run shares. `num_classes` names the heads in output order."""

    model: nn.Module
    num_classes: dict[str, int]
    loss: Callable[[Outputs, Batch], Tensor]
    source: FileImages
    preprocessing: Preprocessing
    device: torch.device
    precision: Precision
    batch_size: int
    num_workers: int
    failures: FailureLog

    def batches(self, samples: Samples, order: np.ndarray, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of a pass; unreadable images go into the failure log."""
        for batch in batches(
            self.source,
            samples,
            order,
            self.batch_size,
            self.device,
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
    train_mode(job.model)
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
                    batch.images, batch.is_tail, *regimes, generator.manual_seed(step_seed)
                )
                with job.precision.autocast(job.device):
                    value = job.loss(_outputs(job.model, _normalised(job, x)), batch)
                finite = _update(value, progress.optimizer, progress.scaler)
                _account(state, len(batch.positions), value, finite)
            state.num_unreadable += len(batch.failures)
            state.step = batch.step + 1
            state.seconds = seconds_before + time.perf_counter() - begun
            bar.set_postfix_str(f"loss {state.mean_loss:.3f}", refresh=False)
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


@dataclass(frozen=True)
class Evaluation:
    """What a pass over a part showed: one (K, K) confusion matrix per head, mean loss, counts."""

    confusions: dict[str, np.ndarray]
    loss: float
    num_images: int
    num_unreadable: int
    num_non_finite: int  # images with a NaN or infinite logit: out of every matrix

    def accuracy(self, head: str) -> float:
        """Share of known labels that were answered rightly; NaN where none is known."""
        return metrics.accuracy(self.confusions[head])

    def balanced_accuracy(self, head: str) -> float:
        """Mean recall over the classes with support."""
        return metrics.balanced_accuracy(self.confusions[head])


def evaluate(job: Job, samples: Samples, title: str) -> Evaluation:
    """Pass once over `samples` without gradients."""
    sizes = job.num_classes
    confusions = {head: np.zeros((size, size), np.int64) for head, size in sizes.items()}
    loss_sum, num_seen, num_unreadable, num_non_finite = 0.0, 0, 0, 0
    job.model.eval()
    with _bar(title, len(samples)) as bar:
        for batch in job.batches(samples, np.arange(len(samples))):
            num_unreadable += len(batch.failures)
            bar.update(len(batch.positions) + len(batch.failures))
            if not len(batch.positions):
                continue
            outputs = predict(job.model, batch.images, job.preprocessing, job.precision)
            finite = torch.stack([torch.isfinite(o).all(dim=1) for o in outputs]).all(dim=0)
            num_non_finite += int((~finite).sum())
            for head, logits in zip(sizes, outputs, strict=True):
                true = torch.where(finite, batch.labels[head], -1).cpu().numpy()
                predicted = logits.argmax(dim=1).cpu().numpy()
                confusions[head] += metrics.confusion_matrix(true, predicted, sizes[head])
            loss_sum += float(job.loss(outputs, batch)) * len(batch.positions)
            num_seen += len(batch.positions)
    mean_loss = loss_sum / num_seen if num_seen else math.nan
    return Evaluation(confusions, mean_loss, num_seen, num_unreadable, num_non_finite)


@torch.inference_mode()
def predict(
    model: nn.Module, images: Tensor, preprocessing: Preprocessing, precision: Precision
) -> Outputs:
    """Answer (B, 3, H, W) uint8 images with float32 logits, one (B, K) tensor per head."""
    x = normalise(to_float(images), preprocessing.mean, preprocessing.std)
    with precision.autocast(images.device):
        outputs = _outputs(model, x)
    return tuple(logits.float() for logits in outputs)


def _normalised(job: Job, x: Tensor) -> Tensor:
    return normalise(x, job.preprocessing.mean, job.preprocessing.std)


def _outputs(model: nn.Module, x: Tensor) -> Outputs:
    """Call a network of one or several heads and always give a tuple."""
    out = model(x)
    return (out,) if isinstance(out, Tensor) else out


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
