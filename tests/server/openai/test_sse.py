"""Server-sent events: bytes in, events out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cromicle_sdk.server import BackendError
from cromicle_sdk.server.openai import sse as _sse
from cromicle_sdk.server.openai.sse import Event, EventParser

TEXT = "é 🎉 \u2028 \x85 \x0b \x0c \x1c end"


def parse(chunks: Iterable[bytes]) -> list[Event]:
    """The events of a body that arrives in these chunks."""
    parser = EventParser()
    events: list[Event] = []
    for chunk in chunks:
        events += parser.receive_data(chunk)
    return [*events, *parser.receive_eof()]


def parse_data(*chunks: bytes) -> list[str]:
    return [event.data for event in parse(chunks)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_split_gives_the_same_events(end: str) -> None:
    lines = ("\ufeff: hello", "", f"data: {TEXT}", "", "data:two", "data: lines", "", "data: 3", "")
    data = "".join(line + end for line in lines).encode()
    expected = [TEXT, "two\nlines", "3"]
    assert parse_data(data) == expected
    assert parse_data(*(data[i : i + 1] for i in range(len(data)))) == expected
    for cut in range(1, len(data)):
        assert parse_data(data[:cut], data[cut:]) == expected


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"", []),
        (b"\n\n\n", []),
        (b": comment\n:\n\n", []),
        (b"id: 1\nretry: 100\n\n", []),
        (b"data\n\n", [("message", "")]),
        (b"data:\n\n", [("message", "")]),
        (b"data:x\ndata: y\ndata:  z\n\n", [("message", "x\ny\n z")]),
        (b"event: ping\ndata: x\n\ndata: y\n\n", [("ping", "x"), ("message", "y")]),
        (b"event: a\nevent: b\ndata: x\n\n", [("b", "x")]),
        (b"event: error\n\n", [("error", "")]),
        (b"data: a: b\n\n", [("message", "a: b")]),
        (b"id\nevent\nretry\ndata: x\n\n", [("message", "x")]),
        (b" \t\ndata: x\n\n", [("message", "x")]),
        (b"data: no empty line\n", [("message", "no empty line")]),
        (b"data: no line end", [("message", "no line end")]),
        (b"data: x\r", [("message", "x")]),
        (b"data: x\r\n\r", [("message", "x")]),
    ],
)
def test_fields(data: bytes, events: list[tuple[str, str]]) -> None:
    assert [(event.name, event.data) for event in parse([data])] == events


@pytest.mark.parametrize(
    "line",
    [
        b'error: {"message": "s3cret"}',
        b'{"error": "s3cret"}',
        b"<html>s3cret",
        b"s3cret",
        b" data: s3cret",
        b"Data: s3cret",
        b"\xef\xbb\xbfdata: s3cret",
        b"HTTP/1.1 502 s3cret",
    ],
)
@pytest.mark.parametrize("end", [b"\n\n", b""], ids=["line end", "end of the stream"])
def test_an_unknown_line_is_an_error_after_the_events_before_it(line: bytes, end: bytes) -> None:
    parser = EventParser()
    seen: list[str] = []
    with pytest.raises(BackendError) as caught:
        for events in (parser.receive_data(b"data: 1\n\n" + line + end), parser.receive_eof()):
            for event in events:
                seen += [event.data]
    assert seen == ["1"]
    assert "not part of an event" in caught.value.detail
    assert "s3cret" not in caught.value.detail


def parse_until_an_error(chunks: Iterable[bytes]) -> tuple[list[Event], str]:
    """The events of a body, and what is wrong after them; "" if nothing is."""
    parser = EventParser()
    events: list[Event] = []

    def receive() -> Iterator[Event]:
        for chunk in chunks:
            yield from parser.receive_data(chunk)
        yield from parser.receive_eof()

    try:
        for event in receive():
            events += [event]
    except BackendError as error:
        return events, error.detail
    return events, ""


PIECES = st.sampled_from(
    [
        *(b"data", b"event", b"id", b"retry", b":", b" ", b"\n", b"\r", b"\r\n", b"\n\n"),
        *(b"data: x\n\n", "é🎉\u2028".encode(), b"\xef\xbb\xbf", b"\xc3", b"\x00"),
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(PIECES | st.binary(max_size=4)).map(b"".join), st.data())
def test_any_bytes_give_the_same_events_and_error_however_they_are_cut(
    data: bytes, draw: st.DataObject
) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=4)))
    ends = [*cuts, len(data)]
    chunks = [data[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
    expected = parse_until_an_error([data])
    assert parse_until_an_error(chunks) == expected
    assert parse_until_an_error(data[i : i + 1] for i in range(len(data))) == expected


def test_an_event_is_yielded_before_the_next_arrives() -> None:
    parser = EventParser()
    assert [event.data for event in parser.receive_data(b"data: one\n\ndata: t")] == ["one"]
    assert [event.data for event in parser.receive_data(b"wo\n")] == []
    assert [event.data for event in parser.receive_data(b"\n")] == ["two"]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: \xff\n\n", []),
        (b"data: \xc3\n\n", []),
        (b"data: ok\n\ndata: \xf0\x9f\x8e", ["ok"]),
        (b"\x80", []),
        (b"\x1f\x8b\x08", []),
    ],
)
def test_bytes_that_are_not_utf8_are_an_error(data: bytes, events: list[str]) -> None:
    for chunks in ([data], [data[i : i + 1] for i in range(len(data))]):
        parser = EventParser()
        seen: list[str] = []
        with pytest.raises(BackendError) as caught:
            for chunk in chunks:
                seen += [event.data for event in parser.receive_data(chunk)]
            list(parser.receive_eof())
        # A list that is built from a generator has nothing if that raises.
        assert seen in (events, [])
        assert "UTF-8" in caught.value.detail
        assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "line", [b"x" * 100, b"data: x\n", b": comment\n\n", b"id: 1\n\n", b"id: 1\r"]
)
def test_bytes_without_an_event_are_limited(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sse, "MAX_EVENT_BYTES", 10_000)
    parser = EventParser()
    received = 0
    with pytest.raises(BackendError) as caught:
        while True:
            received += len(line) * 10
            list(parser.receive_data(line * 10))
    assert "without an event" in caught.value.detail
    assert received < 12_000


def test_a_long_stream_of_short_events_is_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sse, "MAX_EVENT_BYTES", 100)
    assert parse_data(*[b"data: x\n\n"] * 100) == ["x"] * 100


def test_an_event_of_several_megabytes_is_parsed() -> None:
    text = "x" * 5_000_000
    data = f"data: {text}\n\n".encode()
    assert parse_data(*(data[i : i + 65536] for i in range(0, len(data), 65536))) == [text]


def test_a_repr_shows_no_data() -> None:
    assert repr(Event("message", "s3cret")) == "<Event of 6 characters>"
