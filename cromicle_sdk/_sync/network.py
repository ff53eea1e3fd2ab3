# Generated from _async/network.py by tests/unasync.py; do not edit.
"""One connection's bytes: sockets and TLS, within the limits of the call that has it now."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import httpcore

from cromicle_sdk._core.deadline import Limits
from cromicle_sdk._http.sockets import (
    READ_BYTES,
    Address,
    ClosedByCaller,
    is_quiet,
    parse_address,
    share,
)

from . import concurrency as io

__all__ = ["Wire"]

T = TypeVar("T")


class Wire(httpcore.NetworkBackend):
    """The network as one httpcore connection sees it.

    The limits of the call are looked up at every wait, whatever timeouts httpcore asks for: it
    knows only those between two reads. A closed wire lets go of its socket at once and without
    waiting, so that no cancellation and no garbage collection can lose it.
    """

    def __init__(self, limits: Limits, interrupt: io.Interrupt) -> None:
        self.limits = limits
        self.interrupt = interrupt
        # Whether the answer to the present request has begun.
        self.has_received = False
        self._socket: socket.socket | None = None
        # What httpcore speaks HTTP over: the last one, with TLS around those before it.
        self._stream: _Stream | None = None
        self._is_aborted = False
        self._process = os.getpid()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = parse_address(host, port)
        if not addresses:
            addresses = io.resolve(host, port, self.limits.left(), self.interrupt)
        self._connect_first(addresses)
        return self.open_stream(_TCP(self))

    def open_stream(self, layer: _Layer) -> _Stream:
        self._stream = _Stream(self, layer)
        return self._stream

    def read(self) -> bytes:
        """The next bytes that httpcore would read, b"" at the end. Raises `OSError`."""
        assert self._stream is not None, "nothing is read before connect_tcp()"
        return self._stream.read(READ_BYTES)

    def _connect_first(self, addresses: list[Address]) -> None:
        failure = OSError("the host has no address")
        for number, (family, address) in enumerate(addresses):
            limit = share(self.limits.left(), among=len(addresses) - number)
            try:
                # The kernel may know one family of addresses only.
                self._socket = socket.socket(family, socket.SOCK_STREAM)
                self.check()
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                io.connect(self._socket, address, limit)
            except OSError as error:
                failure = error
            else:
                return
            if self._socket is not None:
                self._socket.close()
        self.check()
        raise failure

    @property
    def socket(self) -> socket.socket:
        self.check()
        assert self._socket is not None, "nothing is read or written before connect_tcp()"
        return self._socket

    @property
    def is_quiet(self) -> bool:
        """Whether this idle connection still lives and has sent nothing more."""
        return self._socket is not None and is_quiet(self._socket)

    @property
    def has_unread(self) -> bool:
        """Whether bytes have been taken from the socket that nobody has read yet.

        A TLS layer takes several records at once and hands them over one by one.
        """
        return self._stream is not None and self._stream.has_unread

    def check(self) -> None:
        """Raise `ClosedByCaller` where this connection must not be touched any more."""
        if self._is_aborted:
            raise ClosedByCaller("it was closed while it was in use")
        if self._process != os.getpid():
            # Parent and child would share one answer between them.
            raise ClosedByCaller("it belongs to the process that this one was forked from")

    def abort(self) -> None:
        """End it from anywhere: who waits for its bytes wakes up and sees `ClosedByCaller`."""
        self._is_aborted = True
        # A child shares the connection itself with its parent, who may be reading it.
        if self._socket is not None and self._process == os.getpid():
            # One that is not connected any more has nobody waiting for it.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._is_aborted = True
        # It knows this wire, too, and a ring of objects would wait for the collector.
        self._stream = None
        if self._socket is not None:
            self._socket.close()


class _Layer(Protocol):
    @property
    def has_unread(self) -> bool: ...
    def receive(self, max_bytes: int) -> bytes: ...
    def send(self, data: bytes) -> None: ...


class _TCP:
    """Bytes over the socket itself."""

    has_unread = False

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def receive(self, max_bytes: int) -> bytes:
        wire = self._wire
        try:
            data = io.receive(wire.socket, max_bytes, wire.limits.left())
        except OSError:
            wire.check()
            raise
        wire.check()
        return data

    def send(self, data: bytes) -> None:
        try:
            io.send(self._wire.socket, data, self._wire.limits.left())
        except OSError:
            self._wire.check()
            raise


class _TLS:
    """Bytes over TLS over another layer, which may be TLS itself: an https proxy's."""

    def __init__(self, lower: _Layer, context: ssl.SSLContext, hostname: str | None) -> None:
        self._lower = lower
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    @property
    def has_unread(self) -> bool:
        return self._incoming.pending > 0 or self._lower.has_unread

    def handshake(self) -> None:
        self._run(self.ssl_object.do_handshake)

    def receive(self, max_bytes: int) -> bytes:
        return self._run(partial(self.ssl_object.read, max_bytes))

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            # Piece by piece, so that the ciphertext does not pile up.
            piece = rest[:READ_BYTES]
            rest = rest[self._run(partial(self.ssl_object.write, piece)) :]

    def _run(self, operation: Callable[[], T]) -> T:
        while True:
            # A wait inside a handler would have the error for its context, and its frames.
            with suppress(ssl.SSLWantReadError):
                result = operation()
                self._flush()
                return result
            self._flush()
            data = self._lower.receive(READ_BYTES)
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._lower.send(self._outgoing.read())


class _Stream(httpcore.NetworkStream):
    """What httpcore reads from and writes to.

    What it writes is held back until it reads, so that a request's head and body go out
    together: one packet instead of two for a short prompt.
    """

    def __init__(self, wire: Wire, layer: _Layer) -> None:
        self._wire = wire
        self._layer = layer
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0

    @property
    def has_unread(self) -> bool:
        return self._layer.has_unread

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._wire.limits.begin_read()
        if self._unsent:
            # A server may refuse a request before it has read all of it: its answer is still
            # there to be read.
            with suppress(httpcore.WriteError):
                self._flush()
        data = self._layer.receive(max_bytes)
        if data:
            self._wire.has_received = True
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._unsent.append(buffer)
        self._unsent_bytes += len(buffer)
        if self._unsent_bytes > READ_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        try:
            self._layer.send(data)
        except TimeoutError:
            raise
        except OSError as error:
            raise httpcore.WriteError(str(error)) from None

    def close(self) -> None:
        self._wire.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        layer = _TLS(self._layer, ssl_context, server_hostname)
        layer.handshake()
        return self._wire.open_stream(layer)

    def get_extra_info(self, info: str) -> Any:
        return None
