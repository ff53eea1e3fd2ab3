# Generated from _async/pool.py by tests/unasync.py; do not edit.
"""The connection pool of the transports: one exchange per connection, at linear cost.

httpcore's pool is not used. Its cost is quadratic in the requests in flight, and on asyncio a
cancelled request can leak its slot (httpcore issue 1093; httpcore2 2.16 has fixed both). It does
not notice bytes that follow a response either, and would read them as the response to the next
request. Here, a connection belongs to one exchange or is idle. In HTTP/1.1, a second response that
arrives after the next request was sent is the response to that request (RFC 9112, 9.2), here as
elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    MutableMapping,
)
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet, finalize

import httpcore

from cromicle_sdk._core.compat import Self
from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._http.clients import ResponseObserver, find_exchange, is_byte_stream
from cromicle_sdk._http.framing import Trailers, receive_body
from cromicle_sdk._http.libraries import (
    convert_error,
    convert_request,
    find_extensions,
    find_library,
)
from cromicle_sdk._http.proxies import Route
from cromicle_sdk._http.slots import Slot
from cromicle_sdk._http.sockets import ClosedByCaller, snapshot
from cromicle_sdk._http.translate import redact_error, redact_reason

from . import concurrency, iterators
from .connection import Connection, ProcessPool
from .upgrade import UpgradedStream

if TYPE_CHECKING:
    import h11

__all__ = ["Exchange", "Pool", "Trace"]


class Pool:
    """The pool of a transport: one of its own for each process."""

    def __init__(self, route: Route, *, max_connections: int) -> None:
        self._route = route
        self._max_connections = max_connections
        self._process_pools: dict[concurrency.Runtime, ProcessPool] = {}
        # The exchanges of plain httpx requests. Calls of this package's clients cancel their own.
        self._exchanges: WeakSet[Exchange] = WeakSet()
        self.is_closed = False
        # Closes the sockets of a pool that is dropped without being closed. In `__del__`, the
        # garbage collector might already have finalized the sockets.
        finalize(self, _close_all, self._process_pools)

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Run the exchange in the extensions of a call, or a new one for a plain httpx request.

        Raises `httpcore`'s errors, and `ClosedByCaller` for a call.
        """
        library = find_library(request)
        if library is httpcore:
            return self._handle(request)
        try:
            return self._handle(convert_request(request), library)
        except Exception as error:  # noqa: BLE001 - raised as one of the library's
            raise convert_error(error, library)  # noqa: B904 - it has its cause

    def _handle(
        self, request: httpcore.Request, library: ModuleType = httpcore
    ) -> httpcore.Response:
        request.url = self._route.find_target(request.url)
        extensions = self._route.find_extensions(request.url, find_extensions(request))
        request.extensions = extensions
        exchange = find_exchange(extensions)
        if not (isinstance(exchange, Exchange) and exchange.is_for(request)):
            return self._handle_plain_request(request, library)
        if self._route.proxy is not None:
            extensions.setdefault("trace", Trace(exchange.observer))
        return exchange.run(self.find_process_pool(), request, library)

    def _handle_plain_request(
        self, request: httpcore.Request, library: ModuleType
    ) -> httpcore.Response:
        timeouts = CallTimeouts.for_request(
            find_extensions(request).get("timeout", {}), now=time.monotonic()
        )
        exchange = Exchange(timeouts, concurrency.CancelHandle())
        self._exchanges.add(exchange)
        try:
            return exchange.run(self.find_process_pool(), request, library)
        except ClosedByCaller as error:
            exchange.abandon()
            raise httpcore.ReadError(str(error)) from error
        except BaseException:
            # Cancelled, interrupted or failed. An exception that is kept keeps this frame and so
            # the exchange, which must not keep its slot.
            exchange.abandon()
            raise

    def find_process_pool(self) -> ProcessPool:
        """Return the pool of this process. Raises `ClosedByCaller` after `close`."""
        if self.is_closed:
            raise ClosedByCaller("its client is closed")
        runtime = concurrency.current_runtime()
        pool = self._process_pools.get(runtime)
        if pool is None:
            self._close_dead_process_pools()
            # `setdefault` is atomic: concurrent threads get the same pool.
            pool = self._process_pools.setdefault(
                runtime, ProcessPool(self._route, self._max_connections)
            )
        return pool

    def _close_dead_process_pools(self) -> None:
        """Close the pools that a fork has left behind."""
        for runtime in list(self._process_pools):
            if not concurrency.is_runtime_alive(runtime):
                pool = self._process_pools.pop(runtime, None)
                if pool is not None:
                    pool.close()

    def close(self) -> None:
        """Close all connections, and cancel the plain requests in flight."""
        self.is_closed = True
        _close_all(self._process_pools)
        for exchange in snapshot(self._exchanges):
            exchange.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.close()


def _close_all(pools: dict[concurrency.Runtime, ProcessPool]) -> None:
    for pool in list(pools.values()):
        pool.close()


class Exchange:
    """One request and its response. It holds a slot and a connection until it is over.

    The call creates it and passes it in the extensions of its httpx request, and the pool runs it.
    The call can therefore abandon it at any time, whichever layer of httpx raises. Nothing that it
    holds refers back to it, so that a dropped exchange releases both without the cyclic GC.

    It is also the stream of httpcore's response. It is an iterator, because dropping an unfinished
    async generator causes a warning on trio.

    `redact` is set for calls of this package's clients: it removes secrets from texts of the
    server. The request of such a call is sent again if the server closed the idle connection before
    reading it.
    """

    # Defaults for `__del__`, because an interrupt can end `__init__` early.
    _slot: Slot | None = None
    _connection: Connection | None = None
    _chunks: Iterator[bytes] | None = None

    def __init__(
        self,
        timeouts: CallTimeouts,
        cancel_handle: concurrency.CancelHandle,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self._timeouts = timeouts
        self.cancel_handle = cancel_handle
        self._redact = redact
        self.observer = ResponseObserver(redact)
        self._request_body: object = None
        self._is_running = False
        self._start()

    def _start(self) -> None:
        self._has_run = False
        self._is_upgraded = False
        self._pool: ProcessPool | None = None
        self._parser: h11.Connection | None = None
        self._source: Any = None
        self._chunks = None
        self._needs_data = False
        self._failure: httpcore.RemoteProtocolError | None = None
        self._is_end = False
        self._trailers: Trailers = ()
        self._library: ModuleType = httpcore

    def bind(self, body: object) -> None:
        """Restrict this exchange to the request with this body."""
        self._request_body = body

    def is_for(self, request: httpcore.Request) -> bool:
        """Whether `run` may send a request that has this exchange in its extensions.

        A hook may send another request with the same extensions. Authentication sends the same
        request again after its response, and a transport may send it twice at the same time.
        """
        is_in_use = self._is_running or (self._source is not None and self._slot is not None)
        is_bound = self._request_body is None or self._request_body is request.stream
        return is_bound and not is_in_use

    def run(
        self, pool: ProcessPool, request: httpcore.Request, library: ModuleType
    ) -> httpcore.Response:
        """Send the request and wait for the head of its response, whose stream is this object.

        Iterating over it raises the errors of `library`.

        Raises `httpcore`'s errors and `ClosedByCaller`.
        """
        self._is_running = True
        try:
            return self._run(pool, request, library)
        finally:
            self._is_running = False

    def _run(
        self, pool: ProcessPool, request: httpcore.Request, library: ModuleType
    ) -> httpcore.Response:
        if self._has_run:
            self.abandon()
            self._start()
        self._has_run = True
        self._library = library
        self._acquire_slot(pool)
        request.stream = _RequestBody(request.stream, self._timeouts)
        try:
            response = self._send(pool, request)
        except Exception as error:
            # Instrumentation sees the error before the call does.
            if self._redact is not None:
                redact_error(error, self._redact)
            raise
        # Keep httpcore's stream, and let the response be read through this object.
        self._source, response.stream = response.stream, self
        extensions = find_extensions(response)
        self.observer.receive_head(response.status, response.headers, extensions)
        if self._redact is not None:
            redact_reason(response.status, extensions, self._redact)
        is_tunnel = request.method == b"CONNECT" and 200 <= response.status < 300
        if response.status == 101 or is_tunnel:
            self._start_upgrade(extensions)
        return response

    def _start_upgrade(self, extensions: MutableMapping[str, Any]) -> None:
        assert self._connection is not None, "a response comes from a connection"
        self._is_upgraded = True
        self._connection.start_upgrade()
        extensions["network_stream"] = UpgradedStream(
            extensions["network_stream"], self._connection, self.abandon, self._library
        )

    def _acquire_slot(self, pool: ProcessPool) -> None:
        self._timeouts.enter("pool", time.monotonic())
        left = self._timeouts.left(time.monotonic())
        self._pool = pool
        self._slot = pool.limiter.acquire(left, self.cancel_handle)
        if self._slot is None:
            raise httpcore.PoolTimeout

    def _send(self, pool: ProcessPool, request: httpcore.Request) -> httpcore.Response:
        if request.url.scheme not in (b"http", b"https"):
            raise httpcore.UnsupportedProtocol("The URL begins with neither http:// nor https://.")
        origin = request.url.origin
        sni_hostname = find_extensions(request).get("sni_hostname") or None
        idle = pool.get_idle(origin, sni_hostname)
        if idle is not None:
            try:
                return self._send_on(idle, request)
            except (httpcore.NetworkError, httpcore.RemoteProtocolError):
                idle.close()
                if self._redact is None or not idle.is_request_unread:
                    raise
        # The server closed the idle connection while the request was sent, a race that no check
        # prevents. It has not read the request, so send it on a new connection.
        return self._send_on(pool.open_connection(origin, sni_hostname), request)

    def _send_on(self, connection: Connection, request: httpcore.Request) -> httpcore.Response:
        self._connection = connection
        response = connection.send(
            request,
            self._timeouts,
            self.cancel_handle,
            buffers_writes=getattr(request.stream, "is_whole", False),
        )
        self._parser = connection.find_h11()
        return response

    @property
    def is_end(self) -> bool:
        """Whether the body has been read to its end."""
        return self._is_end

    @property
    def trailers(self) -> Trailers:
        """The trailers, after the end of the body."""
        return self._trailers

    def read(self) -> bytes | bytearray:
        """Return the part of the body that has arrived, at least one byte; b"" at its end.

        Raises the same errors as `run`.
        """
        return self._read_source() if self._parser is None else self._read(self._parser)

    def _read(self, parser: h11.Connection) -> bytes | bytearray:
        if self._is_end:
            return b""
        if self._failure is not None:
            raise self._failure
        if not self._needs_data:
            # The buffer may hold a lot of data: let other threads run.
            concurrency.checkpoint()
        while True:
            if self._needs_data:
                parser.receive_data(self._use_connection().read())
            part = receive_body(parser)
            self._needs_data = part.needs_data
            if part.is_end:
                self._is_end = True
                self._trailers = part.trailers
                return part.data
            if part.error is not None:
                self._failure = part.error
                if not part.data:
                    raise part.error
            if part.data:
                self._timeouts.receive_body(time.monotonic())
                return part.data

    def _read_source(self) -> bytes:
        if self._is_end:
            return b""
        if self._chunks is None:
            # httpcore has one response class for sync and async.
            self._chunks = iter(cast("Iterable[bytes]", self._source))
        for data in self._chunks:
            if data:
                self._timeouts.receive_body(time.monotonic())
                return data
        self._is_end = True
        self._trailers = self._use_connection().observed_trailers
        return b""

    def _use_connection(self) -> Connection:
        """Return the connection. Raises `ClosedByCaller` after a concurrent `abandon`."""
        if self._connection is None:
            raise ClosedByCaller("it was closed before its end")
        return self._connection

    def close(self) -> None:
        """Stop reading.

        Keeps the connection if it is clean after the end of the response, and closes it otherwise.
        """
        connection, pool = self._connection, self._pool
        if self._is_end and connection is not None and pool is not None:
            self._source.close()
            if connection.is_clean:
                # First, so that `abandon` closes it if an interrupt arrives between these lines.
                self._connection = None
                pool.put_idle(connection)
        self.abandon()

    def cancel(self) -> None:
        """End every wait of the exchange, from any thread or signal handler."""
        self.cancel_handle.cancel()
        connection = self._connection
        if self._is_upgraded and connection is not None:
            # After an upgrade, a read and a write can wait at the same time, and the handle ends
            # only one.
            connection.interrupt()

    def abandon(self) -> None:
        """Release the slot and close the connection, without waiting."""
        # An interrupt can arrive at any line. Whatever is dropped here releases itself, and the
        # next call does the rest.
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        # An iterator that another task or thread is running is interrupted, and closed there.
        if self._chunks is not None and (connection is None or not connection.is_in_use):
            iterators.finish_iterator(self._chunks)
            self._chunks = None
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next chunk, for httpx. Any exception closes the connection, as httpcore does."""
        try:
            # Another task or thread may close the response at any time.
            with self._use_connection().use():
                data = self.read()
        except Exception as error:  # noqa: BLE001 - raised as one of the library's
            self.abandon()
            if self._redact is None and isinstance(error, ClosedByCaller):
                error = httpcore.ReadError(str(error))
            raise convert_error(error, self._library)  # noqa: B904 - as above
        except BaseException:
            # Cancelled or interrupted: some of the body may be lost.
            self.abandon()
            raise
        if not data:
            raise StopIteration
        return bytes(data)

    def __del__(self) -> None:
        self.abandon()


class _RequestBody:
    """A request's body. httpcore asks for it when the connection is ready: "connect" is over.

    httpx's own bodies can be iterated in either way; here it is the one without async generators,
    since one that is dropped unfinished is a warning under trio.
    """

    def __init__(self, stream: Any, timeouts: CallTimeouts) -> None:
        # Another kind of body is made while it is sent: by a generator, or from a file.
        self.is_whole = is_byte_stream(stream)
        self._stream = stream
        self._timeouts = timeouts
        self._parts: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        self._timeouts.enter("send", time.monotonic())
        if not hasattr(self._stream, "__iter__"):
            return iter(self._stream)
        self._parts = iter(self._stream)
        return self

    def __next__(self) -> bytes:
        assert self._parts is not None, "it is iterated after __iter__()"
        for part in self._parts:
            return part
        raise StopIteration


class Trace:
    """httpcore's extension `trace` for a call. It is not the exchange, to which it would refer."""

    def __init__(self, observer: ResponseObserver) -> None:
        self._observer = observer

    def __call__(self, name: str, info: dict[str, Any]) -> None:
        self._observer.observe(name, info)
