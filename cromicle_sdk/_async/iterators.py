"""The iterators of a custom client's responses: limiting their steps, and closing them.

`_sync/iterators.py` has the same names for blocking code; a test compares the two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from types import coroutine
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

from cromicle_sdk._http.sockets import LAST_CLEANUP_SECONDS, ClosedByCaller, TimeLimitReached

from . import concurrency

__all__ = ["LimitedSteps", "close_iterator", "finish_iterator"]

T = TypeVar("T")

# The minimum limit of a wait of a custom client, in seconds: it also waits to read data that has
# already arrived.
_LEAST_WAIT_SECONDS = 0.02

# More than the one-byte chunks in the 4 KiB that httpcore reads from this network at a time.
_STEPS_TO_FINISH = 1_000

# The steps of httpx's iterator, of 10 us each, before other tasks run.
_STEPS_AT_ONCE = 64


def finish_iterator(chunks: AsyncIterator[bytes]) -> None:
    """Run httpcore's iterator over a closed connection to its end, without an event loop.

    Dropping an unfinished generator causes a warning on trio, and a task on asyncio. After its
    connection is closed, httpcore's iterator yields only the chunks that it has already read, and
    then raises. Its steps are therefore run by hand. An iterator that may wait must not be passed,
    because its task would stay suspended.
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
    """Close an unfinished iterator, if it is a generator, within the limit.

    `is_nested`: the iterator is httpx's, and holds httpcore's, which nothing else closes. Because
    their response is closed, it is run to its end, or to the first point where it would wait.
    """
    if not is_nested:
        aclose: Callable[[], Awaitable[object]] | None = getattr(chunks, "aclose", None)
        if aclose is not None:
            with suppress(TimeLimitReached):
                await LimitedSteps(aclose, lambda: seconds, concurrency.CancelHandle()).run()
        return
    with anyio.CancelScope() as scope, suppress(Exception):
        scope.cancel()
        count = 0
        async for _ in chunks:
            # Many chunks may have been read already: let other tasks run.
            count += 1
            if count % _STEPS_AT_ONCE == 0:
                await anyio.lowlevel.cancel_shielded_checkpoint()


class LimitedSteps(Generic[T]):
    """Runs the steps of a custom client's iterator, each within the limit.

    An iterator may keep a task group or a timeout open from one step to the next, so no cancel
    scope can span a step. Instead, each wait within a step has a scope of its own, which costs 3 to
    9 us; most steps have none, because most chunks have arrived with the previous one.
    `find_limit` is called at the first wait.

    At the limit, the step is cancelled as by a scope around it: its wait raises, and its result is
    ignored. It may wait for `LAST_CLEANUP_SECONDS` more; after that, each further wait raises at
    once.
    """

    __slots__ = ("_cancel_handle", "_find_limit", "_step")

    def __init__(
        self,
        step: Callable[[], Awaitable[T]],
        find_limit: Callable[[], float],
        cancel_handle: concurrency.CancelHandle,
    ) -> None:
        self._step = step
        self._find_limit = find_limit
        self._cancel_handle = cancel_handle

    @coroutine
    def run(self) -> Generator[Any, Any, T]:
        """Run one step. Raises the same errors as `time_limit`."""
        self._cancel_handle.check()
        step = self._step().__await__()
        try:
            suspension = next(step)
        except StopIteration as done:
            result: T = done.value
            return result
        return (yield from self._resume(step, suspension))

    def _resume(self, step: Generator[Any, Any, T], suspension: Any) -> Generator[Any, Any, T]:
        suspend = self._cancel_handle.suspend
        deadline = anyio.current_time() + max(self._find_limit(), _LEAST_WAIT_SECONDS)
        # The reason why the step is cancelled, whether a value arrived late, and all other
        # interrupts.
        reason: Exception | None = None
        is_late = False
        interrupts: list[BaseException] = []
        while True:
            value, error, is_over = yield from suspend(
                suspension, deadline, is_cancellable=reason is None
            )
            interrupts += () if is_over or error is None else (error,)
            if is_over and error is None and not _is_cancellation(value):
                # A value that arrives at the last moment counts. Only trio's checkpoints end
                # without one.
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
                # The cancellation of another scope must not be lost, because asyncio sends it only
                # once.
                if reason is None or not _is_cancelled(raised, but_not=interrupts):
                    raise
            # Outside the handlers, so that their errors do not become its context.
            raise reason

    def _find_reason(self) -> Exception:
        return ClosedByCaller() if self._cancel_handle.is_cancelled else TimeLimitReached()


def _is_cancellation(value: Any) -> bool:
    """Whether this value of a suspension is a cancellation.

    asyncio raises an exception; trio sends an outcome, which raises one further inside.
    """
    return isinstance(getattr(value, "error", None), anyio.get_cancelled_exc_class())


def _is_cancelled(error: BaseException, *, but_not: list[BaseException]) -> bool:
    """Whether cancellation can raise this error, which is no interrupt and none of `but_not`."""
    group: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    if not isinstance(error, Exception) and group:
        return all(_is_cancelled(each, but_not=but_not) for each in group)
    is_known = any(each is error for each in but_not)
    return isinstance(error, (Exception, anyio.get_cancelled_exc_class())) and not is_known
