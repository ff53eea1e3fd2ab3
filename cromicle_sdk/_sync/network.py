# Generated from _async/network.py by tests/unasync.py; do not edit.
"""The network of one connection: sockets and TLS, within the timeouts of the current call.

httpcore's own backends are not used. asyncio's streams read ahead, which hides bytes that follow a
response, and close only in the next iteration of the loop. In the blocking backend, neither
`close()` nor a total deadline ends a read or a lookup of the resolver.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import httpcore

from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._http.framing import FramingObserver, Trailers, is_h11_reachable
from cromicle_sdk._http.proxies import encode_server_name
from cromicle_sdk._http.sockets import (
    ATTEMPT_DELAY_SECONDS,
    HEAD_BYTES,
    LATE_SECONDS,
    READ_BYTES,
    Address,
    ClosedByCaller,
    count_unacknowledged,
    interleave_families,
    is_from_system,
    is_request_unread,
    is_reusable,
    parse_address,
    start_connect,
    system_error,
)

from . import concurrency
from .socket_reader import SocketReader

__all__ = ["Network"]

T = TypeVar("T")

# How often a write checks whether another one has ended, in seconds. Only TLS needs this, and only
# for concurrent writes, or if a read waits until it can send its few bytes.
_PAUSE_SECONDS = 0.01


class Network(httpcore.NetworkBackend):
    """The network below one httpcore connection.

    The timeouts of the call apply to every wait. Those that httpcore passes are ignored, because
    they only limit single reads. `close` releases the socket immediately and without waiting, so
    that neither a cancellation nor the garbage collector can leak it.
    """

    def __init__(self) -> None:
        # The limits of everything but the writes after an upgrade, each of which has its own.
        self._call: _WaitLimits | None = None
        self._socket: socket.socket | None = None
        self._reader: SocketReader | None = None
        # The topmost layer, over which httpcore speaks HTTP. The TLS layers refer to those below.
        self._stream: _NetworkStream | None = None
        self._observer: FramingObserver | None = None
        self._has_received = False
        self._may_have_data = False
        self._sent_bytes = 0
        self._sending_since = 0.0
        self._unacknowledged = 0
        self._is_request_unread = False
        self._is_closed = False
        # The cause of the next `ConnectError`, where httpcore drops it.
        self.connect_failure: Exception | None = None
        # Whether writes are held back until the next read.
        self.buffers_writes = False
        self.is_upgraded = False
        self._process = os.getpid()

    def start_exchange(
        self,
        timeouts: CallTimeouts,
        cancel_handle: concurrency.CancelHandle,
        *,
        buffers_writes: bool,
    ) -> None:
        """Apply the limits of this call. `buffers_writes` buffers writes until the next read."""
        self._call = _WaitLimits(timeouts, cancel_handle)
        self.buffers_writes = buffers_writes
        self._has_received = False
        self._sent_bytes = 0
        self._is_request_unread = False
        self._observer = None if is_h11_reachable() else FramingObserver()

    def start_upgrade(self) -> None:
        """Mark the end of HTTP on this connection."""
        self.is_upgraded = True

    def limit_read(self, timeout: float | None) -> None:
        """Limit the next read to so many seconds, independently of concurrent writes."""
        self._call = self._use_call().with_limit("first_byte", timeout)

    def build_write_limits(self, timeout: float | None) -> _WaitLimits:
        """Return the limits of one write, each wait of which may take so many seconds.

        Writes of several tasks or threads may be in progress at the same time.
        """
        return self._use_call().with_limit("send", timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        self._connect_first(self._resolve(host, port))
        return self.open_stream(_TCP(self))

    def open_stream(self, layer: _Layer) -> httpcore.NetworkStream:
        """Return a stream over a layer, which replaces the previous stream."""
        self._stream = _NetworkStream(self, layer)
        return self._stream

    def read(self) -> bytes:
        """Return the next bytes that httpcore would read, b"" at the end."""
        assert self._stream is not None, "nothing is read before connect_tcp()"
        return self._stream.receive(READ_BYTES)

    @property
    def is_request_unread(self) -> bool:
        """Whether the server closed the connection before it had read the current request."""
        return self._is_request_unread

    @property
    def has_trailing_data(self) -> bool:
        """Whether data follows the response, as far as this is known below httpcore.

        A TLS layer receives several records at once and returns them one by one.
        """
        has_unread = self._stream is not None and self._stream.has_unread
        return has_unread or (self._observer is not None and self._observer.has_trailing_data)

    @property
    def observed_trailers(self) -> Trailers:
        """The trailers of the last response, if the observer parses it beside httpcore."""
        return () if self._observer is None else self._observer.trailers

    @property
    def is_reusable(self) -> bool:
        """Whether this idle connection is open and has received nothing more."""
        return (
            self._socket is not None and self._process == os.getpid() and is_reusable(self._socket)
        )

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore documents for a socket, or None for any other name."""
        sock = self._socket
        if sock is None:
            return None
        if info == "is_readable":
            return not is_reusable(sock)
        found = {"socket": lambda: sock, "client_addr": sock.getsockname}
        found["server_addr"] = sock.getpeername
        return found[info]() if info in found else None

    def close(self) -> None:
        self._is_closed = True
        # They refer to this object: break the reference cycle, so that it is freed without the
        # cyclic GC.
        self._stream = None
        self._call = None
        if self._reader is not None:
            self._reader.close()

    def interrupt(self) -> None:
        """End every wait for the socket, in any thread, and leave it open."""
        # A forked child shares the connection with its parent, which may be reading it.
        if self._socket is not None and self._process == os.getpid():
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def receive(self, max_bytes: int) -> bytes:
        """Return the next bytes of the socket, b"" at the end. Raises `httpcore`'s errors."""
        sock, call = self._use_socket()
        assert self._reader is not None
        has_waited = False
        while True:
            now = time.monotonic()
            left = call.timeouts.left(now)
            is_over = left is not None and left <= 0
            if is_over and self._is_sending(sock, call):
                left, is_over = call.timeouts.left(now), False
            # Data that has arrived may be in time, but a server that sends without pause must not
            # exceed the limit.
            if is_over and not has_waited and call.timeouts.late_for(now) > LATE_SECONDS:
                raise httpcore.ReadTimeout
            is_due = self._may_have_data or is_over
            received = self._reader.receive_now(max_bytes) if is_due else None
            if received is None:
                if is_over:
                    raise httpcore.ReadTimeout
                has_waited = True
                received = self._reader.receive(max_bytes, left, call.cancel_handle)
            self._may_have_data = False
            if received is None:
                continue
            if isinstance(received, OSError):
                call.cancel_handle.check()
                self._notice_close(sock)
                raise httpcore.ReadError(str(received)) from received
            # A read that is not full has taken all there is, so the next one waits first.
            self._may_have_data = len(received) == max_bytes
            if not received:
                # `cancel` shuts down the socket, which looks like its end.
                call.cancel_handle.check()
                self._notice_close(sock)
            # With a server that sends faster than this reads, let other threads run, and allow a
            # cancellation.
            if not (has_waited or self.is_upgraded):
                concurrency.checkpoint()
                call.cancel_handle.check()
            return received

    def send(self, data: bytes, limits: _WaitLimits | None = None) -> None:
        """Send all of the data, by default in the call's limits. Raises `httpcore`'s errors."""
        sock, call = self._use_socket()
        call = limits or call
        # Start with bytes: some fake sockets do not accept a memoryview.
        rest: bytes | memoryview = data
        if not self._sent_bytes:
            # Before `send`, because the server may work and close before this thread continues.
            self._sending_since = time.monotonic()
        while rest:
            # Do not wait inside the handler: an error raised there would have this one as its
            # context, with its frames, which hold the request.
            try:
                sent = sock.send(rest)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                call.cancel_handle.check()
                if not is_from_system(error):
                    raise
                raise httpcore.WriteError(str(error)) from error
            now = time.monotonic()
            if sent:
                self._sent_bytes += sent
                rest = memoryview(rest)[sent:]
                call.timeouts.progress(now)
            elif not call.cancel_handle.wait_writable(sock, call.timeouts.left(now)):
                raise httpcore.WriteTimeout

    def pause(self, limits: _WaitLimits | None) -> None:
        """Wait for a moment, until another write may have ended. Raises `httpcore.WriteTimeout`."""
        call = limits or self._use_call()
        left = call.timeouts.left(time.monotonic())
        if left is not None and left <= 0:
            raise httpcore.WriteTimeout
        call.cancel_handle.sleep(_PAUSE_SECONDS)
        call.cancel_handle.check()

    def _is_sending(self, sock: socket.socket, call: _WaitLimits) -> bool:
        """Whether the kernel has sent more of its buffered data since the last call.

        It buffers megabytes of a request, which take seconds on a slow network.
        """
        timeouts, now = call.timeouts, time.monotonic()
        before, self._unacknowledged = self._unacknowledged, count_unacknowledged(sock)
        if self._unacknowledged >= before or timeouts.total_left(now) <= 0:
            return False
        timeouts.enter("first_byte", now)
        return True

    def _notice_close(self, sock: socket.socket) -> None:
        if not self._has_received:
            self._is_request_unread = is_request_unread(
                sock,
                sent_bytes=self._sent_bytes,
                seconds=time.monotonic() - self._sending_since,
            )

    def begin_write(self) -> None:
        """Restart the limit of a write: the time to produce the body does not count."""
        self._use_call().timeouts.progress(time.monotonic())

    def begin_read(self) -> None:
        """Start the limit of a read. All writes have been sent."""
        timeouts, now = self._use_call().timeouts, time.monotonic()
        if timeouts.phase == "send":
            if self._sent_bytes > READ_BYTES and self._socket is not None:
                self._unacknowledged = count_unacknowledged(self._socket)
            timeouts.enter("first_byte", now)
        else:
            timeouts.begin_wait(now)

    def finish_read(self, data: bytes) -> None:
        """Record that data of the response has arrived, or of a proxy's before the request."""
        self._has_received = True
        self._unacknowledged = 0
        if self._observer is not None and self._use_call().timeouts.phase != "connect":
            self._observer.receive_data(data)

    def _resolve(self, host: str, port: int) -> list[Address]:
        call = self._use_call()
        try:
            found = parse_address(host, port) or concurrency.resolve(
                host, port, call.timeouts.left(time.monotonic()), call.cancel_handle
            )
        except UnicodeError as error:
            raise httpcore.ConnectError(str(error)) from error
        except OSError as error:
            # Errors of the resolver have an errno.
            if error.errno is None:
                raise
            raise httpcore.ConnectError(str(error)) from error
        if found is None:
            raise httpcore.ConnectTimeout
        return found

    def _connect_first(self, addresses: list[Address]) -> None:
        """Connect to the addresses in parallel, each after a delay. The first to accept is used.

        Source: RFC 8305 (Happy Eyeballs), sections 4 and 5.
        """
        call = self._use_call()
        untried = deque(interleave_families(addresses))
        pending: list[socket.socket] = []
        failure = OSError("the host has no address")
        try:
            while untried or pending:
                if untried:
                    try:
                        sock, is_connected = start_connect(untried.popleft())
                    except OSError as error:
                        # The kernel may not support this address family.
                        if error.errno is None:
                            raise
                        failure = error
                        continue
                    if is_connected:
                        self._set_socket(sock)
                        return
                    pending.append(sock)
                ready = self._wait_connected(pending, call, is_last=not untried)
                for sock in ready:
                    pending.remove(sock)
                    error_number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not error_number:
                        self._set_socket(sock)
                        return
                    failure = system_error(error_number)
                    sock.close()
        finally:
            for sock in pending:
                sock.close()
        self.connect_failure = failure
        raise httpcore.ConnectError(str(failure)) from failure

    @property
    def is_behind_proxy(self) -> bool:
        """Whether a proxy has responded, so that what follows concerns the endpoint."""
        return self._has_received and not self.is_upgraded

    def _set_socket(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = SocketReader(sock)

    def _wait_connected(
        self, pending: list[socket.socket], call: _WaitLimits, *, is_last: bool
    ) -> list[socket.socket]:
        """Return the sockets that have connected or failed; none when the next address is due."""
        left = call.timeouts.left(time.monotonic())
        is_limit = is_last or (left is not None and left <= ATTEMPT_DELAY_SECONDS)
        timeout = left if is_limit else ATTEMPT_DELAY_SECONDS
        if len(pending) == 1:
            is_ready = call.cancel_handle.wait_writable(pending[0], timeout)
            ready = list(pending) if is_ready else []
        else:
            ready = concurrency.wait_any_writable(pending, timeout, call.cancel_handle)
        if not ready and is_limit:
            raise httpcore.ConnectTimeout
        return ready

    def _use_socket(self) -> tuple[socket.socket, _WaitLimits]:
        call = self._use_call()
        assert self._socket is not None, "nothing is read or written before connect_tcp()"
        return self._socket, call

    def _use_call(self) -> _WaitLimits:
        if self._is_closed or self._call is None:
            raise ClosedByCaller("it was closed while it was in use")
        if self._process != os.getpid():
            # Otherwise, parent and child would each read parts of one response.
            raise ClosedByCaller("it belongs to the process that this one was forked from")
        return self._call


class _WaitLimits(NamedTuple):
    """The limits of every wait for the network."""

    timeouts: CallTimeouts
    cancel_handle: concurrency.CancelHandle

    def with_limit(
        self, phase: Literal["send", "first_byte"], timeout: float | None
    ) -> _WaitLimits:
        """Return the same with another limit, for one read or write after an upgrade."""
        now = time.monotonic()
        timeouts = CallTimeouts.for_request({"write": timeout, "read": timeout}, now=now)
        timeouts.enter(phase, now)
        return self._replace(timeouts=timeouts)


class _Layer(Protocol):
    @property
    def has_unread(self) -> bool: ...
    def receive(self, max_bytes: int) -> bytes: ...
    def send(self, data: bytes, limits: _WaitLimits | None = None) -> None: ...


class _TCP:
    """The lowest layer: the socket itself."""

    has_unread = False

    def __init__(self, network: Network) -> None:
        self._network = network

    def receive(self, max_bytes: int) -> bytes:
        return self._network.receive(max_bytes)

    def send(self, data: bytes, limits: _WaitLimits | None = None) -> None:
        self._network.send(data, limits)


class _TLS:
    """TLS over another layer, which may be the TLS of an https proxy.

    A read and a write may run at the same time. A read may have to send, too, for example after a
    `KeyUpdate` (RFC 8446, section 4.6.3).
    """

    def __init__(
        self,
        lower: _Layer,
        context: ssl.SSLContext,
        hostname: str | None,
        pause: Callable[[_WaitLimits | None], None],
    ) -> None:
        self._lower = lower
        self._pause = pause
        # Objects of OpenSSL are not thread-safe.
        self._lock = threading.Lock()
        # Held while records are sent, because their order matters.
        self._sending = threading.Lock()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    @property
    def has_unread(self) -> bool:
        is_record_pending = self._incoming.pending or self.ssl_object.pending()
        return bool(is_record_pending) or self._lower.has_unread

    def handshake(self) -> None:
        self._run(self.ssl_object.do_handshake, httpcore.ConnectError, self._flush)

    def receive(self, max_bytes: int) -> bytes:
        if self.has_unread:
            # The read may not wait: let other threads run.
            concurrency.checkpoint()
        read = partial(self.ssl_object.read, max_bytes)
        return self._run(read, httpcore.ReadError, self._flush)

    def send(self, data: bytes, limits: _WaitLimits | None = None) -> None:
        while not self._sending.acquire(blocking=False):
            self._pause(limits)
        try:
            send_pending = partial(self._send_pending, limits)
            rest = memoryview(data)
            while rest:
                # In parts, so that the ciphertext is not buffered as a whole.
                write = partial(self.ssl_object.write, rest[:READ_BYTES])
                rest = rest[self._run(write, httpcore.WriteError, send_pending) :]
        finally:
            self._sending.release()
        self._flush(limits)

    def _run(
        self,
        operation: Callable[[], T],
        failure: type[httpcore.NetworkError],
        flush: Callable[[], None],
    ) -> T:
        while True:
            # Do not wait inside the handler: an error raised there would have this one as its
            # context.
            results: list[T] = []
            try:
                with self._lock:
                    results.append(operation())
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                raise failure(str(error)) from error
            flush()
            if results:
                return results[0]
            data = self._lower.receive(READ_BYTES)
            with self._lock:
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()

    def _flush(self, limits: _WaitLimits | None = None) -> None:
        """Send what a read has to send, or leave it to the write in progress."""
        while self._outgoing.pending and self._sending.acquire(blocking=False):
            try:
                self._send_pending(limits)
            finally:
                self._sending.release()

    def _send_pending(self, limits: _WaitLimits | None) -> None:
        with self._lock:
            data = self._outgoing.read()
        self._lower.send(data, limits)


class _NetworkStream(httpcore.NetworkStream):
    """The stream that httpcore reads from and writes to.

    If the whole body is available, writes are buffered until the next read, so that the head and
    the body of a request are sent together: one packet instead of two for a short prompt.
    """

    def __init__(self, network: Network, layer: _Layer) -> None:
        self._network = network
        self._layer = layer
        self._unsent: list[bytes] = []

    @property
    def has_unread(self) -> bool:
        return self._layer.has_unread

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read a head in small parts, because httpcore parses each without a checkpoint."""
        if self._network.is_upgraded:
            # Not after the read: a cancellation would lose the data.
            concurrency.checkpoint()
            self._network.limit_read(timeout)
            return self._layer.receive(max_bytes)
        if self._unsent:
            # A server may reject a request before it has read it completely. Its response can still
            # be read.
            with suppress(httpcore.WriteError):
                self._flush()
        data = self.receive(min(max_bytes, HEAD_BYTES))
        if data:
            self._network.finish_read(data)
        return data

    def receive(self, max_bytes: int) -> bytes:
        """Return the next bytes, b"" at the end, after all writes have been sent."""
        self._network.begin_read()
        return self._layer.receive(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._network.is_upgraded:
            self._layer.send(buffer, self._network.build_write_limits(timeout))
            return
        self._unsent.append(buffer)
        if not self._network.buffers_writes:
            self._network.begin_write()
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._layer.send(data)

    def close(self) -> None:
        self._network.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        # An IPv6 address has brackets in a CONNECT request, and none in a certificate.
        name = None if server_hostname is None else server_hostname.strip("[]")
        hostname = None if name is None else encode_server_name(name)
        if hostname is None and ssl_context.check_hostname:
            # Python checks this for a socket, but `wrap_bio` would accept any certificate.
            raise ValueError("check_hostname requires server_hostname")
        if self._network.is_upgraded:
            self._network.limit_read(timeout)
        layer = _TLS(self._layer, ssl_context, hostname, self._network.pause)
        is_behind_proxy = self._network.is_behind_proxy
        try:
            layer.handshake()
        except httpcore.TimeoutException as error:
            raise httpcore.ConnectTimeout from error
        except httpcore.NetworkError as error:
            if is_behind_proxy:
                self._network.connect_failure = error
            raise httpcore.ConnectError(str(error)) from error
        return self._network.open_stream(layer)

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore documents: "socket", "ssl_object", "client_addr" and so on."""
        if info == "ssl_object":
            return getattr(self._layer, "ssl_object", None)
        return self._network.get_extra_info(info)
