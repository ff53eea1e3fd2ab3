"""The framing of a response, as parsed by h11 below httpcore.

httpcore yields one chunk for each h11 event, and does not report trailing data after a response.
Both are available from the h11 connection in a private attribute of httpcore's connection. Reading
it directly halves the cost of a token in a burst. If the attribute is missing, bodies are read
through httpcore, and `FramingObserver` detects trailing data and trailers with the public interface
of h11.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import h11
import httpcore

__all__ = [
    "BodyPart",
    "FramingObserver",
    "Trailers",
    "find_h11",
    "is_h11_reachable",
    "receive_body",
]

# Pairs of name and value. As for a head, h11 accepts at most 100 KiB.
Trailers = Iterable[tuple[bytes, bytes]]

# The data of one read may contain ten thousand events of 4 us each. After this many, other tasks
# can run, at a cost of 0.1 us per event.
_EVENTS_AT_ONCE = 128

# The unread data of a connection (the end of a chunk), and whether the server has closed it.
_LINE_BREAK = (b"\r\n", False)


class BodyPart(NamedTuple):
    """A part of a body, and what follows it.

    This is the end with its `trailers` (`is_end`), no data yet (`needs_data`), invalid HTTP
    (`error`), or more of the body.
    """

    data: bytes | bytearray
    needs_data: bool = False
    is_end: bool = False
    trailers: Trailers = ()
    error: httpcore.RemoteProtocolError | None = None


def find_h11(connection: object) -> h11.Connection | None:
    """Return the h11 connection below an httpcore connection, or None."""
    while hasattr(connection, "_connection"):
        connection = getattr(connection, "_connection")  # noqa: B009 - private, and not typed
    found = getattr(connection, "_h11_state", None)
    return found if isinstance(found, h11.Connection) else None


@lru_cache(maxsize=1)
def is_h11_reachable() -> bool:
    """Whether `find_h11` works with the installed httpcore."""
    origin = httpcore.Origin(b"http", b"localhost", 80)
    outer = httpcore.HTTPConnection(origin)
    inner = httpcore.HTTP11Connection(origin, httpcore.NetworkStream())
    return hasattr(outer, "_connection") and find_h11(inner) is not None


def receive_body(connection: h11.Connection) -> BodyPart:
    """Return the received part of a body, which may be empty."""
    chunks: list[bytes | bytearray] = []
    next_event, data_type = connection.next_event, h11.Data
    try:
        event = next_event()
        # A model usually sends one chunk at a time, and only the line break that ends it is unread.
        # The next event could only be NEED_DATA, and costs half as much as this one.
        if (
            isinstance(event, data_type)
            and event.chunk_end
            and connection.trailing_data == _LINE_BREAK
        ):
            return BodyPart(event.data, needs_data=True)
        # This loop determines the cost of a token in a burst.
        while isinstance(event, data_type):
            chunks.append(event.data)
            if len(chunks) == _EVENTS_AT_ONCE:
                return BodyPart(b"".join(chunks))
            event = next_event()
    except h11.RemoteProtocolError as error:
        failure = httpcore.RemoteProtocolError(str(error))
        return BodyPart(b"".join(chunks), error=failure)
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if event is h11.NEED_DATA:
        return BodyPart(data, needs_data=True)
    trailers = event.headers if isinstance(event, h11.EndOfMessage) else ()
    return BodyPart(data, is_end=True, trailers=trailers)


class FramingObserver:
    """Follows the framing of one response in parallel to httpcore's own parser."""

    def __init__(self) -> None:
        self.trailers: Trailers = ()
        self._h11 = h11.Connection(h11.CLIENT)
        # The framing of a response is the same for all requests except HEAD and CONNECT.
        self._h11.send(h11.Request(method="GET", target="/", headers=[("host", "localhost")]))
        self._h11.send(h11.EndOfMessage())

    def receive_data(self, data: bytes) -> None:
        """Receive the bytes of the connection, from the start of the response."""
        # After an error, the state of h11 is not DONE.
        with suppress(h11.RemoteProtocolError):
            self._h11.receive_data(data)
            while (event := self._h11.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.EndOfMessage):
                    self.trailers = event.headers

    @property
    def has_trailing_data(self) -> bool:
        """Whether data has arrived after the response, or its end has not been found."""
        return self._h11.their_state is not h11.DONE or bool(self._h11.trailing_data[0])
