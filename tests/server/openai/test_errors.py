"""Errors of the model server: tables of statuses and bodies, and what the caller gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cromicle_sdk.server.openai.errors import (
    ErrorReport,
    build_reported_error,
    build_status_error,
    parse_error,
    parse_wait,
)

SECRET = "s3cret"
URL = "http://model/v1/chat/completions"


def as_bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def error(code: Any = None, message: str = SECRET, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **more}}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (error("context_length_exceeded"), "context_length_exceeded"),
        (error(None, type="exceed_context_size_error"), "context_length_exceeded"),
        (error("tokens_limit_reached"), "context_length_exceeded"),
        (error("ContextWindowExceededError"), "context_length_exceeded"),
        (error(400, "This model's maximum context length is 4096 tokens."),
         "context_length_exceeded"),
        (error(400, "the request exceeds the available context size, try increasing it"),
         "context_length_exceeded"),
        (error(type="invalid_request_error", message="prompt is too long: 1 > 0"),
         "context_length_exceeded"),
        ({"error": "`inputs` tokens + `max_new_tokens` must be <= 4096"},
         "context_length_exceeded"),
        ({"message": "The input exceeds the maximum number of tokens"}, "context_length_exceeded"),
        ({"object": "error", "type": "invalid_request_error"}, "invalid_request_error"),
        (error("model_not_found", type="invalid_request_error"), "model_not_found"),
        (error("invalid_api_key"), "invalid_api_key"),
        (error(503, "Loading model", type="unavailable_error"), "model_loading"),
        ({"error": "Model a/b is currently loading", "estimated_time": 20.5}, "model_loading"),
        (error(status="RESOURCE_EXHAUSTED"), "rate_limit_exceeded"),
        ({"detail": "Too Many Requests"}, "rate_limit_exceeded"),
        ({"error": {"error": {"type": "overloaded_error"}}}, "overloaded"),
        (error(403, "Country, region, or territory not supported"),
         "unsupported_country_region_territory"),
        (error("unheard_of"), None),
        (error([SECRET]), None),
        ({"error": SECRET}, None),
        ([SECRET], None),
        (b"s3cret", None),
        (b"prompt is too long", "context_length_exceeded"),
        (b"\xff", None),
        (b"", None),
        (b"[" * 100_000, None),
        (b"9" * 5000, None),
    ],
)  # fmt: skip
def test_the_reason_is_a_known_word(body: Any, reason: str | None) -> None:
    assert parse_error(as_bytes(body)).reason == reason


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (error(429), 429),
        (error("429"), 429),
        (error(None, status=503), 503),
        ({"status_code": 500, "message": SECRET}, 500),
        ({"code": 400, "error": {"code": 422}}, 400),
        (error(200), None),
        (error(1302), None),
        (error("4290"), None),
        (error("٤٢٩"), None),
        (error(True), None),
        (error(429.0), None),
        ({"http_status": 529}, 529),
        ({**{f"field {number}": number for number in range(1000)}, "code": 429}, None),
    ],
)
def test_the_status_in_a_body(body: Any, status: int | None) -> None:
    assert parse_error(as_bytes(body)).status == status


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"estimated_time": 20.5}, 20.5),
        (error(retry_after=3), 3),
        (error(details=[{"retryDelay": "20s"}]), 20),
        (error(retry_after="1.5"), 1.5),
        (error(retry_after="soon"), None),
        (error(retry_after=-1), None),
        (error(retry_after=1e300), None),
        (error(retry_after=True), None),
    ],
)
def test_the_time_to_wait_in_a_body(body: Any, seconds: float | None) -> None:
    assert parse_error(as_bytes(body)).retry_after == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 50),
        ({"retry-after": "nan"}, None),
    ],
)
def test_the_time_to_wait_in_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_wait(headers, now=10) == seconds


STATUSES: list[tuple[int, Any, int, str, str]] = [
    (400, {}, 400, "upstream_refused", "400"),
    (400, error("context_length_exceeded"), 400, "context_length_exceeded", "400 (context_"),
    (400, error(type="invalid_request_error"), 400, "invalid_request_error", "400 (invalid_"),
    (400, error("invalid_api_key"), 502, "upstream_denied", "rejects the key of this gateway"),
    (400, error("model_not_found"), 502, "upstream_refused", "it must have the model"),
    (400, error(message="User location is not supported"), 502, "upstream_refused", "400 (unsupp"),
    (413, b"", 413, "upstream_refused", "413"),
    (413, error("tokens_limit_reached"), 413, "context_length_exceeded", "413 (context_"),
    (422, {"detail": [{"msg": SECRET}]}, 422, "upstream_refused", "422"),
    (401, {}, 502, "upstream_denied", "rejects the key of this gateway"),
    (403, error("invalid_api_key"), 502, "upstream_denied", "rejects the key of this gateway"),
    (403, {}, 502, "upstream_denied", "may have no access to the model"),
    (403, error(message="flagged by moderation"), 400, "content_policy_violation", "403 (content"),
    (403, error("unsupported_country_region_territory"), 502, "upstream_denied", "country or reg"),
    (403, b"<html>Attention Required!</html>", 502, "upstream_denied", "a proxy or firewall"),
    (401, b"<html></html>", 502, "upstream_denied", "rejects the key of this gateway"),
    (402, {}, 502, "upstream_refused", "no credit"),
    (404, {}, 502, "upstream_refused", "usually ends in /v1"),
    (405, {}, 502, "upstream_refused", "usually ends in /v1"),
    (418, {}, 502, "upstream_refused", "418"),
    (204, b"", 502, "upstream_refused", "204"),
    (301, b"", 502, "upstream_redirected", "redirects are not followed"),
    (308, b"", 502, "upstream_redirected", "redirects are not followed"),
    (408, {}, 504, "upstream_timeout", "408"),
    (504, {}, 504, "upstream_timeout", "504"),
    (409, {}, 502, "upstream_failed", "409"),
    (429, {}, 429, "upstream_busy", "429"),
    (429, error("insufficient_quota"), 429, "upstream_busy", "429 (insufficient_quota)"),
    (500, {}, 502, "upstream_failed", "500"),
    (500, error(message="Loading model"), 503, "upstream_loading", "still loading"),
    (501, {}, 502, "upstream_refused", "501"),
    (502, b"<html>Bad Gateway</html>", 502, "upstream_failed", "502"),
    (503, {}, 503, "upstream_unavailable", "503"),
    (503, error(message="Loading model"), 503, "upstream_loading", "still loading"),
    (529, error(type="overloaded_error"), 502, "upstream_failed", "529 (overloaded)"),
]


@pytest.mark.parametrize(("status", "body", "expected", "code", "words"), STATUSES)
def test_a_status_says_whose_fault_it_is(
    status: int, body: Any, expected: int, code: str, words: str
) -> None:
    built = build_status_error(URL, status, parse_error(as_bytes(body)), wait=None)
    assert (built.status, built.code) == (expected, code)
    assert words in built.detail
    assert built.detail.startswith(f"{URL} responded with {status}")
    # The caller is not told the address of the model server.
    assert URL not in built.message
    assert SECRET not in built.detail + built.message


@pytest.mark.parametrize("status", [408, 429, 500, 503, 504, 529])
@pytest.mark.parametrize(
    ("wait", "in_body", "seconds"), [(7.0, None, 7), (7.0, 3.0, 7), (None, 3.0, 3), (0.0, 3.0, 0)]
)
def test_the_time_to_wait_is_passed_on(
    status: int, wait: float | None, in_body: float | None, seconds: float
) -> None:
    report = ErrorReport(retry_after=in_body)
    assert build_status_error(URL, status, report, wait=wait).retry_after == seconds


@pytest.mark.parametrize(("wait", "seconds"), [(None, 5.0), (1.0, 1.0)])
def test_a_loading_model_is_worth_a_retry(wait: float | None, seconds: float) -> None:
    report = ErrorReport(reason="model_loading")
    assert build_status_error(URL, 503, report, wait=wait).retry_after == seconds


@pytest.mark.parametrize(
    ("report", "status", "code"),
    [
        (ErrorReport(), 502, "upstream_failed"),
        (ErrorReport(status=500), 502, "upstream_failed"),
        (ErrorReport(status=429), 429, "upstream_busy"),
        (ErrorReport(reason="rate_limit_exceeded"), 429, "upstream_busy"),
        (ErrorReport(reason="context_length_exceeded"), 400, "context_length_exceeded"),
        (ErrorReport(reason="model_loading"), 503, "upstream_loading"),
        (ErrorReport(reason="server_error"), 502, "upstream_failed"),
        (ErrorReport(status=400, reason="invalid_api_key"), 502, "upstream_denied"),
    ],
)
def test_an_error_inside_a_successful_response(report: ErrorReport, status: int, code: str) -> None:
    built = build_reported_error(report)
    assert (built.status, built.code) == (status, code)
    assert "in its response" in built.detail


@given(st.binary() | st.text().map(str.encode), st.integers(300, 599))
def test_any_error_body_is_a_valid_error(body: bytes, status: int) -> None:
    built = build_status_error(URL, status, parse_error(body), wait=None)
    assert 400 <= built.status <= 599
