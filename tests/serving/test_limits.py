"""Bodies and forms: what is too large, too slow, cut off or not a form."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from petface.serving.limits import ClientGoneError, Limits, RefusedError, Uploads, read_body
from petface.serving.multipart import check_type, photos_in
from tests.serving.made_server import PATIENCE_S, form

LIMITS = Limits(max_body_mb=0.0001, body_timeout_s=PATIENCE_S)  # 100 bytes
NEVER = object()


def read(chunks, headers=(), limits=LIMITS, most=10**9):
    """Read a body that comes in these chunks; None: the client goes; NEVER: nothing comes."""
    messages = iter(chunks)
    uploads = Uploads(most)

    async def receive():
        chunk = next(messages)
        if chunk is NEVER:
            await asyncio.Event().wait()
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def run():
        scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in headers]}
        with uploads.hold() as held:
            return bytes(await read_body(Request(scope, receive), limits, held)), uploads.num_bytes

    try:
        return asyncio.run(run())
    finally:
        assert uploads.num_bytes == 0


def refused(code, call, *arguments, **named):
    with pytest.raises(RefusedError) as caught:
        call(*arguments, **named)
    assert caught.value.code == code
    return caught.value


def test_a_body_is_read_whole_and_its_bytes_are_held_meanwhile():
    async def run():
        chunks = [b"ab", b"", b"c"]

        async def receive():
            chunk = chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

        uploads = Uploads(100)
        with uploads.hold() as held:
            body = await read_body(Request({"type": "http", "headers": []}, receive), LIMITS, held)
            assert (bytes(body), uploads.num_bytes) == (b"abc", 3)
            held.release()
            assert uploads.num_bytes == 0
        assert uploads.num_bytes == 0

    asyncio.run(run())


def test_too_large_is_said_by_the_header_before_anything_is_read():
    def chunks():
        raise AssertionError("read")
        yield

    refused(413, read, chunks(), [("content-length", "101")])


def test_too_large_is_found_by_counting():
    read_chunks = []

    def chunks():
        for _ in range(1000):
            read_chunks.append(1)
            yield b"x" * 10

    refused(413, read, chunks())
    assert len(read_chunks) == 11


def test_a_slow_body_is_given_up_and_its_connection_closed():
    error = refused(408, read, [b"x", NEVER], limits=Limits(body_timeout_s=0.01))
    assert error.headers == {"connection": "close"}


def test_a_trickle_does_not_buy_time():
    async def run():
        async def receive():
            await asyncio.sleep(0.005)
            return {"type": "http.request", "body": b"x", "more_body": True}

        with Uploads(10**6).hold() as held:
            request = Request({"type": "http", "headers": []}, receive)
            await read_body(request, Limits(body_timeout_s=0.05), held)

    refused(408, lambda: asyncio.run(run()))


def test_a_client_that_goes_is_no_body():
    with pytest.raises(ClientGoneError):
        read([b"x", None])


def test_all_clients_together_may_hold_so_much():
    assert refused(503, read, [b"x" * 60, b"x" * 30], most=80).headers == {"retry-after": "1"}


@pytest.mark.parametrize(
    "kind", ["", "image/png", "application/json", "multipart/mixed", ";;", "x"]
)
def test_another_type_is_said(kind):
    refused(415, check_type, kind, "")


def test_a_compressed_body_is_not_taken():
    refused(415, check_type, "multipart/form-data; boundary=B", "gzip")
    assert check_type("Multipart/Form-Data; boundary=B", "identity") == b"B"
    refused(400, check_type, "multipart/form-data", "")


def test_photos_come_in_their_order_whatever_they_are_called():
    body = form(b"one", b"", b"--B two\r\n--", field="photos", name="../../etc/passwd")
    assert photos_in(body, b"B", "photos", 3) == [b"one", b"", b"--B two\r\n--"]
    plain = b'--B\r\ncontent-disposition: form-data; name="photo"\r\n\r\nx\r\n--B--'
    assert photos_in(plain, b"B", "photo", 1) == [b"x"]  # without a file name


def test_one_too_many_is_refused_before_it_is_read():
    body = form(b"1", b"2", field="photos")[:-5] + b"garbage"
    assert "one photo as" in str(refused(422, photos_in, body, b"B", "photos", 1))
    assert "1 to 2 photos" in str(refused(422, photos_in, form(*[b""] * 3), b"B", "photo", 2))


@pytest.mark.parametrize("field", ["photos", "", "foto", "photo[]"])
def test_another_field_is_told_the_right_one(field):
    assert "'photo'" in str(refused(422, photos_in, form(b"x", field=field), b"B", "photo", 1))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"--C\r\n\r\nx\r\n--C--\r\n",
        form(b"x" * 50)[:-6],
        form(b"x" * 50)[:60],
        b"--B\r\n" + b"a: b\r\n" * 100 + b"\r\nx\r\n--B--\r\n",
        b"--B\r\na: " + b"b" * 100_000 + b"\r\n\r\nx\r\n--B--\r\n",
        b"--B\r\nno colon\r\n\r\nx\r\n--B--\r\n",
    ],
)
def test_what_is_no_whole_form_is_unreadable(body):
    assert refused(400, photos_in, body, b"B", "photo", 1).status == "unreadable"


def test_a_form_without_parts_is_told_what_to_send():
    refused(422, photos_in, b"--B--\r\n", b"B", "photo", 1)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.sampled_from([b"--B", b"\r\n", b"--", b":", b'name="photo"', b"\0", b"x", b"="])),
    st.binary(max_size=30),
)
def test_whatever_comes_it_is_photos_or_a_refusal(pieces, noise):
    body = b"".join(pieces) + noise
    try:
        assert len(photos_in(body, b"B", "photo", 2)) in (1, 2)
    except RefusedError as error:
        assert error.code in (400, 422)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=4))
def test_any_bytes_come_through(contents):
    if not any(b"\r\n--B" in b"\r\n" + content for content in contents):
        assert photos_in(form(*contents), b"B", "photo", 4) == contents
