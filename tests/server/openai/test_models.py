"""What is known of a model server: tables of lists, and the health that results give."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cromicle_sdk.server import BackendError
from cromicle_sdk.server.openai.models import UpstreamHealth, is_listed, parse_models


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"object": "list", "data": [{"id": "a", "object": "model"}, {"id": "b"}]}, ["a", "b"]),
        # llama.cpp lists its model twice.
        ({"models": [{"name": "x", "model": "x"}], "data": [{"id": "a"}]}, ["a"]),
        ({"models": [{"name": "models/a"}, {"model": "b"}]}, ["models/a", "b"]),
        # Together responds with a list alone.
        ([{"id": "a"}], ["a"]),
        (["a", 5, None, {}, {"id": ""}, {"id": 5, "name": "b"}, []], ["a", "b"]),
        ({"data": []}, []),
        ({"data": None}, None),
        ({"data": {"id": "a"}}, None),
        ({"error": "no"}, None),
        (5, None),
        (b"", None),
        (b"<html>", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_the_names_in_a_list(body: Any, names: list[str] | None) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert parse_models(data) == names


@pytest.mark.parametrize(
    ("model", "names", "expected"),
    [
        ("a", ["a", "b"], True),
        ("a", ["b"], False),
        ("a", [], False),
        ("llama3.2", ["llama3.2:latest"], True),
        ("llama3.2:1b", ["llama3.2:latest"], False),
        ("gemini-2.5-flash", ["models/gemini-2.5-flash"], True),
    ],
)
def test_a_listed_model(model: str, names: list[str], expected: bool) -> None:
    assert is_listed(model, names) is expected


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, "ok"),
        (BackendError(400, "context_length_exceeded", "x"), "ok"),
        (BackendError(413, "upstream_refused", "x"), "ok"),
        (BackendError(422, "upstream_refused", "x"), "ok"),
        (BackendError(429, "upstream_busy", "x"), "upstream_busy"),
        (BackendError(502, "upstream_refused", "x"), "upstream_refused"),
        (BackendError(503, "upstream_loading", "x"), "upstream_loading"),
    ],
)
def test_a_rejected_prompt_does_not_make_a_model_server_ill(
    error: BackendError | None, result: str
) -> None:
    health = UpstreamHealth()
    assert health.describe() == {"last_result": None, "seconds_ago": None}
    health.record(error)
    described = health.describe()
    assert described["last_result"] == result
    assert 0 <= described["seconds_ago"] < 20
