"""Run the application: its address, its end, and what the process allows itself."""

from __future__ import annotations

import errno
import gc
import ipaddress
import logging
import os
import resource
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from petface.errors import UserError
from petface.serving.limits import Limits
from petface.serving.observe import LineLog, LogHandler
from petface.serving.protocol import limited_protocol

_SPARE_FILES = 256  # open files besides connections


class Server(uvicorn.Server):
    """uvicorn's server; says when it is ready, and does not die of the signal that ends it."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Stop after what is being answered; a second signal leaves at once."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """Take an address before anything slow is done; nobody can connect yet. 0 = a free port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise _address_error(f"port {port} of {host}", error) from None
    return taken


def _address_error(address: str, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(f"{address} is in use: stop the other server or take another PORT")
    return UserError(f"{address} cannot be used: {error.strerror or error}")


def url_of(taken: socket.socket) -> str:
    """Give the URL of a bound socket."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server that is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_server(app: ASGIApp, limits: Limits, on_ready: Callable[[], None]) -> Server:
    """Make the server of an application; `run(sockets=[...])` answers until it is asked to stop."""
    config = uvicorn.Config(
        app,
        http=limited_protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(limits.stop_timeout_s)),
    )
    return Server(config, on_ready)


def serve(
    app: ASGIApp, taken: socket.socket, limits: Limits, log: LineLog, on_ready: Callable[[], None]
) -> None:
    """Answer until SIGINT or SIGTERM; then what was taken in, for `stop_timeout_s` at most."""
    address = url_of(taken)
    allow_files(limits.max_connections + _SPARE_FILES)
    logging.basicConfig(handlers=[LogHandler(log)], level=logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns of each bad form
    gc.collect()
    gc.freeze()  # or the collector goes through the networks again: 0.2 s without an answer
    try:
        make_server(app, limits, on_ready).run(sockets=[taken])
    except OSError as error:  # two that start at once may both have bound the port
        raise _address_error(address, error) from None
    finally:
        gc.unfreeze()  # or extension modules complain at the end of what was never freed
        log.close()


def allow_files(num: int) -> None:
    """Raise the number of files that this process may have open, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < num:
        wanted = num if hard == resource.RLIM_INFINITY else min(num, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
