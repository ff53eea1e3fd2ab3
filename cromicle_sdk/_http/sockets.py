"""Connections: what both colours know of them, and do without waiting."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeVar
from weakref import WeakSet

import h11
import httpcore
import httpx

from cromicle_sdk._core.deadline import Limits
from cromicle_sdk._core.endpoint import Endpoint

__all__ = [
    "IDLE_SECONDS",
    "PIECES_AT_ONCE",
    "READ_BYTES",
    "Address",
    "Body",
    "ClosedByCaller",
    "Head",
    "Route",
    "default_ssl_context",
    "find_protocol",
    "is_quiet",
    "next_piece",
    "parse_address",
    "share",
    "snapshot",
]

T = TypeVar("T")

# A family and what its sockets connect to.
Address = tuple[socket.AddressFamily, Any]

# How long a connection waits for its next call. Servers drop theirs after 5 s (uvicorn, Node)
# to 75 s (nginx); one that is gone is noticed before use, so this only bounds what lies idle.
IDLE_SECONDS = 30.0

# What httpcore reads at a time, too.
READ_BYTES = 64 * 1024

# What is read at a time may hold ten thousand chunks, of 10 us each and more: after so many a
# task lets the others run, at some 0.1 us a chunk.
PIECES_AT_ONCE = 128


class ClosedByCaller(Exception):  # noqa: N818 - what the caller did, not an error of the network
    """The stream or its client was closed while this call was under way."""


@dataclass(frozen=True)
class Head:
    """The head of an answer, as the wire had it."""

    status_code: int
    headers: list[tuple[bytes, bytes]]
    http_version: bytes


@dataclass(frozen=True)
class Route:
    """How a client reaches its endpoint."""

    endpoint: Endpoint
    proxy: httpcore.Proxy | None
    ssl_context: ssl.SSLContext | None

    @property
    def origin(self) -> httpcore.Origin:
        endpoint = self.endpoint
        return httpcore.Origin(endpoint.scheme.encode(), endpoint.host.encode(), endpoint.port)

    @property
    def url(self) -> httpcore.URL:
        endpoint = self.endpoint
        return httpcore.URL(
            scheme=endpoint.scheme,
            host=endpoint.host,
            port=endpoint.port,
            target=endpoint.path,
        )


class Body:
    """A request's body, to be sent once, in either colour.

    httpcore asks for it when the connection is ready and the head is on its way: the moment
    from which `first_byte` counts.
    """

    __slots__ = ("_content", "_limits")

    def __init__(self, content: bytes, limits: Limits) -> None:
        self._content: bytes | None = content
        self._limits = limits

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        content, self._content = self._content, None
        if content is None:
            raise StopIteration
        self._limits.enter("first_byte")
        return content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None


@lru_cache(maxsize=1)
def default_ssl_context() -> ssl.SSLContext:
    """The process's one context: certifi's certificates take some 10 ms to load."""
    return httpx.create_ssl_context()


def parse_address(host: str, port: int) -> list[Address]:
    """The address that an IP literal is, so that no resolver is asked; none for a name.

    Raises `UnicodeError` for what can't be a name: resolvers differ in what they say of it.
    """
    try:
        address = ip_address(host)
    except ValueError:
        host.encode("idna")
        return []
    if isinstance(address, IPv6Address):
        # A scope is the name of an interface, which the resolver knows.
        return [] if address.scope_id else [(socket.AF_INET6, (str(address), port, 0, 0))]
    return [(socket.AF_INET, (str(address), port))]


def share(left: float | None, among: int) -> float | None:
    """One address's part of the time to connect: a dead IPv6 route must not use up all of it."""
    return None if left is None else left / among


def is_quiet(sock: socket.socket) -> bool:
    """Whether an idle connection still lives and has sent nothing more."""
    try:
        sock.setblocking(False)
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    # The end, or the beginning of an answer that nobody asked for.
    return False


def find_protocol(connection: object) -> h11.Connection | None:
    """The h11 connection that an httpcore connection keeps below one or more of its own.

    No public name leads to it. It is asked for two things: the body, for httpcore's generators
    make a chunk a fifth dearer (9.9 against 8.6 us, blocking, CPython 3.11), and whether more
    has arrived than was asked for, which httpcore does not tell. Where it is not found the body
    comes through httpcore, and the connection is not used again.
    """
    while hasattr(connection, "_connection"):
        connection = getattr(connection, "_connection")  # noqa: B009 - private, and not typed
    protocol = getattr(connection, "_h11_state", None)
    return protocol if isinstance(protocol, h11.Connection) else None


def next_piece(protocol: h11.Connection) -> bytes | bytearray | None:
    """What has arrived of a body: its next piece, b"" at its end, None where more must be read.

    Raises `httpcore.RemoteProtocolError` for what is no HTTP.
    """
    try:
        event = protocol.next_event()
    except h11.RemoteProtocolError as error:
        raise httpcore.RemoteProtocolError(str(error)) from None
    if event is h11.NEED_DATA:
        return None
    # Otherwise it is the end of the message, with trailers or none.
    return event.data if isinstance(event, h11.Data) else b""


def snapshot(items: WeakSet[T]) -> list[T]:
    """What is in a set that other threads change meanwhile."""
    while True:
        try:
            return list(items)
        except RuntimeError:
            continue  # it has changed while it was read
