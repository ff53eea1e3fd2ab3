"""Removal of frames from exceptions, because their locals contain the request and so the token."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from inspect import currentframe
from types import FrameType, TracebackType

__all__ = ["strip_frames", "strip_library_frames"]


def strip_frames(error: BaseException) -> BaseException:
    """Remove the frames of an error, whose locals contain the request and so the token."""
    for cause in _causes(error):
        cause.__traceback__ = None
        # The context is unlinked instead, because the caller may be handling that exception.
        cause.__context__ = None
        if getattr(cause, "_request", None) is not None:
            cause._request = None  # type: ignore[attr-defined]  # httpx's errors carry theirs
    return error


def strip_library_frames(error: BaseException) -> BaseException:
    """Remove the frames of this package and its libraries from an exception of the caller.

    These frames, and those of the standard library that they call, contain the request. The frames
    of a hook or a signal handler are kept, and so are those of an exception that the caller was
    handling when it called.
    """
    # Without this function's own frame, which would refer to the set.
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
        # The first frame of a traceback is the one that handles the exception.
        if each is error or traceback is None or traceback.tb_frame not in callers:
            each.__traceback__ = _strip_traceback(traceback)
            related += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return error


# Packages whose frames may contain a request or, for h11, a part of one.
_LIBRARIES = frozenset(
    ("cromicle_sdk", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "socksio", "anyio", "trio")
)


def _strip_traceback(traceback: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    is_library = True
    while traceback is not None:
        frame = traceback.tb_frame
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        # A frame of the standard library belongs to its caller.
        if package not in sys.stdlib_module_names:
            is_library = package in _LIBRARIES
        if is_library:
            # The kept frames refer to it. A frame that is still running cannot be cleared.
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
