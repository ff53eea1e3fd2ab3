"""Errors of the model server and of the network, translated for the caller and the log.

Clients do not retry the codes `upstream_denied`, `upstream_redirected` and `upstream_refused`,
because the operator of the gateway has to act first. Text of the model server is never quoted,
since it may contain the prompt or the key. Only its status and the known words below are shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import httpx

from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._core.errors import APIConnectionError, APITimeoutError, TimeoutPhase
from cromicle_sdk._core.request import Request
from cromicle_sdk._core.response import parse_retry_after
from cromicle_sdk._http.translate import translate_error
from cromicle_sdk.server.backends import BackendError

__all__ = [
    "ErrorReport",
    "build_invalid_error",
    "build_reported_error",
    "build_status_error",
    "describe_failure",
    "parse_error",
    "parse_wait",
    "read_error",
]

# A model that is loading is ready within seconds to minutes.
LOADING_RETRY_SECONDS = 5.0

# Bounds the search: an error has a few fields, and its message is short.
_MAX_FIELDS = 200
_MAX_SEARCHED = 2000

# The known words and their status. If an error contains several, the first one in this table
# applies; the last ones are general types that accompany a more specific code.
_STATUSES: dict[str, int] = {
    "context_length_exceeded": 400,
    "model_loading": 503,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "billing_hard_limit_reached": 429,
    "invalid_api_key": 401,
    "unsupported_country_region_territory": 403,
    "model_not_found": 404,
    "content_filter": 400,
    "content_policy_violation": 400,
    "invalid_prompt": 400,
    "string_above_max_length": 400,
    "request_too_large": 413,
    "unsupported_parameter": 400,
    "unsupported_value": 400,
    "overloaded": 503,
    "not_found_error": 404,
    "invalid_request_error": 400,
    "server_error": 500,
}

# Other spellings, in lower case.
_SPELLINGS = {
    "auth_error": "invalid_api_key",
    "authentication_error": "invalid_api_key",
    "no_db_connection": "invalid_api_key",  # LiteLLM, for an unknown key
    "unauthenticated": "invalid_api_key",
    "context_limit_exceeded": "context_length_exceeded",
    "context_size_exceeded": "context_length_exceeded",
    "context_window_exceeded": "context_length_exceeded",
    "contextwindowexceedederror": "context_length_exceeded",
    "exceed_context_size_error": "context_length_exceeded",
    "input_too_long": "context_length_exceeded",
    "max_context_length_exceeded": "context_length_exceeded",
    "model_context_window_exceeded": "context_length_exceeded",
    "prompt_too_long": "context_length_exceeded",
    "tokens_limit_reached": "context_length_exceeded",
    "engine_overloaded": "overloaded",
    "internal_server_error": "server_error",
    "invalid_argument": "invalid_request_error",
    "model_not_available": "model_not_found",
    "overloaded_error": "overloaded",
    "rate_limit": "rate_limit_exceeded",
    "rate_limit_error": "rate_limit_exceeded",
    "resource_exhausted": "rate_limit_exceeded",
    "too_many_requests": "rate_limit_exceeded",
    "unsupported_region": "unsupported_country_region_territory",
}

# Phrases in the messages of servers that send no code, in lower case.
_PHRASES = {
    "available context size": "context_length_exceeded",
    "context length": "context_length_exceeded",
    "context window": "context_length_exceeded",
    "input is too long": "context_length_exceeded",
    "max_new_tokens": "context_length_exceeded",
    "maximum number of tokens": "context_length_exceeded",
    "prompt is too long": "context_length_exceeded",
    "currently loading": "model_loading",
    "is loading": "model_loading",
    "loading model": "model_loading",
    "model is not ready": "model_loading",
    "model loading": "model_loading",
    "starting up": "model_loading",
    "still loading": "model_loading",
    "warming up": "model_loading",
    "rate limit": "rate_limit_exceeded",
    "too many requests": "rate_limit_exceeded",
    "country, region": "unsupported_country_region_territory",
    "location is not supported": "unsupported_country_region_territory",
    "your country": "unsupported_country_region_territory",
    "your region": "unsupported_country_region_territory",
    "flagged": "content_policy_violation",
    "moderation": "content_policy_violation",
    "overloaded": "overloaded",
}

_CALLER_STATUSES = (400, 413, 422)
_OPERATOR_REASONS = ("invalid_api_key", "model_not_found", "unsupported_country_region_territory")
_CONTENT_REASONS = ("content_filter", "content_policy_violation")

_STATUS_FIELDS = ("code", "error_code", "http_status", "http_status_code", "status", "status_code")
_WAIT_FIELDS = ("retry_after", "retry-after", "retrydelay", "estimated_time")
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s?\Z")

_WAITED: dict[TimeoutPhase, str] = {
    "connect": "no connection in time",
    "first_byte": "no response in time",
    "stall": "it stopped sending in the middle of its response",
    "total": "its response took too long as a whole",
    "pool": "no connection became free in time",
}

_ADVICE = {
    402: "; its account has no credit",
    404: "; its URL usually ends in /v1, and it must have the model",
    405: "; its URL usually ends in /v1",
}


@dataclass(frozen=True)
class ErrorReport:
    """The facts of an error of the model server, without its text.

    `reason` is one of the known words. `is_page` is true for an HTML page.
    """

    status: int | None = None
    reason: str | None = None
    retry_after: float | None = None
    is_page: bool = False


def parse_error(body: bytes) -> ErrorReport:
    """Parse the body of an error response."""
    try:
        error: Any = json.loads(body)
    except (ValueError, RecursionError):
        if body.lstrip()[:1] == b"<":
            return ErrorReport(is_page=True)
        return read_error(body.decode(errors="replace"))
    return read_error(error)


def read_error(error: object) -> ErrorReport:
    """Return the facts of an error object, or of any other value in its place."""
    status = retry_after = None
    reasons: set[str] = set()
    for name, value in _walk(error):
        if name in _STATUS_FIELDS and status is None:
            status = _read_status(value)
        if name in _WAIT_FIELDS and retry_after is None:
            retry_after = _read_seconds(value)
        if isinstance(value, str):
            reasons.update(_find_reasons(value))
    reason = next((word for word in _STATUSES if word in reasons), None)
    return ErrorReport(status=status, reason=reason, retry_after=retry_after)


def parse_wait(headers: Mapping[str, str], *, now: float) -> float | None:
    """Return the seconds to wait according to the headers; `now` is in seconds since the epoch.

    `retry-after-ms`, which OpenAI and Azure send, is more precise than `Retry-After`.
    """
    milliseconds = _read_seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    return parse_retry_after(headers.get("retry-after"), now=now)


def describe_failure(
    error: Exception, request: Request, timeouts: CallTimeouts
) -> BackendError | None:
    """Translate an error of the network. Return None for any other exception."""
    url = request.endpoint.url
    translated = translate_error(error, url=url, timeouts=timeouts, redact=request.redact)
    if isinstance(translated, APITimeoutError):
        waited = _WAITED[translated.phase]
        return BackendError(
            504, "upstream_timeout", f"the model server: {waited}", detail=f"{url}: {waited}"
        )
    if isinstance(translated, APIConnectionError):
        # A protocol error quotes the invalid bytes after a colon, which may be an echo.
        is_quote = isinstance(error, httpx.ProtocolError)
        problem = translated.detail.partition(":")[0] if is_quote else translated.detail
        return BackendError(
            502,
            "upstream_unreachable",
            "the model server is unreachable",
            detail=f"{url}: {problem}",
        )
    return None


def build_invalid_error(detail: str) -> BackendError:
    """Return the error for a response that is not a completion. `detail` must not quote it."""
    return BackendError(
        502, "upstream_invalid", "the model server sent an invalid response", detail=detail
    )


def build_reported_error(report: ErrorReport) -> BackendError:
    """Return the error for an error reported inside a successful response."""
    status = report.status or _STATUSES.get(report.reason or "")
    if status is None:
        return BackendError(
            502,
            "upstream_failed",
            "the model server reported an error",
            detail="it reported an error in its response",
        )
    return _build(status, report, report.retry_after, "it reported {} in its response")


def build_status_error(
    url: str, status: int, report: ErrorReport, *, wait: float | None
) -> BackendError:
    """Return the error for a status other than 200. `wait` is the wait in the headers."""
    wait = report.retry_after if wait is None else wait
    return _build(status, report, wait, f"{url} responded with {{}}")


def _build(status: int, report: ErrorReport, wait: float | None, template: str) -> BackendError:
    reason = report.reason
    shown = f"{status} ({reason})" if reason else str(status)
    detail = template.format(shown)
    if reason == "model_loading" and status >= 500:
        return BackendError(
            503,
            "upstream_loading",
            "the model server is still loading the model",
            retry_after=LOADING_RETRY_SECONDS if wait is None else wait,
            detail=f"{detail}: it is still loading the model",
        )
    if status == 429:
        return BackendError(
            429,
            "upstream_busy",
            f"the model server limits the rate of requests: {shown}",
            retry_after=wait,
            detail=detail,
        )
    if status == 403 and reason in _CONTENT_REASONS:
        # Moderation of the prompt is the caller's error, like a 400.
        status = 400
    if status in _CALLER_STATUSES and reason not in _OPERATOR_REASONS:
        return BackendError(
            status,
            reason or "upstream_refused",
            f"the model server rejected the request with {shown}",
            detail=detail,
        )
    if status in (401, 403) or reason == "invalid_api_key":
        return _build_denied(status, report, detail)
    if 300 <= status < 400:
        return BackendError(
            502,
            "upstream_redirected",
            "the model server redirects to another URL",
            detail=f"{detail}: redirects are not followed; configure the new URL",
        )
    if status in (408, 504):
        return BackendError(
            504,
            "upstream_timeout",
            f"the model server timed out with {shown}",
            retry_after=wait,
            detail=detail,
        )
    if status == 503:
        return BackendError(
            503,
            "upstream_unavailable",
            f"the model server is not available: {shown}",
            retry_after=wait,
            detail=detail,
        )
    if status in (409, 425) or (status >= 500 and status not in (501, 505)):
        return BackendError(
            502,
            "upstream_failed",
            f"the model server failed with {shown}",
            retry_after=wait,
            detail=detail,
        )
    return BackendError(
        502,
        "upstream_refused",
        f"the model server rejected the request with {shown}",
        detail=detail + _ADVICE.get(404 if reason == "model_not_found" else status, ""),
    )


def _build_denied(status: int, report: ErrorReport, detail: str) -> BackendError:
    message = "the model server does not accept this gateway"
    if report.reason == "unsupported_country_region_territory":
        cause = "it does not serve the country or region of this gateway"
    elif report.is_page and status == 403:
        cause = "a proxy or firewall in front of it blocks the request"
    elif status == 403 and report.reason != "invalid_api_key":
        cause = "it forbids the request; the key of this gateway may have no access to the model"
    else:
        message = "the model server does not accept this gateway's key"
        cause = (
            "it rejects the key of this gateway, not the caller's token; "
            "set a valid key as $CROMICLE_UPSTREAM_KEY or api_key"
        )
    return BackendError(502, "upstream_denied", message, detail=f"{detail}: {cause}")


def _walk(error: object) -> Iterator[tuple[str, object]]:
    """Yield the names and values of the leaves of an error, outer ones first."""
    pending: list[tuple[str, object]] = [("", error)]
    for _ in range(_MAX_FIELDS):
        if not pending:
            return
        name, value = pending.pop(0)
        if isinstance(value, dict):
            fields = cast("dict[str, object]", value)
            pending += [(key.lower(), inner) for key, inner in fields.items()]
        elif isinstance(value, list):
            pending += [(name, inner) for inner in cast("list[object]", value)]
        else:
            yield name, value


def _read_status(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) == 3:
        value = int(value)
    return value if type(value) is int and 400 <= value <= 599 else None


def _read_seconds(value: object) -> float | None:
    if isinstance(value, str):
        match = _SECONDS.match(value.strip())
        return None if match is None else float(match[1])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value < 1e9 else None


def _find_reasons(text: str) -> Iterator[str]:
    lowered = text[:_MAX_SEARCHED].lower()
    word = _SPELLINGS.get(lowered, lowered)
    if word in _STATUSES:
        yield word
    for phrase, reason in _PHRASES.items():
        if phrase in lowered:
            yield reason
