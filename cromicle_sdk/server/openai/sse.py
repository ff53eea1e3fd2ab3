"""The bytes of an upstream's answer become server-sent events, within bounds."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
from httpx_sse import EventSource, ServerSentEvent

from .errors import build_invalid

__all__ = ["Events"]

# An event is a few hundred bytes; one with the log-probabilities of a token may be some thousand.
# Whatever comes before the next event is kept in memory, so there must be an end to it.
MAX_EVENT_BYTES = 1024 * 1024


class Events:
    """The events in the bytes that `read` gives, b"" at their end.

    Raises `BackendError` for what is not UTF-8 and for `MAX_EVENT_BYTES` without an event, and
    what `read` raises. Call `aclose` in the end.
    """

    def __init__(self, read: Callable[[], Awaitable[bytes | bytearray]]) -> None:
        self._texts = _Texts(read)
        self._events = EventSource(_Response(self._texts)).aiter_sse()

    async def take(self) -> ServerSentEvent | None:
        """The next event, None at the end."""
        async for event in self._events:
            self._texts.seen = 0
            return event
        return None

    async def aclose(self) -> None:
        """Let go of the parser; it waits for nothing."""
        await self._events.aclose()


class _Response(httpx.Response):
    """What httpx-sse reads: an answer of httpx's with texts of our own.

    httpx decodes by the charset of the header, which events don't have, and turns bad bytes into
    U+FFFD, which nobody would notice.
    """

    def __init__(self, texts: AsyncIterator[str]) -> None:
        super().__init__(200, headers={"content-type": "text/event-stream"})
        self._texts = texts

    def aiter_text(self, chunk_size: int | None = None) -> AsyncIterator[str]:
        return self._texts


class _Texts:
    """Bytes as text, strictly; `seen` counts the bytes since it was last set to 0."""

    def __init__(self, read: Callable[[], Awaitable[bytes | bytearray]]) -> None:
        self._read = read
        # The standard has one byte order mark dropped.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._is_over = False
        self.seen = 0

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while not self._is_over:
            data = await self._read()
            self._is_over = not data
            self.seen += len(data)
            if self.seen > MAX_EVENT_BYTES:
                raise build_invalid(f"it sent {MAX_EVENT_BYTES} bytes without an event in them")
            if text := self._decode(data):
                return text
        raise StopAsyncIteration

    def _decode(self, data: bytes | bytearray) -> str:
        try:
            return self._decoder.decode(data, final=not data)
        except UnicodeDecodeError:
            pass
        # Out here, for the error above holds the bytes.
        raise build_invalid("its answer is not UTF-8")
