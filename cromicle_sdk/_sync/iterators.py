"""The iterators of a custom client's responses: each of their steps, and their end.

`_async/iterators.py` has the same names for async code; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from . import concurrency

__all__ = ["close_iterator", "finish_iterator", "limit_waits"]

T = TypeVar("T")


def finish_iterator(chunks: Iterator[bytes]) -> None:
    """Close an iterator of httpcore's, whose connection is closed."""
    close_iterator(chunks, 0, is_nested=True)


def close_iterator(chunks: Iterator[bytes], seconds: float, *, is_nested: bool) -> None:
    """End an iterator before its end: close it where it is one to close, a generator, in any time.

    Those that it holds are closed with it.
    """
    getattr(chunks, "close", list)()


def limit_waits(
    run: Callable[[], T], find_limit: Callable[[], float], cancel_handle: concurrency.CancelHandle
) -> T:
    """Run one step of a custom client's iterator, whose limit the caller looks at before the next.

    Raises `ClosedByCaller` where `cancel` was called before it or meanwhile.
    """
    cancel_handle.check()
    result = run()
    cancel_handle.check()
    return result
