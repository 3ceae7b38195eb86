"""A server with canned answers: what is answered follows from the name of the photo's file."""

from __future__ import annotations

import io
import json
import mimetypes
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from PIL import Image

from tests import scripts

PAGE = scripts.REPOSITORY / "petface/serving/page"
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
SCRIPT = "<script>window.wasRun = true</script><img src=x onerror='window.wasRun = true'>"
RTL = "قط \u202e سيامي"
CARD: dict[str, Any] = {
    "stage1": {
        "classes": ["cat", "dog", "rabbit"],
        "sha256": "0123456789abcdef" * 4,
        "preprocessing": {"size_px": 64, "resize": "stretch"},
    },
    "specialists": {
        "cat": {
            "heads": {"breed": ["Siamese", "Sphynx"]},
            "sha256": "fe" * 32,
            "preprocessing": {"size_px": 64, "resize": "stretch"},
        }
    },
    "can_explain": True,
    "precision": "fp32",
    "engine": "torch",
    "limits": {"max_photos": 4, "max_body_mb": 1},
}


def entry(*topk: tuple[str, float], sure: bool | None = True, **more: Any) -> dict[str, Any]:
    """One head's answer."""
    label = topk[0][0]
    answer = "unsure" if sure is False else label
    found = {"label": label, "topk": topk, "sure": sure, "answer": answer}
    return {**found, "vocabulary": "checkpoint", **more}


def _breed(*topk: tuple[str, float], **more: Any) -> dict[str, Any]:
    return {"breed": entry(*topk, **more)}


_CAT = entry(("cat", 0.984), ("dog", 0.012), ("rabbit", 0.004), ("pig", 0.0001), is_pet=True)
_SIAMESE = _breed(("Siamese", 0.71), ("Sphynx", 0.29))
_GENDER = {"gender": entry(("female", 0.55), ("male", 0.45), sure=False)}
# The first letters of a photo's name -> (species, attributes).
ANSWERS = {
    "cat": (_CAT, {**_SIAMESE, **_GENDER}),
    "stranger": (entry(("cat", 0.5), ("dog", 0.5), sure=False, is_pet=False), _SIAMESE),
    "dog": (entry(("dog", 1.0), sure=None, is_pet=None), {}),
    "script": (_CAT, _breed((SCRIPT, 0.6), (RTL, 0.4), may_be=[SCRIPT, RTL])),
    "long": (_CAT, _breed(("Donaudampfschifffahrtsgesellschaftskapitän" * 3, 0.9), ("x", 0.1))),
}


class Stub(ThreadingHTTPServer):
    """The page and canned answers; `seen` counts requests by path, `hold` stops answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: Counter[str] = Counter()
        self.queries: list[dict[str, str]] = []
        self.card = CARD
        self.num_busy = 0  # so many 503 come first
        self.hold = threading.Event()  # until it is set, photos wait
        self.hold.set()
        self.num_open = self.most_open = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a browser closes the line, as it does for what is cancelled."""


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


def answer_photo(name: str) -> dict[str, Any]:
    """Answer one photo by the name of its file."""
    empty: dict[str, Any] = {"image": None, "status": "ok", "species": None, "attributes": {}}
    if name.startswith("broken"):
        return {**empty, "status": "unreadable", "message": "cannot identify image"}
    kind = next((kind for kind in ANSWERS if name.startswith(kind)), "cat")
    species, attributes = ANSWERS[kind]
    answer = {**empty, "species": species, "attributes": attributes}
    if name.startswith("nan"):
        return {**answer, "attributes": {}, "status": "non_finite", "message": "NaN in breed"}
    return {**answer, "status": "ok" if attributes else "no_specialist"}


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
        file = PAGE / (path.removeprefix("/page/").strip("/") or "index.html")
        if file.parent != PAGE or not file.is_file():
            return self._json(404, {"detail": "Not Found"})
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return self._send(200, kind, file.read_bytes())

    def do_POST(self) -> None:  # noqa: N802
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        names = _file_names(self.headers["Content-Type"], body)
        with self.server.lock:
            self.server.seen[url.path] += 1
            self.server.queries.append(dict(parse_qsl(url.query)))
            is_busy, self.server.num_busy = self.server.num_busy > 0, self.server.num_busy - 1
            self.server.num_open += 1
            self.server.most_open = max(self.server.most_open, self.server.num_open)
        self.server.hold.wait(60)
        with self.server.lock:
            self.server.num_open -= 1
        if is_busy:
            return self._json(503, {"status": "busy", "message": "queue is full"}, 1)
        if url.path == "/explain":
            picture = io.BytesIO()
            Image.new("RGB", (64, 64), (200, 60, 40)).save(picture, "PNG")
            return self._send(200, "image/png", picture.getvalue())
        answers = [answer_photo(name) for name in names]
        if url.path == "/predict":
            if names[0].startswith("toolarge"):
                return self._json(413, {"detail": "body too large"})
            if names[0].startswith("fails"):
                return self._json(500, {"detail": "Internal Server Error"})
            code = 200 if answers[0]["species"] else 400
            return self._json(code, answers[0])
        usable = [answer for answer in answers if answer["species"]]
        fused = {**(usable or answers)[0], "num_photos": len(usable)}
        return self._json(200, {"photos": answers, "animal": fused})

    def _json(self, code: int, content: Any, retry_after_s: int | None = None) -> None:
        self._send(code, "application/json", json.dumps(content).encode(), retry_after_s)

    def _send(self, code: int, kind: str, body: bytes, retry_after_s: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.end_headers()
        self.wfile.write(body)


def _file_names(content_type: str, body: bytes) -> list[str]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    return [part.get_filename() or "" for part in message.iter_parts()]
