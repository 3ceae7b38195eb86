"""One connection: slow and endless heads, early answers, clients that do not read."""

from __future__ import annotations

import json
import time

import pytest

from petface.serving import protocol
from petface.serving.limits import Limits
from tests.serving.made_server import TYPE, form, photo, post, running, until

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
QUICK = Limits(head_timeout_s=0.3, body_timeout_s=0.3, max_body_mb=0.1, max_connections=40)


@pytest.fixture(scope="module")
def server():
    with running(QUICK) as made:
        yield made


def is_timeout(reply):
    assert reply.headers["connection"] == "close"
    return reply.code == 408 and reply.json()["status"] == "timeout"


@pytest.mark.parametrize(
    "start", [b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: lo", b"\r\n"]
)
def test_a_head_that_does_not_come_is_given_up(server, start):
    with server.client() as client:
        client.send(start)
        assert is_timeout(client.reply()) and client.is_closed()


@pytest.mark.parametrize("start", [b"GET /", b"\r\n"])
def test_the_second_head_is_waited_for_no_longer(server, start):
    with server.client() as client:
        assert client.ask(HEALTH).code == 200
        client.send(start)
        assert is_timeout(client.reply()) and client.is_closed()


def test_empty_lines_do_not_keep_a_connection(server):
    with server.client() as client:
        assert client.ask(HEALTH).code == 200
        for _ in range(100):  # 2 s, were it not closed before
            try:
                client.send(b"\r\n")
            except OSError:
                break
            client.socket.settimeout(0.02)
            try:
                assert client.socket.recv(1000).startswith((b"HTTP/1.1 408", b""))
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("still open")


@pytest.mark.parametrize("header", [b"X-Long: " + b"x" * 10**6, b"X: y\r\n" * 10**5])
def test_an_endless_head_is_refused(server, header):
    with server.client() as client:
        try:
            client.send(b"GET /health HTTP/1.1\r\n" + header)
            assert client.reply().code == 431
        except ConnectionError:  # closed while it was still sending
            pass
        assert client.is_closed()


def test_a_head_of_a_usual_size_is_not(server):
    cookies = b"Cookie: " + b"x" * 8000
    assert server.ask(HEALTH[:-2] + cookies + b"\r\n\r\n").code == 200


def test_what_is_no_http_is_told_so_in_json(server):
    with server.client() as client:
        reply = client.ask(b"nonsense\r\n\r\n")
        assert reply.code == 400 and set(reply.json()) == {"status", "message"}
        assert client.is_closed()


def test_a_slow_body_is_given_up(server):
    body = form(photo())
    with server.client() as client:
        client.send(post("/predict", body)[: -len(body) // 2])
        assert is_timeout(client.reply()) and client.is_closed()


def test_a_large_body_gets_its_answer_and_the_connection_goes_on(server):
    """Closed at once, the client would see a reset and not the answer."""
    with server.client() as client:
        reply = client.ask(post("/predict", b"x" * 150_000))
        assert (reply.code, reply.json()["status"]) == (413, "too_large")
        assert client.ask(HEALTH).code == 200


def test_a_chunked_body_is_counted(server):
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE}\r\n"
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    with server.client() as client:
        client.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 30)
        assert client.reply().code == 413


def test_a_body_without_end_is_cut_off(server):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
    with server.client() as client, pytest.raises(OSError):
        client.send(head)
        for _ in range(2000):
            client.send(b"x" * 65536)
        pytest.fail("took 130 MB")


def test_the_rest_of_an_unwanted_body_is_not_waited_for_for_ever(server, monkeypatch):
    monkeypatch.setattr(protocol, "_LINGER_S", 0.2)
    with server.client() as client:
        client.send(post("/nowhere", b"x" * 1000)[:-500])
        assert client.reply().code == 404
        with pytest.raises(OSError):
            for _ in range(400):  # a trickle, so that it is not merely taken for idle
                client.send(b"x")
                time.sleep(0.01)


def test_trailers_do_not_grow_for_ever(server):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    with server.client() as client, pytest.raises(OSError):
        client.send(head)
        for _ in range(2000):
            client.send(b"X: " + b"y" * 60_000 + b"\r\n")
        pytest.fail("took 120 MB")


def test_pipelined_requests_are_answered_in_turn(server):
    with server.client() as client:
        client.send(HEALTH + post("/predict", form(photo())) + HEALTH)
        first, second, third = client.reply(), client.reply(), client.reply()
        assert [first.code, second.code, third.code] == [200, 200, 200]
        assert json.loads(second.body)["species"]["label"] == "red"


def test_a_client_that_does_not_read_is_left(server, monkeypatch):
    monkeypatch.setattr(protocol, "_READ_S", 0.3)
    monkeypatch.setattr(protocol, "_MAX_PIPELINED", 10**9)
    with server.client() as client:

        def is_left():
            try:
                client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
            except ConnectionError:
                return True
            return False

        until(is_left)


def test_a_flood_of_requests_at_once_is_cut_off(server):
    body = form(photo())
    with server.client() as client:
        client.send((HEALTH + post("/predict", body)) * 500)
        assert client.all_there_is().count(b"HTTP/1.1 200") < 100
    assert server.get("/health").code == 200


def test_one_connection_too_many_is_refused_and_the_next_is_not():
    with running(Limits(max_connections=3)) as server:
        held = [server.client() for _ in range(3)]
        for client in held:
            assert client.ask(HEALTH).code == 200
        with server.client() as client:
            reply = client.reply()
            assert (reply.code, reply.headers["retry-after"]) == (503, "1")
            assert client.is_closed()
        held.pop().socket.close()

        def is_in():
            with server.client() as client:
                return client.ask(HEALTH).code == 200

        until(is_in)
        for client in held:
            client.socket.close()
