"""OpenAI's API in front of a Cromicle endpoint, as the package `openai` and a socket see it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import openai
import pytest
from openai_apps import KEY, TOKEN, build_openai_app, connect, connect_async, serve_openai
from runtimes import ASYNC_RUNTIMES, Runtime

from cromicle_sdk import AsyncClient, Client, ConfigurationError, Retry, Timeout
from cromicle_sdk.server import LocalServer, create_openai_app
from cromicle_sdk.testing import FaultyServer

HELLO: Any = [{"role": "user", "content": "Hello"}]
CONVERSATION: Any = [
    {"role": "system", "content": "Answer in French."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Good "}, {"type": "text", "text": "day"}],
    },
    # As the package itself writes a message that it has received.
    {"role": "assistant", "content": "Bonjour", "refusal": None, "tool_calls": [], "audio": None},
    {"role": "user", "content": "And at night?"},
]
LETTERS = 'Grüße, 日本 🎉 \u2028 \x85 "quoted" \\ \n\r\n\x00 </script>'


@pytest.fixture
def server(faults: FaultyServer) -> Iterator[LocalServer]:
    with serve_openai(faults.base_url) as server:
        yield server


@pytest.fixture
def client(server: LocalServer) -> Iterator[openai.OpenAI]:
    with connect(server) as client:
        yield client


def complete(client: openai.OpenAI, **options: Any) -> Any:
    options = {"model": "any", "messages": HELLO, **options}
    return client.chat.completions.create(**options)


def post(server: LocalServer, **fields: Any) -> httpx.Response:
    """The response to a request with these fields, none of which is added by a package."""
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    content = json.dumps({"model": "any", "messages": HELLO, **fields})
    url = f"{server.base_url}/v1/chat/completions"
    return httpx.post(url, content=content, headers=headers)


def assert_error(answer: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    """The message of an error in the form of OpenAI."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    message: str = error["message"]
    return message


def test_a_whole_completion(client: openai.OpenAI, faults: FaultyServer) -> None:
    faults.reply(chunks=["Bon", "soir"], finish_reason="length")
    completion = complete(client)
    (choice,) = completion.choices
    assert completion.object == "chat.completion"
    assert completion.id.startswith("chatcmpl-")
    assert completion.model == "any"
    assert completion.created > 1_700_000_000
    assert (choice.message.role, choice.message.content) == ("assistant", "Bonsoir")
    assert choice.finish_reason == "length"
    # Some clients fail without it, and nothing counts the tokens.
    assert completion.usage.total_tokens == 0


def test_a_streamed_completion(client: openai.OpenAI, faults: FaultyServer) -> None:
    faults.reply(chunks=["Bon", "soir"], delay=0.05, finish_reason="length")
    events = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].delta.content or "" for event in events) == "Bonsoir"
    assert [event.choices[0].delta.role for event in events] == ["assistant", None, None]
    assert [event.choices[0].finish_reason for event in events] == [None, None, "length"]
    assert {event.object for event in events} == {"chat.completion.chunk"}
    assert len({event.id for event in events}) == 1


def test_a_chunk_is_passed_on_as_it_arrives(client: openai.OpenAI, faults: FaultyServer) -> None:
    faults.stall(after="Once upon a time")
    with complete(client, stream=True) as stream:
        assert next(iter(stream)).choices[0].delta.content == "Once upon a time"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_every_character_is_passed_on(
    client: openai.OpenAI, faults: FaultyServer, is_streamed: bool
) -> None:
    faults.reply(LETTERS)
    if is_streamed:
        events = complete(client, stream=True)
        text = "".join(event.choices[0].delta.content or "" for event in events)
    else:
        text = complete(client).choices[0].message.content
    assert text == LETTERS


def test_no_event_holds_a_line_break_of_any_kind(server: LocalServer, faults: FaultyServer) -> None:
    faults.reply(LETTERS)
    lines = post(server, stream=True).text.splitlines()
    assert [line[:6] for line in lines if line] == ["data: "] * 3
    assert lines[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_reply_without_a_finish_reason_has_stopped(
    client: openai.OpenAI, faults: FaultyServer, is_streamed: bool
) -> None:
    faults.reply("Hi.")
    answer = complete(client, stream=is_streamed)
    last = list(answer)[-1] if is_streamed else answer
    assert last.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_empty_reply_is_an_error_unless_the_client_accepts_it(
    faults: FaultyServer, is_streamed: bool
) -> None:
    faults.reply("")
    with serve_openai(faults.base_url) as server:
        assert_error(post(server, stream=is_streamed), 502, "upstream_invalid")
    with serve_openai(faults.base_url, strict=False) as server, connect(server) as client:
        answer = complete(client, stream=is_streamed)
        if is_streamed:
            first, last = answer
            assert (first.choices[0].delta.role, first.choices[0].delta.content) == (
                "assistant",
                "",
            )
            assert last.choices[0].finish_reason == "stop"
        else:
            assert answer.choices[0].message.content == ""


# On trio the package leaves an async generator of its own to the garbage collector.
@pytest.mark.parametrize(
    "runtime",
    [runtime for runtime in ASYNC_RUNTIMES if runtime.name != "trio"],
    ids=lambda runtime: runtime.name,
)
def test_the_async_client_of_openai(
    server: LocalServer, faults: FaultyServer, runtime: Runtime
) -> None:
    async def scenario() -> None:
        async with connect_async(server) as client:
            completion = await client.chat.completions.create(model="any", messages=HELLO)
            assert completion.choices[0].message.content == "Hi."
            stream = await client.chat.completions.create(model="any", messages=HELLO, stream=True)
            texts = [event.choices[0].delta.content or "" async for event in stream]
            assert "".join(texts) == "Hi."

    faults.reply("Hi.")
    runtime.run(scenario)


def test_the_endpoint_receives_messages_with_roles_and_options(
    client: openai.OpenAI, faults: FaultyServer
) -> None:
    faults.reply("Bonne nuit.")
    complete(
        client,
        messages=CONVERSATION,
        temperature=0.5,
        max_completion_tokens=9,
        stop=["\n"],
        extra_headers={"x-request-id": "id-7"},
    )
    (request,) = faults.requests
    assert request.token == KEY
    assert request.message == (
        "System: Answer in French.\nUser: Good day\nAssistant: Bonjour\nUser: And at night?"
        "\nAssistant:"
    )
    assert request.messages is not None
    assert [message["role"] for message in request.messages] == [
        *("system", "user", "assistant", "user")
    ]
    assert request.options == {"temperature": 0.5, "max_tokens": 9, "stop": ["\n"]}
    assert request.headers["x-request-id"] == "id-7"
    assert TOKEN not in str(request.headers)


def test_a_stream_that_breaks_off_ends_with_an_error(
    client: openai.OpenAI, faults: FaultyServer
) -> None:
    faults.cut(after="Hello, wor")
    received = ""
    with pytest.raises(openai.APIError, match="is incomplete") as caught:
        for event in complete(client, stream=True):
            received += event.choices[0].delta.content
    assert received == "Hello, wor"
    assert caught.value.code == "upstream_failed"


def test_a_stream_that_breaks_off_has_no_end(server: LocalServer, faults: FaultyServer) -> None:
    faults.cut(after="Hello, wor")
    received = b""
    url = f"{server.base_url}/v1/chat/completions"
    content = {"model": "any", "messages": HELLO, "stream": True}
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        httpx.stream("POST", url, json=content, headers=headers) as answer,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        for data in answer.iter_raw():
            received += data
    *_, last = received.decode().strip().split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert b"[DONE]" not in received
    assert b'"finish_reason":"' not in received


def test_a_whole_completion_that_breaks_off_is_retried(faults: FaultyServer) -> None:
    faults.cut(after="Hello, wor").reply("Hello, world")
    retry = Retry(attempts=2, first_delay=0)
    with serve_openai(faults.base_url, retry=retry) as server, connect(server) as client:
        assert complete(client).choices[0].message.content == "Hello, world"
    assert len(faults.requests) == 2


def test_a_whole_completion_that_breaks_off_is_an_error(
    server: LocalServer, faults: FaultyServer
) -> None:
    faults.cut(after="Hello, wor")
    assert_error(post(server), 502, "upstream_failed")


def test_a_caller_that_leaves_a_stream_ends_the_request_to_the_endpoint(
    client: openai.OpenAI, faults: FaultyServer
) -> None:
    faults.stall(after="Once")
    with complete(client, stream=True) as stream:
        next(iter(stream))
    faults.wait_until_closed()


def body(**error: Any) -> str:
    return json.dumps({"error": error})


TOO_LONG = body(code="context_length_exceeded", message="the prompt is too long")


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("status", "content", "expected", "code", "words"),
    [
        (400, TOO_LONG, 400, "context_length_exceeded", "the prompt is too long"),
        (413, body(code="request_too_large", message="\x1b[1mno"), 413, "request_too_large", "no"),
        (422, body(code="hash_mismatch", message="no"), 502, "upstream_denied", "does not accept"),
        (400, "no JSON", 400, "bad_request", "rejected the request"),
        (400, '{"error": ["a list"]}', 400, "bad_request", "rejected the request"),
        (400, body(code="no word: at all", message=7), 400, "bad_request", "rejected the request"),
        (401, "", 502, "upstream_denied", "does not accept this server"),
        (307, "", 502, "upstream_denied", "does not accept this server"),
        (429, "", 429, "rate_limit_exceeded", "limits the rate"),
        (500, "", 502, "upstream_failed", "failed"),
        (502, body(code="upstream_refused"), 502, "upstream_refused", "failed"),
        (503, body(code="too_busy"), 503, "too_busy", "not available"),
        (504, "", 504, "upstream_unavailable", "not available"),
    ],
)
def test_an_error_of_the_endpoint(
    server: LocalServer,
    faults: FaultyServer,
    is_streamed: bool,
    status: int,
    content: str,
    expected: int,
    code: str,
    words: str,
) -> None:
    faults.fail(status, body=content)
    assert words in assert_error(post(server, stream=is_streamed), expected, code)


def test_the_package_raises_its_own_errors(faults: FaultyServer) -> None:
    faults.fail(429, retry_after=7)
    with serve_openai(faults.base_url) as server, connect(server) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            complete(client)
        assert caught.value.response.headers["retry-after"] == "7"
        assert caught.value.type == "rate_limit_error"
        with pytest.raises(openai.AuthenticationError):
            complete(client.with_options(api_key="a guess"))
        with pytest.raises(openai.BadRequestError) as refused:
            complete(client, n=2)
    assert refused.value.param == "n"


def test_an_endpoint_that_does_not_respond(faults: FaultyServer) -> None:
    faults.stall()
    with serve_openai(faults.base_url, timeout=Timeout(first_byte=0.2)) as server:
        assert "(first_byte)" in assert_error(post(server), 504, "upstream_timeout")


def test_an_endpoint_that_is_not_there(faults: FaultyServer) -> None:
    faults.stop()
    with serve_openai(faults.base_url) as server:
        assert_error(post(server), 502, "upstream_unreachable")
    faults.start()


def test_a_reply_that_is_too_long(faults: FaultyServer) -> None:
    faults.reply("Hello, world")
    with serve_openai(faults.base_url, max_reply_bytes=5) as server:
        assert_error(post(server), 502, "reply_too_large")


def test_a_client_that_is_closed(faults: FaultyServer) -> None:
    async def build() -> Any:
        async with AsyncClient(base_url=faults.base_url) as client:
            return create_openai_app(client, token=TOKEN)

    with LocalServer(app=anyio.run(build)) as server:
        assert_error(post(server), 500, "server_error")


def test_the_log_has_the_cause_and_nothing_private(
    server: LocalServer, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cromicle_sdk.server")
    faults.reply("a reply").fail(400, body=TOO_LONG).fail(400, body=body(code="Hello, Bob!"))
    faults.raw(b"HTTP/1.1 Hello there\r\n\r\n", end="close")
    for _ in range(4):
        post(server)
    assert "path=/v1/chat/completions status=200" in caplog.text
    assert "status 400 (context_length_exceeded)" in caplog.text
    assert "APIConnectionError" in caplog.text
    for private in ("Hello", "a reply", TOKEN, KEY, "too long"):
        assert private not in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", TOKEN)],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {KEY}")],
        [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer another")],
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "models"])
def test_a_request_needs_the_token_of_the_server(
    server: LocalServer, faults: FaultyServer, headers: list[tuple[str, str]], path: str
) -> None:
    method = "GET" if path == "models" else "POST"
    url = f"{server.base_url}/v1/{path}"
    answer = httpx.request(method, url, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert faults.requests == []


def test_a_token_of_any_letters_is_accepted(faults: FaultyServer) -> None:
    faults.reply("Hi.")
    token = "schlüssel-日本"
    with serve_openai(faults.base_url, token=token) as server:
        headers = [(b"Authorization", b"bearer  " + token.encode())]
        answer = httpx.get(f"{server.base_url}/v1/models", headers=headers)
    assert answer.status_code == 200


def test_too_many_wrong_tokens_are_a_429(server: LocalServer, client: openai.OpenAI) -> None:
    with connect(server, api_key="a guess") as guesser:
        for _ in range(10):
            with pytest.raises(openai.AuthenticationError):
                guesser.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            guesser.models.list()
    assert float(caught.value.response.headers["retry-after"]) > 0
    assert client.models.list()


def test_the_only_model_has_a_name_and_any_other_is_accepted(
    client: openai.OpenAI, faults: FaultyServer
) -> None:
    faults.reply("Hi.")
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("cromicle", "model", "cromicle")
    assert complete(client, model="gpt-4o").model == "gpt-4o"
    assert faults.requests[0].options == {}


def test_a_caller_chooses_one_of_several_models(faults: FaultyServer) -> None:
    faults.reply("Hi.")
    with (
        serve_openai(faults.base_url, models=["llama3.2", "qwen3"]) as server,
        connect(server) as client,
    ):
        assert [model.id for model in client.models.list()] == ["llama3.2", "qwen3"]
        complete(client, model="qwen3")
        with pytest.raises(openai.NotFoundError, match=r"'llama3.2', 'qwen3'") as caught:
            complete(client, model="gpt-4o")
    assert caught.value.code == "model_not_found"
    assert [request.options for request in faults.requests] == [{"model": "qwen3"}]


def test_only_some_options_are_passed_on(faults: FaultyServer) -> None:
    faults.reply("Hi.")
    with serve_openai(faults.base_url, allow_options=["seed"]) as server:
        assert post(server, seed=7).status_code == 200
        assert_error(post(server, temperature=1), 400, "unsupported_parameter", "temperature")
    with serve_openai(faults.base_url, allow_options=False) as server:
        assert post(server).status_code == 200
        assert_error(post(server, seed=7), 400, "unsupported_parameter", "seed")
    assert len(faults.requests) == 2


def test_the_whole_path_to_a_backend_of_our_own() -> None:
    """An option that the endpoint does not accept is its 400, which names the field."""
    with LocalServer(token=KEY) as endpoint, serve_openai(endpoint.base_url) as server:
        answer = post(server, messages=CONVERSATION)
        assert answer.json()["choices"][0]["message"]["content"] == "And at night?"
        message = assert_error(post(server, seed=7), 400, "unknown_field")
        assert "'seed'" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "logprobs": False, "tools": [], "tool_choice": "none", "logit_bias": {}},
        {"response_format": {"type": "text"}, "modalities": ["text"], "store": False},
        {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "functions": None},
        {"temperature": None, "parallel_tool_calls": True, "stream": False, "unheard_of": None},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(
    server: LocalServer, faults: FaultyServer, fields: dict[str, Any]
) -> None:
    faults.reply("Hi.")
    assert post(server, **fields).status_code == 200
    assert faults.requests[0].options == {}


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"a name of no field": 1}, "?"),
        ({"stream_options": {"other": True}}, "stream_options.other"),
        (
            {"messages": [{"role": "tool", "content": "42", "tool_call_id": "1"}]},
            "messages[0].role",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [TOOL]}]},
            "messages[0].tool_calls",
        ),
        ({"messages": [{"role": "user", "content": "Hi", "name": "Bob"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "Hi", "a b": 1}]}, "messages[0].?"),
        (
            {"messages": [*HELLO, {"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[1].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}]},
            "messages[0].content[0].x",
        ),
    ],
)
def test_what_the_protocol_does_not_have_is_rejected_by_name(
    server: LocalServer, faults: FaultyServer, fields: dict[str, Any], param: str
) -> None:
    message = assert_error(post(server, **fields), 400, "unsupported_parameter", param)
    assert param in message
    assert faults.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [*HELLO, {"role": "user"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]"),
        ({"messages": [{"role": "no word", "content": "Hi"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_an_invalid_value_is_rejected_by_name(
    server: LocalServer, faults: FaultyServer, fields: dict[str, Any], param: str
) -> None:
    assert_error(post(server, **fields), 400, "invalid_value", param)
    assert faults.requests == []


@pytest.mark.parametrize("is_streamed", [False, True])
def test_messages_without_any_text_are_rejected(server: LocalServer, is_streamed: bool) -> None:
    messages = [{"role": "user", "content": " "}]
    message = assert_error(post(server, messages=messages, stream=is_streamed), 400, "bad_request")
    assert message == "there is no text to send"


def test_the_checks_of_the_server_have_errors_of_the_same_form(faults: FaultyServer) -> None:
    authorized = {"authorization": f"Bearer {TOKEN}"}
    with serve_openai(faults.base_url, max_request_bytes=100) as server:
        url = f"{server.base_url}/v1/chat/completions"
        assert_error(post(server, user="x" * 100), 413, "request_too_large")
        assert_error(httpx.get(url), 405, "method_not_allowed")
        assert_error(httpx.get(f"{server.base_url}/chat"), 404, "not_found")
        assert_error(httpx.post(url, headers=authorized), 415, "unsupported_media_type")
        typed = {**authorized, "content-type": "application/json"}
        assert_error(httpx.post(url, headers=typed, content=b"[]"), 400, "bad_request")
        elsewhere = {**authorized, "host": "evil.example"}
        assert_error(httpx.post(url, headers=elsewhere), 403, "wrong_host")


def test_a_wrong_token_is_rejected_before_the_body_is_read(server: LocalServer) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999\r\n\r\n"
    host, _, port = server.base_url.removeprefix("http://").partition(":")

    async def scenario() -> None:
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(head)
            with anyio.fail_after(10):
                assert (await stream.receive()).startswith(b"HTTP/1.1 401 ")

    anyio.run(scenario)


def test_callers_share_the_limit_of_replies(faults: FaultyServer) -> None:
    faults.stall(after="Once")
    with (
        serve_openai(faults.base_url, max_concurrent=1, max_waiting=0) as server,
        connect(server) as client,
        complete(client, stream=True) as stream,
    ):
        next(iter(stream))
        answer = post(server)
        assert_error(answer, 503, "too_busy")
        assert int(answer.headers["retry-after"]) > 0


def test_a_page_may_use_it_where_its_origin_is_allowed(faults: FaultyServer) -> None:
    faults.reply("Hi.")
    origin = "https://app.example"
    with serve_openai(faults.base_url, allow_origins=[origin]) as server:
        preflight = httpx.options(
            f"{server.base_url}/v1/chat/completions",
            headers={
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization, content-type, x-stainless-os",
            },
        )
        with connect(server, default_headers={"origin": "https://evil.example"}) as evil:
            with pytest.raises(openai.PermissionDeniedError):
                complete(evil)
    assert preflight.status_code == 200
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]


def test_metrics_count_the_replies_and_their_characters(
    server: LocalServer, client: openai.OpenAI, faults: FaultyServer
) -> None:
    faults.reply("Grüße")
    complete(client)
    list(complete(client, stream=True))
    client.models.list()
    metrics = httpx.get(f"{server.base_url}/metrics").text
    labels = 'path="/v1/chat/completions",status="200"'
    assert f'cromicle_requests_total{{end="complete",{labels}}} 2.0' in metrics
    assert 'path="/v1/models",status="200"} 1.0' in metrics
    assert "cromicle_reply_characters_total 10.0" in metrics
    assert "cromicle_first_text_seconds_count 2.0" in metrics
    assert httpx.get(f"{server.base_url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_app_runs_under_any_asgi_server(faults: FaultyServer, backend: str) -> None:
    async def scenario() -> None:
        transport = httpx.ASGITransport(build_openai_app(faults.base_url))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.post(
                "/v1/chat/completions",
                json={"model": "any", "messages": HELLO},
                headers={"authorization": f"Bearer {TOKEN}"},
            )
            assert answer.json()["choices"][0]["message"]["content"] == "Hi."

    faults.reply("Hi.")
    anyio.run(scenario, backend=backend)


def test_the_well_known_token_is_not_for_other_machines() -> None:
    app = create_openai_app(AsyncClient(base_url="http://127.0.0.1:1"))
    with pytest.raises(ConfigurationError, match="well-known"):
        LocalServer(app=app, host="0.0.0.0")


def test_the_token_defaults_to_that_of_the_environment(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROMICLE_TOKEN", "from the environment")
    with (
        serve_openai(faults.base_url, token=None) as server,
        connect(server, api_key="from the environment") as client,
    ):
        assert client.models.list()


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"client": Client(base_url="http://127.0.0.1:1")}, "client"),
        ({"models": []}, "models"),
        ({"models": ["a", "a"]}, "models"),
        ({"models": ""}, "models"),
        ({"allow_options": ["tools"]}, "allow_options"),
        ({"tokens": []}, "tokens"),
        ({"max_request_bytes": 0}, "max_request_bytes"),
    ],
)
def test_an_invalid_option_is_named(options: dict[str, Any], option: str) -> None:
    given = {"client": AsyncClient(base_url="http://127.0.0.1:1"), **options}
    with pytest.raises(ConfigurationError) as caught:
        create_openai_app(**given)
    assert caught.value.option == option
