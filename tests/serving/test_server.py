"""Connections: slow, endless and odd heads, slow and endless bodies, too many at once."""

from __future__ import annotations

import socket

import pytest

from petface.serving.requests import Limits
from petface.serving.server import bind
from tests.serving.made_server import TYPE, form, photo, post, running, until
from tests.torture.fuzz import table
from tests.torture.requests import REQUESTS, torture_server

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIMITS = Limits(head_timeout_s=0.3, body_timeout_s=0.5, max_body_mb=0.1, max_connections=40)


@pytest.fixture(scope="module")
def server():
    with running(LIMITS) as made:
        yield made


@pytest.mark.parametrize("start", [b"", b"GET /health HTT", b"GET / HTTP/1.1\r\nHost: lo", b"\r\n"])
@pytest.mark.parametrize("before", [b"", HEALTH])
def test_a_head_that_does_not_come_is_given_up(server, before, start):
    with server.client() as client:
        if before:
            assert client.ask(before).code == 200
        client.send(start)
        assert client.is_closed()


@pytest.mark.parametrize("header", [b"X-Long: " + b"x" * 10**6, b"X: y\r\n" * 10**5])
def test_an_endless_head_is_refused(server, header):
    with server.client() as client:
        try:
            client.send(b"GET /health HTTP/1.1\r\n" + header)
            assert client.reply().code == 400
        except OSError:  # closed while it was still sending
            return
        assert client.is_closed()


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        HEALTH[:-2] + b"Host: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so(server, head):
    with server.client() as client:
        client.send(head)
        assert client.socket.recv(100).startswith(b"HTTP/1.1 400")


def test_a_slow_body_is_given_up_and_its_connection_closed(server):
    with server.client() as client:
        client.send(post("/predict", form(photo()))[:-40])
        reply = client.reply()
        assert (reply.code, reply.json()["status"]) == (408, "timeout")
        assert client.is_closed()


def test_a_large_body_gets_its_answer_and_the_connection_goes_on(server):
    """Closed at once, the client would see a reset and not the answer."""
    with server.client() as client:
        reply = client.ask(post("/predict", b"x" * 150_000))
        assert (reply.code, reply.json()["status"]) == (413, "too_large")
        assert client.ask(HEALTH).code == 200


def test_a_chunked_body_is_counted_and_cut_off(server):
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE}\r\n".encode()
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    with server.client() as client:
        client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 30)
        assert client.reply().code == 413

        def is_closed():
            try:
                client.send(chunk * 100)
            except OSError:
                return True
            return False

        until(is_closed)


def test_pipelined_requests_are_answered_in_turn(server):
    with server.client() as client:
        client.send(HEALTH + post("/predict", form(photo())) + HEALTH)
        codes = [client.reply().code for _ in range(3)]
    assert codes == [200, 200, 200]


def test_connections_beyond_the_limit_are_refused_and_later_ones_are_not():
    with running(Limits(max_connections=3)) as server:
        held = [server.client() for _ in range(3)]
        until(lambda: held[0].ask(HEALTH).code == 503)  # once all three are taken in
        for client in held:
            client.socket.close()
        until(lambda: server.get("/health").code == 200)


def test_an_answer_does_not_wait_for_the_client_to_confirm_its_head():
    with (
        bind("127.0.0.1", 0) as taken,
        socket.create_connection(taken.getsockname()),
        taken.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.slow
def test_odd_requests_are_answered_as_they_should_be(caplog):
    """All that are drawn up by hand, and some at random: no hang, no 500, no traceback."""
    outcome = torture_server(len(REQUESTS) + 30, 0)
    assert outcome.failures == [], table([outcome])
    assert caplog.text == ""
