"""The application: every answer, every failure, what it drops and what it never keeps."""

from __future__ import annotations

import io
import re
import tempfile
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from petface.data.encoded import has_heic
from petface.serving.requests import Limits
from tests.conftest import bomb
from tests.serving.made_server import EMBEDDER, HEIC, form, photo, post, running, until

LIMITS = Limits(max_queue=4, max_batch=2, max_photos=3, max_body_mb=0.1, max_pixels=10_000)
RED, BLUE = photo((200, 20, 10)), photo((10, 20, 200))
EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def server():
    with running(LIMITS, embedder=EMBEDDER) as made:
        yield made


@pytest.fixture
def fresh():
    """A server of its own, which has counted nothing."""
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
    """Let the batcher hang in one photo; return the connection that waits for it."""
    server.engine.gate.clear()
    num_batches = server.engine.num_batches
    client = server.client()
    client.send(post("/predict", form(RED)))
    until(lambda: server.engine.num_batches > num_batches)
    return client


# ---- Answers ----


def test_each_of_a_batch_gets_as_many_classes_as_it_wants(server, engine):
    num_prepared = engine.num_prepared
    with hold(server), server.client() as one, server.client() as three:
        one.send(post("/predict?topk=1", form(RED)))
        until(lambda: server.waiting() == 2)
        three.send(post("/predict?topk=3", form(BLUE)))
        until(lambda: engine.num_prepared == num_prepared + 3 and server.waiting() == 3)
        engine.batches.clear()
        engine.gate.set()
        answers = [one.reply().json(), three.reply().json()]
    assert [len(answer["species"]["topk"]) for answer in answers] == [1, 3]
    assert [answer["species"]["label"] for answer in answers] == ["red", "blue"]
    assert 2 in engine.batches


@pytest.mark.parametrize("path, field", [("/predict", "photo"), ("/predict_animal", "photos")])
@pytest.mark.parametrize("named", [b'; filename=""', b"", b"; x=y"], ids=["empty", "none", "other"])
def test_photos_need_no_file_name(server, path, field, named):
    body = form(RED, field=field).replace(b'; filename="kept-secret.png"', named)
    answer = server.send(post(path, body)).json()
    assert answer.get("animal", answer)["species"]["label"] == "red"


def test_photos_of_phones_are_read_or_named(server):
    stream = io.BytesIO()
    Image.new("RGB", (12, 12), (200, 20, 10)).save(stream, "AVIF")
    answer = server.send(post("/predict", form(stream.getvalue()))).json()
    assert answer["species"]["label"] == "red"
    if not has_heic():
        message = failed(server.send(post("/predict", form(HEIC))), 400, "unreadable")
        assert "a HEIC photo; to read it: python -m pip install" in message


def test_photos_of_an_animal_keep_their_places(server):
    body = form(RED, b"no photo", BLUE, field="photos")
    answer = server.send(post("/predict_animal", body)).json()
    found = [entry["status"] for entry in answer["photos"]]
    assert found == ["no_specialist", "unreadable", "no_specialist"]
    assert answer["photos"][2]["species"]["label"] == "blue"
    assert answer["animal"]["num_photos"] == 2


def test_embeddings_keep_their_places(server, fresh):
    body = post("/embed", form(RED, b"no photo", photo((0, 30, 40)), field="photos"))
    answer = server.send(body).json()
    red, broken, blue = answer.pop("photos")
    matching = {"threshold": 0.9, "false_match_rate": 0.01}
    assert answer == {"size": 3, **matching}
    assert blue == {"status": "ok", "embedding": pytest.approx([0, 0.6, 0.8])}
    assert red["embedding"] == pytest.approx([0.9938, 0.0994, 0.0497], abs=1e-4)
    assert set(broken) == {"status", "message"} and broken["status"] == "unreadable"
    assert server.get("/model_card").json()["identity"] == {"sha256": "ab" * 32, **matching}
    assert "IDENTITY_CHECKPOINT" in failed(fresh.send(body), 409, "no_gallery")
    assert fresh.get("/model_card").json()["identity"] is None


def test_the_card_names_models_and_limits(server):
    card = server.get("/model_card").json()
    assert card["stage1"]["heads"]["species"] == ["red", "green", "blue"]
    assert "AVIF" in card["formats"]
    assert card["limits"] == {"max_photos": 3, "max_body_mb": 0.1, "max_pixels": 10_000}


def test_the_page_is_there_and_nothing_beside_it(server):
    page = server.get("/")
    assert page.code == 200 and page.headers["content-type"].startswith("text/html")
    assert "unsafe" not in page.headers["content-security-policy"]
    links = re.findall(r'(?:src|href)="([^"#:]+)"', page.body.decode())
    assert links and all(server.get(f"/{link}").code == 200 for link in links)
    for path in ("/../app.py", "/page/../app.py", "/page/%2e%2e/app.py", "//etc/passwd", "/docs"):
        failed(server.get(path), 404, "not_found")


# ---- Failures ----

WITHOUT_END = form(RED)[:-8]
MANY_HEADERS = b"--B\r\n" + b"a: b\r\n" * 1000 + b"\r\nx\r\n--B--\r\n"


@pytest.mark.parametrize(
    "path, body, code, status",
    [
        ("/predict", form(b""), 400, "unreadable"),
        ("/predict", form(b"<html>"), 400, "unreadable"),
        ("/explain", form(RED[:60]), 400, "unreadable"),
        ("/predict_animal", form(b"x", RED[:-20], field="photos"), 400, "unreadable"),
        ("/predict", b"", 400, "unreadable"),
        ("/predict", b"garbage", 400, "unreadable"),
        ("/predict", WITHOUT_END, 400, "unreadable"),
        ("/predict", MANY_HEADERS, 400, "unreadable"),
        ("/predict", form(bomb()), 413, "too_large"),
        ("/predict", form(photo(side=101)), 413, "too_large"),
        ("/predict", form(b"x" * 100_000), 413, "too_large"),
        ("/predict", b"--B--\r\n", 422, "invalid"),
        ("/predict", form(RED, RED), 422, "invalid"),
        ("/predict", form(RED, field="photos"), 422, "invalid"),
        ("/predict", form(RED).replace(b"name=", b"x="), 400, "unreadable"),
        ("/predict", form(RED).replace(b'name="photo"', b'name="words"'), 422, "invalid"),
        ("/predict?topk=0", form(RED), 422, "invalid"),
        ("/predict?topk=11", form(RED), 422, "invalid"),
        ("/predict_animal?topk=nan", form(RED, field="photos"), 422, "invalid"),
        ("/predict_animal", form(*[RED] * 4, field="photos"), 422, "invalid"),
        ("/embed", form(b"x", field="photos"), 400, "unreadable"),
        ("/embed", form(photo(side=101), field="photos"), 413, "too_large"),
        ("/embed", form(*[RED] * 4, field="photos"), 422, "invalid"),
        ("/embed", form(photo((0, 0, 0)), field="photos"), 409, "non_finite"),
        ("/explain?head=tail", form(RED), 404, "unknown"),
        (f"/explain?label={'x' * 201}", form(RED), 422, "invalid"),
        ("/nowhere", form(RED), 404, "not_found"),
        ("/health", form(RED), 405, "refused"),
    ],
)
def test_a_failure_has_its_own_answer(server, path, body, code, status):
    assert failed(server.send(post(path, body)), code, status)
    assert server.metric("petface_upload_bytes") == server.waiting() == 0


@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/mixed", ";;", ""])
def test_a_body_that_is_no_form_is_not_taken(server, kind):
    failed(server.send(post("/predict", form(RED), kind)), 415, "unsupported")
    gzip = post("/predict", form(RED), extra="Content-Encoding: gzip\r\n")
    failed(server.send(gzip), 415, "unsupported")


def test_exported_models_are_not_explained(server, engine):
    engine.can_explain = False
    failed(server.send(post("/explain", form(RED))), 409, "not_explained")


def test_a_fault_of_the_server_fails_one_client_and_shows_nothing_of_it(server, engine, caplog):
    with hold(server), server.client() as good, server.client() as bad:
        good.send(post("/predict", form(BLUE)))
        bad.send(post("/predict", form(RED)))
        until(lambda: server.waiting() == 3)
        engine.poison = 200
        engine.gate.set()
        assert good.reply().code == 200
        reply = bad.reply()
    message = failed(reply, 500, "failed")
    assert "poison" not in message and "/" not in message
    until(lambda: "RuntimeError: poison" in caplog.text)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.sampled_from([b"--B", b"\r\n", b"--", b":", b'name="photo"', b"\0", b"x", b"="])),
    st.binary(max_size=30),
)
def test_whatever_comes_it_is_refused(server, pieces, noise):
    reply = server.send(post("/predict", b"".join(pieces) + noise))
    assert reply.code in (400, 422)


# ---- Who may use it ----


@pytest.mark.parametrize(
    "host, code",
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:1", 200), ("evil.example", 400),
        ("localhost.evil.example", 400), ("", 400), ("[", 400), ("127.0.0.2", 400),
    ],
)  # fmt: skip
def test_it_answers_to_its_own_names_alone(server, host, code):
    reply = server.send(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert reply.code == code


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:1", "http://[", ""])
def test_pages_of_other_sites_may_not_use_it(server, origin):
    reply = server.send(post("/predict", form(RED), extra=f"Origin: {origin}\r\n"))
    failed(reply, 403, "refused")
    assert "access-control-allow-origin" not in reply.headers
    own = post("/predict", form(RED), extra="Origin: http://localhost\r\n")
    assert server.send(own).code == 200


# ---- Load ----


def test_beyond_the_queue_it_is_busy_and_healthy(server, engine):
    with hold(server), server.client() as second:
        second.send(post("/predict", form(BLUE)))
        until(lambda: server.waiting() == 2)
        animal = post("/predict_animal", form(*[RED] * 3, field="photos"))
        failed(server.send(animal), 503, "busy")  # needs a place for each photo
        with server.client() as third, server.client() as fourth:
            for client in (third, fourth):
                client.send(post("/predict", form(BLUE)))
            until(lambda: server.waiting() == 4)
            with server.client() as fifth:
                fifth.send(post("/predict", form(BLUE))[:200])  # said before the body is read
                reply = fifth.reply()
            failed(reply, 503, "busy")
            assert int(reply.headers["retry-after"]) >= 1
            assert server.get("/health").json()["status"] == "ok"
            engine.gate.set()
            for client in (second, third, fourth):
                assert client.reply().json()["species"]["label"] == "blue"


def test_what_a_client_that_goes_wanted_is_dropped(server, engine, caplog):
    caplog.set_level("INFO", "petface.serving")
    with hold(server):
        engine.batches.clear()
        with server.client() as gone:
            gone.send(post("/predict", form(BLUE)))
            until(lambda: server.waiting() == 2)
        until(lambda: server.waiting() == 1)
        with server.client() as gone:
            gone.send(post("/predict", form(BLUE))[:-40])
        engine.gate.set()
        until(lambda: server.waiting() == 0)
    assert server.send(post("/predict", form(RED))).code == 200
    assert engine.batches == [1, 1]  # what was running, and the last one
    until(lambda: caplog.text.count("/predict 499") >= 2)
    assert server.metric("petface_upload_bytes") == 0


def test_an_answer_that_takes_too_long_is_given_up():
    with running(Limits(answer_timeout_s=0.2)) as server:
        server.engine.gate.clear()
        failed(server.send(post("/predict", form(RED))), 503, "busy")
        server.engine.gate.set()
        until(lambda: server.send(post("/predict", form(RED))).code == 200)


def test_all_bodies_together_have_a_limit():
    with running(Limits(max_body_mb=0.1, max_uploads_mb=0.1)) as server, server.client() as first:
        body = post("/predict", form(RED + b"x" * 70_000))
        first.send(body[:-100])
        until(lambda: server.metric("petface_upload_bytes") > 60_000)
        failed(server.send(body), 503, "busy")
        first.send(body[-100:])
        assert first.reply().code == 200


# ---- What is kept, and what not ----


def test_its_threads_end_with_it():
    before = threading.active_count()
    with running(LIMITS) as server:
        assert server.send(post("/predict", form(RED))).code == 200
    until(lambda: threading.active_count() <= before)


def test_nothing_is_written_to_disk(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile, "_mkstemp_inner", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    large = photo(side=100) + b"x" * 3_000_000  # more than forms are usually kept in memory for
    with running(Limits()) as server:
        nameless = form(large).replace(b'; filename="kept-secret.png"', b"")
        for body in (form(large), nameless):
            assert server.send(post("/predict", body)).code == 200
        body = post("/predict_animal", form(large, large, field="photos"))
        assert server.send(body).code == 200


# ---- The description ----


def test_the_description_names_every_route(server):
    described = server.get("/openapi.json").json()
    posts = {"/predict", "/predict_animal", "/embed", "/explain"}
    assert set(described["paths"]) == posts | {"/health", "/model_card", "/metrics"}
    for path in posts:
        operation = described["paths"][path]["post"]
        fields = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert fields["required"] == list(fields["properties"])
        photo = fields["properties"][
            fields["required"][0]
        ]  # a file, for those who generate clients
        assert photo.get("items", photo) == {"type": "string", "format": "binary"}


# ---- What can be seen of it ----


def test_every_answer_is_safe_to_show(server):
    for path in ("/", "/health", "/nowhere", "/model_card"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-cache"
        assert "server" not in headers


def test_the_metrics_count(fresh):
    fresh.send(post("/predict", form(RED)))
    fresh.send(post("/predict_animal", form(RED, b"", field="photos")))
    fresh.send(post("/predict", form(b"x")))
    fresh.get("/some/path/of/a/stranger")
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
        assert fresh.metric(f"petface_{name}", **dict(pairs)) == value, (name, labels)
    assert "stranger" not in fresh.get("/metrics").body.decode()


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
