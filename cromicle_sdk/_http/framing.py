"""The framing of a response, as h11 parses it below httpcore.

httpcore yields one chunk for each h11 event, and does not tell whether more bytes have arrived than
the response has. Both are in the h11 connection that it keeps in a private attribute. Reading it
directly halves the cost of a token in a burst; where the attribute is not found, bodies are read
through httpcore, and `FramingObserver` finds trailing data and trailers by h11's public interface
alone.
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

# Name and value of each; h11 accepts 100 KiB of them at most, as of a head.
Trailers = Iterable[tuple[bytes, bytes]]

# What is read at a time may hold ten thousand events of 4 us each. A task lets others run after so
# many, which costs 0.1 us for each event.
_EVENTS_AT_ONCE = 128


class BodyPart(NamedTuple):
    """What has arrived of a body: its bytes, and what follows them.

    That is the end, with its `trailers`; nothing that has arrived yet (`needs_data`); an `error`,
    for what is not HTTP; or more of the body.
    """

    data: bytes | bytearray
    needs_data: bool = False
    is_end: bool = False
    trailers: Trailers = ()
    error: httpcore.RemoteProtocolError | None = None


def find_h11(connection: object) -> h11.Connection | None:
    """The h11 connection that an httpcore connection keeps below one or more of its own."""
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
    """What has arrived of a body; no bytes and no end where more must be read."""
    chunks: list[bytes | bytearray] = []
    next_event, data_type = connection.next_event, h11.Data
    try:
        for _ in range(_EVENTS_AT_ONCE):
            event = next_event()
            # This loop is what a token in a burst costs.
            if isinstance(event, data_type):
                chunks.append(event.data)
            elif event is h11.NEED_DATA:
                data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                return BodyPart(data, needs_data=True)
            else:
                trailers = event.headers if isinstance(event, h11.EndOfMessage) else ()
                return BodyPart(b"".join(chunks), is_end=True, trailers=trailers)
    except h11.RemoteProtocolError as error:
        failure = httpcore.RemoteProtocolError(str(error))
        return BodyPart(b"".join(chunks), error=failure)
    return BodyPart(b"".join(chunks))


class FramingObserver:
    """Follows the framing of one response beside httpcore's own parser."""

    def __init__(self) -> None:
        self.trailers: Trailers = ()
        self._h11 = h11.Connection(h11.CLIENT)
        # Any request but HEAD and CONNECT has a response of the same framing.
        self._h11.send(h11.Request(method="GET", target="/", headers=[("host", "localhost")]))
        self._h11.send(h11.EndOfMessage())

    def receive_data(self, data: bytes) -> None:
        """Bytes of the connection, in order, from the beginning of the response on."""
        # After an error, the state is not that of an end.
        with suppress(h11.RemoteProtocolError):
            self._h11.receive_data(data)
            while (event := self._h11.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.EndOfMessage):
                    self.trailers = event.headers

    @property
    def has_trailing_data(self) -> bool:
        """Whether more has arrived than the response; also where its end has not been seen."""
        return self._h11.their_state is not h11.DONE or bool(self._h11.trailing_data[0])
