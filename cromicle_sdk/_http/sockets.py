"""Sockets: addresses, options, and the state that they are in."""

from __future__ import annotations

import math
import os
import select
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from itertools import zip_longest
from typing import Any, TypeVar
from weakref import WeakSet

__all__ = [
    "ATTEMPT_DELAY_SECONDS",
    "HEAD_BYTES",
    "IDLE_SECONDS",
    "LAST_CLEANUP_SECONDS",
    "LATE_SECONDS",
    "READ",
    "READ_BYTES",
    "WRITE",
    "Address",
    "ClosedByCaller",
    "TimeLimitReached",
    "count_unacknowledged",
    "find_first",
    "interleave_families",
    "is_from_system",
    "is_request_unread",
    "is_reusable",
    "parse_address",
    "poll",
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

# How long the code of a custom client may take to end, in seconds, once its call has no time left
# or was closed. It does so four times at most, in a step of the body, in the close of the response
# and in that of the body, which is cancelled, too; and a call must end within 250 ms.
LAST_CLEANUP_SECONDS = 0.05

# How long bytes that wait already are read after a limit, in seconds: on a busy machine a call may
# look late for what has come in time. A server may be always ahead; a call must end within 250 ms.
LATE_SECONDS = 0.1

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


class ClosedByCaller(Exception):  # noqa: N818 - what the caller did, not an error of the network
    """The stream or its client was closed while this call was under way."""

    def __init__(self, reason: str = "it was closed while it was under way") -> None:
        super().__init__(reason)


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
        # Also an interrupt: nothing else refers to this socket yet.
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


READ, WRITE = 1, 2


def poll(socks: list[socket.socket], event: int, timeout: float | None) -> list[socket.socket]:
    """The sockets that are ready, none at the timeout, in seconds."""
    if hasattr(select, "poll"):
        poller = select.poll()
        mask = select.POLLIN if event == READ else select.POLLOUT
        for sock in socks:
            poller.register(sock, mask)
        milliseconds = None if timeout is None else _to_milliseconds(timeout)
        numbers = {number for number, _ in poller.poll(milliseconds)}
        return [sock for sock in socks if sock.fileno() in numbers] if numbers else []
    reading, writing = (socks, []) if event == READ else ([], socks)
    # Windows reports a refused connection as an exceptional condition alone.
    limit = None if timeout is None else max(timeout, 0)
    ready = select.select(reading, writing, socks, limit)
    return list(dict.fromkeys(sock for group in ready for sock in group))


def _to_milliseconds(seconds: float) -> int:
    # Rounded up: a wait of less than a millisecond would be none. A negative one has no end.
    return math.ceil(max(seconds, 0) * 1000)


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


def find_first(items: Iterable[T]) -> T | None:
    """The first item of a collection that other threads change meanwhile; None without any."""
    while True:
        try:
            return next(iter(items), None)
        except RuntimeError:
            continue  # it changed while it was read
