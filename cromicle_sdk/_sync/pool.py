# Generated from _async/pool.py by tests/unasync.py; do not edit.
"""Connections: one exchange each, used again only when clean, many in flight at linear cost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast
from weakref import WeakSet, WeakValueDictionary, finalize

import h11
import httpcore

from cromicle_sdk._core.deadline import Limits
from cromicle_sdk._core.request import Request
from cromicle_sdk._http.sockets import (
    IDLE_SECONDS,
    PIECES_AT_ONCE,
    Body,
    ClosedByCaller,
    Head,
    Route,
    default_ssl_context,
    find_protocol,
    next_piece,
    snapshot,
)

from . import concurrency as io
from .network import Wire

__all__ = ["Connections", "Exchange"]


class Connections:
    """A client's connections to its endpoint.

    httpcore's pool is not used: its bookkeeping is quadratic in the calls in flight, and on
    asyncio a cancelled call can lose its place in it for good (httpcore issue 1093). Here a
    connection belongs to one exchange or lies idle.
    """

    def __init__(self, route: Route, *, max_connections: int) -> None:
        self._route = route
        self._max_connections = max_connections
        # By process and event loop. An earlier one lives on while it has exchanges under way.
        self._homes: WeakValueDictionary[object, _Home] = WeakValueDictionary()
        # The present one, if any. A client that nobody closed, and nobody has any more, leaves
        # no socket behind: not by `__del__`, before which a collector may have come to the socket.
        self._here: list[_Home] = []
        finalize(self, _leave, self._here)
        # Who holds a call is its stream: one that an interrupt has cut off is not kept here.
        self._active: WeakSet[Exchange] = WeakSet()
        self._pauses = io.Pauses()
        self.is_closed: bool = False

    def start(self, limits: Limits) -> Exchange:
        """An exchange that has yet to be sent. Raises `ClosedByCaller` after `close`."""
        if self.is_closed:
            raise ClosedByCaller("its client is closed")
        exchange = Exchange(self, self._find_home(), limits)
        self._active.add(exchange)
        return exchange

    def connect(self, limits: Limits, interrupt: io.Interrupt) -> _Connection:
        """A new connection, which connects when it is first used."""
        return _Connection(self._route, Wire(limits, interrupt))

    def wait(self, seconds: float, pause: io.Pause) -> None:
        """Wait between two attempts; the end of the pause, or `close`, cuts it short."""
        self._pauses.wait(seconds, pause)

    def close(self) -> None:
        """Close all connections; whoever waits for one of them wakes up."""
        self.is_closed = True
        for home in list(self._homes.values()):
            home.leave()
        for exchange in snapshot(self._active):
            exchange.abort()
        self._pauses.end()

    def forget(self, exchange: Exchange) -> None:
        self._active.discard(exchange)

    def _find_home(self) -> _Home:
        """After a fork, or on another event loop, everything begins afresh.

        What is in flight elsewhere goes on there and is closed, not kept, when it ends.
        """
        place = io.find_place()
        home = self._homes.get(place)
        if home is None:
            home = self._homes[place] = _Home(self._max_connections)
        if home not in self._here:
            _leave(self._here)
            self._here[:] = [home]
            home.enter()
        return home


def _leave(homes: list[_Home]) -> None:
    for home in homes:
        home.leave()


class _Home:
    """Where connections live, a process and an event loop: its slots, and what lies idle in it."""

    def __init__(self, max_connections: int) -> None:
        self.slots: io.Slots = io.Slots(max_connections)
        # The end of the list is the most recently used. Its operations are atomic, so that a
        # collected stream may give back a connection at any time, in any thread.
        self._idle: deque[_Connection] = deque()
        self._is_left = False

    def enter(self) -> None:
        """Connections are kept here from now on."""
        self._is_left = False

    def leave(self) -> None:
        """Nobody comes here any more: close what lies idle, and what would come to do so."""
        self._is_left = True
        while (connection := self._pop(self._idle.pop)) is not None:
            connection.close()

    def take_idle(self) -> _Connection | None:
        """The idle connection that was used last and still lives, if there is one."""
        while (connection := self._pop(self._idle.pop)) is not None:
            if not connection.is_expired and connection.wire.is_quiet:
                return connection
            connection.close()
        return None

    def park(self, connection: _Connection) -> None:
        """Keep a clean connection for the next call."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._is_left:
            self.leave()
        self._sweep()

    def _sweep(self) -> None:
        """Close the connections that have lain idle for too long: the oldest ones."""
        while (oldest := self._pop(self._idle.popleft)) is not None:
            if not oldest.is_expired:
                self._idle.appendleft(oldest)
                return
            oldest.close()

    def _pop(self, take: Callable[[], _Connection]) -> _Connection | None:
        # Between a look at the list and the taking another thread may have emptied it.
        try:
            return take()
        except IndexError:
            return None


class _Connection:
    """One httpcore connection, and the wire below it."""

    def __init__(self, route: Route, wire: Wire) -> None:
        self.idle_since: float = 0.0
        self.wire: Wire = wire
        self.url: httpcore.URL = route.url
        ssl_context = route.ssl_context
        if ssl_context is None and route.endpoint.scheme == "https":
            ssl_context = default_ssl_context()
        # Only its factory is used: it knows direct, forwarded, tunnelled and SOCKS connections.
        factory = httpcore.ConnectionPool(
            ssl_context=ssl_context, proxy=route.proxy, network_backend=self.wire
        )
        self.http: httpcore.ConnectionInterface = factory.create_connection(route.origin)

    @property
    def is_expired(self) -> bool:
        return time.monotonic() - self.idle_since > IDLE_SECONDS

    def close(self) -> None:
        self.wire.close()


class Exchange:
    """One request and its answer. It holds a slot and a connection until it is over."""

    head: Head

    def __init__(self, connections: Connections, home: _Home, limits: Limits) -> None:
        self._connections = connections
        self._home = home
        self._limits = limits
        self._has_slot = False
        self._connection: _Connection | None = None
        self._response: httpcore.Response | None = None
        self._protocol: h11.Connection | None = None
        self._chunks: Iterator[bytes] | None = None
        self._pieces = 0
        self._interrupt = io.Interrupt()
        self._is_over = False

    def send(self, request: Request) -> None:
        """Send the request and wait for the head of its answer.

        Raises what httpcore, sockets and TLS raise, `TimeoutError` and `ClosedByCaller`.
        """
        self._home.slots.acquire(self._limits.left(), self._interrupt)
        self._has_slot = True
        idle = self._home.take_idle()
        if idle is None or not self._resend(idle, request):
            connection = self._connections.connect(self._limits, self._interrupt)
            self._send_on(connection, request)

    def _resend(self, connection: _Connection, request: Request) -> bool:
        """Send on a connection that was used before; False where it was gone already."""
        try:
            self._send_on(connection, request)
        except (OSError, httpcore.NetworkError, httpcore.RemoteProtocolError) as error:
            # The server closed it just as the request went out, a race that nobody can win: as
            # no byte came back, the request has the right to a connection of its own.
            if isinstance(error, TimeoutError) or connection.wire.has_received:
                raise
            connection.close()
            return False
        return True

    def _send_on(self, connection: _Connection, request: Request) -> None:
        self._connection = connection
        self._interrupt.check()
        wire = connection.wire
        wire.limits = self._limits
        wire.interrupt = self._interrupt
        wire.has_received = False
        self._limits.enter("connect")
        response: Any = connection.http.handle_request(
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

    def read(self) -> bytes | bytearray:
        """The next bytes of the body, b"" at its end. Raises as `send` does."""
        if self._protocol is None:
            return self._read_slowly()
        assert self._connection is not None, "read() comes after send()"
        self._pieces += 1
        if self._pieces % PIECES_AT_ONCE == 0:
            io.give_way()
        while (data := next_piece(self._protocol)) is None:
            self._protocol.receive_data(self._connection.wire.read())
        if data:
            self._limits.see_text()
        return data

    def _read_slowly(self) -> bytes:
        if self._chunks is None:
            assert self._response is not None, "read() comes after send()"
            # httpcore has one class of response for both colours.
            self._chunks = iter(cast("Iterable[bytes]", self._response.stream))
        for data in self._chunks:
            if data:
                self._limits.see_text()
                return data
        return b""

    def finish(self) -> None:
        """The body has ended: keep the connection where it is clean, and close it elsewhere.

        `is_quiet` looks again before it is used.
        """
        assert self._connection is not None, "finish() comes after read()"
        assert self._response is not None, "finish() comes after read()"
        self._response.close()
        if self._connection.http.is_idle() and not self._has_leftover(self._connection.wire):
            self._home.park(self._connection)
            self._connection = None
        self.drop()

    def _has_leftover(self, wire: Wire) -> bool:
        """Whether bytes have come that would be taken for the answer to the next request."""
        return self._protocol is None or bool(self._protocol.trailing_data[0]) or wire.has_unread

    def abort(self) -> None:
        """End it from anywhere; who waits for it sees `ClosedByCaller`, and drops it."""
        self._interrupt.end()
        if self._connection is not None:
            self._connection.wire.abort()

    def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Let go of slot and connection, without waiting for anything."""
        if self._is_over:
            return
        # An interrupt may come at any line; whoever drops it again does the rest.
        if self._connection is not None:
            self._connection.close()
        if self._chunks is not None:
            io.discard(self._chunks)
        self._connections.forget(self)
        if self._has_slot:
            self._has_slot = False
            self._home.slots.release()
        self._is_over = True
