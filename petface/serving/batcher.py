"""Answer what many clients ask in few batches, in few threads, with a bounded number waiting.

Only the computing happens in threads: all else is the event loop's, so nothing is locked. A worker
that is free takes what waits at once, in the order of arrival; what comes meanwhile is the next
batch. So batches grow with the load, and a lonely request never waits for company.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Answered:
    """An answer, with how long it waited in the queue and what was computed together with it."""

    answer: Any
    queue_s: float
    batch_size: int  # photos


@dataclass(eq=False)
class _Waiting(Generic[Item]):
    item: Item | Callable[[], Any]
    size: int  # photos
    future: asyncio.Future[Answered]
    since_s: float


class Batcher(Generic[Item]):
    """Threads that call `compute` with up to `max_batch` items each.

    `compute` returns an answer per item in their order; an exception in its place is raised to the
    client who asked. If `compute` raises, each item is tried alone, so that a poisonous one fails
    nobody else. An item that is a function is called by itself. `on_batch` learns the photos and
    seconds of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Any]],
        max_batch: int,
        *,
        num_workers: int = 1,
        on_batch: Callable[[int, float], None] = lambda _number, _seconds: None,
    ) -> None:
        self._compute, self._on_batch, self.max_batch = compute, on_batch, max_batch
        self._pool = ThreadPoolExecutor(num_workers, "worker")
        self._num_free = num_workers
        self._queue: deque[_Waiting[Item]] = deque()

    def close(self) -> None:
        """End the threads after what they compute now."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def answer(self, item: Item | Callable[[], Any], size: int = 1) -> Answered:
        """Return the answer to an item of `size` photos; whoever stops waiting is forgotten."""
        future = asyncio.get_running_loop().create_future()
        waiting = _Waiting(item, size, future, time.monotonic())
        self._queue.append(waiting)
        self._start()
        try:
            return await future
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)

    def _start(self) -> None:
        """Hand batches to workers while there are both."""
        while self._num_free and self._queue:
            self._num_free -= 1
            batch = [self._queue.popleft()]
            while self._queue and len(batch) < self.max_batch:
                if callable(batch[0].item) or callable(self._queue[0].item):
                    break
                batch.append(self._queue.popleft())
            computing = asyncio.get_running_loop().run_in_executor(self._pool, self._run, batch)
            computing.add_done_callback(self._free)

    def _free(self, _: asyncio.Future[None]) -> None:
        self._num_free += 1
        self._start()

    def _run(self, batch: list[_Waiting[Item]]) -> None:
        """Compute a batch in a worker and send each answer on its way."""
        start_s, size = time.monotonic(), sum(waiting.size for waiting in batch)
        answers = self._answers([waiting.item for waiting in batch])
        self._on_batch(size, time.monotonic() - start_s)
        for waiting, answer in zip(batch, answers, strict=True):
            answered = Answered(answer, start_s - waiting.since_s, size)
            waiting.future.get_loop().call_soon_threadsafe(_settle, waiting.future, answered)

    def _answers(self, items: Sequence[Any]) -> list[Any]:
        try:
            answers = [items[0]()] if callable(items[0]) else list(self._compute(items))
            assert len(answers) == len(items), "an answer for each item"
            return answers
        except Exception as error:
            if len(items) == 1:
                return [error]
            return [answer for item in items for answer in self._answers([item])]


def _settle(future: asyncio.Future[Answered], answered: Answered) -> None:
    if future.done():  # its client has gone
        return
    if isinstance(answered.answer, Exception):
        future.set_exception(answered.answer)
    else:
        future.set_result(answered)
