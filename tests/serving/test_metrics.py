"""What can be seen of the server: headers, metrics and log lines."""

from __future__ import annotations

import re
import sys

import pytest

from petface.serving.requests import Limits
from tests.serving.made_server import form, photo, post, running

LIMITS = Limits(max_photos=3)
RED = photo()


@pytest.fixture(scope="module")
def server():
    with running(LIMITS) as made:
        yield made


@pytest.mark.parametrize("path", ["/", "/health", "/nowhere", "/model_card"])
def test_every_answer_is_safe_to_show(server, path):
    headers = server.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert re.fullmatch("[0-9a-f]{16}", headers["x-request-id"])
    assert headers["cache-control"] == ("no-cache" if path == "/" else "no-store")
    assert "server" not in headers


def test_the_metrics_count():
    with running(LIMITS) as server:
        server.send(post("/predict", form(RED)))
        server.send(post("/predict_animal", form(RED, b"", field="photos")))
        server.send(post("/predict", form(b"x")))
        server.get("/some/path/of/a/stranger")
        server.send(b"BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wanted = {
            ("requests_total", "route", "/predict", "status", "200"): 1,
            ("requests_total", "route", "/predict", "status", "400"): 1,
            ("requests_total", "route", "other", "status", "404"): 1,
            ("requests_total", "method", "other", "status", "405"): 1,
            ("photos_total", "status", "no_specialist"): 2,
            ("photos_total", "status", "unreadable"): 1,
            ("species_total", "species", "red"): 2,
            ("batch_photos_sum",): 4,
            ("queue_seconds_count",): 2,
            ("request_seconds_count", "route", "/predict"): 2,
        }
        for (name, *labels), value in wanted.items():
            pairs = zip(labels[::2], labels[1::2], strict=True)
            found = server.metric(f"petface_{name}", **dict(pairs))
            assert found == value, (name, labels)
        assert "stranger" not in server.get("/metrics").body.decode()
        if sys.platform == "linux":
            assert server.metric("process_resident_memory_bytes") > 10**7


def test_a_line_says_what_was_done_and_nothing_of_the_photo(lines, caplog):
    with running(LIMITS) as server:
        body = form(RED, RED, field="photos", name="grandmas-house.png")
        server.send(post("/predict_animal?topk=2", body))
        server.send(post("/predict?secret=word", form(b"private words"), extra="X-A: b\r\n"))
    first, second = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert first["duration_ms"] > first["queue_ms"] >= 0
    wanted = {"method": "POST", "route": "/predict_animal", "status": 200, "level": "INFO",
              "bytes_in": len(body), "num_photos": 2, "batch_size": 2}  # fmt: skip
    assert wanted.items() <= first.items()
    assert (second["status"], "batch_size" in second) == (400, False)
    for secret in ("grandma", "private", "secret", "127.0.0.1", "X-A"):
        assert secret not in caplog.text
