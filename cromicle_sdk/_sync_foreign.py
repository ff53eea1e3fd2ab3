"""Exchanges over a client that the user made: it is used as it is, and not closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import _sync_io as io
from ._httpx import build_foreign_request, expect_body, foreign_head
from ._limits import Limits
from ._request import Request
from ._transport import ClosedByCaller, Head

__all__ = ["ForeignConnections"]


class ForeignConnections:
    """The counterpart of `Connections` for an httpx or httpx2 client of the user's."""

    def __init__(self, http_client: Any) -> None:
        self._http_client = http_client
        self._pauses: set[io.Pause] = set()
        self.is_closed = False

    def start(self, limits: Limits) -> ForeignExchange:
        """An exchange that has yet to be sent. Raises `ClosedByCaller` after `close`."""
        if self.is_closed or self._http_client.is_closed:
            raise ClosedByCaller("its client is closed")
        return ForeignExchange(self._http_client, limits)

    def wait(self, seconds: float, pause: io.Pause) -> None:
        """Wait between two attempts; the end of the pause, or `close`, cuts it short."""
        self._pauses.add(pause)
        try:
            if not self.is_closed:
                pause.wait(seconds)
        finally:
            self._pauses.discard(pause)

    def close(self) -> None:
        """Take no more calls. The user's client stays open."""
        self.is_closed = True
        for pause in list(self._pauses):
            pause.end()


class ForeignExchange:
    """One request and its answer, in the hands of the user's client."""

    head: Head

    def __init__(self, http_client: Any, limits: Limits) -> None:
        self._http_client = http_client
        self._limits = limits
        self._response: Any = None
        self._chunks: Iterator[bytes] | None = None
        self._is_aborted = False

    def send(self, request: Request) -> None:
        """Send the request and wait for the head of its answer.

        Raises what httpx raises, `TimeoutError` and `ClosedByCaller`.
        """
        self._limits.enter("first_byte", total_only=True)
        with io.time_limit(self._limits):
            self._response = self._http_client.send(
                build_foreign_request(self._http_client, request, self._limits),
                stream=True,
                auth=None,
                follow_redirects=False,
            )
        self.head = foreign_head(self._response)
        expect_body(self._response, self._limits)

    def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises as `send` does."""
        if self._chunks is None:
            self._chunks = iter(self._response.stream)
        with io.time_limit(self._limits):
            for data in self._chunks:
                if self._is_aborted:
                    raise ClosedByCaller("it was closed while it was in use")
                if data:
                    self._limits.enter("stall", total_only=True)
                    return data
        return b""

    def finish(self) -> None:
        """The body has ended: the user's client may use the connection again."""
        self.close()

    def abort(self) -> None:
        """End it from anywhere: who reads it sees `ClosedByCaller` at the next bytes."""
        self._is_aborted = True

    def close(self) -> None:
        if self._response is not None:
            with io.shield():
                self._response.close()
        if self._chunks is not None:
            io.discard(self._chunks)

    def drop(self) -> None:
        """Nobody reads it any more, and nothing can be waited for: its client has to see to it."""
