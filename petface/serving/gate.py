"""The outermost layer: who may ask, what every answer carries, and one log line for each."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import traceback
from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from petface.serving.observe import LineLog, Metrics, facts_of

CLIENT_GONE: Final = 499  # as nginx logs it; nobody receives it
_SAFETY: Final = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """Wraps the app: checks Host and Origin, adds headers, logs and counts every request.

    `hosts` are the names under which the server may be asked for; empty allows all. Without the
    check a foreign web page could reach a server on this machine through a name of its own that
    points here (DNS rebinding). `routes` are the paths that may stand in logs and figures.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        routes: Collection[str],
        metrics: Metrics,
        log: LineLog | None,
    ) -> None:
        self._app, self._metrics, self._log = app, metrics, log
        self._hosts = frozenset(host.lower() for host in hosts)
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; everything but HTTP goes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = time.perf_counter()
        request_id = secrets.token_hex(8)
        status: int | None = None

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {**_SAFETY, "x-request-id": request_id}
                names = {name for name, _ in message.setdefault("headers", [])}
                if b"cache-control" not in names:
                    headers["cache-control"] = "no-store"
                message["headers"] = [*message["headers"], *_encoded(headers)]
            await send(message)

        error: str | None = None
        try:
            if refused := self._refused(scope):
                await _send_json(send_on, *refused)
            else:
                await self._app(scope, receive, send_on)
        except asyncio.CancelledError:
            if status is None:
                await _send_json(send_on, 503, "busy", "the server is stopping")
            raise
        except Exception:  # the app has answered 500 before it raised
            error = traceback.format_exc()
        finally:
            seconds = time.perf_counter() - start_s
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.count_request(route, scope["method"], status or CLIENT_GONE, seconds)
            if self._log is not None:
                facts = facts_of(scope)
                self._log.write(
                    level="ERROR" if error else "INFO",
                    request_id=request_id,
                    method=scope["method"] if scope["method"].isalpha() else "other",
                    route=route,
                    status=status or CLIENT_GONE,
                    duration_ms=round(seconds * 1000, 1),
                    bytes_in=facts.num_bytes,
                    num_photos=facts.num_photos,
                    batch_size=facts.batch_size,
                    queue_ms=None if facts.queue_s is None else round(facts.queue_s * 1000, 1),
                    traceback=error,
                )

    def _refused(self, scope: Scope) -> tuple[int, str, str] | None:
        """Say why a request may not come in: code, status, message."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._hosts and _name_of(host) not in self._hosts:
            return 400, "refused", "this server does not answer to that Host"
        origin = headers.get(b"origin")
        if origin is not None and scope["method"] != "GET" and not _is_same(origin, host):
            return 403, "refused", "pages of other sites may not ask this server"
        return None


def _name_of(host: str) -> str:
    """Give a Host header's name without its port, in lower case; "" where it is nonsense."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_same(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


async def _send_json(send: Send, code: int, status: str, message: str) -> None:
    body = json.dumps({"status": status, "message": message}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    start: dict[str, Any] = {"type": "http.response.start", "status": code}
    await send({**start, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
