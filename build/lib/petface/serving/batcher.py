"""Answer what many clients want in few batches, in few threads.

Only the computing happens in threads. All else is the event loop's, so nothing is locked. A worker
that is free takes what waits at once, in the order of arrival; what comes meanwhile is the next
batch. So batches grow with the load, and a lonely request never waits for company.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Batcher:
    """Threads that call `compute` with up to `max_batch` items each.

    `compute` returns an answer per item in their order; an exception in its place is raised to the
    client who sent the item. If `compute` raises, each item is tried alone, so that a poisonous one
    fails nobody else.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Any]], Sequence[Any]],
        max_batch: int,
        *,
        num_workers: int = 1,
    ) -> None:
        self._compute, self._max_batch = compute, max_batch
        self._pool = ThreadPoolExecutor(num_workers, "worker")
        self._num_free = num_workers
        self._queue: dict[asyncio.Future[Any], Any] = {}  # items by who waits for them
        self._running: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """End the threads after what they compute now."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def answer(self, item: Any) -> Any:
        """Return the answer to an item; whoever stops waiting is forgotten."""
        future = asyncio.get_running_loop().create_future()
        self._queue[future] = item
        self._start()
        try:
            return await future
        finally:
            self._queue.pop(future, None)

    def call(self, function: Callable[..., Answer], *arguments: Any) -> asyncio.Future[Answer]:
        """Call a function in a worker, by itself; cancelled, it is forgotten."""
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _start(self) -> None:
        """Hand batches to workers while there are both."""
        while self._num_free and self._queue:
            self._num_free -= 1
            taken = [*self._queue][: self._max_batch]
            batch = {future: self._queue.pop(future) for future in taken}
            task = asyncio.ensure_future(self._run(batch))
            self._running.add(task)  # the loop itself would let it be collected
            task.add_done_callback(self._running.discard)

    async def _run(self, batch: dict[asyncio.Future[Any], Any]) -> None:
        """Compute a batch in a worker and send each answer on its way."""
        answers = await self.call(self._answers, [*batch.values()])
        self._num_free += 1
        self._start()
        for future, answer in zip(batch, answers, strict=True):
            if future.done():  # its client has gone
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _answers(self, items: Sequence[Any]) -> list[Any]:
        try:
            answers = list(self._compute(items))
            assert len(answers) == len(items), "an answer for each item"
            return answers
        except Exception as error:
            if len(items) == 1:
                return [error]
            return [answer for item in items for answer in self._answers([item])]
