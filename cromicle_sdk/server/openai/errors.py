"""What goes wrong upstream, as the caller is told and as the log says it."""

from __future__ import annotations

import json
from typing import Any, cast

import httpx

from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._core.errors import APIConnectionError, APITimeoutError, TimeoutPhase
from cromicle_sdk._core.request import Request
from cromicle_sdk._core.response import parse_retry_after
from cromicle_sdk._http.translate import redact_error, translate_error
from cromicle_sdk.server.backends import BackendError

__all__ = ["build_invalid", "build_refused", "describe_failure", "find_reason"]

# What an error of the OpenAI API may be called. An open list could hold anything, the prompt or
# the key included: only these words are ever passed on.
_KNOWN_REASONS = frozenset(
    {
        "billing_hard_limit_reached",
        "content_filter",
        "content_policy_violation",
        "context_length_exceeded",
        "exceed_context_size_error",
        "insufficient_quota",
        "invalid_api_key",
        "invalid_prompt",
        "invalid_request_error",
        "model_not_found",
        "not_found_error",
        "rate_limit_exceeded",
        "server_error",
        "string_above_max_length",
        "unsupported_parameter",
        "unsupported_value",
    }
)

_WAITED: dict[TimeoutPhase, str] = {
    "connect": "no connection in time",
    "first_byte": "it did not begin to answer in time",
    "stall": "it fell silent in the middle of its answer",
    "total": "its answer took too long as a whole",
    "pool": "no connection became free in time",
}

_ADVICE = {
    404: "; its URL usually ends in /v1, and it must have the model",
    405: "; its URL usually ends in /v1",
    503: "; it may still be loading the model",
}


def describe_failure(
    error: Exception, request: Request, timeouts: CallTimeouts
) -> BackendError | None:
    """The answer to an error of the network; None for what is a defect instead."""
    url = request.endpoint.url
    redact_error(error, request.redact)
    translated = translate_error(error, url=url, timeouts=timeouts)
    if isinstance(translated, APITimeoutError):
        waited = _WAITED[translated.phase]
        return BackendError(
            504, "upstream_timeout", f"the model server: {waited}", detail=f"{url}: {waited}"
        )
    if isinstance(translated, APIConnectionError):
        # What can't be read as HTTP is quoted behind a colon, and may be an echo of the prompt.
        is_quote = isinstance(error, httpx.ProtocolError)
        said = translated.detail.partition(":")[0] if is_quote else translated.detail
        return BackendError(
            502, "upstream_unreachable", "the model server does not answer", detail=f"{url}: {said}"
        )
    return None


def build_refused(
    request: Request, status: int, retry_after: str | None, reason: str | None, *, now: float
) -> BackendError:
    """The answer to a status that is no success. `now` is in seconds since the epoch."""
    url, wait = request.endpoint.url, parse_retry_after(retry_after, now=now)
    said = f"{status} ({reason})" if reason else str(status)
    if status == 429:
        return BackendError(
            429,
            "upstream_busy",
            f"the model server has too much to do: {said}",
            retry_after=wait,
            detail=f"{url} says {said}",
        )
    if status in (401, 403):
        return BackendError(
            502,
            "upstream_denied",
            "the model server does not accept this gateway's key",
            detail=f"{url} says {said}: it refuses the key of this gateway, not the caller's "
            "token; the right one goes into $CROMICLE_UPSTREAM_KEY, or into api_key",
        )
    if 300 <= status < 400:
        return BackendError(
            502,
            "upstream_redirected",
            "the model server is elsewhere",
            detail=f"{url} says {said}: it redirects, which is not followed; use its new URL",
        )
    advice = _ADVICE.get(status, "")
    code, word = ("upstream_failed", "failed") if status >= 500 else ("upstream_refused", "refused")
    return BackendError(
        502,
        code,
        f"the model server {word} with {said}",
        retry_after=wait if status == 503 else None,
        detail=f"{url} says {said}{advice}",
    )


def build_invalid(detail: str) -> BackendError:
    """The answer to bytes that are no completion; `detail` never quotes them."""
    return BackendError(
        502, "upstream_invalid", "the model server's answer makes no sense", detail=detail
    )


def find_reason(body: bytes) -> str | None:
    """What an error body calls itself, if that is one of the known words."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = cast("dict[str, Any]", found).get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        return None
    named = cast("dict[str, Any]", error)
    for name in ("code", "type"):
        reason = named.get(name)
        if isinstance(reason, str) and reason in _KNOWN_REASONS:
            return reason
    return None
