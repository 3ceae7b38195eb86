"""The application: every answer, every failure, what it drops and what it never keeps."""

from __future__ import annotations

import re
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from petface.serving.limits import Limits
from tests.conftest import bomb
from tests.serving.made_server import (
    PATIENCE_S,
    Client,
    FakeEngine,
    form,
    photo,
    post,
    running,
    until,
)

LIMITS = Limits(max_queue=4, max_batch=2, max_photos=3, max_body_mb=0.1, max_pixels=10_000)
RED, BLUE = photo((200, 20, 10)), photo((10, 20, 200))


@pytest.fixture(scope="module")
def server():
    with running(LIMITS) as made:
        yield made


@pytest.fixture
def engine(server):
    """The fake engine of the server, open and healthy again after the test."""
    yield server.engine
    server.engine.gate.set()
    server.engine.poison, server.engine.can_explain = None, True
    until(lambda: server.waiting() == 0)


def failed(reply, code, status):
    assert reply.code == code, reply.body
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["status"] == status
    return reply.json()["message"]


def hold(server):
    """Have the batcher hang in one photo; gives the connection that waits for it."""
    server.engine.gate.clear()
    num_asked = server.engine.num_asked
    client = server.client()
    client.send(post("/predict", form(RED)))
    until(lambda: server.engine.num_asked > num_asked)
    return client


# ---- Answers ----


def test_a_photo_is_answered_as_the_engine_does(server):
    reply = server.ask(post("/predict?topk=2", form(BLUE)))
    engine = FakeEngine()
    (wanted,) = engine.answer([engine.prepare(BLUE)], 2)
    wanted["species"]["topk"] = [list(pair) for pair in wanted["species"]["topk"]]
    assert reply.code == 200 and reply.json() == wanted
    assert len(wanted["species"]["topk"]) == 2


def test_each_of_a_batch_gets_as_many_classes_as_it_asked_for(server, engine):
    with hold(server), server.client() as one, server.client() as three:
        one.send(post("/predict?topk=1", form(RED)))
        three.send(post("/predict?topk=3", form(BLUE)))
        until(lambda: server.waiting() == 3)
        engine.batches.clear()
        engine.gate.set()
        answers = [one.reply().json(), three.reply().json()]
    assert [len(answer["species"]["topk"]) for answer in answers] == [1, 3]
    assert [answer["species"]["label"] for answer in answers] == ["red", "blue"]
    assert 2 in engine.batches


def test_photos_of_an_animal_keep_their_places(server):
    body = form(RED, b"no photo", BLUE, field="photos")
    answer = server.ask(post("/predict_animal", body)).json()
    assert [entry["status"] for entry in answer["photos"]] == [
        "no_specialist", "unreadable", "no_specialist"
    ]  # fmt: skip
    assert answer["photos"][2]["species"]["label"] == "blue"
    assert answer["animal"]["num_photos"] == 2


def test_an_answer_is_explained(server):
    reply = server.ask(post("/explain?head=species", form(RED)))
    assert (reply.code, reply.headers["content-type"]) == (200, "image/png")
    assert reply.body.startswith(b"\x89PNG")


def test_the_card_names_models_and_limits(server):
    card = server.get("/model_card").json()
    assert card["stage1"]["heads"]["species"] == ["red", "green", "blue"]
    assert card["limits"] == {"max_photos": 3, "max_body_mb": 0.1, "max_pixels": 10_000}


def test_the_page_is_there_and_nothing_beside_it(server):
    page = server.get("/")
    assert page.code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
    assert "unsafe" not in policy
    tag = page.headers["etag"]
    again = server.ask(
        f"GET / HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: {tag}\r\n\r\n".encode()
    )
    assert (again.code, again.body) == (304, b"")
    links = re.findall(r'(?:src|href)="([^"#:]+)"', page.body.decode())
    assert links
    for link in links:
        assert server.get(f"/{link}").code == 200, link
    for path in ("/../app.py", "/page/index.html", "/app.py", "/%2e%2e/app.py", "//etc/passwd"):
        failed(server.get(path), 404, "not_found")


@pytest.mark.parametrize("path", ["/", "/health", "/nowhere", "/model_card"])
def test_every_answer_is_safe_to_show(server, path):
    headers = server.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert re.fullmatch("[0-9a-f]{16}", headers["x-request-id"])
    assert headers["cache-control"] == ("no-cache" if path == "/" else "no-store")
    assert "server" not in headers


def test_pages_that_load_from_elsewhere_are_off(server):
    assert server.get("/docs").code == server.get("/redoc").code == 404


# ---- Failures ----


@pytest.mark.parametrize(
    "content, word", [(b"", "empty"), (b"<html>", "not a PNG"), (RED[:60], ""), (RED[:-20], "")]
)
def test_what_is_no_photo_is_unreadable(server, content, word):
    assert word in failed(server.ask(post("/predict", form(content))), 400, "unreadable")
    failed(server.ask(post("/explain", form(content))), 400, "unreadable")
    body = form(content, content, field="photos")
    failed(server.ask(post("/predict_animal", body)), 400, "unreadable")


@pytest.mark.parametrize("content", [bomb(), photo(side=101)])
def test_too_many_pixels_are_too_large(server, content):
    failed(server.ask(post("/predict", form(content))), 413, "too_large")
    answer = server.ask(post("/predict_animal", form(RED, content, field="photos"))).json()
    assert answer["photos"][1]["status"] == "too_large"


def test_a_form_that_is_cut_off_is_unreadable(server):
    failed(server.ask(post("/predict", form(RED)[:-8])), 400, "unreadable")


def test_too_many_photos_are_told_how_many_may_be(server):
    assert "one photo" in failed(server.ask(post("/predict", form(RED, RED))), 422, "invalid")
    body = form(*[RED] * 4, field="photos")
    assert "1 to 3" in failed(server.ask(post("/predict_animal", body)), 422, "invalid")


def test_another_type_or_field_is_told_so(server):
    failed(server.ask(post("/predict", RED, "image/png")), 415, "unsupported")
    failed(server.ask(post("/predict", b"{}", "application/json")), 415, "unsupported")
    assert "'photo'" in failed(
        server.ask(post("/predict", form(RED, field="photos"))), 422, "invalid"
    )


@pytest.mark.parametrize("topk", ["0", "-1", "11", "1e3", "99999999999999999999", "", "x", "nan"])
def test_a_wrong_topk_is_named(server, topk):
    for path in ("/predict", "/predict_animal"):
        message = failed(server.ask(post(f"{path}?topk={topk}", form(RED))), 422, "invalid")
        assert message.startswith("topk: ")


def test_what_cannot_be_explained_is_said(server, engine):
    assert "known" in failed(server.ask(post("/explain?head=tail", form(RED))), 404, "unknown")
    failed(server.ask(post(f"/explain?label={'x' * 201}", form(RED))), 422, "invalid")
    engine.can_explain = False
    failed(server.ask(post("/explain", form(RED))), 409, "not_explained")


def test_paths_and_methods_that_are_not_there(server):
    failed(server.get("/nowhere"), 404, "not_found")
    reply = server.get("/predict")
    failed(reply, 405, "refused")
    assert reply.headers["allow"] == "POST"


def test_a_fault_of_the_server_shows_nothing_of_it(server, engine):
    engine.poison = 200
    reply = server.ask(post("/predict", form(RED)))
    message = failed(reply, 500, "failed")
    assert "poison" not in message and "/" not in message
    until(lambda: [line for line in server.lines() if line.get("traceback")])
    lines = [line for line in server.lines() if line.get("traceback")]
    assert lines[-1]["request_id"] == reply.headers["x-request-id"]
    assert "RuntimeError: poison" in lines[-1]["traceback"]
    assert server.ask(post("/predict", form(BLUE))).code == 200


def test_poison_does_not_fail_its_neighbour(server, engine):
    with hold(server), server.client() as good, server.client() as bad:
        good.send(post("/predict", form(BLUE)))
        bad.send(post("/predict", form(RED)))
        until(lambda: server.waiting() == 3)
        engine.poison = 200
        engine.gate.set()
        assert (good.reply().code, bad.reply().code) == (200, 500)


# ---- Who may ask ----


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[", "127.0.0.2"])
def test_a_name_that_is_not_its_own_is_refused(server, host):
    failed(server.ask(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()), 400, "refused")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.0.0.1"])
def test_its_own_names_are_not(server, host):
    assert server.ask(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "http://["]
)
def test_pages_of_other_sites_may_not_ask(server, origin):
    reply = server.ask(post("/predict", form(RED), extra=f"Origin: {origin}\r\n"))
    failed(reply, 403, "refused")
    assert "access-control-allow-origin" not in reply.headers


def test_its_own_page_may(server):
    assert server.ask(post("/predict", form(RED), extra="Origin: http://localhost\r\n")).code == 200


# ---- Load ----


def test_beyond_the_queue_it_is_busy_and_healthy(server, engine):
    with hold(server):
        waiting = [server.client() for _ in range(3)]
        for client in waiting:
            client.send(post("/predict", form(BLUE)))
        until(lambda: server.waiting() == 4)
        reply = server.ask(post("/predict", form(BLUE)))
        failed(reply, 503, "busy")
        assert int(reply.headers["retry-after"]) >= 1
        assert server.get("/health").json()["status"] == "ok"
        engine.gate.set()
        for client in waiting:
            assert client.reply().json()["species"]["label"] == "blue"
            client.socket.close()


@pytest.mark.usefixtures("engine")
def test_an_animal_needs_a_place_for_each_photo(server):
    with hold(server), server.client() as client:
        client.send(post("/predict", form(RED)))
        until(lambda: server.waiting() == 2)
        failed(server.ask(post("/predict_animal", form(*[RED] * 3, field="photos"))), 503, "busy")
        assert server.waiting() == 2


def test_what_a_client_that_goes_asked_for_is_dropped(server, engine):
    with hold(server):
        engine.batches.clear()
        gone = server.client()
        gone.send(post("/predict", form(BLUE)))
        until(lambda: server.waiting() == 2)
        gone.socket.close()
        until(lambda: server.waiting() == 1)
        engine.gate.set()
        until(lambda: server.waiting() == 0)
    assert server.ask(post("/predict", form(RED))).code == 200
    assert engine.batches == [1, 1]  # what was running, and the last one
    until(lambda: any(line["status"] == 499 for line in server.lines()))


def test_a_client_that_goes_while_it_sends_leaves_nothing(server):
    client = server.client()
    client.send(post("/predict", form(RED))[:-40])
    client.socket.close()
    until(lambda: figure(server, "petface_upload_bytes") == 0 and server.waiting() == 0)


def test_an_answer_that_takes_too_long_is_given_up():
    with running(Limits(answer_timeout_s=0.2, max_queue=4)) as server:
        server.engine.gate.clear()
        failed(server.ask(post("/predict", form(RED))), 503, "busy")
        server.engine.gate.set()
        until(lambda: server.ask(post("/predict", form(RED))).code == 200)


def test_all_bodies_together_have_a_limit():
    with running(Limits(max_body_mb=0.1, max_uploads_mb=0.1)) as server, server.client() as first:
        body = form(RED + b"x" * 70_000)
        first.send(post("/predict", body)[:-100])
        until(lambda: figure(server, "petface_upload_bytes") > 60_000)
        failed(server.ask(post("/predict", body)), 503, "busy")
        first.send(body[-100:])
        assert first.reply().code == 200


def test_two_hundred_at_once_are_answered_or_told_to_come_again(server):
    with ThreadPoolExecutor(40) as pool:
        codes = list(pool.map(lambda _: server.ask(post("/predict", form(RED))).code, range(200)))
        assert set(codes) <= {200, 503} and 200 in codes
    until(lambda: server.waiting() == 0)


def test_asked_to_stop_it_answers_what_it_has_taken_in():
    with running(LIMITS) as server:
        client = hold(server)
    # leaving opens the gate and stops the server
    assert client.reply().json()["species"]["label"] == "red"
    with pytest.raises(OSError):
        Client(server.port)


# ---- What can be seen, and what not ----


def figure(server, name, **labels):
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


def test_the_figures_count():
    with running(LIMITS) as server:
        server.ask(post("/predict", form(RED)))
        server.ask(post("/predict_animal", form(RED, b"", field="photos")))
        server.ask(post("/predict", form(b"x")))
        server.get("/some/path/of/a/stranger")
        server.ask(b"BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert figure(server, "petface_requests_total", route="/predict", status="200") == 1
        assert figure(server, "petface_requests_total", route="/predict", status="400") == 1
        assert figure(server, "petface_requests_total", route="other", status="404") == 1
        assert figure(server, "petface_photos_total", status="no_specialist") == 2
        assert figure(server, "petface_photos_total", status="unreadable") == 1
        assert figure(server, "petface_species_total", species="red") == 2
        assert figure(server, "petface_batch_photos_sum") == 3
        assert figure(server, "petface_request_seconds_count", route="/predict") == 2
        assert "stranger" not in server.get("/metrics").body.decode()
        if sys.platform == "linux":
            assert figure(server, "process_resident_memory_bytes") > 10**7


def test_a_line_says_what_was_done_and_nothing_of_the_photo():
    with running(LIMITS) as server:
        body = form(RED, RED, field="photos", name="grandmas-house.png")
        server.ask(post("/predict_animal?topk=2", body))
        server.ask(
            post("/predict?secret=of-the-client", form(b"private words"), extra="X-A: b\r\n")
        )
    first, second = server.lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert first["duration_ms"] > 0 and first["queue_ms"] >= 0
    wanted = {"method": "POST", "route": "/predict_animal", "status": 200, "level": "INFO",
              "bytes_in": len(body), "num_photos": 2, "batch_size": 2}  # fmt: skip
    assert wanted.items() <= first.items()
    assert (second["status"], "batch_size" in second) == (400, False)
    for secret in ("grandma", "private", "secret", "127.0.0.1", "X-A"):
        assert secret not in server.stream.getvalue()


def test_nothing_is_written_to_disk(server, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", refuse)
    monkeypatch.setattr(tempfile, "_mkstemp_inner", refuse)
    large = photo(side=100) + b"x" * 80_000  # more than forms are usually kept in memory for
    assert server.ask(post("/predict", form(large))).code == 200


def test_a_continue_is_sent_only_for_what_is_taken(server):
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    head += "Content-Type: multipart/form-data; boundary=B\r\nContent-Length: "
    with server.client() as client:
        client.send(f"{head}999999\r\n\r\n".encode())
        assert client.reply().code == 413
    body = form(RED)
    with server.client() as client:
        client.send(f"{head}{len(body)}\r\n\r\n".encode())
        assert client.reply().code == 100
        client.send(body)
        assert client.reply().code == 200


def test_the_thread_that_is_gone_makes_it_unhealthy():
    with running(LIMITS) as server:
        assert server.get("/health").code == 200
        server.intake.batcher.close(PATIENCE_S)
        reply = server.get("/health")
        assert (reply.code, reply.json()["status"]) == (503, "failed")
        failed(server.ask(post("/predict", form(RED))), 503, "busy")


def test_a_socket_that_is_reset_harms_nobody(server):
    for _ in range(20):
        client = server.client()
        linger = b"\1\0\0\0\0\0\0\0"  # close with a reset
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.send(post("/predict", form(RED)))
        client.socket.close()
    until(lambda: server.waiting() == 0)
    assert server.ask(post("/predict", form(RED))).code == 200
