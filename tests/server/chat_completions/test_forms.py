"""Completions as bytes."""

from __future__ import annotations

import json

import pytest

from cromicle_sdk.server import BackendError
from cromicle_sdk.server.chat_completions.forms import EventStream, WholeCompletion, build_error

FAILURE = BackendError(502, "upstream_failed", "the reply is not complete")


def parse_events(data: bytes) -> list[dict[str, object]]:
    lines = data.decode("ascii").split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line not in ("", DONE)]


DONE = "data: [DONE]"


def test_the_events_of_a_stream() -> None:
    form = EventStream("id", "a-model")
    first, second = parse_events(form.encode("Grü") + form.encode("ße"))
    (last,) = parse_events(form.encode_end("length"))
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": "Grü"}, "finish_reason": None}
    ]
    assert second["choices"] == [{"index": 0, "delta": {"content": "ße"}, "finish_reason": None}]
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
    for event in (first, second, last):
        assert (event["id"], event["model"]) == ("chatcmpl-id", "a-model")


def test_a_failed_stream_has_an_error_and_no_end() -> None:
    data = EventStream("id", "a-model").encode_failure(FAILURE)
    assert parse_events(data) == [build_error(502, "upstream_failed", FAILURE.message)]
    assert b"[DONE]" not in data


def test_a_failed_whole_completion_is_no_json() -> None:
    form = WholeCompletion("id", "a-model")
    assert form.encode("Hello") + form.encode_failure(FAILURE) == b""


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (429, "rate_limit_error"), (502, "server_error")],
)
def test_the_type_of_an_error(status: int, kind: str) -> None:
    assert build_error(status, "code", "message", param="n") == {
        "error": {"message": "message", "type": kind, "param": "n", "code": "code"}
    }
