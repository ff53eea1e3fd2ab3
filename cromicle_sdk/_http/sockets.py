"""Sockets: addresses, options, and states."""

from __future__ import annotations

import math
import os
import select
import socket
import sys
import threading
import time
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
    "SIGNAL_DELAY_SECONDS",
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

# An address family, and the address in its format.
Address = tuple[socket.AddressFamily, Any]

# How long an idle connection is kept. Servers close idle connections after 5 s (uvicorn, Node) to
# 75 s (nginx). A closed one is detected before its use, so this only bounds the number of sockets.
IDLE_SECONDS = 30.0

# As in httpcore.
READ_BYTES = 64 * 1024

# The same, until the end of a head. A server may send endless 1xx responses (RFC 9110, section
# 15.2), and h11 takes 8 us for one of 18 bytes: other tasks wait for 2 ms instead of 30 ms for 64
# KiB.
HEAD_BYTES = 4 * 1024

# How long the code of a custom client may take to clean up, in seconds, after the call has timed
# out or was closed. It applies at most four times: to a step of the body, to closing the response,
# and to closing the body, which is cancelled, too. A call must end within 250 ms.
LAST_CLEANUP_SECONDS = 0.05

# How long bytes that have already arrived are read after a timeout, in seconds: on a busy machine,
# a call may read late. It is bounded, because a server may keep sending, and a call must end within
# 250 ms.
LATE_SECONDS = 0.1

# RFC 8305, section 5: the recommended "Connection Attempt Delay", in seconds.
ATTEMPT_DELAY_SECONDS = 0.25

# More than a round trip on most networks, and less than any response of a model takes.
_RACE_SECONDS = 0.1

# A model may be silent for minutes, during which routers silently drop the connection. The first
# probe is sent after 60 s, and the connection fails after 5 probes, 10 s apart.
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


class ClosedByCaller(Exception):  # noqa: N818 - an action of the caller, not an error
    """The stream or its client was closed while this call was in progress."""

    def __init__(self, reason: str = "it was closed while it was under way") -> None:
        super().__init__(reason)


class TimeLimitReached(Exception):  # noqa: N818 - becomes an APITimeoutError
    """A timeout of the call has expired, in code that does not depend on httpx."""


def parse_address(host: str, port: int) -> list[Address]:
    """Return the address of an IP literal, which needs no resolver, or an empty list for a name.

    Raises `UnicodeError` for an invalid name, for which resolvers raise different errors.
    """
    try:
        address = ip_address(host)
    except ValueError:
        host.encode("idna")
        return []
    if isinstance(address, IPv6Address):
        # A scope is the name of an interface, which only the resolver can map to a number.
        return [] if address.scope_id else [(socket.AF_INET6, (str(address), port, 0, 0))]
    return [(socket.AF_INET, (str(address), port))]


def interleave_families(addresses: list[Address]) -> list[Address]:
    """Return the addresses in the order of attempts, alternating between families.

    Source: RFC 8305, section 4.
    """
    families = list(dict.fromkeys(family for family, _ in addresses))
    by_family = [[each for each in addresses if each[0] == family] for family in families]
    return [each for group in zip_longest(*by_family) for each in group if each is not None]


def start_connect(address: Address) -> tuple[socket.socket, bool]:
    """Return a non-blocking TCP socket that connects to an address, and whether it is connected.

    Raises `OSError`.
    """
    family, target = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in _KEEP_ALIVE:
            # A system may reject an option that Python defines.
            with suppress(OSError):
                sock.setsockopt(*option)
        try:
            sock.connect(target)
        except BlockingIOError:
            return sock, False
    except BaseException:
        # Including interrupts, because nothing else refers to this socket yet.
        sock.close()
        raise
    return sock, True


def system_error(number: int) -> OSError:
    """Return the error of a system call with this number."""
    # On Windows, `strerror` returns "Unknown error" for socket errors, whose texts are separate.
    texts: dict[int, str] = getattr(socket, "errorTab", {})
    return OSError(number, texts.get(number) or os.strerror(number))


def is_request_unread(sock: socket.socket, *, sent_bytes: int, seconds: float) -> bool:
    """Whether a server closed an idle connection before it processed the request sent on it.

    This is certain if none of the `sent_bytes` was acknowledged: the connection was being closed
    already. Otherwise it depends on `seconds`, the time since the start of the request.
    """
    return seconds < _RACE_SECONDS or count_unacknowledged(sock) >= sent_bytes


def count_unacknowledged(sock: socket.socket) -> int:
    """Return the number of bytes that the peer has not acknowledged, or 0 if it is unknown."""
    try:
        from fcntl import ioctl
        from termios import TIOCOUTQ

        return int.from_bytes(ioctl(sock, TIOCOUTQ, b"\0" * 4), sys.byteorder)
    except (ImportError, OSError):
        return 0


def is_from_system(error: Exception) -> bool:
    """Whether a system call, or other C code, raised the error that the calling frame has caught.

    Otherwise, a signal handler of the caller raised it during the call.
    """
    return error.__traceback__ is None or error.__traceback__.tb_next is None


def receive_now(sock: socket.socket, max_bytes: int) -> bytes | OSError | None:
    """Return received bytes, b"" at the end, an error of the system, or None if there is no data.

    Raises the exception of a signal handler of the caller.
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

# The longest that a blocking wait may delay a signal handler, in seconds.
SIGNAL_DELAY_SECONDS = 0.5


def poll(socks: list[socket.socket], event: int, timeout: float | None) -> list[socket.socket]:
    """Return the sockets that are ready, or none after the timeout in seconds.

    In the main thread, which runs the signal handlers, it returns to the interpreter in between: a
    signal that another thread receives, or that arrives just before the system call, does not
    interrupt the call. On Windows, Ctrl-C never does.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return _poll_once(socks, event, timeout)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        ready = _poll_once(socks, event, min(left, SIGNAL_DELAY_SECONDS))
        if ready or left <= SIGNAL_DELAY_SECONDS:
            return ready


def _poll_once(
    socks: list[socket.socket], event: int, timeout: float | None
) -> list[socket.socket]:
    if hasattr(select, "poll"):
        poller = select.poll()
        mask = select.POLLIN if event == READ else select.POLLOUT
        for sock in socks:
            poller.register(sock, mask)
        milliseconds = None if timeout is None else _to_milliseconds(timeout)
        numbers = {number for number, _ in poller.poll(milliseconds)}
        return [sock for sock in socks if sock.fileno() in numbers]
    reading, writing = (socks, []) if event == READ else ([], socks)
    # Windows reports a refused connection only as an exceptional condition.
    limit = None if timeout is None else max(timeout, 0)
    ready = select.select(reading, writing, socks, limit)
    return list(dict.fromkeys(sock for group in ready for sock in group))


def _to_milliseconds(seconds: float) -> int:
    # Rounded up, because less than a millisecond would not wait at all. A negative timeout is
    # endless.
    return math.ceil(max(seconds, 0) * 1000)


def is_reusable(sock: socket.socket) -> bool:
    """Whether an idle connection is open and has received nothing since its last response."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    # The connection was closed, or has received data without a request.
    return False


def snapshot(items: WeakSet[T]) -> list[T]:
    """Return the items of a set that other threads may change."""
    while True:
        try:
            return list(items)
        except RuntimeError:
            continue  # it changed while it was read


def find_first(items: Iterable[T]) -> T | None:
    """Return the first item of a collection that other threads may change, or None."""
    while True:
        try:
            return next(iter(items), None)
        except RuntimeError:
            continue  # it changed while it was read
