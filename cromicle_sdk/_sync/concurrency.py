"""The parts of blocking code that differ from async code.

`_async/concurrency.py` has the same names for async code; a test compares the two.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from cromicle_sdk._http.queues import get
from cromicle_sdk._http.resolver import look_up, start_lookup
from cromicle_sdk._http.slots import Slot, Slots
from cromicle_sdk._http.sockets import (
    LATE_SECONDS,
    READ,
    WRITE,
    Address,
    ClosedByCaller,
    TimeLimitReached,
    poll,
)

__all__ = [
    "CancelHandle",
    "ConnectionLimiter",
    "Runtime",
    "checkpoint",
    "current_runtime",
    "is_runtime_alive",
    "resolve",
    "shield",
    "time_limit",
    "wait_any_writable",
]

T = TypeVar("T")

# How often a call that waits for a slot, for the resolver, for a connection or for its next attempt
# checks whether it was cancelled, in seconds. In between, the main thread runs signal handlers.
_POLL_SECONDS = 0.2


# A process, as a key.
Runtime = int


def current_runtime() -> Runtime:
    """Return the owner of a connection: this process."""
    return os.getpid()


def is_runtime_alive(runtime: Runtime) -> bool:
    """Whether the owner is this process."""
    return runtime == os.getpid()


class CancelHandle:
    """Cancels one call: its current wait and all later ones.

    `cancel` may be called from any thread or signal handler.
    """

    __slots__ = ("__weakref__", "_held", "_process", "_socket", "_wake", "is_cancelled")

    def __init__(self) -> None:
        self.is_cancelled: bool = False
        self._held = 0.0
        self._process = os.getpid()
        self._socket: socket.socket | None = None
        # Its operations may interrupt each other, which those of an event may not.
        self._wake: SimpleQueue[None] = SimpleQueue()

    def cancel(self) -> None:
        self.is_cancelled = True
        self._wake.put(None)
        sock = self._socket
        # A forked child shares the connection with its parent, which may be reading it.
        if sock is not None and self._process == os.getpid():
            # A socket that is no longer connected has no waiters.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise `ClosedByCaller` after `cancel`."""
        if self.is_cancelled:
            raise ClosedByCaller

    def run(self, wait: Callable[[], object], timeout: float | None) -> bool:
        """Run a custom client's wait, which neither a cancellation nor the timeout ends.

        Returns False if it has taken clearly longer than `timeout` seconds. Raises `ClosedByCaller`
        if `cancel` was called in the meantime.
        """
        self.check()
        self._held = 0.0
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        wait()
        self.check()
        return time.monotonic() - self._held < deadline + LATE_SECONDS

    @contextmanager
    def hold_limit(self) -> Generator[None]:
        """Let the time of a block not count for the limit of the `run` around it."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._held += time.monotonic() - started

    def wait_readable(self, sock: socket.socket, timeout: float | None) -> bool:
        """Wait until a socket has data or its end. Return False after `timeout` seconds.

        Raises `ClosedByCaller`.
        """
        return self._poll(sock, READ, timeout)

    def wait_writable(self, sock: socket.socket, timeout: float | None) -> bool:
        """Wait until a socket is writable or connected. Return False after `timeout` seconds.

        Raises `ClosedByCaller`.
        """
        return self._poll(sock, WRITE, timeout)

    def _poll(self, sock: socket.socket, event: int, timeout: float | None) -> bool:
        """Wait for an event of a connected socket. Return False after `timeout` seconds.

        Raises `ClosedByCaller`.
        """
        self._socket = sock
        try:
            self.check()
            is_ready = bool(poll([sock], event, timeout))
        finally:
            self._socket = None
        self.check()
        return is_ready

    def sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until `cancel`."""
        deadline = time.monotonic() + seconds
        while not self.is_cancelled and (left := deadline - time.monotonic()) > 0:
            get(self._wake, min(left, _POLL_SECONDS))


def resolve(
    host: str, port: int, timeout: float | None, cancel_handle: CancelHandle
) -> list[Address] | None:
    """Return the addresses of a host, or None after `timeout` seconds.

    Raises `OSError` and `ClosedByCaller`.
    """
    lookup = start_lookup(host, port)
    if lookup is None:
        return look_up(host, port)
    done: SimpleQueue[None] = SimpleQueue()
    lookup.add_callback(partial(done.put, None))
    return lookup.result() if _take(done, timeout, cancel_handle) else None


def wait_any_writable(
    socks: list[socket.socket], timeout: float | None, cancel_handle: CancelHandle
) -> list[socket.socket]:
    """Return the sockets that are connected or refused first, or none after `timeout` seconds.

    Raises `ClosedByCaller`.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        cancel_handle.check()
        left = deadline - time.monotonic()
        if ready := poll(socks, WRITE, min(left, _POLL_SECONDS)):
            return ready
        if left <= _POLL_SECONDS:
            return []


def checkpoint() -> None:
    """Do nothing: the interpreter lets other threads run."""


def _take(queue: SimpleQueue[T], timeout: float | None, cancel_handle: CancelHandle) -> list[T]:
    """Return the next item, or none after `timeout` seconds. Raises `ClosedByCaller`."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        cancel_handle.check()
        left = deadline - time.monotonic()
        if items := get(queue, min(left, _POLL_SECONDS)):
            return items
        if left <= 0:
            return []


class ConnectionLimiter:
    """Limits the concurrent exchanges of one process. Further ones are queued."""

    def __init__(self, count: int) -> None:
        self._slots = Slots(count)

    def acquire(self, timeout: float | None, cancel_handle: CancelHandle) -> Slot | None:
        """Acquire a slot. Return None after `timeout` seconds.

        Raises `ClosedByCaller`.
        """
        slot = self._slots.take()
        if slot is not None:
            return slot
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        # Its operations may interrupt each other: the garbage collector may wake this call.
        woken: SimpleQueue[None] = SimpleQueue()
        waiter = self._slots.wait(partial(woken.put, None))
        try:
            # The wait for a slot does not count for `total`, to which a custom client is limited.
            with cancel_handle.hold_limit():
                while True:
                    slot = waiter.take()
                    left = deadline - time.monotonic()
                    if slot is not None or left <= 0:
                        return slot
                    _take(woken, left, cancel_handle)
        finally:
            waiter.leave()


@contextmanager
def shield(seconds: float) -> Generator[None]:
    """Let a clean-up finish. Nothing cancels blocking code, however long it takes."""
    yield


def time_limit(run: Callable[[], None], seconds: float | None, cancel_handle: CancelHandle) -> None:
    """Limit the time of a custom client's code: the time is checked only after it has run.

    Raises `TimeLimitReached` and `ClosedByCaller`.
    """
    if not cancel_handle.run(run, seconds):
        raise TimeLimitReached
