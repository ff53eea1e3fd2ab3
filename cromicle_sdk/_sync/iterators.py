"""The iterators of a custom client's responses: running their steps, and closing them.

`_async/iterators.py` has the same names for async code; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from . import concurrency

__all__ = ["LimitedSteps", "close_iterator", "finish_iterator"]

T = TypeVar("T")


def finish_iterator(chunks: Iterator[bytes]) -> None:
    """Close httpcore's iterator, whose connection is closed."""
    close_iterator(chunks, 0, is_nested=True)


def close_iterator(chunks: Iterator[bytes], seconds: float, *, is_nested: bool) -> None:
    """Close an unfinished iterator, if it is a generator, however long it takes.

    The iterators that it holds are closed with it.
    """
    getattr(chunks, "close", list)()


class LimitedSteps(Generic[T]):
    """Runs the steps of a custom client's iterator. The caller checks the limit between them."""

    __slots__ = ("_cancel_handle", "_step")

    def __init__(
        self,
        step: Callable[[], T],
        find_limit: Callable[[], float],
        cancel_handle: concurrency.CancelHandle,
    ) -> None:
        self._step = step
        self._cancel_handle = cancel_handle

    def run(self) -> T:
        """Run one step. Raises `ClosedByCaller` if `cancel` was called before it or during it."""
        self._cancel_handle.check()
        result = self._step()
        self._cancel_handle.check()
        return result
