"""What blocking code does otherwise than async code.

`_async_io.py` has the same names for the async colour; a test compares the two.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from ._limits import Limits
from ._transport import Address, ClosedByCaller

__all__ = [
    "Pause",
    "Pauses",
    "Slots",
    "connect",
    "discard",
    "find_place",
    "receive",
    "resolve",
    "send",
    "shield",
    "time_limit",
]


def find_place() -> object:
    """Where connections live: this process."""
    return os.getpid()


def resolve(host: str, port: int, timeout: float | None) -> list[Address]:
    """A host's addresses. Raises `OSError`."""
    answer: SimpleQueue[list[Address] | OSError] = SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            answer.put(error)
        else:
            answer.put([(family, address) for family, _, _, _, address in found])

    # The resolver takes no timeout, so a thread waits for it that can be left behind.
    threading.Thread(target=ask, name="cromicle-resolve", daemon=True).start()
    try:
        result = answer.get(timeout=timeout)
    except Empty:
        raise TimeoutError from None
    if isinstance(result, OSError):
        raise result
    return result


def connect(sock: socket.socket, address: Any, timeout: float | None) -> None:
    """Connect a new socket to an address. Raises `OSError`."""
    sock.settimeout(timeout)
    sock.connect(address)


def receive(sock: socket.socket, max_bytes: int, timeout: float | None) -> bytes:
    """The next bytes, b"" at the end. Raises `OSError`."""
    sock.settimeout(timeout)
    return sock.recv(max_bytes)


def send(sock: socket.socket, data: bytes, timeout: float | None) -> None:
    """Send all of it. Raises `OSError`."""
    sock.settimeout(timeout)
    sock.sendall(data)


class Slots:
    """How many exchanges may be under way; who finds none free waits in line.

    `release` may be called by the garbage collector, at any point and from any thread, even
    inside `acquire`: a `SimpleQueue` is made for that, a lock would wait for itself.
    """

    def __init__(self, count: int) -> None:
        self._unused = iter(range(count))
        self._free: SimpleQueue[None] = SimpleQueue()
        self._closed = threading.Event()

    def acquire(self, timeout: float | None) -> None:
        """Take a slot. Raises `TimeoutError`, and `ClosedByCaller` after `close`."""
        try:
            self._free.get_nowait()
        except Empty:
            if next(self._unused, None) is None:
                try:
                    self._free.get(timeout=timeout)
                except Empty:
                    raise TimeoutError from None
        if self._closed.is_set():
            # What woke this call wakes the next one in line, too.
            self._free.put(None)
            raise ClosedByCaller("it was closed while this call waited for its turn")

    def release(self) -> None:
        """Give a slot back: to the first in line, where there is one."""
        self._free.put(None)

    def close(self) -> None:
        """Wake everybody who waits here."""
        self._closed.set()
        self._free.put(None)


class Pause:
    """A wait that can be ended from elsewhere."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def wait(self, seconds: float) -> None:
        self._over.wait(seconds)

    def end(self) -> None:
        self._over.set()


class Pauses:
    """The pauses of a client, which all end with it."""

    def __init__(self) -> None:
        self._waiting: set[Pause] = set()
        self._are_over = False

    def wait(self, seconds: float, pause: Pause) -> None:
        self._waiting.add(pause)
        try:
            if not self._are_over:
                pause.wait(seconds)
        finally:
            self._waiting.discard(pause)

    def end(self) -> None:
        """End those under way, and have none any more."""
        self._are_over = True
        for pause in list(self._waiting):
            pause.end()


def discard(chunks: Iterator[bytes]) -> None:
    """Finish an iterator whose connection is closed."""
    # A generator has it; an iterator of the user's client may have nothing to close.
    getattr(chunks, "close", list)()


@contextmanager
def shield() -> Generator[None]:
    """Let a clean-up finish: nothing cancels blocking code."""
    yield


@contextmanager
def time_limit(limits: Limits) -> Generator[Callable[[], object]]:
    """Hold somebody else's code to the limits, as far as a look at the clock can.

    What it gives does nothing: no thread can end what another one waits for.
    Raises `TimeoutError`.
    """
    limits.left()
    yield lambda: None
    limits.left()
