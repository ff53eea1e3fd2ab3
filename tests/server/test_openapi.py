"""The OpenAPI description, and that no generated request body causes a server error.

It runs a tenth of the examples; `CROMICLE_STRESS=full` runs all of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cromicle_sdk.server import BackendRequest, create_app
from cromicle_sdk.server.openapi import build_openapi

BODIES = 10_000 if os.environ.get("CROMICLE_STRESS") == "full" else 1000


def get(path: str, **options: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(**options))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(path)

    return anyio.run(main)


def test_the_app_describes_itself() -> None:
    description = get("/openapi.json").json()
    assert description == {**build_openapi(metrics=True), "servers": [{"url": "/"}]}
    assert description["openapi"] == "3.1.0"
    assert set(description["paths"]) == {"/chat", "/health", "/metrics", "/openapi.json"}


@pytest.mark.parametrize(
    ("allow_options", "names", "others"),
    [(False, set(), False), (["top_p", "seed"], {"top_p", "seed"}, False), (True, set(), True)],
)
def test_the_app_describes_the_fields_that_it_takes(
    allow_options: Any, names: set[str], others: bool
) -> None:
    description = get("/openapi.json", backend=tell, allow_options=allow_options).json()
    schema = description["components"]["schemas"]["Chat"]
    assert set(schema["properties"]) == {"message", "token", "hash", "messages", *names}
    assert schema["additionalProperties"] is others
    said = description["paths"]["/chat"]["post"]["responses"]["200"]["description"]
    assert "x-finish-reason" in said


@pytest.mark.parametrize("path", ["/health", "/metrics", "/openapi.json"])
def test_each_response_has_the_described_content_type(path: str) -> None:
    answer = get(path)
    (media_type,) = build_openapi(metrics=True)["paths"][path]["get"]["responses"]["200"]["content"]
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == media_type


DESCRIBED = {int(s) for s in build_openapi(metrics=True)["paths"]["/chat"]["post"]["responses"]}

TEXT = st.text(st.characters(exclude_categories=[]))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)


def sign(message: str) -> dict[str, str]:
    digest = hashlib.sha256(b"abc" + message.encode(errors="replace")).hexdigest()
    return {"message": message, "token": "abc", "hash": digest}


def break_field(fields: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    return {**fields, name: value}


SIGNED = TEXT.map(sign)
FIELDS = st.sampled_from(["message", "token", "hash", "messages", "model", ""])
ALMOST = st.builds(break_field, SIGNED, FIELDS, JSON)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "Ü", "a b"]), "content": TEXT})
)
WITH_MESSAGES = st.builds(break_field, SIGNED, st.just("messages"), MESSAGES) | st.builds(
    lambda text: break_field(sign(text), "messages", [{"role": "user", "content": text}]), TEXT
)
AS_JSON = (SIGNED | ALMOST | WITH_MESSAGES | JSON).map(lambda value: json.dumps(value).encode())
TRUNCATED = st.builds(lambda body, end: body[:end], AS_JSON, st.integers(0, 200))
BODY = AS_JSON | TRUNCATED | st.binary() | st.binary(min_size=1000, max_size=3000)
CONTENT_TYPE = st.sampled_from(
    ["application/json", "application/json; charset=utf-16", "Application/JSON ;x", "text/json", ""]
)


async def echo(prompt: str) -> AsyncIterator[str]:
    yield prompt


async def tell(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    # What a backend may do with it.
    json.dumps([request.messages, dict(request.options)], ensure_ascii=False).encode()
    yield prompt


@given(body=BODY, content_type=CONTENT_TYPE, allow_options=st.booleans())
@settings(
    max_examples=BODIES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.timeout(1200)
def test_every_body_gets_a_described_response(
    body: bytes, content_type: str, allow_options: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> httpx.Response:
        backend = tell if allow_options else echo
        app = create_app(backend, max_request_bytes=2000, allow_options=allow_options)
        # Exceptions of the app are raised here.
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/chat", content=body, headers={"content-type": content_type})

    caplog.clear()
    answer = anyio.run(main)
    assert answer.status_code in DESCRIBED
    assert answer.status_code < 500
    if answer.status_code == 200:
        assert answer.text == json.loads(body)["message"]
    else:
        assert set(answer.json()) == {"error"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
