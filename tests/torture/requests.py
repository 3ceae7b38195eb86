"""Odd HTTP requests to a real server: each is answered as it should be, none hangs, none is a 500.

Some are drawn up by hand with the status that is due, the others are those damaged at random.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

from petface.files import sha256_of_file
from petface.serving.requests import Limits
from tests.serving.made_server import TYPE, Client, form, photo, post, running
from tests.tools.test_serve import served
from tests.torture.fixtures import Workshop
from tests.torture.fuzz import Fuzzer, Outcome, begin_peak, damaged, fuzz, peak_bytes

HANG_S = 15.0  # without an end of the connection; the servers of these tests give up after one
_PHOTO = form(photo())
_CHUNKED = "Transfer-Encoding: chunked\r\n"
_CHUNK = b"%x\r\n%s\r\n" % (len(_PHOTO), _PHOTO)
_CEILING_MB = 300  # that the server may take beyond what it had
_REFUSED = {400}
_ANY = {200, 400, 403, 404, 405, 408, 413, 415, 417, 422, 431, 501, 505, 0}  # 0: closed


def _get(target: str = "/health", host: str = "Host: localhost\r\n", method: str = "GET",
         version: str = "1.1", extra: str = "") -> bytes:  # fmt: skip
    head = f"{method} {target} HTTP/{version}\r\n{host}{extra}Connection: close\r\n\r\n"
    return head.encode("latin-1")


def _post(extra: str = "", body: bytes = _PHOTO, path: str = "/predict", length: int = 1) -> bytes:
    size = f"Content-Length: {len(body)}\r\n" if length else ""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE}\r\n{size}{extra}"
    return f"{head}Connection: close\r\n\r\n".encode("latin-1") + body


def _chunked(body: bytes, path: str = "/predict") -> bytes:
    return _post(_CHUNKED, body, path, length=0)


def known_requests() -> Iterator[tuple[str, bytes, set[int]]]:
    """Yield a name, the bytes of a request, and the statuses that are right for it."""
    for method in ("HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "FOO", "POST"):
        for path in ("/", "/health", "/model_card", "/page/page.js"):
            yield f"{method} {path}", _get(path, method=method), {200 if method == "HEAD" else 405}
    yield "HEAD nowhere", _get("/nowhere", method="HEAD"), {404}
    yield "HEAD of a post", _get("/predict", method="HEAD"), {405}
    yield "CONNECT", _get("localhost:80", method="CONNECT"), {400, 404, 405}
    yield "OPTIONS *", _get("*", method="OPTIONS"), {200, 400, 404, 405}
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:1"):
        yield f"host {host!r}", _get(host=f"Host: {host}\r\n"), {200}
    for host in (
        "", " ", "evil.example", "localhost, evil.example", "localhost/x", "localhost#", "[",
        "localhost:80:90", "localhost:x", "user@localhost", "localhost evil", "http://localhost",
        "2130706433", "localhost:999999", "loc%61lhost", "localhost\r\nHost: localhost",
        "localhost\r\nHost: evil.example", "localhost\r\nHost: LOCALHOST",
    ):  # fmt: skip
        yield f"host {host!r}", _get(host=f"Host: {host}\r\n"), _REFUSED
    yield "no host", _get(host=""), _REFUSED
    yield "HTTP/1.0", _get(version="1.0"), {200}
    yield "HTTP/1.0 without host", _get(host="", version="1.0"), _REFUSED
    yield "HTTP/1.0 two hosts", _get(host="Host: localhost\r\n" * 2, version="1.0"), _REFUSED
    for version in ("0.9", "2.0", "9.9", "1.", "x"):
        yield f"HTTP/{version}", _get(version=version), _REFUSED | {505, 0}
    for code, origins in {
        200: ("http://localhost", "https://localhost", "HTTP://LOCALHOST"),
        403: ("http://evil.example", "null", "http://localhost:1", "", "http://localhost.evil.org",
              "chrome-extension://localhost"),
        400: ("localhost", "http://localhost/", "http://localhost http://x", "http:localhost", "*",
              "http://localhost, http://x", "http://localhost\r\nOrigin: http://localhost",
              "http://localhost\r\nOrigin: http://evil.example"),
    }.items():  # fmt: skip
        for origin in origins:
            yield f"origin {origin!r}", _post(f"Origin: {origin}\r\n"), {code}
    for wanted, targets in (
        ({200}, ("/health?x=%2", "/health?" + "x&" * 10_000)),
        ({400}, ("http://a b/", "/he alth", "/health\xff")),
        ({404}, ("//localhost/health", "/%00", "/page/%00", "/page/page.js%00.html", "/%ff%fe",
                 "/page/%c0%ae%c0%ae/app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py",
                 "/page//etc/passwd", "/" + "a" * 20_000, "/page/" + "a" * 5_000, "/%zz",
                 "/page/%2", "http://localhost/health")),
        ({400, 404, 414, 431}, ("/" + "a" * 40_000, "health", "ftp://localhost/health")),
    ):  # fmt: skip
        for target in targets:
            yield f"target {target[:30]!r}", _get(target), wanted
    for extra in ("Content-Length: 5\r\n", _CHUNKED, "Content-Type: text/html\r\n", "No colon\r\n",
                  "X: a\0b\r\n", "Content-Length : 5\r\n", "X\x01: b\r\n"):  # fmt: skip
        yield f"header {extra!r}", _post(extra), _REFUSED
    for length in ("+5", "-1", "0x10", "\xb2", "1e3", "5, 6", "9" * 30):
        data = _post(f"Content-Length: {length}\r\n", b"12345", length=0)
        yield f"length {length!r}", data, {400, 413}
    end, odd = b"0\r\n\r\n", "chunked\r\nTransfer-Encoding: x"
    for coding in ("xchunked", "chunked, identity", "gzip, chunked", odd):
        data = _post(f"Transfer-Encoding: {coding}\r\n", _CHUNK + end, length=0)
        yield f"coding {coding!r}", data, {400, 501}
    yield "chunks", _chunked(_CHUNK + end), {200}
    extended = _CHUNK.replace(b"\r\n", b";a=b\r\n", 1)
    yield "chunks with extensions", _chunked(extended + end), {200}
    yield "trailers", _chunked(_CHUNK + b"0\r\nHost: evil.example\r\n\r\n"), {200, 400}
    for path, wanted in {"/predict": _REFUSED, "/nowhere": {404}, "/health": {405}}.items():
        for bad in (b"zz\r\n", b"-5\r\nhello\r\n", b"3\r\nabcXX0\r\n\r\n", b"F" * 20 + b"\r\n",
                    b"\r\n", b"5;" + b"a" * 100_000, b"0\r\n" + b"X: y\r\n" * 20_000):  # fmt: skip
            name, data = f"bad chunk {bad[:8]!r} to {path}", _chunked(_CHUNK + bad, path)
            yield name, data, wanted | {400, 408, 413, 431}
    for value, wanted in {"100-continue": {100, 200}, "200-ok": {200, 400, 417}, "": {200}}.items():
        yield f"expect {value!r}", _post(f"Expect: {value}\r\n"), wanted
    upgrade = "Upgrade: {}\r\nConnection: Upgrade\r\n"
    for kind in ("websocket", "h2c"):
        yield f"upgrade {kind}", _get(extra=upgrade.format(kind)), {200, 400}
    yield "large header", _get(extra=f"X: {'a' * 200_000}\r\n"), {400, 431, 0}
    yield "many headers", _get(extra="A: b\r\n" * 20_000), {400, 431, 0}
    yield "folded header", _get(extra="X: a\r\n b\r\n"), {200, 400}
    yield "bare line feeds", _get().replace(b"\r\n", b"\n"), {200, 400}
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)), {400, 0}
    yield "pipelined", post("/predict", _PHOTO) * 3 + _get() * 2, {200}
    yield "pipelined to nowhere", post("/nowhere", _PHOTO) * 2 + _get(), {404, 200}
    yield "garbage behind", post("/predict", _PHOTO) + b"GARBAGE\r\n\r\n", {200, 400}
    yield "garbage behind nowhere", post("/nowhere", _PHOTO) + b"\0\0\r\n\r\n", {404, 400}
    yield "cut body", _post()[:-50], {408}
    yield "cut head", _get()[:-2], {0}
    yield "nothing", b"", {0}


REQUESTS = {data: (name, wanted) for name, data, wanted in known_requests()}


def request_fuzzer(port: int) -> Fuzzer:
    """Attack the server at a port."""
    known = list(REQUESTS)

    def draw_request(number: int, draw: random.Random) -> tuple[str, bytes]:
        if number < len(known):
            return REQUESTS[known[number]][0], known[number]
        data = draw.choice([d for d in known if len(d) < 5_000 and b"\r\n\r\n" in d])
        head_end = data.find(b"\r\n\r\n") + 4
        return f"damaged {REQUESTS[data][0]}", damaged(data, draw, 0, head_end)

    def judge(data: bytes) -> tuple[str, str]:
        _, wanted = REQUESTS.get(data, ("", _ANY))
        try:
            codes = answers_to(port, data)
        except TimeoutError:
            return "hang", f"no end within {HANG_S:g} s"
        wrong = [code for code in codes if code not in wanted | {100}]
        fault = f"answered {codes}, wanted {sorted(wanted)}" if wrong else ""
        return str(codes[0]), fault

    return Fuzzer(draw_request, judge)


def answers_to(port: int, data: bytes) -> list[int]:
    """Send bytes, read to the end of the connection; the statuses of all answers, [0] of none."""
    received, end_s = b"", time.monotonic() + HANG_S
    with Client(port) as client:
        client.socket.settimeout(HANG_S)
        with contextlib.suppress(ConnectionError):  # closed while it was still sending
            client.send(data)
        with contextlib.suppress(ConnectionError):
            while block := client.socket.recv(65536):
                received += block
                if time.monotonic() > end_s:
                    raise TimeoutError
    heads = received.split(b"HTTP/1.1 ")[1:]
    return [int(head[:3]) for head in heads] or [0]


def torture_server(num_files: int, seed: int) -> Outcome:
    """Start a server with short patience, and send it odd requests."""
    with running(Limits(head_timeout_s=1, body_timeout_s=1, max_body_mb=0.5)) as server:
        return fuzz(Outcome("requests", "raw HTTP"), request_fuzzer(server.port), num_files, seed)


def torture_page(workshop: Workshop, num_files: int, seed: int) -> Outcome:
    """Send them to the page that `tools.serve` serves: it answers on, traces nothing, stays small.

    Its models, the demo's, are as they were afterwards.
    """
    _, stage1, _, stage2 = workshop.models
    models = [stage1, *sorted(stage2.rglob("*.pt"))]
    kept = [sha256_of_file(path) for path in models]
    flags = ["--max-body-mb", 0.5, "--head-timeout-s", 1, "--body-timeout-s", 1]
    with served(workshop.scratch("requests"), *workshop.models, *flags) as server:
        before = begin_peak(server.process.pid)
        fuzzer = request_fuzzer(server.port)
        outcome = fuzz(Outcome("requests", "raw HTTP"), fuzzer, num_files, seed)
        outcome.counts["peak_mb"] = taken = (peak_bytes(server.process.pid) - before) // 1_000_000
        outcome.counts["ceiling_mb"] = _CEILING_MB
        page = server.get("/")
        traced = server.log.read_text().count("Traceback")
    outcome.counts["traceback"] = traced
    if traced or taken > _CEILING_MB or b"<html" not in page:
        outcome.failures.append(f"{traced} tracebacks, {taken} MB, a page of {len(page)} bytes")
    if kept != [sha256_of_file(path) for path in models]:
        outcome.failures.append("a model was changed")
    return outcome
