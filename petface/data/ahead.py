"""Make items ahead of who needs them: in a thread, or in worker processes, which may die.

A worker dies where memory runs out, where /dev/shm is too small for what it hands over, or by
somebody's hand. Its work is done again by fewer, at last by a thread of this process; the items
stay the same.
"""

from __future__ import annotations

import queue
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Part = TypeVar("Part")
Item = TypeVar("Item")

_OF_WORK = "Caught "  # how torch begins what it brings here of an error in a worker's work
_NO_ROOM = re.compile(r"shared memory|unable to (resize|allocate|mmap|open) |No space left")

_num_deaths = 0  # of workers, since this process began


def in_workers(
    work: Callable[[Part], Item],
    parts: Sequence[Part],
    num_workers: int,
    depth: int,
    tensors_of: Callable[[Item], Iterable[Tensor]],
) -> Iterator[Item]:
    """Yield `work(part)` in the order of `parts`, made by processes up to `depth` each ahead.

    `work` and `tensors_of`, which names the tensors of an item, are picklable. Where a worker dies,
    half as many go on at the first item that is missing; where another one dies, a thread does;
    later calls begin with as few. What `work` raises is raised here.
    """
    global _num_deaths
    num_done = 0
    while (num := _num_left(num_workers)) > 0:
        try:
            for item in _from_processes(_Parts(work, parts[num_done:], tensors_of), num, depth):
                num_done += 1
                yield item
            return
        except (RuntimeError, OSError, EOFError) as error:
            _let_go(error)
            if str(error).startswith(_OF_WORK) and not _NO_ROOM.search(str(error)):
                raise
            reason = _short(error)
        _num_deaths += 1
        left = _num_left(num_workers)
        how = f"{left} go on" if left else "a thread of this process goes on"
        print(
            f"a loading process failed ({reason}); {how}, slower, with the same result. If it "
            "happens again: lower NUM_WORKERS, free memory, or give /dev/shm more room (of a "
            "container: --shm-size)",
            file=sys.stderr,
        )
    yield from in_thread((work(part) for part in parts[num_done:]), depth)


def _num_left(num_workers: int) -> int:
    """Say how many of the workers that are wanted may be started: all, then half, then none."""
    return (num_workers, num_workers // 2, 0)[min(_num_deaths, 2)]


def _from_processes(parts: _Parts[Part, Item], num_workers: int, depth: int) -> Iterator[Item]:
    loader = DataLoader(
        parts,
        batch_size=None,
        num_workers=min(num_workers, len(parts)),
        prefetch_factor=depth if len(parts) else None,
        collate_fn=_as_is,
        worker_init_fn=_leave_signals_to_parent,
    )
    if threading.current_thread() is not threading.main_thread():
        yield from loader
        return
    # torch raises the death of a worker wherever this process happens to be, in an update of the
    # weights for one. Asked for the next item it finds out as well, after 5 s at most.
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    yield from items


def _let_go(error: BaseException) -> None:
    """End the loader that raised `error` and its other workers: it lives on in the traceback."""
    for part in (error, error.__cause__, error.__context__):
        if part is not None:
            traceback.clear_frames(part.__traceback__)


def _short(error: Exception) -> str:
    """Give the line of torch's message that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ") if lines else type(error).__name__


def in_thread(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Yield `items` in order, made in one thread up to `depth` ahead of the consumer.

    What making an item raises is raised here. A consumer that leaves early ends the thread.
    """
    ready: queue.Queue[Item | _Raised | None] = queue.Queue(maxsize=depth)
    left = threading.Event()

    def hand_over(item: Item | _Raised | None) -> None:
        while not left.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                hand_over(item)
                if left.is_set():
                    return
            hand_over(None)
        except BaseException as error:  # handed over and raised where it can be seen
            hand_over(_Raised(error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, daemon=True, name="decode")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        left.set()
        thread.join()


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class _Parts(Dataset, Generic[Part, Item]):
    """What a DataLoader asks for: item number k is the work of part k.

    Its tensors are put into shared memory here, where no room for them is an error that can be
    seen; the queue to the parent would drop the item, and the parent would wait for it for ever.
    """

    def __init__(
        self,
        work: Callable[[Part], Item],
        parts: Sequence[Part],
        tensors_of: Callable[[Item], Iterable[Tensor]],
    ) -> None:
        self.work, self.parts, self.tensors_of = work, parts, tensors_of

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, place: int) -> Item:
        item = self.work(self.parts[place])
        for tensor in self.tensors_of(item):
            tensor.share_memory_()
        return item


def _as_is(item: Item) -> Item:
    return item


def _leave_signals_to_parent(_number: int) -> None:
    """Let Ctrl-C pass, which reaches every process of a terminal: the parent ends its step first.

    SIGTERM ends a worker; a forked one would otherwise note it as its parent does, and live on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
