# Generated from _async/custom.py by tests/unasync.py; do not edit.
"""Exchanges over a client that the user made: it is used as it is, and not closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cromicle_sdk._core.deadline import Limits
from cromicle_sdk._core.request import Request
from cromicle_sdk._http.sockets import ClosedByCaller, Head
from cromicle_sdk._http.translate import (
    build_foreign_request,
    expect_body,
    find_response,
    foreign_head,
    was_read,
)

from . import concurrency as io

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
        self._was_read = False
        self._is_content_taken = False
        self._chunks: Iterator[bytes] | None = None
        self._interrupt = io.Interrupt()

    def send(self, request: Request) -> None:
        """Send the request and wait for the head of its answer.

        Raises what httpx raises, `TimeoutError` and `ClosedByCaller`.
        """
        self._limits.enter("first_byte", total_only=True)
        with self._interrupt.watch(), io.time_limit(self._limits):
            self._response = self._send(request)
        self._was_read = was_read(self._response)
        self.head = foreign_head(self._response)
        expect_body(self._response, self._limits)

    def _send(self, request: Request) -> Any:
        built = build_foreign_request(self._http_client, request, self._limits)
        try:
            return self._http_client.send(built, stream=True, follow_redirects=False)
        except Exception as error:
            # A hook that raises for a status has seen the answer, which says more.
            response = find_response(error, built)
            if response is None:
                raise
            return response

    def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises as `send` does."""
        if self._was_read:
            return self._take_content()
        if self._chunks is None:
            self._chunks = iter(self._response.stream)
        data = b""
        with self._interrupt.watch(), io.time_limit(self._limits):
            for data in self._chunks:
                if data:
                    self._limits.enter("stall", total_only=True)
                    break
        return data

    def _take_content(self) -> bytes:
        """The whole body, then b""; raises where a hook of the user's has dropped it."""
        content: bytes = b"" if self._is_content_taken else self._response.content
        self._is_content_taken = True
        return content

    def finish(self) -> None:
        """The body has ended: the user's client may use the connection again."""
        self.close()

    def abort(self) -> None:
        """End it from elsewhere: who waits for it sees `ClosedByCaller`."""
        self._interrupt.end()

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
