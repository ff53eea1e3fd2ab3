"""Answers that are not a reply: errors as JSON, and the headers that every answer has."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "AnswerHeaders",
    "LastAnswer",
    "Refusal",
    "build_error",
    "format_error",
    "format_retry_after",
    "request_id",
]

# How long a client that was refused may go on sending before the connection is closed over it:
# the round trips it takes to notice, and no reason to hold a socket for more.
LINGER_SECONDS = 2.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Refusal(Exception):  # noqa: N818 - an answer to the client, not a fault of the server
    """The request gets an error for an answer. `message` never quotes the request.

    `unread` says that the client may still be sending a body that nobody will read;
    `retry_after` is when to come back, in seconds.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        unread: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.unread = unread
        self.retry_after = retry_after


def build_error(
    status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer `{"error": {"code": …, "message": …}}`."""
    return JSONResponse(format_error(code, message), status_code=status, headers=headers)


class LastAnswer(JSONResponse):
    """An error after which the connection is closed, and what is still being sent is dropped.

    A socket that is closed with unread bytes in it resets the connection, and a reset may
    overtake the answer (RFC 9112, section 9.6). So what arrives is thrown away, unbuffered,
    until the client has finished or left, for `LINGER_SECONDS` at most.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(
            format_error(code, message), status_code=status, headers={"connection": "close"}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        # Its content-length has told the client that this is all, though the server waits.
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class AnswerHeaders:
    """ASGI middleware: `x-request-id` and `cache-control: no-store` on every answer.

    The id is the client's own `x-request-id` where that is 1 to 128 letters, digits, `.`, `_`
    and `-`, which are safe in a log; otherwise a new one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identifier = _choose_request_id(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = identifier

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = identifier
                headers["cache-control"] = "no-store"
            await send(message)

        await self.app(scope, receive, send_with_headers)


def request_id(scope: Scope) -> str:
    """The id of a request that has passed `AnswerHeaders`."""
    identifier: str = scope["state"]["request_id"]
    return identifier


def _choose_request_id(sent: str) -> str:
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def format_retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come back: whole seconds, never too few."""
    return {"retry-after": str(math.ceil(seconds))}


def format_error(code: str, message: str) -> dict[str, dict[str, str]]:
    """The JSON of an error."""
    return {"error": {"code": code, "message": message}}
