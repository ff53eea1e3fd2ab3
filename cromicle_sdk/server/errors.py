"""Error responses: JSON of the form `{"error": {"code": …, "message": …}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import anyio
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

__all__ = [
    "ClosingErrorResponse",
    "ErrorForm",
    "ErrorResponse",
    "RequestRejected",
    "build_error",
]

# How long a rejected client may keep sending before its connection is closed: a few round trips,
# enough to read the response, too short to hold a socket.
LINGER_SECONDS = 2.0


class ErrorForm(Protocol):
    """Builds the JSON of an error. `param` is the name of the invalid field, if known."""

    def __call__(
        self, status: int, code: str, message: str, *, param: str | None = None
    ) -> dict[str, Any]: ...


def build_error(
    status: int, code: str, message: str, *, param: str | None = None
) -> dict[str, Any]:
    """Return the JSON of an error of the Cromicle protocol."""
    return {"error": {"code": code, "message": message}}


class RequestRejected(Exception):  # noqa: N818 - a response to the client, not a server error
    """The request is rejected with an error response. `message` never quotes the request.

    `has_unread_body` is true while the client may still be sending a body that is not read.
    `retry_after` is the value of the `Retry-After` header, in seconds. `param` is the name of the
    invalid field, for an API whose errors contain it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        has_unread_body: bool = False,
        retry_after: float | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.has_unread_body = has_unread_body
        self.retry_after = retry_after
        self.param = param


class ErrorResponse(JSONResponse):
    """An error response. `retry_after` is sent in whole seconds, rounded up."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
        form: ErrorForm = build_error,
    ) -> None:
        content = form(status, code, message, param=param)
        all_headers = dict(headers or {})
        if retry_after is not None:
            all_headers["retry-after"] = str(math.ceil(retry_after))
        super().__init__(content, status_code=status, headers=all_headers)


class ClosingErrorResponse(ErrorResponse):
    """An error response that closes the connection and discards the rest of the request.

    Closing a socket that has unread bytes resets the connection, and the reset may overtake the
    response (RFC 9112, section 9.6). The rest of the request is therefore read and discarded
    until it ends or the client disconnects, for at most `LINGER_SECONDS`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        param: str | None = None,
        form: ErrorForm = build_error,
    ) -> None:
        super().__init__(
            status,
            code,
            message,
            retry_after=retry_after,
            headers={"connection": "close"},
            param=param,
            form=form,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        # Its content-length tells the client that the response is complete.
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
