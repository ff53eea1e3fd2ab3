"""The observers of calls and requests, for tracing and metrics. By default, there are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from .options import Options
from .request import Request
from .response import Reply

__all__ = ["OBSERVERS", "CallEnd", "CallObserver", "Observers"]


class CallEnd(NamedTuple):
    """The end of a call: a reply, an error, or neither if the caller closed the stream.

    `first_text_after` is seconds since the call began.
    """

    attempts: int
    first_text_after: float | None
    reply: Reply | None = None
    error: BaseException | None = None


class CallObserver(Protocol):
    """Observes one call. Its methods must not raise or block."""

    def send(self, request: Request) -> AbstractContextManager[Request]:
        """Return the context in which an attempt is sent, which yields the request to send."""
        ...

    def end(self, end: CallEnd) -> None:
        """Observe the end of the call. Called once."""
        ...


class Observers:
    """The observers of this process, each None by default.

    `start_call` is called at the start of a call with its request, its options, and whether it is
    streamed. `trace_request` returns the context in which a server's app runs, for an ASGI scope
    and the record of the request. `build_headers` returns the headers that propagate the current
    context to another server.
    """

    def __init__(self) -> None:
        self.start_call: Callable[[Request, Options, bool], CallObserver] | None = None
        self.trace_request: Callable[[Any, Any], AbstractContextManager[object]] | None = None
        self.build_headers: Callable[[], Mapping[str, str]] | None = None


OBSERVERS = Observers()
