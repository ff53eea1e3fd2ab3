"""Requests as they are seen from outside: what was asked, what was answered, how it ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import request_id
from .response import CutMark

__all__ = ["CUT", "PATHS", "Visit", "VisitObserver", "Visits"]

CHAT = "/chat"

# Anything else is the visitor's own text, and may be as long and as various as it likes.
PATHS = (CHAT, "/health", "/metrics", "/openapi.json")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# What a server may set in a scope's state before it says that the client is gone: it was the
# server that broke the connection.
CUT = "cromicle_sdk.cut"

End = Literal["whole", "cut", "left", "failed"]


@dataclass
class Visit:
    """One request and its answer, as far as they have come.

    `path` is one of `PATHS` below the place where the app is mounted, else "other", and `method`
    a usual one, else "other": nothing in it is free text. `status` is None where the client left
    before there was one. `bytes` is the length of the body, `characters` that of a reply alone;
    `first_text` and `duration` are seconds from the request's head on.

    `end` is "whole"; "cut" where a reply broke off, so that the client sees it; "left" where the
    client did not wait for the end; "failed" where the app itself did. It holds once it is over.
    """

    method: str
    path: str
    request_id: str
    status: int | None = None
    bytes: int = 0
    characters: int = 0
    first_text: float | None = None
    duration: float = 0.0
    end: End | None = None

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    @property
    def is_chat(self) -> bool:
        return self.path == CHAT

    def receive(self, message: Message, *, is_cut: bool) -> None:
        """Take note of what comes from the client; `is_cut` where the server has left it."""
        # Servers also say so when the answer has been sent, which is no leaving.
        if message["type"] == "http.disconnect":
            self.end = self.end or ("cut" if is_cut else "left")

    def send(self, message: Message) -> None:
        """Take note of what goes to the client, which is nobody once it has left."""
        if self.end is not None:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        body: bytes | CutMark = message.get("body", b"")
        if isinstance(body, CutMark):
            self.end = "cut"
            return
        self.bytes += len(body)
        if body and self.is_chat and self.status == 200:
            # A piece holds whole characters, for a backend yields texts.
            self.characters += len(body.decode())
            if self.first_text is None:
                self.first_text = time.monotonic() - self._started
        # Noted ahead, for hypercorn reports a disconnect before its last `send` returns.
        if not message.get("more_body", False):
            self.end = "whole"

    def finish(self, end: End) -> None:
        """It is over; `end` is how, if that is not known yet."""
        self.duration = time.monotonic() - self._started
        self.end = self.end or end


class VisitObserver(Protocol):
    """Who is told of visits; both calls must be quick and must not raise."""

    def begin(self, visit: Visit) -> None: ...
    def finish(self, visit: Visit) -> None: ...


class Visits:
    """ASGI middleware: tells its observers of each request that has passed `AnswerHeaders`."""

    def __init__(self, app: ASGIApp, observers: Sequence[VisitObserver]) -> None:
        self.app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = _build_visit(scope)

        async def receive_noted() -> Message:
            message = await receive()
            visit.receive(message, is_cut=CUT in scope["state"])
            return message

        async def send_noted(message: Message) -> None:
            visit.send(message)
            await send(message)

        for observer in self._observers:
            observer.begin(visit)
        end: End = "failed"
        try:
            await self.app(scope, receive_noted, send_noted)
            end = "left"
        finally:
            visit.finish(end)
            for observer in self._observers:
                observer.finish(visit)


def _build_visit(scope: Scope) -> Visit:
    # ASGI: the path includes the part below which a mounted app was found.
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    method = scope["method"]
    return Visit(
        method=method if method in _METHODS else "other",
        path=path if path in PATHS else "other",
        request_id=request_id(scope),
    )
