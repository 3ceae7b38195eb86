"""What can be seen of the server: headers, metrics and log lines."""

from __future__ import annotations

import re

import pytest

from petface.serving.requests import Limits
from tests.serving.made_server import form, photo, post, running, until

RED = photo()


@pytest.fixture
def server():
    with running(Limits(max_photos=3)) as made:
        yield made


def test_every_answer_is_safe_to_show(server):
    for path in ("/", "/health", "/nowhere", "/model_card"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-cache"
        assert "server" not in headers


def test_the_metrics_count(server):
    server.send(post("/predict", form(RED)))
    server.send(post("/predict_animal", form(RED, b"", field="photos")))
    server.send(post("/predict", form(b"x")))
    server.get("/some/path/of/a/stranger")
    wanted = {
        ("requests_total", "route", "/predict", "status", "200"): 1,
        ("requests_total", "route", "/predict", "status", "400"): 1,
        ("requests_total", "route", "other", "status", "404"): 1,
        ("photos_total", "status", "no_specialist"): 2,
        ("photos_total", "status", "unreadable"): 1,
        ("batch_photos_sum",): 2,
        ("request_seconds_count", "route", "/predict"): 2,
    }
    for (name, *labels), value in wanted.items():
        pairs = zip(labels[::2], labels[1::2], strict=True)
        assert server.metric(f"petface_{name}", **dict(pairs)) == value, (name, labels)
    assert "stranger" not in server.get("/metrics").body.decode()


def test_a_line_says_what_was_done_and_nothing_of_the_photo(server, caplog):
    caplog.set_level("INFO", "petface.serving")
    body = form(RED, RED, field="photos", name="grandmas-house.png")
    server.send(post("/predict_animal?topk=2", body))
    server.send(post("/predict?secret=word", form(b"private words"), extra="X-A: b\r\n"))
    until(lambda: len(caplog.messages) == 2)
    first, second = caplog.messages
    assert re.fullmatch(rf"/predict_animal 200 {len(body)} bytes \d+\.\d ms", first)
    assert second.startswith("/predict 400 ")
    for secret in ("grandma", "private", "secret", "127.0.0.1", "X-A"):
        assert secret not in caplog.text
