"""Connections: one exchange each, used again only when clean, many in flight at linear cost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, cast

import h11
import httpcore

from . import _async_io as io
from ._async_network import AsyncWire
from ._limits import Limits
from ._request import Request
from ._transport import (
    IDLE_SECONDS,
    Body,
    ClosedByCaller,
    Head,
    Route,
    default_ssl_context,
    find_protocol,
    next_piece,
)

__all__ = ["AsyncConnections", "AsyncExchange"]


class AsyncConnections:
    """A client's connections to its endpoint.

    httpcore's pool is not used: its bookkeeping is quadratic in the calls in flight, and on
    asyncio a cancelled call can lose its place in it for good (httpcore issue 1093). Here a
    connection belongs to one exchange or lies idle.
    """

    def __init__(self, route: Route, *, max_connections: int) -> None:
        self._route = route
        self._max_connections = max_connections
        self._place: object = None
        self._slots = io.Slots(max_connections)
        # The end of the list is the most recently used. Its operations are atomic, so that a
        # collected stream may give back a connection at any time, in any thread.
        self._idle: deque[_AsyncConnection] = deque()
        self._active: set[AsyncExchange] = set()
        self._pauses: set[io.Pause] = set()
        self.is_closed = False

    def start(self, limits: Limits) -> AsyncExchange:
        """An exchange that has yet to be sent. Raises `ClosedByCaller` after `close`."""
        if self.is_closed:
            raise ClosedByCaller("its client is closed")
        self._move_to(io.find_place())
        exchange = AsyncExchange(self, self._slots, limits)
        self._active.add(exchange)
        return exchange

    def connect(self, limits: Limits) -> _AsyncConnection:
        """A new connection, which connects when it is first used."""
        return _AsyncConnection(self._route, limits, self._place)

    def take_idle(self) -> _AsyncConnection | None:
        """The idle connection that was used last and still lives, if there is one."""
        while (connection := self._pop(self._idle.pop)) is not None:
            if not connection.is_expired and connection.wire.is_quiet:
                return connection
            connection.close()
        return None

    async def wait(self, seconds: float, pause: io.Pause) -> None:
        """Wait between two attempts; the end of the pause, or `close`, cuts it short."""
        self._pauses.add(pause)
        try:
            if not self.is_closed:
                await pause.wait(seconds)
        finally:
            self._pauses.discard(pause)

    def close(self) -> None:
        """Close all connections; whoever waits for one of them wakes up."""
        self.is_closed = True
        self._slots.close()
        for exchange in list(self._active):
            exchange.abort()
        for pause in list(self._pauses):
            pause.end()
        self._close_idle()

    def __del__(self) -> None:
        # A client that nobody closed, and nobody has any more, leaves no socket behind.
        self._close_idle()

    def forget(self, exchange: AsyncExchange) -> None:
        self._active.discard(exchange)

    def park(self, connection: _AsyncConnection) -> None:
        """Keep a clean connection for the next call."""
        if self.is_closed or connection.place != self._place:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        self._sweep()

    def _sweep(self) -> None:
        """Close the connections that have lain idle for too long: the oldest ones."""
        while (oldest := self._pop(self._idle.popleft)) is not None:
            if not oldest.is_expired:
                self._idle.appendleft(oldest)
                return
            oldest.close()

    def _close_idle(self) -> None:
        while (connection := self._pop(self._idle.pop)) is not None:
            connection.close()

    def _pop(self, take: Callable[[], _AsyncConnection]) -> _AsyncConnection | None:
        # Between a look at the list and the taking another thread may have emptied it.
        try:
            return take()
        except IndexError:
            return None

    def _move_to(self, place: object) -> None:
        """After a fork, or on another event loop, everything begins afresh.

        What is in flight elsewhere goes on there and is closed, not kept, when it ends.
        """
        if place != self._place:
            self._place = place
            self._slots = io.Slots(self._max_connections)
            self._close_idle()


class _AsyncConnection:
    """One httpcore connection, and the wire below it."""

    def __init__(self, route: Route, limits: Limits, place: object) -> None:
        self.place = place
        self.idle_since = 0.0
        self.wire = AsyncWire(limits)
        self.url = route.url
        ssl_context = route.ssl_context
        if ssl_context is None and route.endpoint.scheme == "https":
            ssl_context = default_ssl_context()
        # Only its factory is used: it knows direct, forwarded, tunnelled and SOCKS connections.
        factory = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context, proxy=route.proxy, network_backend=self.wire
        )
        self.http = factory.create_connection(route.origin)

    @property
    def is_expired(self) -> bool:
        return time.monotonic() - self.idle_since > IDLE_SECONDS

    def close(self) -> None:
        self.wire.close()


class AsyncExchange:
    """One request and its answer. It holds a slot and a connection until it is over."""

    head: Head

    def __init__(self, connections: AsyncConnections, slots: io.Slots, limits: Limits) -> None:
        self._connections = connections
        self._slots = slots
        self._limits = limits
        self._has_slot = False
        self._connection: _AsyncConnection | None = None
        self._response: httpcore.Response | None = None
        self._protocol: h11.Connection | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._is_aborted = False
        self._is_over = False

    async def send(self, request: Request) -> None:
        """Send the request and wait for the head of its answer.

        Raises what httpcore, sockets and TLS raise, `TimeoutError` and `ClosedByCaller`.
        """
        await self._slots.acquire(self._limits.left())
        self._has_slot = True
        idle = self._connections.take_idle()
        if idle is None or not await self._resend(idle, request):
            await self._send_on(self._connections.connect(self._limits), request)

    async def _resend(self, connection: _AsyncConnection, request: Request) -> bool:
        """Send on a connection that was used before; False where it was gone already."""
        try:
            await self._send_on(connection, request)
        except (OSError, httpcore.NetworkError, httpcore.RemoteProtocolError) as error:
            # The server closed it just as the request went out, a race that nobody can win: as
            # no byte came back, the request has the right to a connection of its own.
            if isinstance(error, TimeoutError) or connection.wire.has_received:
                raise
            connection.close()
            return False
        return True

    async def _send_on(self, connection: _AsyncConnection, request: Request) -> None:
        self._connection = connection
        if self._is_aborted:
            raise ClosedByCaller("it was closed before it was sent")
        wire = connection.wire
        wire.limits = self._limits
        wire.has_received = False
        self._limits.enter("connect")
        response: Any = await connection.http.handle_async_request(
            httpcore.Request(
                b"POST",
                connection.url,
                headers=request.headers,
                content=Body(request.body, self._limits),
            )
        )
        self._response = response
        self._protocol = find_protocol(connection.http)
        self.head = Head(response.status, response.headers, response.extensions["http_version"])

    async def read(self) -> bytes | bytearray:
        """The next bytes of the body, b"" at its end. Raises as `send` does."""
        if self._protocol is None:
            return await self._read_slowly()
        assert self._connection is not None, "read() comes after send()"
        while (data := next_piece(self._protocol)) is None:
            self._protocol.receive_data(await self._connection.wire.read())
        if data:
            self._limits.see_text()
        return data

    async def _read_slowly(self) -> bytes:
        if self._chunks is None:
            assert self._response is not None, "read() comes after send()"
            # httpcore has one class of response for both colours.
            self._chunks = aiter(cast("AsyncIterable[bytes]", self._response.stream))
        async for data in self._chunks:
            if data:
                self._limits.see_text()
                return data
        return b""

    async def finish(self) -> None:
        """The body has ended: keep the connection where it is clean, and close it elsewhere.

        `is_quiet` looks again before it is used.
        """
        assert self._connection is not None, "finish() comes after read()"
        assert self._response is not None, "finish() comes after read()"
        await self._response.aclose()
        # Bytes beyond the answer would be taken for the answer to the next request.
        has_leftover = self._protocol is None or self._protocol.trailing_data[0]
        if self._connection.http.is_idle() and not has_leftover:
            self._connections.park(self._connection)
            self._connection = None
        self.drop()

    def abort(self) -> None:
        """End it from anywhere; who waits for it sees `ClosedByCaller`, and drops it."""
        self._is_aborted = True
        if self._connection is not None:
            self._connection.wire.abort()

    async def aclose(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Let go of slot and connection, without waiting for anything."""
        if self._is_over:
            return
        self._is_over = True
        self._connections.forget(self)
        if self._connection is not None:
            self._connection.close()
        if self._chunks is not None:
            io.discard(self._chunks)
        if self._has_slot:
            self._slots.release()
