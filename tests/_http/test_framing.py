"""The framing of a response: what h11 makes of the bytes below httpcore."""

from __future__ import annotations

from unittest.mock import Mock

import h11
import httpcore
import pytest

from cromicle_sdk._http.framing import (
    BodyPart,
    FramingObserver,
    find_h11,
    is_h11_reachable,
    receive_body,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def begin(head: bytes) -> h11.Connection:
    """A connection that has received the head of a response."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(head)
    assert isinstance(connection.next_event(), h11.Response)
    return connection


def test_all_that_has_arrived_is_received_at_once() -> None:
    connection = begin(CHUNKED)
    assert receive_body(connection) == BodyPart(b"", needs_data=True)
    connection.receive_data(b"1\r\na\r\n")
    assert receive_body(connection) == BodyPart(b"a", needs_data=True)
    connection.receive_data(b"1\r\nb\r\n1\r\nc\r\n")
    assert receive_body(connection) == BodyPart(b"bc", needs_data=True)
    connection.receive_data(b"2\r\nde\r\n1\r\nf\r\n2\r\ng")
    assert receive_body(connection) == BodyPart(b"defg", needs_data=True)


def test_a_chunk_alone_is_parsed_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = begin(CHUNKED)
    next_event = Mock(side_effect=connection.next_event)
    monkeypatch.setattr(connection, "next_event", next_event)
    for text in (b"a", b"b"):
        connection.receive_data(b"1\r\n" + text + b"\r\n")
        assert receive_body(connection) == BodyPart(text, needs_data=True)
    assert next_event.call_count == 2
    connection.receive_data(b"0\r\n\r\n")
    assert receive_body(connection) == BodyPart(b"", is_end=True, trailers=[])


def test_a_chunk_may_be_followed_by_a_part_of_its_line_break_or_by_the_end() -> None:
    connection = begin(CHUNKED)
    connection.receive_data(b"1\r\na")
    assert receive_body(connection) == BodyPart(b"a", needs_data=True)
    connection.receive_data(b"\r")
    assert receive_body(connection) == BodyPart(b"", needs_data=True)
    connection.receive_data(b"\n1\r\nb\r\n")
    connection.receive_data(b"")
    part = receive_body(connection)
    assert part.data == b"b"
    assert "incomplete chunked read" in str(part.error)


def test_a_line_break_that_is_not_the_end_of_a_chunk_is_an_error() -> None:
    connection = begin(CHUNKED)
    connection.receive_data(b"1\r\na\r\n")
    assert receive_body(connection) == BodyPart(b"a", needs_data=True)
    connection.receive_data(b"\r\n0\r\n\r\n")
    assert "illegal chunk header" in str(receive_body(connection).error)


def test_a_body_of_a_length_ends_although_a_line_break_follows() -> None:
    connection = begin(SIZED)
    connection.receive_data(b"ab\r\n")
    assert receive_body(connection) == BodyPart(b"ab", is_end=True, trailers=[])
    assert connection.trailing_data == (b"\r\n", False)


def test_the_end_has_the_trailers() -> None:
    connection = begin(CHUNKED)
    connection.receive_data(b"1\r\na\r\n1\r\nb\r\n0\r\nX-Finish-Reason: stop\r\n\r\n")
    part = receive_body(connection)
    assert (part.data, part.is_end, part.needs_data) == (b"ab", True, False)
    assert list(part.trailers) == [(b"x-finish-reason", b"stop")]


def test_a_body_of_a_length_ends_after_it() -> None:
    connection = begin(SIZED)
    connection.receive_data(b"ab")
    assert receive_body(connection) == BodyPart(b"ab", is_end=True, trailers=[])


def test_the_text_before_an_error_is_kept() -> None:
    connection = begin(CHUNKED)
    connection.receive_data(b"1\r\na\r\n1\r\nb\r\nno length\r\n")
    part = receive_body(connection)
    assert part.data == b"ab"
    assert isinstance(part.error, httpcore.RemoteProtocolError)
    assert "illegal chunk header" in str(part.error)
    assert not part.is_end


def test_a_body_that_never_ends_lets_other_tasks_run() -> None:
    connection = begin(CHUNKED)
    connection.receive_data(b"1\r\na\r\n" * 200 + b"0\r\n\r\n")
    assert receive_body(connection) == BodyPart(b"a" * 128)
    assert receive_body(connection) == BodyPart(b"a" * 72, is_end=True, trailers=[])


def test_the_state_of_h11_is_found_below_the_connections_of_httpcore() -> None:
    origin = httpcore.Origin(b"http", b"h", 80)
    inner = httpcore.HTTP11Connection(origin, httpcore.NetworkStream())

    class Outer:
        def __init__(self, connection: object) -> None:
            self._connection = connection

    assert isinstance(find_h11(inner), h11.Connection)
    assert find_h11(Outer(Outer(inner))) is find_h11(inner)
    assert find_h11(Outer(None)) is None
    assert find_h11(object()) is None
    inner._h11_state = "moved"  # type: ignore[assignment]
    assert find_h11(inner) is None


def test_the_installed_httpcore_keeps_it_there() -> None:
    assert is_h11_reachable() is True


@pytest.mark.parametrize(
    ("name", "moved"),
    [("HTTPConnection", "_connection"), ("HTTP11Connection", "_h11_state")],
)
def test_an_httpcore_that_keeps_it_elsewhere(
    name: str, moved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        def __init__(self, *arguments: object) -> None:
            setattr(self, f"{moved}_elsewhere", None)

    is_h11_reachable.cache_clear()
    monkeypatch.setattr(httpcore, name, Other)
    assert is_h11_reachable() is False
    is_h11_reachable.cache_clear()


def test_an_observer_sees_the_trailers_and_the_end() -> None:
    observer = FramingObserver()
    assert observer.has_trailing_data
    observer.receive_data(CHUNKED + b"1\r\na\r\n")
    assert observer.has_trailing_data
    assert list(observer.trailers) == []
    observer.receive_data(b"0\r\nx-a: 1\r\n\r\n")
    assert list(observer.trailers) == [(b"x-a", b"1")]
    assert not observer.has_trailing_data


@pytest.mark.parametrize("cut", [len(SIZED), len(SIZED) + 2, len(SIZED) + 3])
def test_an_observer_sees_what_follows_the_response(cut: int) -> None:
    observer = FramingObserver()
    data = SIZED + b"ab" + b"HTTP/1.1 200 OK\r\n"
    for part in (data[:cut], data[cut:]):
        observer.receive_data(part)
    assert observer.has_trailing_data


def test_an_observer_of_what_is_not_http() -> None:
    observer = FramingObserver()
    observer.receive_data(b"what\r\n\r\n")
    observer.receive_data(SIZED + b"ab")
    assert observer.has_trailing_data
