"""One training epoch and one evaluation pass, shared by both stages; device and precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from petface import metrics
from petface.batches import Batch
from petface.errors import UserError
from petface.models.multi_head import train_mode

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
    """Resolve "auto": fp16 on CUDA (bf16 where built in), bf16 on CPUs that compute in it, else fp32."""
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

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for a checkpoint; `EpochState(**d)` is the inverse."""
        return asdict(self)

    @property
    def mean_loss(self) -> float:
        """Mean over the images seen, NaN before the first."""
        return self.loss_sum / self.num_images if self.num_images else math.nan


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    prepare: Callable[[Batch, torch.Generator], Tensor],
    loss: Callable[[Outputs, Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    state: EpochState,
    *,
    seed: int,
    num_images: int,
    set_rate: Callable[[int], None] = lambda step: None,
    on_failures: Callable[[Batch], None] = lambda batch: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run the rest of an epoch in place; True when it ended, False when `stop` asked to leave.

    `prepare` augments (B, 3, H, W) uint8 into floats with the step's own random generator, seeded by
    (seed, epoch, step): a resumed epoch draws what the straight one would have drawn. `set_rate(step)`
    sets the learning rate; `num_images` is the length of the whole epoch, for the progress bar.
    """
    train_mode(model)
    generator = torch.Generator()
    begun, seconds_before = time.perf_counter(), state.seconds
    title = f"epoch {state.epoch:3d} train"
    with _bar(title, num_images, initial=state.num_images + state.num_unreadable) as bar:
        for batch in batches:
            step_seed = _step_seed(seed, state.epoch, batch.step)
            generator.manual_seed(step_seed)
            torch.manual_seed(step_seed)  # dropout
            set_rate(batch.step)
            if batch.failures:
                state.num_unreadable += len(batch.failures)
                on_failures(batch)
            if len(batch.positions):
                x = prepare(batch, generator)
                with precision.autocast(x.device):
                    value = loss(_outputs(model, x), batch)
                finite = _update(value, optimizer, scaler)
                _account(state, len(batch.positions), value, finite)
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
            f"loss or gradients were not finite in {MAX_BAD_STEPS} steps in a row, the last in epoch "
            f"{state.epoch}, step {state.step} (loss {value.item()}); lower LR, or PRECISION = "
            '"fp32"; best.pt is whole'
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


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    prepare: Callable[[Batch], Tensor],
    loss: Callable[[Outputs, Batch], Tensor],
    num_classes: dict[str, int],
    precision: Precision,
    *,
    num_images: int,
    title: str = "validate",
) -> Evaluation:
    """Pass once over a part without gradients; heads are those of `num_classes`, in output order."""
    confusions = {head: np.zeros((size, size), np.int64) for head, size in num_classes.items()}
    loss_sum, num_seen, num_unreadable, num_non_finite = 0.0, 0, 0, 0
    with _bar(f"{title:>15}", num_images) as bar:
        for batch, outputs in predict(model, batches, prepare, precision):
            finite = torch.stack([torch.isfinite(o).all(dim=1) for o in outputs]).all(dim=0)
            num_non_finite += int((~finite).sum())
            for head, logits in zip(num_classes, outputs, strict=True):
                true = torch.where(finite, batch.labels[head], -1).cpu().numpy()
                predicted = logits.argmax(dim=1).cpu().numpy()
                confusions[head] += metrics.confusion_matrix(true, predicted, num_classes[head])
            loss_sum += float(loss(outputs, batch)) * len(batch.positions)
            num_seen += len(batch.positions)
            num_unreadable += len(batch.failures)
            bar.update(len(batch.positions) + len(batch.failures))
    mean_loss = loss_sum / num_seen if num_seen else math.nan
    return Evaluation(confusions, mean_loss, num_seen, num_unreadable, num_non_finite)


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    prepare: Callable[[Batch], Tensor],
    precision: Precision,
) -> Iterator[tuple[Batch, Outputs]]:
    """Yield every non-empty batch with its float32 logits, one tensor per head."""
    model.eval()
    for batch in batches:
        if len(batch.positions):
            with torch.inference_mode():
                x = prepare(batch)
                with precision.autocast(x.device):
                    outputs = _outputs(model, x)
                outputs = tuple(o.float() for o in outputs)
            yield batch, outputs


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
