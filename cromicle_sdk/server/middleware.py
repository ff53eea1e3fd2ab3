"""ASGI middleware: the headers of every response, and a record of every request."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cromicle_sdk._core.observers import OBSERVERS

from .addresses import parse_address
from .observability import (
    CHARACTERS,
    METHODS,
    PATHS,
    TRUNCATED,
    End,
    RequestObserver,
    RequestRecord,
)
from .routing import get_path
from .tokens import find_token_of

__all__ = [
    "FIXED_HEADERS",
    "RequestRecordMiddleware",
    "ResponseHeadersMiddleware",
    "get_request_id",
]

# Without nosniff, a browser may render a reply that begins with markup as HTML.
FIXED_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class ResponseHeadersMiddleware:
    """Adds `x-request-id` and `FIXED_HEADERS` to every response.

    The ID is the request's own `x-request-id` if it consists of 1 to 128 letters, digits, `.`, `_`
    and `-`, which are safe to log; otherwise it is generated.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _choose_request_id(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.update(FIXED_HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class RequestRecordMiddleware:
    """Notifies observers of each request. It runs inside `ResponseHeadersMiddleware`."""

    def __init__(self, app: ASGIApp, observers: Sequence[RequestObserver]) -> None:
        self.app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = _build_record(scope)

        async def receive_and_record() -> Message:
            message = await receive()
            # Servers also send this message once the response is complete.
            if message["type"] == "http.disconnect":
                truncated = TRUNCATED in scope["state"]
                record.record_end("truncated" if truncated else "client_disconnected")
            return message

        async def record_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.record_start(message["status"])
            elif TRUNCATED in scope["state"]:
                record.record_end("truncated")
            elif message["type"] == "http.response.body":
                body = message.get("body", b"")
                record.record_body(body, more_body=message.get("more_body", False))
            await send(message)

        for observer in self._observers:
            observer.on_start(record)
        end: End = "failed"
        with _trace(scope, record):
            try:
                await self.app(scope, receive_and_record, record_and_send)
                end = "client_disconnected"
            finally:
                token = find_token_of(scope)
                record.token = None if token is None else token.label
                record.characters = scope["state"].get(CHARACTERS, 0)
                record.finish(end)
                for observer in self._observers:
                    observer.on_end(record)


def _trace(scope: Scope, record: RequestRecord) -> contextlib.AbstractContextManager[object]:
    """Return the context manager that traces a request, or a null context without a tracer."""
    if OBSERVERS.trace_request is None:
        return contextlib.nullcontext()
    return OBSERVERS.trace_request(scope, record)


def get_request_id(scope: Scope) -> str:
    """Return the ID of a request, which `ResponseHeadersMiddleware` has set."""
    request_id: str = scope["state"]["request_id"]
    return request_id


def _choose_request_id(sent: str) -> str:
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def _build_record(scope: Scope) -> RequestRecord:
    path = get_path(scope)
    method = scope["method"]
    return RequestRecord(
        method=method if method in METHODS else "other",
        path=path if path in PATHS else "other",
        request_id=get_request_id(scope),
        client=_find_client(scope),
    )


def _find_client(scope: Scope) -> str | None:
    # A proxy may forward any text as an address.
    host, _ = scope.get("client") or ("", 0)
    address = parse_address(host)
    return None if address is None else str(address)
