"""Which device computes, and in which precision."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from petface import distributed
from petface.errors import NO_MEMORY, UserError


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether a computation failed because its device had too little memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Upload without waiting, where the device allows it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return numbers as float32 (N,) on a device, where they are uploaded once."""
    if torch.compiler.is_compiling():  # an export's tensors hold no numbers: nothing to keep
        return torch.tensor(values, device=device)
    return uploaded(values, device)  # torch's compiler sees no caches, but is told of `constant`


@cache
def uploaded(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values).to(device)


class Compiled:
    """A function of tensors, compiled at its first call on a GPU; where that fails, as it is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._used: Callable[..., Any] | None = None

    def __call__(self, *values: Any) -> Any:
        if not any(getattr(value, "is_cuda", False) for value in values):
            return self.function(*values)
        # A GPU computes sooner again than it reads what it wrote.
        how: Any = {f"realize_{k}_threshold": 1 << 20 for k in ("reads", "opcount", "acc_reads")}
        try:
            if self._used is None:
                torch.compiler.assume_constant_result(constant)
                self._used = torch.compile(self.function, options=how)
            return self._used(*values)
        except Exception as error:  # no C compiler, no Triton for this system, too old a GPU
            if self._used is self.function or is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            name = self.function.__name__.strip("_")
            print(f"{name} is not compiled ({reason}): slower, the same result", file=sys.stderr)
        self._used = self.function
        return self.function(*values)


def num_cores() -> int:
    """Count the processor cores that this process may use, at most the quota of its container."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    num = len(allowed) or os.cpu_count() or 1
    return max(1, math.ceil(min(num, _cpu_quota())))


def _cpu_quota(mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many cores a container's control group (version 2, else 1) allows; inf = all."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError, ZeroDivisionError):  # "max" is no number
            words = " ".join((mounted / n).read_text(encoding="utf-8") for n in names).split()
            if (quota := float(words[0])) > 0:
                return quota / float(words[1])
    return math.inf


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
    """Resolve "auto" to CUDA, else Apple's MPS, else the CPU; a missing named device is refused.

    Of several processes on a machine each takes the GPU of its place. torch, which does not know a
    container's quota, is held to its cores.
    """
    if torch.get_num_threads() > num_cores():
        torch.set_num_threads(num_cores())
    place = distributed.local_rank()
    if place is not None and wanted in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", place)
    if wanted == "auto":
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
        if device.index is not None and device.type == "cuda":  # what names no number means it too
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UserError(
            f"DEVICE {wanted!r} cannot be used ({reason}); try 'auto' or 'cpu'"
        ) from error
    return device


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve "auto": fp16 on CUDA (bf16 where built in), bf16 on CPUs that have it, else fp32."""
    if wanted == "auto":
        if device.type == "cuda":
            wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            flags = ""
            with suppress(OSError):  # elsewhere bfloat16 is slower than float32
                flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
            has_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
            wanted = "bf16" if device.type == "cpu" and has_bf16 else "fp32"
    return Precision({"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted])


def set_arithmetic(*, exact: bool) -> None:
    """Let GPUs compute float32 as such, or faster: in TF32, by convolutions that they try out.

    Both are settings of the process: those of the network that was made last.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
    torch.backends.cudnn.benchmark = not exact
