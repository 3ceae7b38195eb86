"""What can be seen of the server: metrics for Prometheus and one JSON line per request.

Neither holds anything of a photo: no file name, no content, no address of a client.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
import traceback
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLIENT_GONE: Final = 499  # as nginx logs it; nobody receives it
_LOG: Final = logging.getLogger(__name__)
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS: Final = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        timer = partial(Histogram, registry=self.registry, buckets=_SECONDS)
        sizes = partial(Histogram, registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64))
        labels = ("route", "method", "status")
        self.requests = counter("petface_requests", "Requests answered", labels)
        self.seconds = timer("petface_request_seconds", "From head to answer", ["route"])
        self.photos = counter("petface_photos", "Photos by the status of their answer", ["status"])
        self.species = counter("petface_species", "Photos answered, by species", ["species"])
        self.batch_photos = sizes("petface_batch_photos", "Photos per batch")
        self.batch_seconds = timer("petface_batch_seconds", "Computing a batch")
        self.queue_seconds = timer("petface_queue_seconds", "Waiting for a batch")
        self.waiting = gauge("petface_photos_waiting", "Photos that are not yet answered")
        self.uploads = gauge("petface_upload_bytes", "Bodies in memory")

    def count_batch(self, num_photos: int, seconds: float) -> None:
        """Count a batch that was computed."""
        self.batch_photos.observe(num_photos)
        self.batch_seconds.observe(seconds)

    def count_answer(self, answer: dict[str, Any]) -> None:
        """Count the answer to one photo."""
        self.photos.labels(answer["status"]).inc()
        if answer["species"]:
            self.species.labels(answer["species"]["label"]).inc()


class Observed:
    """The outermost layer: every answer has an id and safe headers, is counted and logged.

    What else is to be logged about a request is noted in its `state`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        line: dict[str, Any] = {"request_id": secrets.token_hex(8), "status": CLIENT_GONE}

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                line["status"] = message["status"]
                names = {name for name, _ in message["headers"]}
                # browsers ask each time whether a file has changed
                cache = "no-cache" if b"etag" in names else "no-store"
                added = _HEADERS | {"x-request-id": line["request_id"], "cache-control": cache}
                message["headers"] += [(name.encode(), v.encode()) for name, v in added.items()]
            await send(message)

        start_s = time.perf_counter()
        try:
            await self._app(scope, receive, send_on)
        except Exception:  # the app has answered 500 before it raised
            line["traceback"] = traceback.format_exc()
        finally:
            self._note(scope, time.perf_counter() - start_s, line | scope.get("state", {}))

    def _note(self, scope: Scope, seconds: float, line: dict[str, Any]) -> None:
        # never the raw path or method: a stranger would write into logs and metrics
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(line["status"])).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
        level = "ERROR" if "traceback" in line else "INFO"
        line = {"time": f"{now}Z", "level": level, "method": method, "route": route} | line
        _LOG.info(json.dumps(line | {"duration_ms": round(seconds * 1000, 1)}))
