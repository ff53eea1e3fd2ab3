"""The app's response to valid and invalid requests, on asyncio and trio."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk.server import create_app

pytestmark = pytest.mark.anyio

TOKEN = "a secret token"
LIMIT = 1000


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def sign(prompt: str, token: str = TOKEN) -> dict[str, Any]:
    digest = hashlib.sha256((token + prompt).encode()).hexdigest()
    return {"message": prompt, "token": token, "hash": digest}


def connect(app: Starlette | None = None) -> httpx.AsyncClient:
    app = app or create_app(token=TOKEN, max_request_bytes=LIMIT)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


async def post(body: bytes, content_type: str = "application/json") -> httpx.Response:
    async with connect() as client:
        return await client.post("/chat", content=body, headers={"content-type": content_type})


def assert_error(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert answer.json().keys() == {"error"}
    assert error.keys() == {"code", "message"}
    assert error["code"] == code
    assert error["message"]


async def test_the_reply_is_plain_text() -> None:
    async with connect() as client:
        answer = await client.post("/chat", json=sign("Grüße an alle"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "content-length" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert answer.text == "Grüße an alle"


async def test_the_backend_receives_the_prompt() -> None:
    async def shout(prompt: str) -> AsyncIterator[str]:
        yield prompt.upper()

    async with connect(create_app(shout)) as client:
        answer = await client.post("/chat", json=sign("hello", "abc"))
    assert answer.text == "HELLO"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health(method: str) -> None:
    async with connect() as client:
        answer = await client.request(method, "/health")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert method == "HEAD" or answer.json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/", "/chat/", "/api/chat", "/CHAT", "/health/"])
async def test_an_unknown_path_is_a_404(path: str) -> None:
    async with connect() as client:
        assert_error(await client.post(path, json=sign("hello")), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/chat", {"POST"}),
        ("PUT", "/chat", {"POST"}),
        ("OPTIONS", "/chat", {"POST"}),
        ("POST", "/health", {"GET", "HEAD"}),
    ],
)
async def test_an_unsupported_method_is_a_405(method: str, path: str, allowed: set[str]) -> None:
    async with connect() as client:
        answer = await client.request(method, path)
    assert_error(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/jsonp", "application/x-www-form-urlencoded"]
)
async def test_a_content_type_other_than_json_is_a_415(content_type: str) -> None:
    assert_error(await post(b"{}", content_type), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON", "application/json;charset=latin-1"],
)
async def test_a_content_type_may_have_parameters(content_type: str) -> None:
    assert (await post(json.dumps(sign("hi")).encode(), content_type)).text == "hi"


async def test_a_content_length_above_the_limit_is_a_413() -> None:
    answer = await post(b" " * (LIMIT + 1))
    assert_error(answer, 413, "request_too_large")
    assert answer.headers["connection"] == "close"


async def test_a_content_length_of_thousands_of_digits_is_a_413() -> None:
    headers = {"content-type": "application/json", "content-length": "9" * 5000}
    async with connect() as client:
        answer = await client.post("/chat", content=b"{}", headers=headers)
    assert_error(answer, 413, "request_too_large")


@pytest.mark.parametrize("unread", [0, 5])
async def test_a_chunked_body_above_the_limit_is_a_413(unread: int) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(11 + unread):
            yield b" " * (LIMIT // 10)

    async with connect() as client:
        answer = await client.post(
            "/chat", content=body(), headers={"content-type": "application/json"}
        )
    assert_error(answer, 413, "request_too_large")


async def test_a_body_at_the_limit_is_accepted() -> None:
    body = json.dumps(sign("hi")).encode()
    assert (await post(body.ljust(LIMIT))).text == "hi"


GOOD = json.dumps(sign("hi"))
NOT_A_STRING: list[Any] = [None, 1, True, ["hi"], {}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not JSON",
        b"null",
        b"[]",
        b'"text"',
        b"12",
        b"\xff\xfe",
        GOOD.encode("utf-16"),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("hi", "h\xe9").encode("latin-1"),
        GOOD.encode() + b"{}",
        b"[" * 999,
        b'{"a":' * 190,
        GOOD.replace("{", '{"x": NaN, ').encode(),
        GOOD.replace("{", '{"x": -Infinity, ').encode(),
        GOOD.replace("{", '{"x": {"y": 1, "y": 2}, ').encode(),
        GOOD.replace("{", '{"message": "other", ').encode(),
        GOOD.replace("hi", "\\ud800").encode(),
        GOOD.replace(TOKEN, "\\udfff").encode(),
        json.dumps({**sign("hi"), "hash": "\ud83d"}).encode(),
        *(
            json.dumps({name: value for name, value in sign("hi").items() if name != missing})
            for missing in ("message", "token", "hash")
        ),
        *(
            json.dumps({**sign("hi"), name: value})
            for name in ("message", "token", "hash")
            for value in NOT_A_STRING
        ),
    ],
)
async def test_an_invalid_body_is_a_400(body: bytes | str) -> None:
    assert_error(await post(body.encode() if isinstance(body, str) else body), 400, "bad_request")


async def test_deeply_nested_json_is_a_400() -> None:
    app = create_app(max_request_bytes=400_000)
    async with connect(app) as client:
        for deep in (b"[" * 200_000, b'{"a":' * 50_000, b"[" * 99_999 + b"]" * 99_999):
            answer = await client.post(
                "/chat", content=deep, headers={"content-type": "application/json"}
            )
            assert_error(answer, 400, "bad_request")


async def test_a_number_of_thousands_of_digits_is_a_400() -> None:
    app = create_app(token=TOKEN)
    async with connect(app) as client:
        answer = await client.post(
            "/chat",
            content=GOOD.replace("{", '{"x": ' + "9" * 5000 + ", "),
            headers={"content-type": "application/json"},
        )
    assert_error(answer, 400, "bad_request")


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + " ", TOKEN.upper(), "ü"])
async def test_an_incorrect_token_is_a_401(token: str) -> None:
    assert_error(await post(json.dumps(sign("hi", token)).encode()), 401, "wrong_token")


@pytest.mark.parametrize(
    "digest",
    ["", "0" * 64, sign("ho")["hash"], sign("hi")["hash"].upper(), sign("hi")["hash"] + " ", "é"],
)
async def test_an_incorrect_hash_is_a_422(digest: str) -> None:
    fields = {**sign("hi"), "hash": digest}
    assert_error(await post(json.dumps(fields).encode()), 422, "hash_mismatch")


async def test_the_first_failed_check_decides_the_status() -> None:
    too_long = b"x" * (LIMIT + 1)
    wrong_twice = json.dumps({**sign("hi", "wrong"), "hash": "wrong"}).encode()
    async with connect() as client:
        elsewhere = await client.get("/nowhere", headers={"content-type": "text/plain"})
        as_text = {"content-type": "text/plain"}
        other_method = await client.put("/chat", content=too_long, headers=as_text)
    assert elsewhere.status_code == 404
    assert other_method.status_code == 405
    assert (await post(too_long, "text/plain")).status_code == 415
    assert (await post(too_long)).status_code == 413
    assert (await post(wrong_twice)).status_code == 401


@pytest.mark.parametrize("sent", ["abc-123_4.5", "x" * 128])
@pytest.mark.parametrize("path", ["/chat", "/nowhere", "/health"])
async def test_a_safe_request_id_is_returned(sent: str, path: str) -> None:
    async with connect() as client:
        answer = await client.post(path, json=sign("hi"), headers={"x-request-id": sent})
    assert answer.headers["x-request-id"] == sent
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("sent", [None, "", "x" * 129, "a b", "a\tb", "é", "a,b", "<script>"])
async def test_an_unsafe_request_id_is_replaced(sent: str | None) -> None:
    headers = {} if sent is None else {b"x-request-id": sent.encode()}
    async with connect() as client:
        answers = [await client.post("/chat", content=b"", headers=headers) for _ in range(2)]
    first, second = (answer.headers["x-request-id"] for answer in answers)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


async def test_responses_and_logs_do_not_quote_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(1)

    async def fail(prompt: str) -> AsyncIterator[str]:
        yield ""
        raise ValueError(prompt, TOKEN)

    secret = {**sign("my prompt"), "hash": "my hash"}
    bodies = [secret, {**secret, "token": "my wrong"}, {**secret, "message": 1}, sign("my prompt")]
    async with connect(create_app(fail, token=TOKEN)) as client:
        answers = [await client.post("/chat", json=body) for body in bodies]
        answers.append(await client.post("/chat", content=b"my rubbish"))
    assert [answer.status_code for answer in answers] == [422, 401, 400, 500, 415]
    # httpx is the client here.
    logged = [record for record in caplog.records if not record.name.startswith("http")]
    seen = "".join(answer.text + str(answer.headers) for answer in answers)
    seen += "".join(logging.Formatter().format(record) for record in logged)
    for word in ("my ", TOKEN, sign("my prompt")["hash"]):
        assert word not in seen


class TestAnyBody:
    """No request body causes a server error."""

    JSON: st.SearchStrategy[Any] = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
    NAMES = st.sampled_from(["message", "token", "hash"])

    @given(
        body=st.binary()
        | JSON.map(lambda value: json.dumps(value).encode())
        | st.dictionaries(NAMES, JSON).map(lambda value: json.dumps(value).encode())
        | st.fixed_dictionaries({"message": st.text(), "token": st.text(), "hash": st.text()}).map(
            lambda value: json.dumps(value).encode()
        )
    )
    @settings(deadline=None)
    def test_a_random_body_is_rejected_with_a_4xx(self, body: bytes) -> None:
        answer = anyio.run(post, body)
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("token", ""),
        ("token", 5),
        ("token", b"abc"),
        ("token", "x\ud800"),
        ("max_request_bytes", 0),
        ("max_request_bytes", -1),
        ("max_request_bytes", 1.5),
        ("max_request_bytes", True),
        ("max_request_bytes", None),
        ("backend", "echo"),
        ("backend", 3),
        ("backend", lambda: None),
        ("backend", lambda *, prompt: None),
        ("backend", lambda prompt, request, more: None),
        ("allow_options", "temperature"),
        ("allow_options", b"temperature"),
        ("allow_options", None),
        ("allow_options", 1),
        ("allow_options", [1]),
        ("allow_options", [""]),
        ("allow_options", ["x\ud800"]),
        ("allow_options", ["temperature", "token"]),
        ("allow_options", ["messages"]),
        ("allow_options", ["temperature"]),
        ("allow_options", True),
    ],
)
def test_an_invalid_option_is_rejected_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option) as caught:
        create_app(**{option: value})
    assert caught.value.__context__ is None
