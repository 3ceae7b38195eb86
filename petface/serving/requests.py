"""From the body of a request to its photos, within limits; nothing is ever written to disk."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from petface.data.images import MAX_PIXELS

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limits:
    """All limits of the server; `tools.serve` says what each is for."""

    max_batch: int = 16  # photos
    max_queue: int = 128  # photos
    max_photos: int = 8  # of one animal
    max_pixels: int = MAX_PIXELS  # of one photo
    max_pixels_at_once: int = 8 * MAX_PIXELS  # of all photos that were taken in
    max_body_mb: float = 20.0  # of 1,000,000 bytes
    max_uploads_mb: float = 256.0  # of all clients together
    max_connections: int = 2048
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    answer_timeout_s: float = 20.0
    stop_timeout_s: float = 10.0


class RefusedError(HTTPException):
    """A request without an answer: HTTP status, a word for programs, a sentence for people."""

    def __init__(
        self, code: int, status: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code, message, headers)
        self.status = status


def busy(message: str) -> RefusedError:
    """Return the refusal of a client that may come again in a second."""
    return RefusedError(503, "busy", f"{message}; try again", {"retry-after": "1"})


class Budget:
    """What all requests share, such as the bytes of their bodies in memory."""

    def __init__(self, most: float, what: str) -> None:
        self.most, self.used, self._what = most, 0, what

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Yield `take(number)`, refused with 503 beyond `most`; all goes back in the end."""
        own = 0

        def take(number: int) -> None:
            nonlocal own
            if number > self.most:
                raise RefusedError(413, "too_large", f"at most {self.most:,} {self._what} at once")
            if self.used + number > self.most:
                raise busy(f"too many {self._what} at once")
            self.used, own = self.used + number, own + number

        try:
            yield take
        finally:
            self.used -= own


MAX_HEAD_BYTES: Final = 32_768
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)
_ORIGIN = re.compile(r"(null|[a-z][a-z0-9+.-]*://[^\s/,]*)?", re.IGNORECASE)


def check_protocol(scope: Scope) -> None:
    """Refuse what programs on the way may read in different ways."""
    headers = Headers(scope=scope)
    repeated = [
        name for name in ("host", "origin", "content-type") if len(headers.getlist(name)) > 1
    ]
    code, problem = 400, ""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
        code, problem = 431, f"the head is larger than {MAX_HEAD_BYTES:,} bytes"
    elif scope["http_version"] not in ("1.0", "1.1"):
        code, problem = 505, "this server knows HTTP/1.0 and HTTP/1.1"
    elif repeated:
        problem = f"more than one header {repeated[0]}"
    elif not _HOST.fullmatch(headers.get("host", "")):
        problem = "the header host names no host"
    elif not _ORIGIN.fullmatch(headers.get("origin", "")):
        problem = "the header origin names no origin"
    elif "content-length" in headers and "transfer-encoding" in headers:
        problem = "content-length and transfer-encoding together"
    if problem:  # closed, because nobody knows where the next request begins
        raise RefusedError(code, "refused", problem, {"connection": "close"})


class _Form(MultiPartParser):
    """Starlette's parser: all parts are files, in memory alone; a form that is cut off shows."""

    spool_max_size = 0  # of a SpooledTemporaryFile: never roll over to disk
    is_whole = False

    def on_headers_finished(self) -> None:
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if options and b"filename" not in options:  # many programs send photos without one
            part.content_disposition = (part.content_disposition or b"") + b"; filename=photo"
        super().on_headers_finished()

    def on_end(self) -> None:
        self.is_whole = True


async def read_photos(
    request: Request, field: str, most: int, limits: Limits, take: Callable[[int], None]
) -> list[bytes]:
    """Read the content of each part called `field`, in their order, 1 to `most` of them.

    415 for a body that is no form; 413 for more than `max_body_mb`; 408 after `body_timeout_s`; 400
    for what is no whole form; 422 for none, too many and other fields; what `take` raises for the
    bytes that come. `ClientDisconnect` where the client goes.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data" or request.headers.get("content-encoding"):
        raise RefusedError(415, "unsupported", "send a form: content-type multipart/form-data")
    wanted = f"send 1 to {most} photos in the field {field!r} and nothing else"
    body = _limited(request, limits.max_body_mb, take)
    form = _Form(request.headers, body, max_files=most, max_fields=0)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            fields = (await form.parse()).multi_items()
    except TimeoutError:
        late = f"the body did not arrive within {limits.body_timeout_s:g} s"
        # closed, because what still comes is no new request
        raise RefusedError(408, "timeout", late, {"connection": "close"}) from None
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise RefusedError(422, "invalid", wanted) from None
        raise RefusedError(400, "unreadable", error.message) from None
    if not form.is_whole:
        raise RefusedError(400, "unreadable", "the form is cut off: its last boundary is missing")
    files = [file for name, file in fields if name == field and isinstance(file, UploadFile)]
    if not files or len(files) < len(fields):
        raise RefusedError(422, "invalid", wanted)
    return [await file.read() for file in files]


async def _limited(
    request: Request, max_mb: float, take: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """Pass the body on while it is not too large, by its header and by counting."""
    too_large = RefusedError(413, "too_large", f"the body is larger than {max_mb:g} MB")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_mb * 1e6:
        raise too_large
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_mb * 1e6:
            raise too_large
        take(len(chunk))
        request.state.bytes_in = num_bytes
        yield chunk


async def while_there(request: Request, work: Awaitable[Answer], timeout_s: float) -> Answer:
    """Wait for `work` as long as the client does, 503 after `timeout_s`; else cancel it.

    The body has been read: all that can still come from the client is that it goes.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect if gone.done() else busy("the answer took too long")
    finally:
        task.cancel()
        gone.cancel()
