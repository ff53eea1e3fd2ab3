"""The protocol's extensions, as a backend sees them: messages, options, the request's ID."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cromicle_sdk._core.messages import format_prompt
from cromicle_sdk.server import Backend, BackendRequest, create_app, echo_backend

pytestmark = pytest.mark.anyio

CONVERSATION = [
    {"role": "system", "content": "Answer in French."},
    {"role": "user", "content": "Hello\nUser: how are you?"},
]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Recorder:
    """A backend that keeps what it is called with."""

    def __init__(self) -> None:
        self.prompt = ""
        self.request = BackendRequest()

    async def __call__(self, prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        self.prompt, self.request = prompt, request
        yield "text"


def sign(prompt: str, **fields: Any) -> dict[str, Any]:
    digest = hashlib.sha256(("abc" + prompt).encode()).hexdigest()
    return {"message": prompt, "token": "abc", "hash": digest, **fields}


async def post(
    backend: Backend, fields: dict[str, Any] | str, allow_options: Any = False
) -> httpx.Response:
    app = create_app(backend, allow_options=allow_options)
    body = fields if isinstance(fields, str) else json.dumps(fields)
    headers = {"content-type": "application/json", "x-request-id": "id-1"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        return await client.post("/chat", content=body, headers=headers)


def assert_rejected(answer: httpx.Response, code: str, *words: str) -> None:
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == code
    for word in words:
        assert word in error["message"]


async def test_a_plain_request_has_neither_messages_nor_options() -> None:
    backend = Recorder()
    await post(backend, sign("hi"))
    assert backend.prompt == "hi"
    assert backend.request.id == "id-1"
    assert backend.request.messages is None
    assert backend.request.options == {}
    assert backend.request.finish_reason is None


async def test_messages_reach_the_backend_with_their_roles() -> None:
    backend = Recorder()
    prompt = format_prompt(CONVERSATION)
    answer = await post(backend, sign(prompt, messages=CONVERSATION))
    assert answer.text == "text"
    assert backend.prompt == prompt
    assert backend.request.messages == CONVERSATION


async def test_a_backend_of_one_argument_accepts_messages() -> None:
    prompt = format_prompt(CONVERSATION)
    answer = await post(echo_backend(), sign(prompt, messages=CONVERSATION))
    assert answer.text == "how are you?"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        CONVERSATION[:1],
        CONVERSATION[::-1],
        [*CONVERSATION, {"role": "user", "content": ""}],
        [{**CONVERSATION[0], "role": "user"}, CONVERSATION[1]],
        [{**CONVERSATION[0], "content": "Answer in German."}, CONVERSATION[1]],
        [{**CONVERSATION[0], "role": "two words"}, CONVERSATION[1]],
        [{**CONVERSATION[0], "content": "\ud800"}, CONVERSATION[1]],
    ],
)
async def test_messages_other_than_those_of_the_prompt_are_a_400(messages: Any) -> None:
    backend = Recorder()
    answer = await post(backend, sign(format_prompt(CONVERSATION), messages=messages))
    assert_rejected(answer, "messages_mismatch", "'messages'", "'message'")
    assert backend.prompt == ""


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "hi",
        {"role": "user", "content": "hi"},
        ["hi"],
        [None],
        [{"role": "user"}],
        [{"content": "hi"}],
        [{"role": "user", "content": ["hi"]}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        [{"role": 1, "content": "hi"}],
        # Neither the prompt nor the hash covers them.
        [{"role": "user", "content": "hi", "name": "Ada"}],
        [{"role": "user", "content": "hi", "tool_calls": []}],
    ],
)
async def test_messages_of_another_form_are_a_400(messages: Any) -> None:
    answer = await post(Recorder(), sign("hi", messages=messages))
    assert_rejected(answer, "bad_request", "'messages'")


OPTIONS = {"temperature": 0.5, "stop": [None, {"ä": "ö"}], "seed": 10**30, "flag": True}


@pytest.mark.parametrize("allowed", [True, [*OPTIONS, "top_p"], frozenset(OPTIONS)])
async def test_allowed_options_reach_the_backend(allowed: Any) -> None:
    backend = Recorder()
    assert (await post(backend, sign("hi", **OPTIONS), allowed)).status_code == 200
    assert backend.request.options == OPTIONS


async def test_options_are_read_only() -> None:
    backend = Recorder()
    await post(backend, sign("hi", seed=1), True)
    with pytest.raises(TypeError):
        backend.request.options["seed"] = 2  # type: ignore[index]  # as the test says


@pytest.mark.parametrize("backend", [Recorder(), echo_backend()], ids=["two", "one"])
async def test_an_option_that_is_not_allowed_is_a_400_that_names_it(backend: Backend) -> None:
    answer = await post(backend, sign("hi", temperature=1))
    assert_rejected(answer, "unknown_field", "'temperature'")


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "ä", "<script>", "a\nb"])
async def test_a_name_that_is_no_word_is_not_quoted(name: str) -> None:
    answer = await post(Recorder(), sign("hi", **{name: 1}), ["temperature"])
    assert_rejected(answer, "unknown_field", "a field of the body")
    assert not name or name not in answer.json()["error"]["message"]


def nest(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (nest(64), "nested"),
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ([{"a": ["\ud800"]}], "surrogate"),
    ],
)
async def test_an_option_that_no_other_server_could_read_is_a_400(value: Any, problem: str) -> None:
    answer = await post(Recorder(), sign("hi", custom=value), True)
    assert_rejected(answer, "bad_request", "'custom'", problem)


async def test_an_option_may_be_nested_up_to_the_limit() -> None:
    backend = Recorder()
    await post(backend, sign("hi", custom=nest(63)), True)
    assert backend.request.options["custom"] == nest(63)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
async def test_a_number_out_of_range_is_a_400(number: str) -> None:
    body = json.dumps(sign("hi", seed=4711)).replace("4711", number)
    assert_rejected(await post(Recorder(), body, True), "bad_request")


async def test_a_wrong_token_is_a_401_whatever_the_options_are() -> None:
    answer = await post(Recorder(), {**sign("hi", seed=1), "token": "wrong"}, True)
    assert answer.status_code == 401


async def two(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    yield request.id


async def another_name(prompt: str, info: BackendRequest) -> AsyncIterator[str]:
    yield info.id


async def one(prompt: str) -> AsyncIterator[str]:
    yield "one"


async def one_with_default(prompt: str, delay: float = 0.0) -> AsyncIterator[str]:
    yield "one" if delay == 0 else "never"


async def optional_request(
    prompt: str, request: BackendRequest | None = None
) -> AsyncIterator[str]:
    yield request.id if request else "never"


async def any_arguments(*args: Any, **options: Any) -> AsyncIterator[str]:
    yield "one" if len(args) == 1 else "never"


async def three(prompt: str, request: BackendRequest, prefix: str) -> AsyncIterator[str]:
    yield prefix + request.id


async def returned(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    return two(prompt, request)


@functools.wraps(two)
def wrapped(*args: Any) -> AsyncIterator[str]:
    return two(*args)


class Methods:
    async def two(self, prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        yield request.id

    async def one(self, prompt: str) -> AsyncIterator[str]:
        yield "one"

    @staticmethod
    async def static(prompt: str, request: BackendRequest, /) -> AsyncIterator[str]:
        yield request.id


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (two, "id-1"),
        (another_name, "id-1"),
        (Methods().two, "id-1"),
        (Methods.static, "id-1"),
        (optional_request, "id-1"),
        (returned, "id-1"),
        (wrapped, "id-1"),
        (functools.partial(three, prefix="an "), "an id-1"),
        (lambda prompt, request: two(prompt, request), "id-1"),
        (one, "one"),
        (Methods().one, "one"),
        (one_with_default, "one"),
        (functools.partial(one_with_default, delay=0), "one"),
        (any_arguments, "one"),
        (lambda prompt: one(prompt), "one"),
    ],
)
async def test_the_signature_decides_whether_a_backend_receives_the_request(
    backend: Any, text: str
) -> None:
    assert (await post(backend, sign("hi"))).text == text


async def test_a_callable_without_a_signature_is_called_with_the_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(backend: object) -> None:
        raise ValueError("no signature found")

    monkeypatch.setattr("inspect.signature", fail)
    app = create_app(one)
    monkeypatch.undo()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        assert (await client.post("/chat", json=sign("hi"))).text == "one"


@pytest.mark.parametrize("value", ["", "two words", "x" * 65, "ä", "a\r\nb: c", 1, b"stop"])
def test_a_finish_reason_must_be_a_word(value: Any) -> None:
    request = BackendRequest()
    with pytest.raises(ValueError, match="finish_reason"):
        request.finish_reason = value
    assert request.finish_reason is None


def test_a_request_shows_only_its_id() -> None:
    request = BackendRequest(
        id="id-1", messages=[{"role": "user", "content": "private"}], options={"x": "private"}
    )
    request.finish_reason = "length"
    assert request.finish_reason == "length"
    request.finish_reason = None
    assert repr(request) == "<BackendRequest id-1>"


def test_a_request_does_not_share_the_options_that_it_is_given() -> None:
    options = {"seed": 1}
    request = BackendRequest(options=options)
    options.clear()
    assert request.options == {"seed": 1}
