"""The parts of async code that differ from blocking code: waits and their cancellation.

`_sync/concurrency.py` has the same names for blocking code; a test compares the two.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from weakref import proxy

import anyio
import anyio.lowlevel

from cromicle_sdk._http.resolver import look_up, start_lookup
from cromicle_sdk._http.slots import Slot, Slots
from cromicle_sdk._http.sockets import (
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
    "current_loop",
    "current_runtime",
    "is_runtime_alive",
    "resolve",
    "shield",
    "time_limit",
    "wait_any_writable",
]

# The ID of a process and one of its event loops, as a key.
Runtime = tuple[int, object]


def current_runtime() -> Runtime:
    """Return the owner of a connection: this process and this event loop."""
    return os.getpid(), anyio.lowlevel.current_token()


def current_loop() -> Any:
    """Return the running event loop of asyncio, or trio's token."""
    return _loop_of(anyio.lowlevel.current_token())


def _loop_of(token: object) -> Any:
    return getattr(token, "native_token", token)


def is_runtime_alive(runtime: Runtime) -> bool:
    """Whether the event loop may still run in this process."""
    process, token = runtime
    loop = _loop_of(token)
    if process != os.getpid():
        return False
    if hasattr(loop, "is_closed"):
        return not loop.is_closed()
    try:
        # trio has no other way to check.
        loop.run_sync_soon(int)
    except RuntimeError:
        return False
    return True


class CancelHandle:
    """Cancels one call: its current wait and all later ones.

    `cancel` may be called from any task, thread, event loop or signal handler.
    """

    __slots__ = (
        *("__weakref__", "_interrupt", "_process", "_scope", "_socket", "_thread", "_token"),
        "is_cancelled",
    )

    def __init__(self) -> None:
        self.is_cancelled: bool = False
        self._process = os.getpid()
        # How to end the current wait: by a function, a scope or a socket.
        self._interrupt: Callable[[], object] | None = None
        self._scope: anyio.CancelScope | None = None
        self._socket: socket.socket | None = None
        self._thread = 0
        # The token of the event loop, for a wait that is not for a socket.
        self._token: object = None

    def cancel(self) -> None:
        self.is_cancelled = True
        interrupt, scope, sock = self._interrupt, self._scope, self._socket
        if interrupt is not None and self._process == os.getpid():
            interrupt()
        # A scope belongs to its event loop, and therefore to one thread.
        if scope is not None and self._thread == threading.get_ident():
            scope.cancel()
        # A forked child shares the connection and the event loop with its parent.
        elif self._process == os.getpid():
            if sock is not None:
                # A socket that is no longer connected has no waiters.
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            if self._token is not None:
                _run_soon(self._token, self._cancel_scope)

    def _cancel_scope(self) -> None:
        # The wait may have ended in the meantime, and another one may have started.
        if self._scope is not None:
            self._scope.cancel()

    def check(self) -> None:
        """Raise `ClosedByCaller` after `cancel`."""
        if self.is_cancelled:
            raise ClosedByCaller

    async def run(self, wait: Callable[[], Awaitable[object]], timeout: float | None) -> bool:
        """Run a wait. Return False after `timeout` seconds. Raises `ClosedByCaller`."""
        self._token = anyio.lowlevel.current_token()
        return await self._run(wait, timeout, None)

    @contextmanager
    def hold_limit(self) -> Generator[None]:
        """Let the time of a block not count for the limit of the `run` around it."""
        scope = self._scope
        if scope is None:
            yield
            return
        left = scope.deadline - anyio.current_time()
        scope.deadline = math.inf
        try:
            yield
        finally:
            scope.deadline = anyio.current_time() + left

    async def wait_readable(self, sock: socket.socket, timeout: float | None) -> bool:
        """Wait until a socket has data or its end. Return False after `timeout` seconds.

        Raises `ClosedByCaller`.
        """
        return await self._run(partial(anyio.wait_readable, sock), timeout, sock)

    async def wait_writable(self, sock: socket.socket, timeout: float | None) -> bool:
        """Wait until a socket is writable or connected. Return False after `timeout` seconds.

        Raises `ClosedByCaller`.
        """
        # A busy event loop may notice the timeout first.
        is_ready = await self._run(partial(anyio.wait_writable, sock), timeout, sock)
        return is_ready or bool(poll([sock], WRITE, 0))

    def set_interrupt(self, interrupt: Callable[[], object] | None) -> None:
        """Set the function that `cancel` calls, in any thread, to end a wait of another kind."""
        self._interrupt = interrupt

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until `cancel`."""
        with suppress(ClosedByCaller):
            await self.run(partial(anyio.sleep, seconds), None)

    async def _run(
        self,
        wait: Callable[[], Awaitable[object]],
        timeout: float | None,
        sock: socket.socket | None,
    ) -> bool:
        self._socket = sock
        deadline = math.inf if timeout is None else anyio.current_time() + timeout
        with anyio.CancelScope(deadline=deadline) as scope:
            is_outermost = self._set_scope(scope)
            try:
                # Only now: either `cancel` in another thread finds the scope, or this check sees
                # the cancellation.
                self.check()
                await wait()
            finally:
                self._socket = None
                if is_outermost:
                    self._scope = None
        self.check()
        return not scope.cancelled_caught

    def suspend(
        self, suspension: Any, deadline: float, *, is_cancellable: bool
    ) -> Generator[Any, Any, tuple[Any, BaseException | None, bool]]:
        """Wait in place of a coroutine that has yielded `suspension`, at most until the deadline.

        Returns the value or the error with which the wait ends, and whether the limit was exceeded.
        An error is then that of the limit; a value has arrived at the same moment.

        `cancel` ends the wait if `is_cancellable`. The scope is exited before the coroutine
        continues, because the coroutine may exit a scope that it has entered earlier.
        """
        if self._token is None:
            self._token = anyio.lowlevel.current_token()
        scope = anyio.CancelScope(deadline=deadline)
        is_outermost = is_cancellable and self._set_scope(scope)
        if is_outermost and self.is_cancelled:
            scope.cancel()
        value: Any = None
        error: BaseException | None = None
        try:
            with scope:
                try:
                    value = yield suspension
                except BaseException as raised:
                    error = raised
                    raise
        except BaseException:  # noqa: BLE001 - the caller raises it where the coroutine waits
            return value, error, False
        finally:
            if is_outermost:
                self._scope = None
        return value, error, scope.cancel_called

    def _set_scope(self, scope: anyio.CancelScope) -> bool:
        """Let `cancel` cancel a scope from now on. Return False if an outer scope is already set.

        A custom client could continue with another wait if only an inner wait was cancelled.
        """
        if self._scope is not None:
            return False
        self._thread = threading.get_ident()
        self._scope = scope
        return True


async def resolve(
    host: str, port: int, timeout: float | None, cancel_handle: CancelHandle
) -> list[Address] | None:
    """Return the addresses of a host, or None after `timeout` seconds.

    Raises `OSError` and `ClosedByCaller`.
    """
    lookup = start_lookup(host, port)
    if lookup is None:
        return look_up(host, port)
    done = anyio.Event()
    lookup.add_callback(partial(_run_soon, anyio.lowlevel.current_token(), done.set))
    is_in_time = await cancel_handle.run(done.wait, timeout)
    return lookup.result() if is_in_time or lookup.is_done else None


def _run_soon(token: object, function: Callable[[], object]) -> None:
    """Run a function in the event loop of a token, from any thread, unless the loop has ended."""
    loop = _loop_of(token)
    run = loop.call_soon_threadsafe if hasattr(loop, "is_closed") else loop.run_sync_soon
    with suppress(RuntimeError):
        run(function)


async def wait_any_writable(
    socks: list[socket.socket], timeout: float | None, cancel_handle: CancelHandle
) -> list[socket.socket]:
    """Return the sockets that are connected or refused first, or none after `timeout` seconds.

    Raises `ClosedByCaller`.
    """
    ready: list[socket.socket] = []

    async def wait() -> None:
        async with anyio.create_task_group() as group:

            async def watch(sock: socket.socket) -> None:
                await anyio.wait_writable(sock)
                ready.append(sock)
                group.cancel_scope.cancel()

            for sock in socks:
                group.start_soon(watch, sock)

    await cancel_handle.run(wait, timeout)
    return ready or poll(socks, WRITE, 0)


async def checkpoint() -> None:
    """Let other tasks run, and allow a cancellation."""
    await anyio.lowlevel.checkpoint()


class ConnectionLimiter:
    """Limits the concurrent exchanges of one event loop. Further ones are queued."""

    def __init__(self, count: int) -> None:
        self._slots = Slots(min(count, _find_capacity()))

    async def acquire(self, timeout: float | None, cancel_handle: CancelHandle) -> Slot | None:
        """Acquire a slot. Return None after `timeout` seconds.

        Raises `ClosedByCaller`.
        """
        slot = self._slots.take()
        if slot is not None:
            return slot
        wake = partial(_run_soon, anyio.lowlevel.current_token())
        event = anyio.Event()
        waiter = self._slots.wait(partial(wake, event.set))
        # Weak: the exception that ends the wait may keep this function, and with it the place in
        # the queue, until the garbage collector runs.
        queued = proxy(waiter)
        taken: list[Slot] = []

        async def wait() -> None:
            nonlocal event
            while (slot := queued.take()) is None:
                await event.wait()
                event = anyio.Event()
                queued.wake_by(partial(wake, event.set))
            taken.append(slot)

        try:
            # The wait for a slot does not count for `total`, to which a custom client is limited.
            with cancel_handle.hold_limit():
                await cancel_handle.run(wait, timeout)
            # A slot may become free at the moment of the timeout.
            return taken.pop() if taken else waiter.take()
        finally:
            # An exception that is kept keeps this frame, and so the slot.
            taken.clear()
            waiter.leave()


def _find_capacity() -> int:
    """Return the number of exchanges that the running event loop supports.

    On Windows, anyio waits for the sockets of asyncio's event loops with one `select`, which raises
    for more than 512 sockets, and then never waits again. An exchange has two sockets while it
    connects to a host whose first address does not respond.
    """
    kinds = type(current_loop()).__mro__
    is_asyncio = any(kind.__module__ == "asyncio.base_events" for kind in kinds)
    return _SELECT_CAPACITY if _IS_WINDOWS and is_asyncio else sys.maxsize


_IS_WINDOWS = os.name == "nt"
_SELECT_CAPACITY = 240


@contextmanager
def shield(seconds: float) -> Generator[None]:
    """Let a clean-up run for so many seconds although its call is cancelled."""
    with anyio.move_on_after(seconds, shield=True):
        yield


async def time_limit(
    run: Callable[[], Awaitable[None]], seconds: float | None, cancel_handle: CancelHandle
) -> None:
    """Limit the time of a custom client's code. Raises `TimeLimitReached` and `ClosedByCaller`."""
    if not await cancel_handle.run(run, seconds):
        raise TimeLimitReached
