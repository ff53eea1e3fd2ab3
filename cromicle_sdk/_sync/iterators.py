"""The iterators of a custom client's responses: running their steps, and closing them.

`_async/iterators.py` has the same names for async code; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from . import concurrency

__all__ = ["close_iterator", "finish_iterator", "limit_waits"]

T = TypeVar("T")


def finish_iterator(chunks: Iterator[bytes]) -> None:
    """Close httpcore's iterator, whose connection is closed."""
    close_iterator(chunks, 0, is_nested=True)


def close_iterator(chunks: Iterator[bytes], seconds: float, *, is_nested: bool) -> None:
    """Close an unfinished iterator, if it is a generator, however long it takes.

    The iterators that it holds are closed with it.
    """
    getattr(chunks, "close", list)()


def limit_waits(
    run: Callable[[], T], find_limit: Callable[[], float], cancel_handle: concurrency.CancelHandle
) -> T:
    """Run one step of a custom client's iterator. The caller checks the limit between steps.

    Raises `ClosedByCaller` if `cancel` was called before the step or during it.
    """
    cancel_handle.check()
    result = run()
    cancel_handle.check()
    return result
