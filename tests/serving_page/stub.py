"""A server with canned answers: what is answered follows from the name of the photo's file."""

from __future__ import annotations

import io
import json
import mimetypes
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from PIL import Image

from tests.scripts import REPOSITORY

PAGE = REPOSITORY / "petface/serving/page"
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
SCRIPT = "<script>window.wasRun = true</script><img src=x onerror='window.wasRun = true'>"
RTL = "قط \u202e سيامي"
_NETWORK = {"sha256": "0123456789abcdef" * 4, "preprocessing": {"size_px": 64, "resize": "stretch"}}
CARD: dict[str, Any] = {
    "stage1": {**_NETWORK, "heads": {"species": ["cat", "dog", "rabbit"]}},
    "specialists": {"cat": {**_NETWORK, "heads": {"breed": ["Siamese", "Sphynx"]}}},
    "can_explain": True,
    "precision": "fp32",
    "engine": "torch",
    "limits": {"max_photos": 4, "max_body_mb": 1},
}


def _entry(*topk: tuple[str, float], sure: bool | None = True, **more: Any) -> dict[str, Any]:
    return {"label": topk[0][0], "topk": topk, "sure": sure, **more}


def _breed(*topk: tuple[str, float], **more: Any) -> dict[str, Any]:
    return {"breed": _entry(*topk, **more)}


_CAT = _entry(("cat", 0.984), ("dog", 0.012), ("rabbit", 0.004), ("pig", 0.0001), is_pet=True)
_SIAMESE = _breed(("Siamese", 0.71), ("Sphynx", 0.29))
_GENDER = {"gender": _entry(("female", 0.55), ("male", 0.45), sure=False)}
# The first letters of a photo's name -> (species, attributes).
ANSWERS = {
    "cat": (_CAT, {**_SIAMESE, **_GENDER}),
    "stranger": (_entry(("cat", 0.5), ("dog", 0.5), sure=False, is_pet=False), _SIAMESE),
    "dog": (_entry(("dog", 1.0), sure=None, is_pet=None), {}),
    "script": (_CAT, _breed((SCRIPT, 0.6), (RTL, 0.4), may_be=[SCRIPT, RTL])),
    "long": (_CAT, _breed(("Donaudampfschifffahrtsgesellschaftskapitän" * 3, 0.9), ("x", 0.1))),
}
FAILURES = {
    "broken": (400, "unreadable", "cannot identify image"),
    "toolarge": (413, "too_large", "the body is larger than 1 MB"),
    "fails": (500, "failed", "the server failed"),
}


def answer_photo(name: str) -> dict[str, Any]:
    """Answer one photo by the name of its file."""
    if name.startswith("broken"):
        message = FAILURES["broken"][2]
        return {"status": "unreadable", "species": None, "attributes": {}, "message": message}
    kind = next((kind for kind in ANSWERS if name.startswith(kind)), "cat")
    species, attributes = ANSWERS[kind]
    if name.startswith("nan"):
        found = {"status": "non_finite", "species": species, "attributes": {}}
        return {**found, "message": "NaN in breed"}
    status = "ok" if attributes else "no_specialist"
    return {"status": status, "species": species, "attributes": attributes}


class Stub(ThreadingHTTPServer):
    """The page and canned answers; `seen` counts requests by path, `hold` stops answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.seen: Counter[str] = Counter()
        self.queries: list[dict[str, str]] = []
        self.card = CARD
        self.num_busy = 0  # so many 503 come first
        self.hold = threading.Event()  # until it is set, photos wait
        self.hold.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a browser closes the line, as it does for what is stopped."""


@contextmanager
def running() -> Iterator[Stub]:
    """Start a stub, and stop it in the end."""
    server = Stub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.hold.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        path = urlsplit(self.path).path
        self.server.seen[path] += 1
        if path == "/model_card":
            return self._json(200, self.server.card)
        file = PAGE / (Path(path).name or "index.html")
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return self._send(200, kind, file.read_bytes())

    def do_POST(self) -> None:  # noqa: N802
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        names = [unquote(name.decode()) for name in re.findall(rb'filename="([^"]*)"', body)]
        self.server.seen[url.path] += 1
        self.server.queries.append(dict(parse_qsl(url.query)))
        is_busy, self.server.num_busy = self.server.num_busy > 0, self.server.num_busy - 1
        self.server.hold.wait(60)
        if is_busy:
            return self._json(503, {"status": "busy", "message": "queue is full"})
        if url.path == "/explain":
            picture = io.BytesIO()
            Image.new("RGB", (64, 64), (200, 60, 40)).save(picture, "PNG")
            return self._send(200, "image/png", picture.getvalue())
        answers = [answer_photo(name) for name in names]
        if url.path == "/predict":
            for kind, (code, status, message) in FAILURES.items():
                if names[0].startswith(kind):
                    return self._json(code, {"status": status, "message": message})
            return self._json(200, answers[0])
        usable = [answer for answer in answers if answer["species"]]
        if not usable:
            return self._json(400, {"status": "unreadable", "message": "cannot identify image"})
        fused = {**usable[0], "num_photos": len(usable)}
        return self._json(200, {"photos": answers, "animal": fused})

    def _json(self, code: int, content: Any) -> None:
        self._send(code, "application/json", json.dumps(content).encode())

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)
