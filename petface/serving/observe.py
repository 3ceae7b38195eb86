"""What can be seen of the server: figures for Prometheus and one JSON line per request.

Neither holds anything of a photo: no file name, no content, no address of a client.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

METRICS_TYPE: Final = CONTENT_TYPE_LATEST
_FACTS: Final = "petface.facts"
_METHODS: Final = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Facts:
    """What is noted about a request on its way."""

    num_bytes: int = 0  # of the body
    num_photos: int = 0
    queue_s: float | None = None  # None: it was not computed
    batch_size: int | None = None


def facts_of(scope: Any) -> Facts:
    """Give the notes about a request, made when first asked for."""
    facts: Facts = scope.setdefault(_FACTS, Facts())
    return facts


class Metrics:
    """The server's figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        labels = ["route", "method", "status"]
        self.requests = Counter("petface_requests", "Requests answered", labels, registry=registry)
        self.request_seconds = Histogram(
            "petface_request_seconds",
            "From the head of a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.photos = Counter(
            "petface_photos", "Photos by the status of their answer", ["status"], registry=registry
        )
        self.species = Counter(
            "petface_species", "Photos answered, by species", ["species"], registry=registry
        )
        self.batch_photos = Histogram(
            "petface_batch_photos", "Photos per batch", buckets=_BATCHES, registry=registry
        )
        self.batch_seconds = Histogram(
            "petface_batch_seconds", "Computing a batch", buckets=_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "petface_queue_seconds", "Waiting for a batch", buckets=_SECONDS, registry=registry
        )

    def watch(self, num_waiting: Callable[[], float], num_bytes: Callable[[], float]) -> None:
        """Ask these whenever the figures are read."""
        waiting = Gauge(
            "petface_photos_waiting", "Photos that have a place", registry=self.registry
        )
        waiting.set_function(num_waiting)
        uploads = Gauge("petface_upload_bytes", "Bodies in memory", registry=self.registry)
        uploads.set_function(num_bytes)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request; `route` is one of few, never the raw path."""
        known = method if method in _METHODS else "other"
        self.requests.labels(route, known, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def count_batch(self, num_photos: int, seconds: float) -> None:
        """Count a batch that was computed."""
        self.batch_photos.observe(num_photos)
        self.batch_seconds.observe(seconds)

    def count_answer(self, answer: Mapping[str, Any]) -> None:
        """Count the answer to one photo."""
        self.photos.labels(answer["status"]).inc()
        if answer.get("species"):
            self.species.labels(answer["species"]["label"]).inc()

    def text(self) -> bytes:
        """Give all figures in the text format of Prometheus."""
        return generate_latest(self.registry)


class LineLog:
    """Write JSON lines from a thread: a full pipe or a slow disk never holds a request up.

    At most `most` lines wait; more are dropped, and a line says how many.
    """

    def __init__(self, stream: IO[str], most: int = 10_000) -> None:
        self._stream = stream
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(most)
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, **entry: Any) -> None:
        """Write one line that begins with the time (UTC); what is None is left out."""
        try:
            self._lines.put_nowait({"time": utc_now(), **entry})
        except queue.Full:
            self._num_dropped += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits and end the thread, unless the stream is stuck."""
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (entry := self._lines.get()) is not None:
            self._print(entry)
            if self._num_dropped:
                num, self._num_dropped = self._num_dropped, 0
                self._print({"time": utc_now(), "level": "WARNING", "dropped_lines": num})

    def _print(self, entry: Mapping[str, Any]) -> None:
        kept = {name: value for name, value in entry.items() if value is not None}
        try:
            self._stream.write(json.dumps(kept) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._num_dropped += 1  # the reader has gone: the server goes on


class LogHandler(logging.Handler):
    """Bring what libraries log into the same lines."""

    def __init__(self, lines: LineLog) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, with its traceback where there is one."""
        error = record.exc_info and "".join(traceback.format_exception(*record.exc_info))
        self._lines.write(
            level=record.levelname, message=record.getMessage(), traceback=error or None
        )


def utc_now() -> str:
    """Give the time as ISO 8601 in UTC, to the millisecond."""
    now = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{whole}.{int(now % 1 * 1000):03d}Z"
