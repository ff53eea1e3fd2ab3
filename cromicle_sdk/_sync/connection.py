# Generated from _async/connection.py by tests/unasync.py; do not edit.
"""The connections of one process: each of them, the idle ones, and how many may be in use.

A connection may take another request where nothing is left of the last one. `Connection` asks
twice. When an exchange is over, `is_clean`: httpcore is idle, its parser has no bytes after the
response, and neither has the network. That is `has_trailing_data`: `has_unread`, bytes that TLS has
received and httpcore has not read; and where the parser is not found, those that an observer has
seen after the response. Later, when the idle connection is to be used, `is_reusable`: it is not too
old, its socket is open, and nothing has arrived there since.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import httpcore

from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._http.framing import Trailers, find_h11
from cromicle_sdk._http.proxies import Route, default_ssl_context
from cromicle_sdk._http.sockets import IDLE_SECONDS, ProcessLock

from . import concurrency
from .network import Network

if TYPE_CHECKING:
    import h11

__all__ = ["Connection", "ProcessPool"]

_OriginKey = tuple[bytes, bytes, int]

# One connection of httpcore's; through a proxy a pool of it, which has one, too.
HTTP = httpcore.ConnectionInterface | httpcore.ConnectionPool


class Connection:
    """One httpcore connection, and the network below it."""

    def __init__(
        self,
        origin: httpcore.Origin,
        create: Callable[[Network], HTTP],
    ) -> None:
        self.origin = origin
        self._network = Network()
        self._http = create(self._network)
        self._idle_since = 0.0

    def send(
        self,
        request: httpcore.Request,
        timeouts: CallTimeouts,
        cancel_handle: concurrency.CancelHandle,
    ) -> httpcore.Response:
        """Send a request, and wait for the head of its response."""
        self._network.start_exchange(timeouts, cancel_handle)
        timeouts.enter("connect", time.monotonic())
        return self._http.handle_request(request)

    def read(self) -> bytes:
        """The next bytes of the network, b"" at the end."""
        return self._network.read()

    def find_h11(self) -> h11.Connection | None:
        """The parser of the response, where it is found below httpcore."""
        return find_h11(self._find_connection())

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
        """The trailers of the last response, where its parser is not found below httpcore."""
        return self._network.observed_trailers

    @property
    def is_reusable(self) -> bool:
        """Whether this idle connection can take another request."""
        return not self.is_expired(time.monotonic()) and self._network.is_reusable

    def _find_connection(self) -> httpcore.ConnectionInterface | None:
        """httpcore's connection; None in a pool without one."""
        if isinstance(self._http, httpcore.ConnectionPool):
            return next(iter(self._http.connections), None)
        return self._http

    def start_idle(self, now: float) -> None:
        """The connection waits for its next request from `now` on."""
        self._idle_since = now

    def is_expired(self, now: float) -> bool:
        """Whether it has been idle for too long."""
        return now - self._idle_since > IDLE_SECONDS

    def close(self) -> None:
        """Release the socket, without waiting."""
        self._network.close()


class ProcessPool:
    """The connections of one process: a slot for each exchange, and the idle connections."""

    def __init__(self, route: Route, max_connections: int) -> None:
        self._route = route
        self._max_idle = max_connections
        self.limiter = concurrency.ConnectionLimiter(max_connections)
        # From the least to the most recently used.
        self._idle: OrderedDict[Connection, None] = OrderedDict()
        self._idle_by_origin: dict[_OriginKey, deque[Connection]] = {}
        self._lock = ProcessLock()
        self._is_closed = False

    def open_connection(self, origin: httpcore.Origin) -> Connection:
        """A new connection, which connects when it is first used."""
        return Connection(origin, partial(self._create, origin))

    def get_idle(self, origin: httpcore.Origin) -> Connection | None:
        """The most recently used idle connection that can take another request."""
        while (connection := self._take(origin)) is not None:
            if connection.is_reusable:
                return connection
            connection.close()
        return None

    def put_idle(self, connection: Connection) -> None:
        """Keep a clean connection for the next request."""
        now = time.monotonic()
        connection.start_idle(now)
        with self._lock:
            self._idle[connection] = None
            self._idle_by_origin.setdefault(_key(connection.origin), deque()).append(connection)
        for surplus in self._take_surplus(now):
            surplus.close()

    def close(self) -> None:
        """Close the idle connections, and each other one when its exchange is over."""
        self._is_closed = True
        for connection in self._take_surplus(time.monotonic()):
            connection.close()

    def _take(self, origin: httpcore.Origin) -> Connection | None:
        with self._lock:
            connections = self._idle_by_origin.get(_key(origin))
            if not connections:
                return None
            connection = connections.pop()
            self._forget(connection)
            return connection

    def _take_surplus(self, now: float) -> list[Connection]:
        """The idle connections that are too old or too many; all of them after `close`."""
        surplus: list[Connection] = []
        with self._lock:
            while self._idle:
                oldest = next(iter(self._idle))
                is_surplus = self._is_closed or len(self._idle) > self._max_idle
                if not (is_surplus or oldest.is_expired(now)):
                    break
                # The oldest of all is the oldest of its origin.
                connections = self._idle_by_origin.get(_key(oldest.origin))
                if connections and connections[0] is oldest:
                    connections.popleft()
                self._forget(oldest)
                surplus.append(oldest)
        return surplus

    def _forget(self, connection: Connection) -> None:
        # An interrupt or a fork may have come between two of these lines before.
        self._idle.pop(connection, None)
        key = _key(connection.origin)
        if not self._idle_by_origin.get(key):
            self._idle_by_origin.pop(key, None)

    def _create(self, origin: httpcore.Origin, network: Network) -> HTTP:
        ssl_context = self._route.ssl_context
        if ssl_context is None and origin.scheme == b"https":
            ssl_context = default_ssl_context()
        # It knows direct, forwarded, tunnelled and SOCKS connections.
        pool = httpcore.ConnectionPool(
            ssl_context=ssl_context, proxy=self._route.proxy, network_backend=network
        )
        # Through a proxy, tools that replace the methods of httpcore's classes see a request only
        # at the pool; without one they see it at the connection, too.
        return pool.create_connection(origin) if self._route.proxy is None else pool


def _key(origin: httpcore.Origin) -> _OriginKey:
    """httpcore's origins have no hash."""
    return origin.scheme, origin.host, origin.port
