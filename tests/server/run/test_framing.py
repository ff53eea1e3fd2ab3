"""What the server rejects beside what h11 rejects: bytes in, events out."""

from __future__ import annotations

import time

import h11
import pytest

from cromicle_sdk.server.run.framing import MAX_SMALL_CHUNKS, Rejection, StrictConnection

HEAD = b"POST /chat HTTP/1.1\r\nhost: localhost\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def receive(*parts: bytes) -> list[object]:
    """The events of a request that arrives in these parts."""
    connection = StrictConnection(16384)
    events: list[object] = []
    for part in parts:
        connection.receive_data(part)
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            events.append(event)
    return events


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
        (b"POST /chat HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"GET /health HTTP/1.9\r\nhost: localhost\r\n\r\n", 505),
        (b"GET /health HTTP/2.0\r\nhost: localhost\r\n\r\n", 505),
        (b"GET /health HTTP/0.9\r\n\r\n", 505),
        (HEAD + b"x-a: 1\r\n 2\r\n\r\n", 400),
        (HEAD + b"x-a: 1\n\t2\n\n", 400),
        (HEAD + b"x-a: 1\r\n \r\n", 400),
        (HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n", 400),
    ],
)
@pytest.mark.parametrize("is_split", [False, True])
def test_a_message_with_two_meanings_is_rejected(
    request_head: bytes, status: int, is_split: bool
) -> None:
    parts = [bytes([each]) for each in request_head] if is_split else [request_head]
    with pytest.raises(Rejection) as caught:
        receive(*parts)
    assert caught.value.status == caught.value.error_status_hint == status


@pytest.mark.parametrize(
    "request_head",
    [
        HEAD + b"content-length: 4\r\n\r\n\n a\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        HEAD + b"x-a: 1  2\r\n\r\n",
        CHUNKED + b"3\r\n\n b\r\n0\r\n\r\n",
    ],
)
def test_other_messages_are_accepted(request_head: bytes) -> None:
    events = receive(request_head)
    assert isinstance(events[0], h11.Request)
    assert isinstance(events[-1], h11.EndOfMessage)


def test_a_rejected_connection_stays_rejected() -> None:
    connection = StrictConnection(16384)
    connection.receive_data(HEAD + b"x-a: 1\r\n 2\r\n\r\n")
    for _ in range(2):
        with pytest.raises(Rejection):
            connection.next_event()
    assert connection.rejection is not None


@pytest.mark.parametrize("size", [1, 15])
def test_a_body_in_too_many_small_chunks_is_rejected(size: int) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    assert len(receive(CHUNKED, *[chunk] * MAX_SMALL_CHUNKS)) == MAX_SMALL_CHUNKS + 1
    with pytest.raises(Rejection):
        receive(CHUNKED, *[chunk] * (MAX_SMALL_CHUNKS + 1))


def test_larger_chunks_and_bodies_with_a_length_may_be_many() -> None:
    count = MAX_SMALL_CHUNKS + 100
    assert len(receive(CHUNKED, *[b"10\r\n%s\r\n" % (b"x" * 16)] * count)) == count + 1
    length = HEAD + b"content-length: %d\r\n\r\n" % count
    assert len(receive(length, *[b"x"] * count)) == count + 2


def test_each_request_may_have_as_many_small_chunks() -> None:
    connection = StrictConnection(16384)
    for _ in range(2):
        connection.receive_data(CHUNKED)
        for _ in range(MAX_SMALL_CHUNKS):
            connection.receive_data(b"1\r\nx\r\n")
            while connection.next_event() is not h11.NEED_DATA:
                pass
        connection.receive_data(b"0\r\n\r\n")
        assert isinstance(connection.next_event(), h11.EndOfMessage)
        connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()


TINY = b"1\r\nx\r\n" * 1000


@pytest.mark.parametrize("parts", [[CHUNKED, TINY], [CHUNKED + TINY], [CHUNKED + b"1", TINY[1:]]])
def test_tiny_chunks_that_arrive_together_are_not_parsed(parts: list[bytes]) -> None:
    connection = StrictConnection(16384)
    for part in parts[:-1]:
        connection.receive_data(part)
        assert isinstance(connection.next_event(), h11.Request)
    started = time.process_time()
    connection.receive_data(parts[-1])
    with pytest.raises(Rejection):
        connection.next_event()
    # Parsing them takes 9 ms.
    assert time.process_time() - started < 0.004


@pytest.mark.parametrize(
    "parts",
    [
        # A body of short lines, with a length or in a few chunks of less than 1,024 bytes.
        [HEAD + b"content-length: 4000\r\n\r\n" + b"1,\r\n" * 1000],
        [HEAD + b"content-length: 4000\r\n\r\n", b"1,\r\n" * 1000],
        [CHUNKED, b"1f4\r\n" + b"1,\r\n" * 125 + b"\r\n"],
        # A head that names the header in a value.
        [HEAD + b"x: transfer-encoding:\r\n" + b"x:y\r\n" * 500 + b"\r\n"],
    ],
)
def test_short_lines_are_not_taken_for_chunks(parts: list[bytes]) -> None:
    assert receive(*parts)


def test_what_follows_a_complete_request_is_not_looked_at() -> None:
    connection = StrictConnection(16384)
    connection.receive_data(HEAD + b"\r\n")
    while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED):
        pass
    connection.receive_data(CHUNKED + TINY)
    assert connection.next_event() is h11.PAUSED
