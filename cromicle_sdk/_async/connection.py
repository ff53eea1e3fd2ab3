"""The connections of one event loop: each connection, the idle ones, and the limit.

A connection is reused only if nothing is left over from the last exchange. `AsyncConnection` checks
this twice. `is_clean`, at the end of an exchange: httpcore is idle, and neither its parser nor the
network has bytes that follow the response. For the network, `has_trailing_data` covers bytes that
TLS has received and httpcore has not read (`has_unread`), and, if the parser is not found, bytes
that the observer has seen after the response. `is_reusable`, before the next exchange: the
connection is not too old, its socket is open, and nothing has arrived since.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import httpcore

from cromicle_sdk._core.compat import build_ordered_dict
from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._http.framing import Trailers, find_h11
from cromicle_sdk._http.proxies import Route, default_ssl_context
from cromicle_sdk._http.sockets import IDLE_SECONDS, ClosedByCaller, find_first

from . import concurrency
from .network import AsyncNetwork

if TYPE_CHECKING:
    import h11

__all__ = ["AsyncConnection", "AsyncLoopPool"]

_OriginKey = tuple[bytes, bytes, int, str | None]

# A connection of httpcore's, or, through a proxy, a pool that has one connection.
AsyncHTTP = httpcore.AsyncConnectionInterface | httpcore.AsyncConnectionPool


class AsyncConnection:
    """One httpcore connection, and the network below it. Closes itself when it is dropped."""

    def __init__(
        self,
        origin: httpcore.Origin,
        create: Callable[[AsyncNetwork], AsyncHTTP],
        sni_hostname: str | None = None,
    ) -> None:
        self.origin = origin
        self.sni_hostname = sni_hostname
        self._network = AsyncNetwork()
        self._http = create(self._network)
        self._parser: h11.Connection | None = None
        self._idle_since = 0.0
        # One for each task or thread that is inside `use`.
        self._users: set[object] = set()
        self._is_closed = False

    async def send(
        self,
        request: httpcore.Request,
        timeouts: CallTimeouts,
        cancel_handle: concurrency.CancelHandle,
        *,
        buffers_writes: bool,
    ) -> httpcore.Response:
        """Send a request, and wait for the head of its response.

        With `buffers_writes`, the head and the whole body are sent together.
        """
        self._network.start_exchange(timeouts, cancel_handle, buffers_writes=buffers_writes)
        timeouts.enter("connect", time.monotonic())
        try:
            return await self._http.handle_async_request(request)
        except httpcore.ConnectError as error:
            failure, self._network.connect_failure = self._network.connect_failure, None
            if failure is not None:
                # httpcore's pool, which connects through a proxy, raises it `from None`.
                error.__cause__ = failure
            raise

    def read(self) -> Awaitable[bytes]:
        """Return the next bytes of the network, b"" at the end."""
        return self._network.read()

    def find_h11(self) -> h11.Connection | None:
        """Return the parser of the response, or None if httpcore has moved it."""
        if self._parser is None:
            # The parser is the same for each response of a connection.
            self._parser = find_h11(self._find_connection())
        return self._parser

    @property
    def is_request_unread(self) -> bool:
        """Whether the server closed the connection before it had read the current request."""
        return self._network.is_request_unread

    @property
    def is_clean(self) -> bool:
        """Whether a response has ended here, and nothing has arrived after it."""
        connection, parser = self._find_connection(), self.find_h11()
        return (
            connection is not None
            and connection.is_idle()
            and not self._network.has_trailing_data
            and (parser is None or not parser.trailing_data[0])
        )

    @property
    def observed_trailers(self) -> Trailers:
        """The trailers of the last response, if `find_h11` does not find its parser."""
        return self._network.observed_trailers

    @property
    def is_reusable(self) -> bool:
        """Whether this idle connection can take another request."""
        return not self.is_expired(time.monotonic()) and self._network.is_reusable

    def _find_connection(self) -> httpcore.AsyncConnectionInterface | None:
        """Return httpcore's connection, or None in a pool without one."""
        if isinstance(self._http, httpcore.AsyncConnectionPool):
            return next(iter(self._http.connections), None)
        return self._http

    def start_idle(self, now: float) -> None:
        """Mark the connection as idle since `now`."""
        self._idle_since = now

    def is_expired(self, now: float) -> bool:
        """Whether it has been idle for too long."""
        return now - self._idle_since > IDLE_SECONDS

    def start_upgrade(self) -> None:
        """Mark the end of HTTP: each read and write now has a timeout of its own."""
        self._network.start_upgrade()

    @contextmanager
    def use(self) -> Generator[None]:
        """Read or write in this context, so that another task or thread may call `close`.

        Raises `ClosedByCaller` in that case.
        """
        user = object()
        self._users.add(user)
        try:
            self._check_open()
            yield
            self._check_open()
        except (httpcore.NetworkError, httpcore.RemoteProtocolError):
            # An interrupted read or write looks like the end of the connection.
            self._check_open()
            raise
        finally:
            self._users.discard(user)
            if self._is_closed and not self._users:
                self._network.close()

    @property
    def is_in_use(self) -> bool:
        """Whether a task or thread is inside `use`."""
        return bool(self._users)

    def close(self) -> None:
        """Release the socket, without waiting.

        While it is in use, its reads and writes are interrupted, and the last of them releases it:
        the descriptor must not be reused while a thread or an event loop waits for it.
        """
        self._is_closed = True
        if self._users:
            self._network.interrupt()
        else:
            self._network.close()

    def interrupt(self) -> None:
        """End every wait for the network, now and later; from any thread."""
        self._network.interrupt()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedByCaller

    def __del__(self) -> None:
        # An interrupt can end `__init__` early.
        network: AsyncNetwork | None = getattr(self, "_network", None)
        if network is not None:
            network.close()


class AsyncLoopPool:
    """The connections of one event loop: a slot for each exchange, and the idle connections.

    Other threads, a signal handler that closes the client, and the garbage collector can run
    between any two lines, but each operation on a collection is atomic. There is no lock: a signal
    handler would wait for the code that it has interrupted, and an exception that it raises could
    leave the lock acquired.
    """

    def __init__(self, route: Route, max_connections: int) -> None:
        self._route = route
        self._max_idle = max_connections
        self.limiter = concurrency.ConnectionLimiter(max_connections)
        # In order of use, the least recent first. The task or thread that removes a connection owns
        # it.
        self._idle: dict[AsyncConnection, None] = build_ordered_dict()
        # An index of the idle connections. One that is missing here is not used again, and is
        # closed later.
        self._idle_by_origin: dict[_OriginKey, deque[AsyncConnection]] = {}
        self._is_closed = False

    def open_connection(
        self, origin: httpcore.Origin, sni_hostname: str | None = None
    ) -> AsyncConnection:
        """Return a new connection, which connects when it is first used."""
        return AsyncConnection(origin, partial(self._create, origin), sni_hostname)

    def get_idle(
        self, origin: httpcore.Origin, sni_hostname: str | None = None
    ) -> AsyncConnection | None:
        """Return the most recently used idle connection that can take another request.

        Its certificate was checked for `sni_hostname`, or for the host of the origin if it is None.
        """
        key = _key(origin, sni_hostname)
        while connections := self._idle_by_origin.get(key):
            try:
                connection = connections.pop()
            except IndexError:
                continue  # another thread has taken the last one
            self._forget_if_empty(key, connections)
            if self._own(connection):
                if connection.is_reusable:
                    return connection
                connection.close()
        return None

    def put_idle(self, connection: AsyncConnection) -> None:
        """Keep a clean connection for the next request."""
        now = time.monotonic()
        connection.start_idle(now)
        self._idle[connection] = None
        key = _key(connection.origin, connection.sni_hostname)
        self._idle_by_origin.setdefault(key, deque()).append(connection)
        self._close_surplus(now)

    def close(self) -> None:
        """Close the idle connections now, and all others when their exchanges are over."""
        self._is_closed = True
        self._close_surplus(time.monotonic())

    def _own(self, connection: AsyncConnection) -> bool:
        """Remove the connection from the idle ones. Return False if another thread has."""
        try:
            del self._idle[connection]
        except KeyError:
            return False
        return True

    def _close_surplus(self, now: float) -> None:
        """Close the idle connections that are too old or too many; all of them after `close`."""
        while (oldest := find_first(self._idle)) is not None:
            is_surplus = self._is_closed or len(self._idle) > self._max_idle
            if not (is_surplus or oldest.is_expired(now)):
                break
            if self._own(oldest):
                key = _key(oldest.origin, oldest.sni_hostname)
                connections = self._idle_by_origin.get(key, deque())
                # The oldest connection of all is the first of its origin, where `remove` finds it
                # at once.
                with suppress(ValueError):
                    connections.remove(oldest)
                self._forget_if_empty(key, connections)
                oldest.close()

    def _forget_if_empty(self, key: _OriginKey, connections: deque[AsyncConnection]) -> None:
        if not connections:
            self._idle_by_origin.pop(key, None)

    def _create(self, origin: httpcore.Origin, network: AsyncNetwork) -> AsyncHTTP:
        ssl_context = self._route.ssl_context
        if ssl_context is None and origin.scheme == b"https":
            ssl_context = default_ssl_context()
        # httpcore's pool creates direct, forwarded, tunnelled and SOCKS connections.
        pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context, proxy=self._route.proxy, network_backend=network
        )
        # Tools that patch the methods of httpcore's classes see a request through a proxy only at
        # the pool, and any other request also at the connection.
        return pool.create_connection(origin) if self._route.proxy is None else pool


def _key(origin: httpcore.Origin, sni_hostname: str | None) -> _OriginKey:
    """Return the key of idle connections. httpcore's origins are not hashable."""
    return origin.scheme, origin.host, origin.port, sni_hostname
