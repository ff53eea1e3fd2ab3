"""What async code does otherwise than blocking code: the clients' only room that knows anyio.

`_sync_io.py` has the same names for the blocking colour; a test compares the two.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel

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

# How often a waiting call looks up, in seconds: a slot may have been given back by the garbage
# collector in another thread, where an event does not wake the loop.
_LOOK_UP = 1.0

# More than the chunks of one byte in what is read at a time.
_STEPS_TO_DISCARD = 20_000


def find_place() -> object:
    """Where connections live: this process and this event loop."""
    return os.getpid(), anyio.lowlevel.current_token()


async def resolve(
    host: str, port: int, timeout: float | None, interrupt: Interrupt
) -> list[Address]:
    """A host's addresses. Raises `OSError`, and `ClosedByCaller`."""
    with interrupt.watch(), anyio.fail_after(timeout):
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def connect(sock: socket.socket, address: Any, timeout: float | None) -> None:
    """Connect a new socket to an address. Raises `OSError`."""
    sock.setblocking(False)
    with anyio.fail_after(timeout):
        with suppress(BlockingIOError):
            sock.connect(address)
        await anyio.wait_writable(sock)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


async def receive(sock: socket.socket, max_bytes: int, timeout: float | None) -> bytes:
    """The next bytes, b"" at the end. Raises `OSError`."""
    with suppress(BlockingIOError):
        data = sock.recv(max_bytes)
        # A server that is always ahead must not keep the loop from other tasks, nor a
        # cancellation from this one.
        await give_way()
        return data
    with anyio.fail_after(timeout):
        while True:
            await anyio.wait_readable(sock)
            # A wake-up may come to nothing.
            with suppress(BlockingIOError):
                return sock.recv(max_bytes)


async def send(sock: socket.socket, data: bytes, timeout: float | None) -> None:
    """Send all of it. Raises `OSError`."""
    rest = memoryview(data)
    with anyio.fail_after(timeout):
        while rest:
            # A wait inside a handler would have the error for its context, and its frames, which
            # hold the request.
            with suppress(BlockingIOError):
                rest = rest[sock.send(rest) :]
                continue
            await anyio.wait_writable(sock)


async def give_way() -> None:
    """Let other tasks run, and a cancellation come."""
    await anyio.lowlevel.checkpoint()


class Interrupt:
    """What ends a call's present wait from elsewhere, and those to come."""

    def __init__(self) -> None:
        self.is_over: bool = False
        self._scope: anyio.CancelScope | None = None
        self._place: object = None

    def end(self) -> None:
        self.is_over = True
        # A scope belongs to its loop: from elsewhere the wait sees it when it next looks up.
        if self._scope is not None and self._place == find_place():
            self._scope.cancel()

    def check(self) -> None:
        """Raise `ClosedByCaller` after `end`."""
        if self.is_over:
            raise ClosedByCaller("it was closed while it was under way")

    @contextmanager
    def watch(self) -> Generator[None]:
        """A wait that `end` ends. Raises `ClosedByCaller`."""
        self.check()
        self._place = find_place()
        with anyio.CancelScope() as self._scope:
            yield
        self._scope = None
        self.check()


class Slots:
    """How many exchanges may be under way; who finds none free waits in line.

    `release` may be called by the garbage collector, at any point and from any thread.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._line: OrderedDict[anyio.Event, None] = OrderedDict()

    async def acquire(self, timeout: float | None, interrupt: Interrupt) -> None:
        """Take a slot. Raises `TimeoutError`, and `ClosedByCaller`."""
        if self._free and not self._line:
            self._free -= 1
            return
        turn = anyio.Event()
        self._line[turn] = None
        try:
            with interrupt.watch(), anyio.fail_after(timeout):
                # A slot may have been given back just before this call stood in line.
                self._serve()
                while not (turn.is_set() or interrupt.is_over):
                    with anyio.move_on_after(_LOOK_UP):
                        await turn.wait()
        except BaseException:
            # In one step, between whose halves nobody can be given the slot of nobody.
            try:
                del self._line[turn]
            except KeyError:
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back: to the first in line, where there is one."""
        self._free += 1
        self._serve()

    def _serve(self) -> None:
        while self._free and self._line:
            self._free -= 1
            turn, _ = self._line.popitem(last=False)
            turn.set()


class Pause:
    """A wait that can be ended from elsewhere."""

    def __init__(self) -> None:
        self._over = anyio.Event()

    async def wait(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._over.wait()

    def end(self) -> None:
        self._over.set()


class Pauses:
    """The pauses of a client, which all end with it."""

    def __init__(self) -> None:
        self._waiting: set[Pause] = set()
        self._are_over = False

    async def wait(self, seconds: float, pause: Pause) -> None:
        self._waiting.add(pause)
        try:
            if not self._are_over:
                await pause.wait(seconds)
        finally:
            self._waiting.discard(pause)

    def end(self) -> None:
        """End those under way, and have none any more."""
        self._are_over = True
        for pause in list(self._waiting):
            pause.end()


def discard(chunks: AsyncIterator[bytes]) -> None:
    """Finish an iterator whose connection is closed, without an event loop's help.

    A generator that is dropped unfinished would be a warning under trio, and a task on asyncio.
    Nothing in it can wait any more, so its steps are taken by hand until it raises. One of a
    transport of the user's may have no end: it is left to itself after a while.
    """
    step = None
    for _ in range(_STEPS_TO_DISCARD):
        step = step or chunks.__anext__().__await__()
        try:
            next(step)
        except StopIteration:
            step = None  # it was one of the pieces that had been read before
        except Exception:  # noqa: BLE001 - whatever it is, it ends the generator, and nobody asks
            return


@contextmanager
def shield() -> Generator[None]:
    """Let a clean-up finish, although its call is cancelled."""
    with anyio.CancelScope(shield=True):
        yield


@contextmanager
def time_limit(limits: Limits) -> Generator[None]:
    """Hold somebody else's code to the limits. Raises `TimeoutError`."""
    with anyio.fail_after(limits.left()):
        yield
