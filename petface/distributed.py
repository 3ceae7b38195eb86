"""A process's place among those of torchrun, and what they do together.

Alone, or under `torchrun --nproc-per-node 1`, everything here is a no-op.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TextIO, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from petface.errors import NO_MEMORY, UserError, outlive_reader

HOST_TIMEOUT = timedelta(hours=2)  # the first process may be making a pack meanwhile
STEP_TIMEOUT = timedelta(minutes=10)  # between steps that all take at once
DEVICE_TIMEOUT = timedelta(minutes=15)  # NCCL ends the process, so gloo shall say it before
_is_parted = False
_on_devices: dist.ProcessGroup | None = None

T = TypeVar("T")


def rank() -> int:
    """Place of this process among those that work together, from 0."""
    return 0 if _is_parted else _number("RANK", 0)


def world_size() -> int:
    """Number of processes that work together."""
    return 1 if _is_parted else _number("WORLD_SIZE", 1)


def place() -> tuple[int, ...]:
    """Return what a seed adds for this process; nothing for the first, which draws as one alone."""
    return (rank(),) if rank() else ()


def is_main() -> bool:
    """Check whether this process is the one that writes files and prints."""
    return rank() == 0


def shows() -> bool:
    """Check whether this process may draw a bar: one of all that share a terminal."""
    return _number("RANK", 0) == 0


def local_rank() -> int | None:
    """Place of this process among those of its machine; None where torchrun started no others."""
    return _number("LOCAL_RANK", 0) if _number("WORLD_SIZE", 1) > 1 else None


def local_world_size() -> int:
    """Number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if _number("WORLD_SIZE", 1) > 1 else 1


def start(device: str) -> None:
    """Join the other processes; all but the first are silent from here on.

    The work outlives whoever reads what it prints. `device` is what settings name: gradients travel
    by NCCL between GPUs, by gloo between CPUs, everything small by gloo. Raises `UserError` for an
    environment that torchrun did not make.
    """
    global _on_devices
    outlive_reader()
    if (rank(), world_size()) == (0, 1):
        return
    wanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in wanted if name not in os.environ]:
        raise UserError(
            f"RANK or WORLD_SIZE is set without {', '.join(missing)}: start with torchrun, or "
            "unset them to train alone"
        )
    if not 0 <= rank() < world_size():
        raise UserError(f"RANK {rank()} is not below WORLD_SIZE {world_size()}: use torchrun")
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        num = torch.cuda.device_count()
        if device not in ("auto", "cuda"):
            raise UserError(f"DEVICE {device!r} is one device; under torchrun use 'auto' or 'cpu'")
        if (place := local_rank() or 0) >= num:
            raise UserError(
                f"{local_world_size()} processes on this machine and {num} GPUs: lower "
                "--nproc-per-node, or set DEVICE = 'cpu'"
            )
        torch.cuda.set_device(place)
    with _others():
        dist.init_process_group("gloo", timeout=HOST_TIMEOUT)
        if on_gpu:
            nccl = dist.new_group(backend="nccl", timeout=DEVICE_TIMEOUT)
            _on_devices = cast(dist.ProcessGroup, nccl)
    atexit.register(stop)
    if not is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def stop() -> None:
    """Leave the other processes, and what GPUs still wait for: one of them may be gone."""
    global _on_devices
    if _on_devices is not None:
        dist.distributed_c10d._abort_process_group(_on_devices)
    if dist.is_initialized():
        dist.destroy_process_group()
    _on_devices = None


def part_ways(tasks: Sequence[T]) -> list[T]:
    """Return this process's share of `tasks`; from here on each process works alone.

    What it prints begins with its place in brackets.
    """
    global _is_parted
    if world_size() == 1:
        return list(tasks)
    mine, mark = list(tasks[rank() :: world_size()]), f"[{rank()}] "
    barrier()
    stop()
    _is_parted = True
    sys.stdout = cast(TextIO, _Marked(mark))
    return mine


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        with _others():
            dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the first process, then in all others: it makes files that they read."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def begin_gather(*numbers: float) -> Callable[[], list[list[float]]]:
    """Begin to collect numbers; calling what this returns waits for those of every process.

    They come in the order of the processes, a list of W lists.
    """
    own = torch.tensor(numbers, dtype=torch.float64)
    every = [own.clone() for _ in range(world_size())]
    wait = _begun(lambda: dist.all_gather(every, own, async_op=True), STEP_TIMEOUT)

    def answers() -> list[list[float]]:
        wait()
        return [one.tolist() for one in every]

    return answers


def gather_objects(own: T) -> list[T]:
    """Return in the first process what every process has, in order; an empty list elsewhere."""
    if world_size() == 1:
        return [own]
    every: list[Any] | None = [None] * world_size() if is_main() else None
    with _others():
        dist.gather_object(own, every)
    return every or []


def broadcast_object(own: T) -> T:
    """Return what the first process has, in all."""
    if world_size() == 1:
        return own
    box: list[Any] = [own]
    with _others():
        dist.broadcast_object_list(box)
    return cast(T, box[0])


def begin_sum(numbers: Tensor) -> Callable[[], None]:
    """Begin to replace a tensor by its sum over all processes; what this returns waits for it."""
    group = _on_devices if numbers.is_cuda else None
    limit = () if numbers.is_cuda else (STEP_TIMEOUT,)  # with one, the host waits for a GPU, too
    return _begun(lambda: dist.all_reduce(numbers, group=group, async_op=True), *limit)


def _begun(begin: Callable[[], dist.Work], *limit: timedelta) -> Callable[[], None]:
    """Begin what all processes do together; return what waits for its end."""
    if world_size() == 1:
        return lambda: None
    with _others():
        work = begin()

    def wait() -> None:
        with _others():
            work.wait(*limit)

    return wait


def copy_from_main(model: nn.Module) -> None:
    """Copy the weights and statistics of the first process into all others."""
    if world_size() == 1:
        return
    with _others(), torch.no_grad():
        for tensor in model.state_dict().values():
            whole = tensor.contiguous()
            dist.broadcast(whole, src=0, group=_on_devices if whole.is_cuda else None)
            tensor.copy_(whole)


def describe(batch_size: int) -> str:
    """Return how many processes share a step; nothing alone."""
    num = world_size()
    return f", {num} processes, batches of {num} x {batch_size}" if num > 1 else ""


@contextmanager
def _others() -> Iterator[None]:
    """Report that another process has gone, where working together fails."""
    try:
        yield
    except RuntimeError as error:
        if NO_MEMORY.search(str(error)):
            raise  # of this one
        raise UserError(
            f"process {_number('RANK', 0)} of {_number('WORLD_SIZE', 1)} lost the others: one has "
            f"ended or hangs, and what it said counts ({str(error).splitlines()[0]})"
        ) from error


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "") or str(default)
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text!r} is no number: start with torchrun, or unset it") from None


class _Marked:
    """Standard output with a mark before every line."""

    def __init__(self, mark: str) -> None:
        self._mark, self._to, self._left = mark, sys.__stdout__, ""

    def write(self, text: str) -> int:
        """Hold back what does not end its line yet."""
        *lines, self._left = (self._left + text).split("\n")
        if lines and self._to is not None:
            self._to.write("".join(f"{self._mark}{line}\n" for line in lines))
            self._to.flush()
        return len(text)

    def flush(self) -> None:
        """Do nothing: whole lines are out already."""
