"""The backend that requests each reply from a Cromicle endpoint and translates its errors."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx

from cromicle_sdk._async.client import AsyncClient
from cromicle_sdk._core.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    CromicleError,
    InvalidMessageError,
    ReplyError,
    ReplyTooLargeError,
    UnexpectedContentError,
    describe,
    find_text,
    shorten,
)
from cromicle_sdk.server.backends import BackendError, BackendRequest

__all__ = ["CromicleBackend"]

# The statuses of errors caused by the request itself.
_CALLER_STATUSES = (400, 413, 422)

# The codes of errors with such a status that the operator has to resolve.
_OPERATOR_CODES = frozenset({"hash_mismatch", "upstream_refused"})

# The codes that are passed on. Any other may be arbitrary text.
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


class CromicleBackend:
    """Two backends over one client: `stream` yields a reply as it arrives, `whole` at its end.

    With `whole`, the client's `Retry` also applies to a truncated reply.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def stream(self, prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        try:
            async with self._client.stream(
                request.messages or prompt, **_build_options(request)
            ) as stream:
                async for text in stream:
                    yield text
                request.finish_reason = stream.reply.finish_reason
        except CromicleError as error:
            raise _translate(error) from error

    async def whole(self, prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        try:
            reply = await self._client.chat(request.messages or prompt, **_build_options(request))
        except CromicleError as error:
            raise _translate(error) from error
        request.finish_reason = reply.finish_reason
        yield reply.text


def _build_options(request: BackendRequest) -> Any:
    return {
        "send_messages": True,
        "extra_body": request.options,
        "headers": {"x-request-id": request.id},
    }


def _translate(error: CromicleError) -> BackendError:
    """Translate an error of the client. No text of the endpoint is logged."""
    detail = f"the Cromicle endpoint: {describe(error)}"
    match error:
        case InvalidMessageError() | ConfigurationError():
            return BackendError(400, "bad_request", error.problem, detail=describe(error))
        case APITimeoutError():
            message = f"the Cromicle endpoint did not respond in time ({error.phase})"
            return BackendError(504, "upstream_timeout", message, detail=detail)
        case APIConnectionError():
            # A protocol error quotes the invalid bytes after a colon, which may be an echo.
            is_quote = isinstance(error.__cause__, httpx.ProtocolError)
            cause = error.detail.partition(":")[0] if is_quote else error.detail
            message = "the Cromicle endpoint is unreachable"
            return BackendError(502, "upstream_unreachable", message, detail=f"{detail}: {cause}")
        case APIStatusError():
            return _translate_status(error, detail)
        case UnexpectedContentError():
            message = "the Cromicle endpoint sent no valid reply"
            return BackendError(502, "upstream_invalid", message, detail=detail)
        case ReplyTooLargeError():
            message = "the reply is longer than this server allows"
            return BackendError(502, "reply_too_large", message, detail=detail)
        case ReplyError():
            message = "the reply of the Cromicle endpoint is incomplete"
            return BackendError(502, "upstream_failed", message, detail=detail)
        case _:
            message = "the client of this server cannot send requests"
            return BackendError(500, "server_error", message, detail=error.problem)


def _translate_status(error: APIStatusError, detail: str) -> BackendError:
    status, wait = error.status_code, error.retry_after
    code = error.code if error.code is not None and _CODE.match(error.code) else None
    if code is not None:
        detail = f"{detail} ({code})"
    if status in _CALLER_STATUSES and code not in _OPERATOR_CODES:
        # The endpoint's own message may name the field.
        own = find_text(error.body, "error", "message")
        message = shorten(own or "the Cromicle endpoint rejected the request")
        return BackendError(status, code or "bad_request", message, detail=detail)
    if status == 429:
        message = "the Cromicle endpoint limits the rate of requests"
        return BackendError(429, "rate_limit_exceeded", message, retry_after=wait, detail=detail)
    if status in (503, 504):
        message = "the Cromicle endpoint is not available"
        return BackendError(
            status, code or "upstream_unavailable", message, retry_after=wait, detail=detail
        )
    if status >= 500:
        message = "the Cromicle endpoint failed"
        return BackendError(502, code or "upstream_failed", message, detail=detail)
    # The operator of the endpoint or of this server has to act.
    message = "the Cromicle endpoint does not accept this server"
    return BackendError(502, "upstream_denied", message, detail=detail)
