"""Sockets: addresses, options and the state of an idle one, without waiting."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from itertools import zip_longest
from typing import Any, TypeVar
from weakref import WeakSet

__all__ = [
    "ATTEMPT_DELAY_SECONDS",
    "HEAD_BYTES",
    "IDLE_SECONDS",
    "READ_BYTES",
    "Address",
    "ClosedByCaller",
    "ProcessLock",
    "TimeLimitReached",
    "count_unacknowledged",
    "interleave_families",
    "is_from_system",
    "is_request_unread",
    "is_reusable",
    "parse_address",
    "receive_now",
    "snapshot",
    "start_connect",
    "system_error",
]

T = TypeVar("T")

# A family and what its sockets connect to.
Address = tuple[socket.AddressFamily, Any]

# How long a connection stays idle. Servers close theirs after 5 s (uvicorn, Node) to 75 s (nginx);
# a closed one is noticed before it is used, so this only bounds the number of idle sockets.
IDLE_SECONDS = 30.0

# What httpcore reads at a time, too.
READ_BYTES = 64 * 1024

# The same up to the end of a head. A server may send 1xx responses without end (RFC 9110, 15.2),
# and h11 takes 8 us for one of 18 bytes: other tasks wait for 2 ms, not for the 30 ms of 64 KiB.
HEAD_BYTES = 4 * 1024

# RFC 8305, 5: "Connection Attempt Delay", the recommended value in seconds.
ATTEMPT_DELAY_SECONDS = 0.25

# More than a round trip on most networks, and less than a model takes for anything.
_RACE_SECONDS = 0.1

# A model may be silent for minutes, after which routers forget the connection without a word. The
# first probe comes after 60 s, and the connection is given up after 5 of them, 10 s apart.
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            *(("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60)),  # Linux and Windows, macOS
            *(("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 5)),
        )
        if hasattr(socket, name)
    ),
]


class ProcessLock:
    """A lock that a fork does not leave locked: each process has one of its own."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        self._locks.setdefault(os.getpid(), threading.Lock()).acquire()

    def __exit__(self, *arguments: object) -> None:
        self._locks[os.getpid()].release()


class ClosedByCaller(Exception):  # noqa: N818 - what the caller did, not an error of the network
    """The stream or its client was closed while this call was under way."""


class TimeLimitReached(Exception):  # noqa: N818 - becomes an APITimeoutError
    """A limit of the call's timeouts ran out, in code that knows no exception of httpx's."""


def parse_address(host: str, port: int) -> list[Address]:
    """The address of an IP literal, which needs no resolver; an empty list for a name.

    Raises `UnicodeError` for a host that cannot be a name: resolvers differ in what they raise.
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


def interleave_families(addresses: list[Address]) -> list[Address]:
    """The addresses in the order to try them: the families take turns, the first one first.

    Source: RFC 8305, 4.
    """
    families = list(dict.fromkeys(family for family, _ in addresses))
    by_family = [[each for each in addresses if each[0] == family] for family in families]
    return [each for turn in zip_longest(*by_family) for each in turn if each is not None]


def start_connect(address: Address) -> tuple[socket.socket, bool]:
    """A non-blocking TCP socket that connects to an address, and whether it is connected already.

    Raises `OSError`.
    """
    family, target = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in _KEEP_ALIVE:
            # A system may refuse an option that Python knows.
            with suppress(OSError):
                sock.setsockopt(*option)
        try:
            sock.connect(target)
        except BlockingIOError:
            return sock, False
    except BaseException:
        sock.close()
        raise
    return sock, True


def system_error(number: int) -> OSError:
    """The error of a system call, by its number."""
    # Windows keeps the texts of its socket errors apart: strerror says "Unknown error" for them.
    texts: dict[int, str] = getattr(socket, "errorTab", {})
    return OSError(number, texts.get(number) or os.strerror(number))


def is_request_unread(sock: socket.socket, *, sent_bytes: int, seconds: float) -> bool:
    """Whether a server closed an idle connection before it worked on the request sent on it.

    It did where none of the `sent_bytes` was ever acknowledged: the close was already on its way.
    Otherwise the time decides: `seconds` since the request began to be sent.
    """
    return seconds < _RACE_SECONDS or count_unacknowledged(sock) >= sent_bytes


def count_unacknowledged(sock: socket.socket) -> int:
    """How many bytes the peer has not acknowledged, 0 where that is unknown."""
    try:
        from fcntl import ioctl
        from termios import TIOCOUTQ

        return int.from_bytes(ioctl(sock, TIOCOUTQ, b"\0" * 4), sys.byteorder)
    except (ImportError, OSError):
        return 0


def is_from_system(error: Exception) -> bool:
    """Whether a system call, or other code in C, raised what the calling frame has just caught.

    Otherwise a signal handler of the caller's has, which ran meanwhile.
    """
    return error.__traceback__ is None or error.__traceback__.tb_next is None


def receive_now(sock: socket.socket, max_bytes: int) -> bytes | OSError | None:
    """What has arrived: bytes, b"" at the end, or an error of the system; None for nothing.

    Raises what a signal handler of the caller's raises meanwhile.
    """
    try:
        return sock.recv(max_bytes)
    except BlockingIOError:
        return None
    except OSError as error:
        if not is_from_system(error):
            raise
        return error


def is_reusable(sock: socket.socket) -> bool:
    """Whether an idle connection is open and has received nothing since its last response."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    # The end of the connection, or the beginning of a response to no request.
    return False


def snapshot(items: WeakSet[T]) -> list[T]:
    """The items of a set that other threads change meanwhile."""
    while True:
        try:
            return list(items)
        except RuntimeError:
            continue  # it changed while it was read
