"""Detecting exceptions of the caller's own code during a call: signal handlers and hooks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, takewhile
from types import FrameType, TracebackType

__all__ = ["find_callers_error"]


def find_callers_error(error: Exception) -> BaseException | None:
    """Return the exception of a signal handler or a hook that is `error` or one of its causes.

    It is identified by the frames of its traceback. The type is not sufficient: a handler may raise
    a `TimeoutError`, which httpcore converts to a network error, and a hook may send its own
    requests. Only the caller's own frames are kept, because those above contain the request.
    """
    for cause in _causes(error):
        for outer, inner in pairwise(_steps(cause.__traceback__)):
            if _is_handler(outer.tb_frame, inner.tb_frame) or _is_hook(outer, inner):
                return cause.with_traceback(inner)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its cause, and so on. httpcore passes a cause as an argument, unchained."""
    while error is not None:
        yield error
        inner = error.args[0] if error.args else None
        error = error.__cause__ or (inner if isinstance(inner, BaseException) else None)


def _steps(step: TracebackType | None) -> Iterator[TracebackType]:
    while step is not None:
        yield step
        step = step.tb_next


def _is_handler(outer: FrameType, inner: FrameType) -> bool:
    """Whether `inner` is a signal handler that has interrupted `outer`.

    Python passes the interrupted frame to the handler, and to no other function except a debugger.
    """
    for value in inner.f_locals.values():
        if value is outer:
            return True
        # In `*arguments`.
        if isinstance(value, tuple) and id(outer) in map(id, value):  # pyright: ignore[reportUnknownArgumentType]
            return True
    return False


def _is_hook(outer: TracebackType, inner: TracebackType) -> bool:
    """Whether `inner` is an event hook or an authentication of the caller that httpx has called."""
    library, _, module = _module(outer).partition(".")
    is_caller = module == "_auth" or (module == "_client" and _name(outer) in _CALLERS_OF_HOOKS)
    if library not in _LIBRARIES or not is_caller or _module(inner).partition(".")[0] in _LIBRARIES:
        return False
    # Tools may wrap the functions that httpx calls here. A hook sends its requests with `send`.
    below = takewhile(lambda step: _name(step) != "send", _steps(inner))
    return not any(_name(step) in _SENDERS for step in below)


_LIBRARIES = ("httpx", "httpx2")
# Private names. If they change, exceptions of hooks are recognized only by their type.
_CALLERS_OF_HOOKS = ("_send_handling_auth", "_send_handling_redirects")
_SENDERS = ("_send_single_request", "handle_request", "handle_async_request")


def _module(step: TracebackType) -> str:
    return str(step.tb_frame.f_globals.get("__name__"))


def _name(step: TracebackType) -> str:
    return step.tb_frame.f_code.co_name
