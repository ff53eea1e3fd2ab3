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
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import repeat
from typing import Any, Generic, TypeVar
from weakref import ref

import anyio
import anyio.lowlevel

from cromicle_sdk._http.resolver import look_up, start_lookup
from cromicle_sdk._http.slots import Slot
from cromicle_sdk._http.sockets import (
    LAST_CLEANUP_SECONDS,
    WRITE,
    Address,
    ClosedByCaller,
    TimeLimitReached,
    find_first,
    poll,
    receive_now,
)

__all__ = [
    "CancelHandle",
    "ConnectionLimiter",
    "Runtime",
    "SocketReader",
    "checkpoint",
    "close_iterator",
    "current_runtime",
    "finish_iterator",
    "is_runtime_alive",
    "limit_waits",
    "resolve",
    "shield",
    "time_limit",
    "wait_any_writable",
]

# How long each wait of a custom client may take at least, in seconds: it waits to read what has
# arrived already, too.
_LEAST_WAIT_SECONDS = 0.02

# More than the chunks of one byte in the 4 KiB that httpcore reads at a time from us.
_STEPS_TO_FINISH = 1_000

# Steps of an iterator of httpx's, of 10 us each, before others may run.
_STEPS_AT_ONCE = 64


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

    `cancel` may be called by any task, thread or signal handler: of another event loop, too.
    """

    __slots__ = (
        *("__weakref__", "_future", "_process", "_scope", "_socket", "_thread", "_token"),
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
        # Of the event loop that waits for something else than a socket.
        self._token: object = None

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
        # A forked child shares the connection and the event loop with its parent.
        elif self._process == os.getpid():
            if sock is not None:
                # Nothing waits for a socket that is not connected any more.
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            if self._token is not None:
                _run_soon(self._token, self._cancel_scope)

    def _cancel_scope(self) -> None:
        # It may be over meanwhile, and another one have begun.
        if self._scope is not None:
            self._scope.cancel()

    def check(self) -> None:
        """Raise `ClosedByCaller` after `cancel`."""
        if self.is_cancelled:
            raise _closed()

    async def run(self, wait: Callable[[], Awaitable[object]], timeout: float | None) -> bool:
        """Run a wait; False where it took `timeout` seconds. Raises `ClosedByCaller`."""
        self._token = anyio.lowlevel.current_token()
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
        # A busy event loop may come to the timeout first.
        is_ready = await self._run(partial(anyio.wait_writable, sock), timeout, sock)
        return is_ready or bool(poll([sock], WRITE, 0))

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
        deadline = math.inf if timeout is None else anyio.current_time() + timeout
        with anyio.CancelScope(deadline=deadline) as scope:
            is_outermost = self._set_scope(scope)
            try:
                # Not before: `cancel` in another thread finds the scope, or this finds its mark.
                self.check()
                await wait()
            finally:
                self._socket = None
                if is_outermost:
                    self._scope = None
        self.check()
        return not scope.cancelled_caught

    def _suspend(
        self, suspension: Any, deadline: float, *, is_cancellable: bool
    ) -> Generator[Any, Any, tuple[Any, BaseException | None, bool]]:
        """Wait as a coroutine does that has yielded `suspension`, until the deadline at most.

        Returns the value or the error that it ends with, and whether it is over its limit: an error
        is that of the limit then, a value has come at the same time.

        `cancel` ends the wait where it `is_cancellable`. The scope is left before the coroutine
        goes on, which may leave a scope that it has entered before this one.
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
        """Let `cancel` cancel a scope from now on; False where it cancels one around it.

        A custom client whose wait alone was cancelled could go on to wait for something else.
        """
        if self._scope is not None:
            return False
        self._thread = threading.get_ident()
        self._scope = scope
        return True


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
        *("_number", "_process", "_received", "_socket", "_stays_registered", "_thread"),
        *("_timer", "_timer_ends"),
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
        # What the loop has received for a wait. It stays if that is cancelled at the same time.
        self._received: bytes | OSError | None = None
        self._future: Any = None
        self._timer: Any = None
        self._timer_ends = self._deadline = math.inf
        self._is_closed = False

    async def receive(
        self, max_bytes: int, timeout: float | None, cancel_handle: CancelHandle
    ) -> bytes | OSError | None:
        """Wait for bytes. An end is b"", and an error of the system is returned.

        None if nothing came, perhaps before the `timeout`, in seconds. Raises `ClosedByCaller`.
        """
        if self._received is not None:
            return self.receive_now(max_bytes)
        if not self._register():
            is_ready = await cancel_handle.wait_readable(self._socket, timeout)
            return self.receive_now(max_bytes) if is_ready else None
        self._thread = threading.get_ident()
        self._max_bytes = max_bytes
        future = self._future = self._loop.create_future()
        self._set_timer(timeout)
        set_future = cancel_handle._set_future  # pyright: ignore[reportPrivateUsage] - of this module
        set_future(future)
        try:
            cancel_handle.check()
            await future
        finally:
            self._future = None
            set_future(None)
            if not self._stays_registered:
                self._unregister()
        cancel_handle.check()
        if self._is_closed:
            raise _closed()
        received, self._received = self._received, None
        return received

    def receive_now(self, max_bytes: int) -> bytes | OSError | None:
        """What has arrived, without a wait; None for nothing. Otherwise as `receive`."""
        received, self._received = self._received, None
        if received is None:
            return receive_now(self._socket, max_bytes)
        if isinstance(received, bytes) and len(received) > max_bytes:
            received, self._received = received[:max_bytes], received[max_bytes:]
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
            self._received = receive_now(self._socket, self._max_bytes)
            if self._received is not None:
                self._future.set_result(None)

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
    is_in_time = await cancel_handle.run(done.wait, timeout)
    return lookup.result() if is_in_time or lookup.is_done else None


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
    return ready or poll(socks, WRITE, 0)


async def checkpoint() -> None:
    """Let other tasks run, and a cancellation come."""
    await anyio.lowlevel.checkpoint()


class ConnectionLimiter:
    """How many exchanges may be under way in one event loop; further ones are queued.

    A slot may come back from the garbage collector, at any point and from any thread.
    """

    def __init__(self, count: int) -> None:
        self._unused = repeat(None, min(count, _find_capacity()))
        self._free: deque[Slot] = deque()
        # What wakes each queued call, from first to last. Only the first one takes a slot.
        self._queue: OrderedDict[Callable[[], object], None] = OrderedDict()

    async def acquire(self, timeout: float | None, cancel_handle: CancelHandle) -> Slot | None:
        """Take a slot; None where none was free within `timeout` seconds.

        Raises `ClosedByCaller`.
        """
        if not self._queue and (slot := self._take()) is not None:
            return slot
        event = anyio.Event()
        wake = partial(_run_soon, anyio.lowlevel.current_token(), event.set)
        self._queue[wake] = None

        async def wait() -> None:
            # Only the first in the queue takes a slot: one that is there stays until then.
            if not (self._free and find_first(self._queue) is wake):
                await event.wait()

        try:
            return self._take() if await cancel_handle.run(wait, timeout) else None
        finally:
            del self._queue[wake]
            self._wake_first()

    def put_back(self, slot: Slot) -> None:
        self._free.append(slot)
        self._wake_first()

    def _take(self) -> Slot | None:
        try:
            return self._free.popleft()
        except IndexError:
            slot = Slot(ref(self))
            return slot if slot.fill(self._unused) else None

    def _wake_first(self) -> None:
        wake = find_first(self._queue) if self._free else None
        if wake is not None:
            wake()


def _find_capacity() -> int:
    """How many exchanges the running event loop bears.

    On Windows, anyio waits for the sockets of asyncio's loops by one `select`, which raises where
    they are more than 512, and then never waits again. An exchange has two while it connects to a
    host whose first address does not answer.
    """
    token: Any = anyio.lowlevel.current_token()
    loop: object = getattr(token, "native_token", token)
    is_asyncio = any(kind.__module__ == "asyncio.base_events" for kind in type(loop).__mro__)
    return _SELECT_CAPACITY if _IS_WINDOWS and is_asyncio else sys.maxsize


_IS_WINDOWS = os.name == "nt"
_SELECT_CAPACITY = 240


def finish_iterator(chunks: AsyncIterator[bytes]) -> None:
    """Run an iterator of httpcore's over a closed connection to its end, without an event loop.

    A generator that is dropped unfinished is a warning under trio, and a task on asyncio. With its
    connection closed, httpcore's has no more than the chunks that it has read before, and then
    raises: so its steps are taken by hand. An iterator that may wait must not come here, since its
    task would stay where it waits.
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


async def close_iterator(chunks: AsyncIterator[bytes], seconds: float, *, is_nested: bool) -> None:
    """End an iterator before its end: close it where it is one to close, a generator, in time.

    `is_nested`: it is of httpx's, and holds httpcore's, which nothing would close. Their response
    is closed, so it is run to its end, which is the first point where it would wait.
    """
    if not is_nested:
        aclose: Callable[[], Awaitable[object]] | None = getattr(chunks, "aclose", None)
        if aclose is not None:
            with suppress(TimeLimitReached):
                await limit_waits(aclose, lambda: seconds, CancelHandle())
        return
    with anyio.CancelScope() as scope, suppress(Exception):
        scope.cancel()
        count = 0
        async for _ in chunks:
            # Many chunks may have been read before: let others run.
            count += 1
            if count % _STEPS_AT_ONCE == 0:
                await anyio.lowlevel.cancel_shielded_checkpoint()


@contextmanager
def shield(seconds: float) -> Generator[None]:
    """Let a clean-up go on although its call is cancelled, for so long."""
    with anyio.move_on_after(seconds, shield=True):
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
    """Hold one step of a custom client's iterator to a limit. Raises as `time_limit` does.

    An iterator may leave its task group or timeout open from one step to the next, so that no
    cancel scope can span a step. Each wait within the step has a scope of its own instead;
    `find_limit` is called at the first one, since most steps have none.

    At the limit the step is cancelled, as by a scope around it: its wait raises, and what it
    returns or raises then counts for nothing. It may wait for `LAST_CLEANUP_SECONDS` more; after
    that each further wait raises at once.
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
        self._cancel_handle.check()
        step = self._run().__await__()
        try:
            suspension = next(step)
        except StopIteration as done:
            result: T = done.value
            return result
        return (yield from self._resume(step, suspension))

    def _resume(self, step: Generator[Any, Any, T], suspension: Any) -> Generator[Any, Any, T]:
        suspend = self._cancel_handle._suspend  # pyright: ignore[reportPrivateUsage] - of this module
        deadline = anyio.current_time() + max(self._find_limit(), _LEAST_WAIT_SECONDS)
        # Why the step is cancelled; whether it was late; and what else has interrupted it.
        reason: Exception | None = None
        is_late = False
        interrupts: list[BaseException] = []
        while True:
            value, error, is_over = yield from suspend(
                suspension, deadline, is_cancellable=reason is None
            )
            interrupts += () if is_over or error is None else (error,)
            if is_over and error is None and not _is_cancellation(value):
                # What came at the last moment counts. From trio's checkpoints nothing else comes.
                error = self._find_reason() if is_late else None
                is_late = True
                is_over = error is not None
            if is_over and reason is None:
                reason = self._find_reason()
                deadline = anyio.current_time() + LAST_CLEANUP_SECONDS
            try:
                suspension = step.send(value) if error is None else step.throw(error)
                continue
            except StopIteration as done:
                if reason is None:
                    result: T = done.value
                    return result
            except BaseException as raised:
                # Another scope's cancellation must not be lost: asyncio sends it once.
                if reason is None or not _is_cancelled(raised, but_not=interrupts):
                    raise
            # Outside of the handlers, whose errors are not its context.
            raise reason

    def _find_reason(self) -> Exception:
        return _closed() if self._cancel_handle.is_cancelled else TimeLimitReached()


def _is_cancellation(value: Any) -> bool:
    """Whether a suspension has ended with it because it was cancelled.

    On asyncio that is an exception; trio sends an outcome, which raises one further in.
    """
    return isinstance(getattr(value, "error", None), anyio.get_cancelled_exc_class())


def _is_cancelled(error: BaseException, *, but_not: list[BaseException]) -> bool:
    """Whether cancelled code may raise it: no interrupt by the user, and none of those given."""
    group: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    if not isinstance(error, Exception) and group:
        return all(_is_cancelled(each, but_not=but_not) for each in group)
    is_known = any(each is error for each in but_not)
    return isinstance(error, (Exception, anyio.get_cancelled_exc_class())) and not is_known
