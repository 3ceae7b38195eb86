"""One connection: uvicorn's protocol with the limits that it lacks.

uvicorn waits for ever for the head of a request, keeps a head of any size, reads on for ever after
an early answer, and waits for ever for a client that does not read. What is in the way here is
closed, with an answer where that can still be understood.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from petface.serving.limits import Limits

MAX_HEAD_BYTES = 32_768
_LINGER_S = 5.0  # for the rest of a body that is not wanted: closing would drop the answer
_READ_S = 20.0  # until a client has taken what was sent
_MAX_PIPELINED = 16  # requests sent before the answer to an earlier one: no browser does it


class LimitedProtocol(HttpToolsProtocol):
    """See above; `limits` is set by `limited_protocol`."""

    limits: Limits

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._is_in_head = True  # from the first byte, or the connection, to the empty line
        self._is_whole = True  # the last request has come to its end
        self._num_bytes = 0  # of the request that is coming now

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head; one connection too many is refused."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "busy", "too many connections; try again", "retry-after: 1\r\n")
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes: neither a head nor a whole request may grow without end."""
        if self.transport.is_closing():
            return
        if self._is_whole and not self._is_in_head:
            self._begin_head()  # also by empty lines, which begin no message
        self._num_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._num_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "too_large", "the head of the request is too large")
        elif self._num_bytes > 2 * self.limits.max_body_bytes + MAX_HEAD_BYTES:
            self.transport.abort()  # it was answered 413 long ago

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a head."""
        super().on_message_begin()
        self._begin_head()
        self._is_whole = False

    def on_headers_complete(self) -> None:
        """The head is there; the app waits for the body."""
        self._is_in_head = False
        self._stop("head")
        if len(self.pipeline) >= _MAX_PIPELINED:
            self.transport.abort()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, unless the connection was given up in the same breath."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is there."""
        self._is_whole = True
        self._num_bytes = 0
        self._stop("linger")
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Let the rest of a body come that was answered before its end, for a while."""
        super().on_response_complete()
        if not self._is_whole and not self._is_in_head and self.cycle.response_complete:
            self._start("linger", _LINGER_S, self.transport.abort)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._start("read", _READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._stop("read")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of all failures."""
        self._refuse(400, "refused", msg)

    def _begin_head(self) -> None:
        self._is_in_head = True
        if "head" not in self._timers:
            self._num_bytes = 0
            late = "the head of the request did not arrive in time"
            self._start("head", self.limits.head_timeout_s, self._refuse, 408, "timeout", late)

    def _refuse(self, code: int, status: str, message: str, header: str = "") -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # an earlier request is being answered: no room for this one
            return
        body = json.dumps({"status": status, "message": message}).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{header}"
        self.transport.write(
            STATUS_LINE[code] + head.encode() + b"connection: close\r\n\r\n" + body
        )
        self.transport.close()

    def _start(self, name: str, seconds: float, call: Any, *arguments: Any) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, call, *arguments)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def limited_protocol(limits: Limits) -> type[LimitedProtocol]:
    """Give the protocol with these limits, as uvicorn wants it: a class."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
