"""From a request to its answer: body, form, photos, a place in a batch, all of them bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request

from petface.data.images import ImageError
from petface.inference.stages import Photo
from petface.serving.batcher import (
    Answered,
    Batcher,
    ClosedError,
    Place,
    QueueFullError,
    lower_priority,
)
from petface.serving.jobs import Engine, Job, run_jobs
from petface.serving.limits import ClientGoneError, Limits, Uploads, busy, read_body
from petface.serving.multipart import check_type, photos_in
from petface.serving.observe import Facts, Metrics, facts_of

_TOO_MANY = "too many photos are waiting; try again"


class Intake:
    """The way that every request with photos takes.

    The event loop only receives and sends: forms are taken apart and photos decoded in
    `num_decoders` threads, answers computed in `num_workers`. `niceness` is added to both kinds,
    so that the event loop comes first on busy cores.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        *,
        num_workers: int = 1,
        num_decoders: int = 1,
        niceness: int = 0,
    ) -> None:
        self.engine, self.limits, self.metrics = engine, limits, Metrics()
        self.uploads = Uploads(limits.max_uploads_bytes)
        self._turn = asyncio.Lock()  # one answer per turn of the loop, so that others get theirs
        self._decoders = ThreadPoolExecutor(
            num_decoders, "decoder", initializer=lower_priority, initargs=(niceness,)
        )
        self.batcher: Batcher[Job] = Batcher(
            lambda jobs: run_jobs(engine, jobs),
            max_batch=limits.max_batch,
            max_wait_s=limits.max_wait_ms / 1000,
            max_queue=limits.max_queue,
            num_threads=num_workers,
            niceness=niceness,
            on_batch=self.metrics.count_batch,
        )
        self.metrics.watch(lambda: self.batcher.num_taken, lambda: self.uploads.num_bytes)

    def close(self) -> None:
        """End the threads; what still waits is answered first."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self.batcher.close(self.limits.stop_timeout_s)

    async def ask(
        self,
        request: Request,
        field: str,
        most: int,
        job_of: Callable[[list[Photo | ImageError]], Job],
    ) -> Any:
        """Receive and decode 1 to `most` photos, make a job of them, and give its answer.

        `RefusedError` as in `read_body` and `photos_in`, and 503 where the queue is full or the
        answer takes longer than `answer_timeout_s`; `ClientGoneError` drops the job. What `job_of`
        and the engine raise is raised.
        """
        boundary = check_type(
            request.headers.get("content-type", ""), request.headers.get("content-encoding", "")
        )
        if self.batcher.is_full:  # said before the body is read
            raise busy(_TOO_MANY)
        facts = facts_of(request.scope)
        with self.uploads.hold() as held:
            body = await read_body(request, self.limits, held)
            facts.num_bytes = len(body)
            leaving = asyncio.create_task(_leaves(request))
            try:
                async with asyncio.timeout(self.limits.answer_timeout_s):
                    with self.batcher.place() as place:
                        contents = await self._in_pool(
                            leaving, photos_in, body, boundary, field, most
                        )
                        del body
                        facts.num_photos = len(contents)
                        place.grow(len(contents) - 1)
                        photos = await self._in_pool(leaving, self._prepare, contents)
                        del contents
                        held.release()
                        return await self._answer(
                            leaving, place, job_of(photos), facts_of(request.scope)
                        )
            except QueueFullError:
                raise busy(_TOO_MANY) from None
            except TimeoutError:
                raise busy("the answer took too long; try again") from None
            except ClosedError:
                raise busy("the server is stopping") from None
            finally:
                leaving.cancel()

    async def _answer(
        self, leaving: asyncio.Task[None], place: Place[Job], job: Job, facts: Facts
    ) -> Any:
        future = place.submit(job)
        try:
            answered: Answered = await _while_there(leaving, asyncio.wrap_future(future))
        finally:
            future.cancel()  # at once: the wrapped one's end reaches it a turn of the loop later
        async with self._turn:
            await asyncio.sleep(0)
        facts.queue_s, facts.batch_size = answered.queue_s, answered.batch_size
        self.metrics.queue_seconds.observe(answered.queue_s)
        return answered.answer

    def _prepare(self, contents: Sequence[bytes]) -> list[Photo | ImageError]:
        """Decode photos one after the other; the error of one that is none stands in its place."""
        prepared: list[Photo | ImageError] = []
        for content in contents:
            try:
                prepared.append(self.engine.prepare(content, self.limits.max_pixels))
            except ImageError as error:
                # a new one: the old one's frames hold the photo
                prepared.append(ImageError(str(error), error.reason))
        return prepared

    async def _in_pool(
        self, leaving: asyncio.Task[None], function: Callable[..., Any], *arguments: Any
    ) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._decoders, function, *arguments)
        return await _while_there(leaving, future)


async def _leaves(request: Request) -> None:
    """Return once the client has gone; after the body nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _while_there(leaving: asyncio.Task[None], future: asyncio.Future[Any]) -> Any:
    """Wait for `future` as long as the client does; else cancel it."""
    try:
        await asyncio.wait((future, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            raise ClientGoneError
        return future.result()
    finally:
        future.cancel()
