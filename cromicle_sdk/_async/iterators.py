"""The iterators of a custom client's responses: a limit for each of their steps, and their end.

`_sync/iterators.py` has the same names for blocking code; a test compares the two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

from cromicle_sdk._http.sockets import LAST_CLEANUP_SECONDS, ClosedByCaller, TimeLimitReached

from . import concurrency

__all__ = ["close_iterator", "finish_iterator", "limit_waits"]

T = TypeVar("T")

# How long each wait of a custom client may take at least, in seconds: it waits to read what has
# arrived already, too.
_LEAST_WAIT_SECONDS = 0.02

# More than the chunks of one byte in the 4 KiB that httpcore reads at a time from us.
_STEPS_TO_FINISH = 1_000

# Steps of an iterator of httpx's, of 10 us each, before others may run.
_STEPS_AT_ONCE = 64


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
                await limit_waits(aclose, lambda: seconds, concurrency.CancelHandle())
        return
    with anyio.CancelScope() as scope, suppress(Exception):
        scope.cancel()
        count = 0
        async for _ in chunks:
            # Many chunks may have been read before: let others run.
            count += 1
            if count % _STEPS_AT_ONCE == 0:
                await anyio.lowlevel.cancel_shielded_checkpoint()


def limit_waits(
    run: Callable[[], Awaitable[T]],
    find_limit: Callable[[], float],
    cancel_handle: concurrency.CancelHandle,
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
        cancel_handle: concurrency.CancelHandle,
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
        suspend = self._cancel_handle.suspend
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
        return ClosedByCaller() if self._cancel_handle.is_cancelled else TimeLimitReached()


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
