"""What blocking code does otherwise than async code.

`_async_io.py` has the same names for the async colour; a test compares the two.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from cromicle_sdk._core.deadline import Limits
from cromicle_sdk._http.sockets import Address, ClosedByCaller

__all__ = [
    "Interrupt",
    "Pause",
    "Pauses",
    "Slots",
    "connect",
    "discard",
    "find_place",
    "give_way",
    "receive",
    "resolve",
    "send",
    "shield",
    "time_limit",
]

T = TypeVar("T")

# How often a call that waits for its turn, or for the resolver, looks whether it was closed, in
# seconds.
_LOOK_UP = 0.2


def find_place() -> object:
    """Where connections live: this process."""
    return os.getpid()


def resolve(host: str, port: int, timeout: float | None, interrupt: Interrupt) -> list[Address]:
    """A host's addresses. Raises `OSError`, and `ClosedByCaller`."""
    answer: SimpleQueue[list[Address] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except Exception as error:  # noqa: BLE001 - raised below, where somebody waits for it
            answer.put(error)
        else:
            answer.put([(family, address) for family, _, _, _, address in found])

    # The resolver takes no timeout, so a thread waits for it that can be left behind.
    try:
        threading.Thread(target=ask, name="cromicle-resolve", daemon=True).start()
    except RuntimeError as error:
        raise OSError(f"no thread for the resolver: {error}") from None
    result = _take(answer, timeout, interrupt)
    if isinstance(result, Exception):
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


def give_way() -> None:
    """Nothing: the interpreter lets other threads run."""


class Interrupt:
    """What ends a call's present wait from elsewhere, and those to come."""

    def __init__(self) -> None:
        self.is_over: bool = False

    def end(self) -> None:
        self.is_over = True

    def check(self) -> None:
        """Raise `ClosedByCaller` after `end`."""
        if self.is_over:
            raise ClosedByCaller("it was closed while it was under way")

    @contextmanager
    def watch(self) -> Generator[None]:
        """A wait for somebody else's code, which only sees afterwards that it was ended.

        Raises `ClosedByCaller`.
        """
        self.check()
        yield
        self.check()


def _take(queue: SimpleQueue[T], timeout: float | None, interrupt: Interrupt) -> T:
    """The next item. Raises `TimeoutError`, and `ClosedByCaller`."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        interrupt.check()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        with suppress(Empty):
            return queue.get(timeout=min(left, _LOOK_UP))


class Slots:
    """How many exchanges may be under way; who finds none free waits in line.

    `release` may be called by the garbage collector, at any point and from any thread, even
    inside `acquire`: a `SimpleQueue` is made for that, a lock would wait for itself.
    """

    def __init__(self, count: int) -> None:
        self._unused = iter(range(count))
        self._free: SimpleQueue[None] = SimpleQueue()

    def acquire(self, timeout: float | None, interrupt: Interrupt) -> None:
        """Take a slot. Raises `TimeoutError`, and `ClosedByCaller`."""
        try:
            self._free.get_nowait()
        except Empty:
            if next(self._unused, None) is None:
                _take(self._free, timeout, interrupt)

    def release(self) -> None:
        """Give a slot back: to the first in line, where there is one."""
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
def time_limit(limits: Limits) -> Generator[None]:
    """Hold somebody else's code to the limits, as far as a look at the clock can.

    Raises `TimeoutError`.
    """
    limits.left()
    yield
    limits.left()
