"""What may observe calls and requests, for traces and metrics: nothing, until it is set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from .options import Options
from .request import Request
from .response import Reply

__all__ = ["OBSERVERS", "CallEnd", "CallObserver", "Observers"]


class CallEnd(NamedTuple):
    """How a call ended: with a reply, with an error, or with neither where the caller left.

    `first_text_after` is seconds since the call began.
    """

    attempts: int
    first_text_after: float | None
    reply: Reply | None = None
    error: BaseException | None = None


class CallObserver(Protocol):
    """Observes one call. No method may raise or wait."""

    def send(self, request: Request) -> AbstractContextManager[Request]:
        """The context in which an attempt is sent, and the request to send."""
        ...

    def end(self, end: CallEnd) -> None:
        """The call has ended. Called once."""
        ...


class Observers:
    """The observers of this process, each None by default.

    `start_call` observes a call that begins: its request, its options, and whether the caller
    receives the text as it arrives. `trace_request` is the context in which an app runs, for its
    ASGI scope and the record of the request. `build_headers` are the headers that carry the
    current context to another server.
    """

    def __init__(self) -> None:
        self.start_call: Callable[[Request, Options, bool], CallObserver] | None = None
        self.trace_request: Callable[[Any, Any], AbstractContextManager[object]] | None = None
        self.build_headers: Callable[[], Mapping[str, str]] | None = None


OBSERVERS = Observers()
