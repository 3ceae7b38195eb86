"""Run the application: its address, its end, and what the process allows itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from petface.errors import UserError
from petface.serving.requests import MAX_HEAD_BYTES, Limits

_SPARE_FILES = 256  # open files besides connections
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [  # of every answer
    ("content-security-policy", _POLICY),
    ("cache-control", "no-cache"),  # browsers ask each time whether a file has changed
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
]


class Protocol(H11Protocol):
    """uvicorn's, which would wait for ever for a first head, and for the rest of any head.

    The timer that ends idle connections runs from the start; a whole head stops it, no less. What
    is no HTTP after an answer has begun closes the connection: uvicorn would raise.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        self.handle_events()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:  # what it still sends goes nowhere
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.transport.close()


def make_server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """Build the server of an application; `run(sockets=[...])` answers until it is stopped."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,  # not a warning for each bad request
        access_log=False,
        headers=_HEADERS,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.max_connections,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=limits.head_timeout_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=max(1, round(limits.stop_timeout_s)),
    )
    return uvicorn.Server(config)


def serve(app: ASGIApp, taken: socket.socket, limits: Limits) -> None:
    """Answer until SIGINT or SIGTERM; then what was taken in, for `stop_timeout_s` at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(limits.max_connections + _SPARE_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("petface.serving").setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns of each bad form
    gc.collect()
    gc.freeze()  # or the collector goes through the networks again: 0.2 s without an answer
    # uvicorn raises the signal that ended it once more; SIGTERM would then kill this process
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # a hang-up counts as SIGTERM
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with contextlib.suppress(KeyboardInterrupt):
        make_server(app, limits).run(sockets=[taken])
    gc.unfreeze()  # or extension modules complain at the end of what was never freed


def bind(host: str, port: int) -> socket.socket:
    """Take an address before anything slow is done; 0 = a free port.

    Who connects before the server runs waits for it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        taken = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"port {port} of {host}: {reason}; take another PORT or HOST") from None
    # asyncio does this for sockets that name TCP; without it each answer waits 40 ms for the client
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return taken
