"""What can be seen of the server: metrics for Prometheus and one log line per request.

Neither holds anything of a photo: no file name, no content, no address of a client.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLIENT_GONE: Final = 499  # as nginx logs it; nobody receives it
_LOG: Final = logging.getLogger(__name__)


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter(
            "petface_requests", "Requests answered", ["route", "status"], registry=own
        )
        self.seconds = Histogram(
            "petface_request_seconds", "From head to answer", ["route"], registry=own
        )
        self.photos = Counter(
            "petface_photos", "Photos by the status of their answer", ["status"], registry=own
        )
        self.batch_photos = Histogram(
            "petface_batch_photos", "Photos per batch", registry=own, buckets=(1, 2, 4, 8, 16, 32)
        )
        self.uploads = Gauge("petface_upload_bytes", "Bodies in memory", registry=own)


class Observed:
    """The outermost layer: every request is counted and logged."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, start_s = CLIENT_GONE, time.perf_counter()
        if scope.get("method") == "HEAD":  # uvicorn keeps its own scope and leaves the body out
            scope = {**scope, "method": "GET"}

        async def send_on(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            if scope["type"] == "http":
                # never the raw path: a stranger would write into logs and metrics
                route = getattr(scope.get("route"), "path", "other")
                seconds = time.perf_counter() - start_s
                num_bytes = scope["state"].get("bytes_in", 0)
                self._metrics.requests.labels(route, str(status)).inc()
                self._metrics.seconds.labels(route).observe(seconds)
                _LOG.info("%s %d %d bytes %.1f ms", route, status, num_bytes, seconds * 1000)
