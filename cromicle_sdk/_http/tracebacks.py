"""The frames of exceptions: their locals hold requests, and so the token."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from inspect import currentframe
from types import FrameType, TracebackType

__all__ = ["strip_frames", "strip_library_frames"]


def strip_frames(error: BaseException) -> BaseException:
    """The error without its frames, whose locals hold the request, and so the token."""
    for cause in _causes(error):
        cause.__traceback__ = None
        # Unlink the context, whose frames must stay: the caller may be handling that exception.
        cause.__context__ = None
        if getattr(cause, "_request", None) is not None:
            cause._request = None  # type: ignore[attr-defined]  # httpx's errors carry theirs
    return error


def strip_library_frames(error: BaseException) -> BaseException:
    """An exception of the caller's without the frames that it has passed here, from this call on.

    Those of this package, of the libraries below it, and of what they call of the standard library
    hold the request. The frames of a hook or a signal handler stay, and so do those of an exception
    that the caller was handling when it called.
    """
    # Not this one's own frame, which holds the set.
    callers: set[FrameType] = set()
    frame = currentframe()
    while frame is not None:
        frame = frame.f_back
        if frame is not None:
            callers.add(frame)
    seen: set[int] = set()
    related: list[BaseException | None] = [error]
    while related:
        each = related.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback = each.__traceback__
        # The frame that handles an exception is the first of its traceback.
        if each is error or traceback is None or traceback.tb_frame not in callers:
            each.__traceback__ = _strip_traceback(traceback)
            related += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return error


# Their frames may hold a request; h11's, a part of one.
_LIBRARIES = frozenset(
    ("cromicle_sdk", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "socksio", "anyio", "trio")
)


def _strip_traceback(traceback: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    is_library = True
    while traceback is not None:
        frame = traceback.tb_frame
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        # A frame of the standard library belongs to the one that has called it.
        if package not in sys.stdlib_module_names:
            is_library = package in _LIBRARIES
        if is_library:
            # The frames that stay refer to it. One that still runs is not cleared.
            with suppress(RuntimeError):
                frame.clear()
        else:
            kept.append(traceback)
        traceback = traceback.tb_next
    stripped: TracebackType | None = None
    for each in reversed(kept):
        stripped = TracebackType(stripped, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return stripped


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
