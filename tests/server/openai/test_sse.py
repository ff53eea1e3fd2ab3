"""Bytes become events: every way to split them, every line end, and bounds that hold."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from cromicle_sdk.server import BackendError
from cromicle_sdk.server.openai import sse as _events
from cromicle_sdk.server.openai.sse import Events

TEXT = "é 🎉 \u2028 \x85 \x0b \x0c \x1c end"


def read_all(*pieces: bytes, backend: str = "asyncio") -> list[str]:
    """The data of all events in a body that comes in these pieces."""
    rest = list(pieces)
    reads = 0

    async def read() -> bytes:
        nonlocal reads
        reads += 1
        await anyio.lowlevel.checkpoint()
        return rest.pop(0) if rest else b""

    async def main() -> list[str]:
        found: list[str] = []
        async with aclosing(Events(read)) as events:
            while (event := await events.take()) is not None:
                found.append(event.data)
        return found

    return anyio.run(main, backend=backend)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_split_gives_the_same_events(end: str, backend: str) -> None:
    body = "".join(
        line + end for line in ("\ufeff: hello", "", f"data: {TEXT}", "", "data:two", "data: lines")
    )
    data = (body + end).encode()
    owed = [TEXT, "two\nlines"]
    assert read_all(data, backend=backend) == owed
    assert read_all(*(data[i : i + 1] for i in range(len(data))), backend=backend) == owed
    for cut in range(1, len(data)):
        assert read_all(data[:cut], data[cut:]) == owed


def test_an_event_is_handed_over_before_the_next_has_come() -> None:
    async def main() -> None:
        gate = anyio.Event()
        pieces: list[Any] = [b"data: one\n\n", gate, b"data: two\n\n", b""]

        async def read() -> bytes:
            if pieces[0] is gate:
                await gate.wait()
                pieces.pop(0)
            data: bytes = pieces.pop(0)
            return data

        events = Events(read)
        with anyio.fail_after(10):
            first = await events.take()
            assert first is not None
            assert first.data == "one"
            gate.set()
            second = await events.take()
            assert second is not None
            assert second.data == "two"
            assert await events.take() is None
            assert await events.take() is None

    anyio.run(main)


@pytest.mark.parametrize(
    "data", [b"data: \xff\n\n", b"data: \xc3\n\n", b"data: ok\n\ndata: \xf0\x9f\x8e", b"\x80"]
)
def test_bytes_that_are_not_utf_8_are_a_failure(data: bytes) -> None:
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        with pytest.raises(BackendError) as caught:
            read_all(*pieces)
        assert "UTF-8" in caught.value.detail
        assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "line", [b"x" * 100, b"data: x\n", b": comment\n\n", b"event: x\n", b"id: 1\r"]
)
def test_bytes_without_an_event_have_an_end(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_events, "MAX_EVENT_BYTES", 10_000)
    read = 0

    async def flood() -> bytes:
        nonlocal read
        read += len(line) * 10
        return line * 10

    async def main() -> None:
        async with aclosing(Events(flood)) as events:
            await events.take()

    with pytest.raises(BackendError) as caught:
        anyio.run(main)
    assert "without an event" in caught.value.detail
    assert read < 12_000


def test_a_long_answer_of_short_events_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_events, "MAX_EVENT_BYTES", 100)
    assert read_all(*[b"data: x\n\n"] * 100) == ["x"] * 100


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("leave", [lambda: None, anyio.lowlevel.checkpoint])
def test_leaving_in_the_middle_is_silent(backend: str, leave: Callable[[], Any]) -> None:
    async def read() -> bytes:
        await anyio.lowlevel.checkpoint()
        return b"data: 1\n\ndata: 2\n\n"

    async def main() -> None:
        async with aclosing(Events(read)) as events:
            await events.take()
            if (waiting := leave()) is not None:
                await waiting

    anyio.run(main, backend=backend)
