"""What async code does differently from blocking code: the one module of the clients with anyio.

`_sync/concurrency.py` has the same names for blocking code; a test compares the two.
"""

from __future__ import annotations

import contextvars
import math
import os
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

from cromicle_sdk._http.resolver import look_up, start_lookup
from cromicle_sdk._http.sockets import (
    Address,
    ClosedByCaller,
    TimeLimitReached,
    receive_now,
)

__all__ = [
    "CancelHandle",
    "ConnectionLimiter",
    "Runtime",
    "SocketReader",
    "checkpoint",
    "current_runtime",
    "finish_iterator",
    "is_runtime_alive",
    "limit_waits",
    "resolve",
    "shield",
    "time_limit",
    "wait_any_writable",
]

# How often a call that waits for a slot or for the resolver polls, in seconds: the garbage
# collector may have released a slot, or another thread cancelled the call, which wakes no loop.
_POLL_SECONDS = 1.0

# More than the chunks of one byte in what is read at a time.
_STEPS_TO_FINISH = 20_000


T = TypeVar("T")

# A process and an event loop of it, as a key.
Runtime = tuple[int, object]


def current_runtime() -> Runtime:
    """What connections belong to: this process and this event loop."""
    return os.getpid(), anyio.lowlevel.current_token()


def is_runtime_alive(runtime: Runtime) -> bool:
    """Whether its event loop may still run in this process."""
    process, token = runtime
    loop: Any = getattr(token, "native_token", token)
    if process != os.getpid():
        return False
    if hasattr(loop, "is_closed"):
        return not loop.is_closed()
    try:
        # trio has no other way to tell.
        loop.run_sync_soon(int)
    except RuntimeError:
        return False
    return True


class CancelHandle:
    """Cancels one call: its present wait and those to come.

    `cancel` may be called by any task, thread or signal handler. In another event loop, a wait for
    a socket sees it at once, and one for a slot or for the resolver when it next polls.
    """

    __slots__ = (
        *("__weakref__", "_future", "_process", "_scope", "_socket", "_thread"),
        "is_cancelled",
    )

    def __init__(self) -> None:
        self.is_cancelled: bool = False
        self._process = os.getpid()
        # What the call waits for at present: an asyncio future, or a scope or a socket.
        self._future: Any = None
        self._scope: anyio.CancelScope | None = None
        self._socket: socket.socket | None = None
        self._thread = 0

    def cancel(self) -> None:
        self.is_cancelled = True
        future, scope, sock = self._future, self._scope, self._socket
        if future is not None and self._process == os.getpid():
            # An event loop that is closed raises RuntimeError.
            with suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(_end_wait, future)
        # A scope belongs to its event loop, and so to one thread.
        if scope is not None and self._thread == threading.get_ident():
            scope.cancel()
        # A forked child shares the connection with its parent, which may be reading it.
        elif sock is not None and self._process == os.getpid():
            # Nothing waits for a socket that is not connected any more.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise `ClosedByCaller` after `cancel`."""
        if self.is_cancelled:
            raise _closed()

    def _enter(self, scope: anyio.CancelScope | None) -> None:
        """Say which scope `cancel` cancels from now on."""
        self._thread = threading.get_ident()
        self._scope = scope

    async def run(self, wait: Callable[[], Awaitable[object]], timeout: float | None) -> bool:
        """Run a wait; False where it took `timeout` seconds. Raises `ClosedByCaller`."""
        return await self._run(wait, timeout, None)

    async def wait_readable(self, sock: socket.socket, timeout: float | None) -> bool:
        """Wait until a socket has bytes or an end to read; False at the timeout.

        Raises `ClosedByCaller`.
        """
        return await self._run(partial(anyio.wait_readable, sock), timeout, sock)

    async def wait_writable(self, sock: socket.socket, timeout: float | None) -> bool:
        """Wait until a socket takes bytes, or is connected; False at the timeout.

        Raises `ClosedByCaller`.
        """
        return await self._run(partial(anyio.wait_writable, sock), timeout, sock)

    def _set_future(self, future: Any) -> None:
        """Say which asyncio future `cancel` ends from now on."""
        self._future = future

    async def sleep(self, seconds: float) -> None:
        """Wait; a cancellation ends it."""
        with suppress(ClosedByCaller):
            await self.run(partial(anyio.sleep, seconds), None)

    async def _run(
        self,
        wait: Callable[[], Awaitable[object]],
        timeout: float | None,
        sock: socket.socket | None,
    ) -> bool:
        self._socket = sock
        self.check()
        deadline = math.inf if timeout is None else anyio.current_time() + timeout
        self._thread = threading.get_ident()
        with anyio.CancelScope(deadline=deadline) as scope:
            self._scope = scope
            try:
                await wait()
            finally:
                self._scope = self._socket = None
        self.check()
        return not scope.cancelled_caught


def _closed() -> ClosedByCaller:
    return ClosedByCaller("it was closed while it was under way")


def _end_wait(future: Any) -> None:
    # It may have a result already, or be cancelled.
    if not future.done():
        future.set_result(None)


class SocketReader:
    """Waits for bytes of a socket, and closes it.

    In asyncio's own event loop the socket stays registered from one wait to the next, and so does a
    timer. To register it for each wait, inside a cancel scope, costs three times as much: half of
    the cost of a short chunk.

    It belongs to the event loop that first waits. `close` may be called from any thread.
    """

    __slots__ = (
        *("_deadline", "_future", "_is_closed", "_is_registrable", "_loop", "_max_bytes"),
        *("_number", "_process", "_socket", "_stays_registered", "_thread", "_timer"),
        "_timer_ends",
    )

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._process = os.getpid()
        self._thread = 0
        self._loop: Any = None
        # Not with trio, nor with asyncio's Proactor loop.
        self._is_registrable = False
        self._stays_registered = False
        # The descriptor while it is registered. Not the socket: uvloop would keep that open.
        self._number: int | None = None
        self._max_bytes = 0
        self._future: Any = None
        self._timer: Any = None
        self._timer_ends = self._deadline = math.inf
        self._is_closed = False

    async def receive(
        self, max_bytes: int, timeout: float | None, cancel_handle: CancelHandle
    ) -> bytes | OSError | None:
        """Wait for bytes. An end is b"", and an error of the system is returned.

        None where nothing came, with or without `timeout` seconds gone by. Raises `ClosedByCaller`.
        """
        if not self._register():
            is_ready = await cancel_handle.wait_readable(self._socket, timeout)
            return receive_now(self._socket, max_bytes) if is_ready else None
        self._thread = threading.get_ident()
        self._max_bytes = max_bytes
        future = self._future = self._loop.create_future()
        self._set_timer(timeout)
        set_future = cancel_handle._set_future  # pyright: ignore[reportPrivateUsage] - of this module
        set_future(future)
        try:
            cancel_handle.check()
            received: bytes | OSError | None = await future
        finally:
            self._future = None
            set_future(None)
            if not self._stays_registered:
                self._unregister()
        cancel_handle.check()
        if self._is_closed:
            raise _closed()
        return received

    def close(self) -> None:
        """Close the socket, which ends the wait for it."""
        self._is_closed = True
        loop = self._loop
        is_known = self._number is not None or self._timer is not None
        # A forked child shares the selector with its parent, and a closed loop has none.
        if not is_known or self._process != os.getpid() or loop.is_closed():
            self._socket.close()
        elif self._thread == threading.get_ident() or not loop.is_running():
            self._release()
        else:
            # Another thread's event loop. The descriptor must not belong to another socket before
            # that has forgotten it; the peer sees the end at once.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            try:
                loop.call_soon_threadsafe(self._release)
            except RuntimeError:
                self._socket.close()  # the loop has been closed meanwhile

    def _release(self) -> None:
        self._unregister()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._socket.close()
        if self._future is not None:
            _end_wait(self._future)

    def _register(self) -> bool:
        """Register the socket; False where the event loop cannot."""
        if self._number is not None:
            return True
        if self._loop is None:
            token = anyio.lowlevel.current_token()
            self._loop = getattr(token, "native_token", token)
            self._is_registrable = hasattr(self._loop, "add_reader")
            # uvloop drops the registration of a socket with an error, although it has more to read.
            self._stays_registered = type(self._loop).__module__.startswith("asyncio.")
        if not self._is_registrable:
            return False
        number = self._socket.fileno()
        try:
            # In no context: that of the first task would live as long as the connection.
            contextvars.Context().run(self._loop.add_reader, number, self._notify)
        except NotImplementedError:
            self._is_registrable = False
            return False
        self._number = number
        return True

    def _unregister(self) -> None:
        number, self._number = self._number, None
        if number is not None:
            self._loop.remove_reader(number)

    def _notify(self) -> None:
        """The socket is readable."""
        if self._future is None:
            # Nothing waits for now, and the loop would call again and again.
            self._unregister()
        elif not self._future.done():
            # At once: the loop would call again before the task runs.
            received = receive_now(self._socket, self._max_bytes)
            if received is not None:
                self._future.set_result(received)

    def _set_timer(self, timeout: float | None) -> None:
        if timeout is None:
            self._deadline = math.inf
            return
        self._deadline = self._loop.time() + timeout
        # One that ends earlier starts again for the rest.
        if self._timer is None or self._timer_ends > self._deadline:
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ends = self._deadline
        self._timer = self._loop.call_at(
            self._deadline, self._expire, context=contextvars.Context()
        )

    def _expire(self) -> None:
        self._timer = None
        if self._future is None or self._deadline == math.inf:
            return
        if self._loop.time() < self._deadline:
            self._start_timer()
        else:
            _end_wait(self._future)


async def resolve(
    host: str, port: int, timeout: float | None, cancel_handle: CancelHandle
) -> list[Address] | None:
    """A host's addresses; None where the resolver did not answer within `timeout` seconds.

    Raises `OSError` and `ClosedByCaller`.
    """
    lookup = start_lookup(host, port)
    if lookup is None:
        return look_up(host, port)
    done = anyio.Event()
    lookup.add_callback(partial(_run_soon, anyio.lowlevel.current_token(), done.set))

    async def wait() -> None:
        while not (done.is_set() or cancel_handle.is_cancelled):
            with anyio.move_on_after(_POLL_SECONDS):
                await done.wait()

    return lookup.result() if await cancel_handle.run(wait, timeout) else None


def _run_soon(token: object, function: Callable[[], object]) -> None:
    """Run a function in the event loop of a token, from any thread; not in one that has ended."""
    loop: Any = getattr(token, "native_token", token)
    run = loop.call_soon_threadsafe if hasattr(loop, "is_closed") else loop.run_sync_soon
    with suppress(RuntimeError):
        run(function)


async def wait_any_writable(
    socks: list[socket.socket], timeout: float | None, cancel_handle: CancelHandle
) -> list[socket.socket]:
    """The first of several sockets to be connected or refused; none at the timeout.

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
    return ready


async def checkpoint() -> None:
    """Let other tasks run, and a cancellation come."""
    await anyio.lowlevel.checkpoint()


class ConnectionLimiter:
    """How many exchanges may be under way in one event loop; further ones are queued.

    `release` may be called by the garbage collector, at any point and from any thread.
    """

    def __init__(self, count: int) -> None:
        self._free = min(count, _find_capacity())
        self._queue: OrderedDict[anyio.Event, None] = OrderedDict()

    async def acquire(self, timeout: float | None, cancel_handle: CancelHandle) -> bool:
        """Take a slot; False where none was free within `timeout` seconds.

        Raises `ClosedByCaller`.
        """
        if self._free and not self._queue:
            self._free -= 1
            return True
        waiter = anyio.Event()
        self._queue[waiter] = None

        async def wait() -> None:
            # A slot may have been released just before this call was queued.
            self._wake()
            while not (waiter.is_set() or cancel_handle.is_cancelled):
                with anyio.move_on_after(_POLL_SECONDS):
                    await waiter.wait()

        try:
            if await cancel_handle.run(wait, timeout):
                return True
        except BaseException:
            self._leave(waiter)
            raise
        self._leave(waiter)
        return False

    def release(self) -> None:
        """Return a slot: to the first in the queue, where there is one."""
        self._free += 1
        self._wake()

    def _leave(self, waiter: anyio.Event) -> None:
        # `del` is atomic: a waiter that is no longer queued already owns a slot.
        try:
            del self._queue[waiter]
        except KeyError:
            self.release()

    def _wake(self) -> None:
        while self._free and self._queue:
            self._free -= 1
            waiter, _ = self._queue.popitem(last=False)
            waiter.set()


def _find_capacity() -> int:
    """How many exchanges the running event loop bears.

    On Windows, anyio waits for the sockets of asyncio's loops by one `select`, which raises where
    they are more than 512, and then never waits again. An exchange has two while it connects to a
    host whose first address does not answer.
    """
    token = anyio.lowlevel.current_token()
    loop_type = type(getattr(token, "native_token", token))
    is_asyncio = any(kind.__module__ == "asyncio.base_events" for kind in loop_type.__mro__)
    return _SELECT_CAPACITY if _IS_WINDOWS and is_asyncio else sys.maxsize


_IS_WINDOWS = os.name == "nt"
_SELECT_CAPACITY = 240


def finish_iterator(chunks: AsyncIterator[bytes]) -> None:
    """Run an iterator whose connection is closed to its end, without an event loop's help.

    A generator that is dropped unfinished is a warning under trio, and a task on asyncio. Nothing
    in it can wait any more, so its steps are taken by hand until it raises. One of a transport of
    the user's may have no end, and is dropped after a while.
    """
    step = None
    for _ in range(_STEPS_TO_FINISH):
        step = step or chunks.__anext__().__await__()
        try:
            next(step)
        except StopIteration:
            step = None  # it was one of the chunks that had been read before
        except Exception:  # noqa: BLE001 - whatever it is, it ends the generator
            return


@contextmanager
def shield() -> Generator[None]:
    """Let a clean-up finish, although its call is cancelled."""
    with anyio.CancelScope(shield=True):
        yield


async def time_limit(
    run: Callable[[], Awaitable[None]], seconds: float | None, cancel_handle: CancelHandle
) -> None:
    """Hold the code of a custom client to a limit. Raises `TimeLimitReached`, `ClosedByCaller`."""
    if not await cancel_handle.run(run, seconds):
        raise TimeLimitReached


def limit_waits(
    run: Callable[[], Awaitable[T]], find_limit: Callable[[], float], cancel_handle: CancelHandle
) -> Awaitable[T]:
    """As `time_limit`, for code that rarely waits: the seconds are asked for where it does.

    Raises `TimeLimitReached` and `ClosedByCaller`.
    """
    return _LimitedWaits(run, find_limit, cancel_handle)


class _LimitedWaits(Generic[T]):
    """Awaits something with a cancel scope around each of its suspensions, and only those.

    A scope costs 3 to 9 us, and most chunks of a custom client's response have arrived with the one
    before, so that no wait is needed.
    """

    __slots__ = ("_cancel_handle", "_find_limit", "_run")

    def __init__(
        self,
        run: Callable[[], Awaitable[T]],
        find_limit: Callable[[], float],
        cancel_handle: CancelHandle,
    ) -> None:
        self._run = run
        self._find_limit = find_limit
        self._cancel_handle = cancel_handle

    def __await__(self) -> Generator[Any, Any, T]:
        if self._cancel_handle.is_cancelled:
            raise _closed()
        steps = self._run().__await__()
        try:
            suspension = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        return (yield from self._resume(steps, suspension))

    def _resume(self, steps: Generator[Any, Any, T], suspension: Any) -> Generator[Any, Any, T]:
        deadline = anyio.current_time() + self._find_limit()
        enter = self._cancel_handle._enter  # pyright: ignore[reportPrivateUsage] - of this module
        is_interrupted = False
        while True:
            value: Any = None
            error: BaseException | None = None
            # The scope is left before the code goes on, which may leave a scope that it has entered
            # before this one.
            scope = anyio.CancelScope(deadline=math.inf if is_interrupted else deadline)
            try:
                with scope:
                    enter(None if is_interrupted else scope)
                    value = yield suspension
            except BaseException as raised:  # noqa: BLE001 - it is raised where the code waits
                error = raised
            enter(None)
            # Not `cancelled_caught`: under trio a cancellation is a value, which raises further in.
            if scope.cancel_called and error is None:
                # What the code does on its way out is not limited any more.
                is_interrupted = True
                error = _closed() if self._cancel_handle.is_cancelled else TimeLimitReached()
            try:
                suspension = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result
