"""Answer what many clients ask in few batches, in few threads, with a bounded number waiting.

A client first takes a `Place`, which may be refused, prepares its photos, and then submits them.
A thread that is free takes what waits in the order of arrival. It waits for more only while
somebody who has a place is still preparing: a lonely request never waits for company that is not
coming.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class QueueFullError(Exception):
    """Too many photos are waiting; nothing was taken in."""


class ClosedError(Exception):
    """The batcher ended before it came to this item."""


@dataclass(frozen=True)
class Answered:
    """An answer, with how long it waited in the queue and what was computed together with it."""

    answer: Any
    queue_s: float
    batch_size: int  # photos


@dataclass(eq=False)
class _Waiting(Generic[Item]):
    item: Item
    size: int
    future: Future[Answered]
    since_s: float = field(default_factory=time.monotonic)


class Batcher(Generic[Item]):
    """Threads that call `run` with up to `max_batch` photos' worth of items each.

    `run` gives an answer per item in their order; an answer that is an exception is raised to the
    client who asked. If `run` itself raises, each item is tried alone, so that a poisonous one
    fails nobody else. `max_queue` photos may have a place at once. `niceness` is added to the
    threads' (Linux; 0 = as it is).
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Any]],
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        num_threads: int = 1,
        niceness: int = 0,
        on_batch: Callable[[int, float], None] = lambda _size, _seconds: None,
    ) -> None:
        self._compute, self._on_batch = run, on_batch
        self.max_batch, self.max_wait_s, self.max_queue = max_batch, max_wait_s, max_queue
        self._niceness = niceness
        self._changed = threading.Condition()
        self._queue: deque[_Waiting[Item]] = deque()
        self._num_taken = 0  # photos that have a place
        self._num_preparing = 0  # of these, not submitted yet
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher {n}", daemon=True)
            for n in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def place(self, size: int = 1) -> Place[Item]:
        """Take places for `size` photos, given back by leaving it, or raise `QueueFullError`."""
        return Place(self, size)

    @property
    def num_taken(self) -> int:
        """Count the photos that have a place: being prepared, waiting or computed."""
        return self._num_taken

    @property
    def is_full(self) -> bool:
        """Tell whether the next one would be refused now."""
        return self._num_taken >= self.max_queue

    @property
    def is_alive(self) -> bool:
        """Tell whether all threads are there."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self, timeout_s: float) -> None:
        """Answer what waits, for at most `timeout_s`, and end; for the rest raise `ClosedError`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        end_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        with self._changed:
            left, self._queue = list(self._queue), deque()
        for waiting in left:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(ClosedError("the server is stopping"))

    def _take_places(self, size: int) -> None:
        with self._changed:
            if self._num_taken + size > self.max_queue:
                raise QueueFullError(f"{self._num_taken} photos are waiting")
            self._num_taken += size
            self._num_preparing += size

    def _give_back(self, size: int, num_preparing: int) -> None:
        with self._changed:
            self._num_taken -= size
            self._num_preparing -= num_preparing
            self._changed.notify_all()

    def _submit(self, item: Item, size: int) -> Future[Answered]:
        waiting = _Waiting(item, size, Future())
        with self._changed:
            if self._is_closing:
                raise ClosedError("the server is stopping")
            self._num_preparing -= size
            self._queue.append(waiting)
            self._changed.notify_all()
        waiting.future.add_done_callback(lambda future: self._drop(waiting, future))
        return waiting.future

    def _drop(self, waiting: _Waiting[Item], future: Future[Answered]) -> None:
        """Forget a cancelled item at once: its photos would be kept until its turn came."""
        if future.cancelled():
            with self._changed:
                if waiting in self._queue:
                    self._queue.remove(waiting)

    def _work(self) -> None:
        lower_priority(self._niceness)
        while batch := self._next_batch():
            running = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if running:
                self._run(running)

    def _next_batch(self) -> list[_Waiting[Item]]:
        """Wait for items and take them, at least one; none only at the end."""
        with self._changed:
            while not self._is_enough():
                oldest = self._queue[0].since_s if self._queue else None
                left_s = None if oldest is None else oldest + self.max_wait_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    break
                self._changed.wait(left_s)
            batch: list[_Waiting[Item]] = []
            size = 0
            while self._queue and (not batch or size + self._queue[0].size <= self.max_batch):
                batch.append(self._queue.popleft())
                size += batch[-1].size
            return batch

    def _is_enough(self) -> bool:
        if self._is_closing:
            return True
        waiting = sum(one.size for one in self._queue)
        return waiting >= self.max_batch or waiting > 0 and not self._num_preparing

    def _run(self, batch: list[_Waiting[Item]]) -> None:
        start_s = time.monotonic()
        size = sum(one.size for one in batch)
        try:
            answers = self._compute([one.item for one in batch])
            assert len(answers) == len(batch), "an answer for each item"
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for one in batch:
                self._run([one])
            return
        self._on_batch(size, time.monotonic() - start_s)
        for one, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                one.future.set_exception(answer)
            else:
                one.future.set_result(Answered(answer, start_s - one.since_s, size))


class Place(Generic[Item]):
    """A place in the queue for some photos, held while a `with` block runs."""

    def __init__(self, batcher: Batcher[Item], size: int) -> None:
        self._batcher, self._size, self._num_preparing = batcher, size, size
        batcher._take_places(size)

    def __enter__(self) -> Place[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher._give_back(self._size, self._num_preparing)

    def grow(self, size: int) -> None:
        """Take `size` more, or raise `QueueFullError`."""
        self._batcher._take_places(size)
        self._size += size
        self._num_preparing += size

    def submit(self, item: Item) -> Future[Answered]:
        """Queue the item that the place was taken for; once. A cancelled future is skipped."""
        assert self._num_preparing == self._size, "one item for a place"
        future = self._batcher._submit(item, self._size)
        self._num_preparing = 0
        return future


def lower_priority(niceness: int) -> None:
    """Let other threads go first: Linux keeps a niceness for each thread."""
    if niceness and sys.platform == "linux":
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + niceness)
