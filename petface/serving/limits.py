"""How much a request may bring, how long it may take, and the answer where it is too much."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import Request

from petface.data.images import MAX_PIXELS

_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """All limits of the server; `tools.serve` says what each is for."""

    max_batch: int = 16  # photos
    max_wait_ms: float = 5.0
    max_queue: int = 128  # photos
    max_photos: int = 8  # of one animal
    max_pixels: int = MAX_PIXELS
    max_body_mb: float = 20.0
    max_uploads_mb: float = 256.0  # of all clients together
    max_connections: int = 2048
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    answer_timeout_s: float = 20.0
    stop_timeout_s: float = 10.0

    @property
    def max_body_bytes(self) -> int:
        return round(self.max_body_mb * _MEGABYTE)

    @property
    def max_uploads_bytes(self) -> int:
        return round(self.max_uploads_mb * _MEGABYTE)


class RefusedError(Exception):
    """A request that gets no answer: HTTP status, a word for programs, a sentence for people."""

    def __init__(
        self, code: int, status: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.status, self.message = code, status, message
        self.headers = headers or {}


class ClientGoneError(Exception):
    """The client closed its connection; nobody waits for an answer."""


def busy(message: str) -> RefusedError:
    """Refuse for now: the client may come again in a second."""
    return RefusedError(503, "busy", message, {"retry-after": "1"})


class Uploads:
    """The bytes of bodies that are in memory now, of all clients together."""

    def __init__(self, most: int) -> None:
        self.most, self.num_bytes = most, 0

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """Hold the bytes of one body until the block is left."""
        held = Held(self)
        try:
            yield held
        finally:
            held.release()


class Held:
    """The part of one request."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads, self._num_bytes = uploads, 0

    def add(self, num_bytes: int) -> None:
        """Count more bytes; 503 where all clients together hold too much."""
        if self._uploads.num_bytes + num_bytes > self._uploads.most:
            raise busy("too many uploads at once; try again")
        self._uploads.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def release(self) -> None:
        """Give all back: the body is no longer needed."""
        self._uploads.num_bytes -= self._num_bytes
        self._num_bytes = 0


async def read_body(request: Request, limits: Limits, held: Held) -> bytearray:
    """Read the whole body into memory, never to disk.

    413 for more than `max_body_mb`, by what the header says at once, else by counting; 408 after
    `body_timeout_s`; 503 where all clients together hold too much. `ClientGoneError` where it is
    cut off.
    """
    most = limits.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(limits)
    body = bytearray()  # not a list: a client may send it byte by byte
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                chunk = message.get("body", b"")
                if len(body) + len(chunk) > most:
                    raise _too_large(limits)
                held.add(len(chunk))
                body += chunk
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        seconds = f"{limits.body_timeout_s:g}"
        late = f"the body did not arrive within {seconds} s"
        # closed, because what still comes is no new request
        raise RefusedError(408, "timeout", late, {"connection": "close"}) from None


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(413, "too_large", f"the body is larger than {limits.max_body_mb:g} MB")
