"""Exchanges over a client that the user made: it is used as it is, and not closed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
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
        self._active: set[ForeignExchange] = set()
        self._pauses = io.Pauses()
        self.is_closed: bool = False

    def start(self, limits: Limits) -> ForeignExchange:
        """An exchange that has yet to be sent. Raises `ClosedByCaller` after `close`."""
        if self.is_closed or self._http_client.is_closed:
            raise ClosedByCaller("its client is closed")
        exchange = ForeignExchange(self, self._http_client, limits)
        self._active.add(exchange)
        return exchange

    def wait(self, seconds: float, pause: io.Pause) -> None:
        """Wait between two attempts; the end of the pause, or `close`, cuts it short."""
        self._pauses.wait(seconds, pause)

    def close(self) -> None:
        """Take no more calls and end those under way. The user's client stays open."""
        self.is_closed = True
        for exchange in list(self._active):
            exchange.abort()
        self._pauses.end()

    def forget(self, exchange: ForeignExchange) -> None:
        self._active.discard(exchange)


class ForeignExchange:
    """One request and its answer, in the hands of the user's client."""

    head: Head

    def __init__(self, connections: ForeignConnections, http_client: Any, limits: Limits) -> None:
        self._connections = connections
        self._http_client = http_client
        self._limits = limits
        self._response: Any = None
        self._chunks: Iterator[bytes] | None = None
        self._interrupt: Callable[[], object] | None = None
        self._is_aborted = False

    def send(self, request: Request) -> None:
        """Send the request and wait for the head of its answer.

        Raises what httpx raises, `TimeoutError` and `ClosedByCaller`.
        """
        self._limits.enter("first_byte", total_only=True)
        with self._waiting():
            self._response = self._http_client.send(
                build_foreign_request(self._http_client, request, self._limits),
                stream=True,
                follow_redirects=False,
            )
        self.head = foreign_head(self._response)
        expect_body(self._response, self._limits)

    def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises as `send` does."""
        if self._chunks is None:
            self._chunks = iter(self._response.stream)
        data = b""
        with self._waiting():
            for data in self._chunks:
                if data:
                    self._limits.enter("stall", total_only=True)
                    break
        return data

    def finish(self) -> None:
        """The body has ended: the user's client may use the connection again."""
        self.close()

    def abort(self) -> None:
        """End it from elsewhere: who waits for it sees `ClosedByCaller`."""
        self._is_aborted = True
        if self._interrupt is not None:
            self._interrupt()

    def close(self) -> None:
        self.drop()
        if self._response is not None:
            with io.shield():
                self._response.close()
        if self._chunks is not None:
            io.discard(self._chunks)

    def drop(self) -> None:
        """Nobody reads it any more; the connection is for the user's client to see to."""
        self._connections.forget(self)

    @contextmanager
    def _waiting(self) -> Generator[None]:
        """A wait for the user's client, within the limits, that `abort` may end."""
        self._check()
        with io.time_limit(self._limits) as self._interrupt:
            yield
        self._check()

    def _check(self) -> None:
        if self._is_aborted:
            raise ClosedByCaller("it was closed while it was in use")
