"""The protocol's extensions end to end: finish reasons, `extra_body` and `send_messages`."""

from __future__ import annotations

import json
import pickle
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from asgi_servers import SERVERS, Serve
from runtimes import Runtime, outcome
from starlette.testclient import TestClient

from cromicle_sdk import (
    AsyncTransport,
    BadRequestError,
    Client,
    ConfigurationError,
    Conversation,
    IncompleteReplyError,
    Reply,
    Retry,
    Transport,
)
from cromicle_sdk._http import framing
from cromicle_sdk.server import BackendRequest, LocalServer, create_app
from cromicle_sdk.testing import FaultyServer, build_chunk, build_head, build_last_chunk

ONCE = Retry(attempts=1)
CONVERSATION = Conversation("Answer in French.").user("Hello").assistant("Bonjour").user("Bye")


async def tell(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    """A backend that tells what it was called with."""
    request.finish_reason = "length"
    yield json.dumps([prompt, request.messages, dict(request.options)], ensure_ascii=False)


async def ask(client: Any, **options: Any) -> tuple[Reply, Reply]:
    """The reply of `chat`, and that of a stream."""
    async with client.stream("Hi", **options) as stream:
        async for _ in stream:
            pass
    return await client.chat("Hi", **options), stream.reply


# Finish reasons


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
def test_the_finish_reason_of_a_backend_reaches_the_caller(serve: Serve, runtime: Runtime) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=base_url, token="abc") as client:
            for _ in range(2):
                chat, stream = await ask(client)
                assert chat.text == stream.text == '["Hi", null, {}]'
                # hypercorn has trailers for HTTP/2 alone.
                expected = "length" if serve is SERVERS["uvicorn"] else None
                assert chat.finish_reason == stream.finish_reason == expected

    with serve(create_app(tell)) as base_url:
        runtime.run(scenario)


def test_a_server_that_says_nothing_gives_no_finish_reason(
    runtime: Runtime, echo: LocalServer, faults: FaultyServer
) -> None:
    faults.reply("text").reply("text", length="exact")

    async def scenario() -> None:
        for base_url in (echo.base_url, faults.base_url):
            async with runtime.client(base_url=base_url) as client:
                assert [reply.finish_reason for reply in await ask(client)] == [None, None]

    runtime.run(scenario)


def test_the_trailers_may_arrive_later_than_the_text(
    runtime: Runtime, faults: FaultyServer
) -> None:
    end = build_last_chunk({"x-finish-reason": "content_filter"})
    parts = [
        build_head() + build_chunk("text"),
        *(end[index : index + 1] for index in range(len(end))),
    ]
    faults.raw(parts, delay=0.001)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            for reply in await ask(client):
                assert (reply.text, reply.finish_reason) == ("text", "content_filter")

    runtime.run(scenario)
    assert faults.connections == 1


@pytest.mark.parametrize("value", ["", "two words", "x" * 65, "x" * 50_000, "stop, length", "\x7f"])
def test_a_finish_reason_that_is_no_word_is_ignored(
    value: str, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.reply("text", finish_reason=value)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            for reply in await ask(client):
                assert (reply.text, reply.finish_reason) == ("text", None)

    runtime.run(scenario)


def test_a_repeated_finish_reason_is_ignored(runtime: Runtime, faults: FaultyServer) -> None:
    end = build_last_chunk([("x-finish-reason", "stop"), ("x-finish-reason", "length")])
    faults.raw(build_head() + build_chunk("text") + end)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            for reply in await ask(client):
                assert (reply.text, reply.finish_reason) == ("text", None)

    runtime.run(scenario)


@pytest.mark.parametrize(
    "trailers",
    [b"x-finish-reason: " + b"x" * 1_000_000, b"x: y\r\n" * 200_000, b"no colon\r\n\r\n"],
    ids=["one line", "many lines", "not HTTP"],
)
def test_trailers_that_are_too_long_or_not_http_raise_an_error_with_the_text(
    trailers: bytes, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.raw(build_head() + build_chunk("text") + b"0\r\n" + trailers, end="close")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, IncompleteReplyError)
            assert error.partial_text == "text"

    runtime.run(scenario)
    faults.wait_until_closed()


def test_a_stream_that_is_cut_in_its_trailers_is_incomplete(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.raw(build_head() + build_chunk("text") + b"0\r\nx-finish-reason: stop\r\n", end="close")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            assert isinstance(await outcome(client.chat("Hi")), IncompleteReplyError)

    runtime.run(scenario)


def test_with_another_httpcore_the_trailers_are_read_beside_it(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert framing.is_h11_reachable()
    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.connection.find_h11", lambda _: None)
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.is_h11_reachable", lambda: False)
    faults.reply("text", finish_reason="length").reply("more").reply("text", finish_reason="stop")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            reasons = [(await client.chat("Hi")).finish_reason for _ in range(3)]
            assert reasons == ["length", None, "stop"]

    runtime.run(scenario)
    assert faults.connections == 1


def test_without_the_private_names_of_httpcore_there_is_no_finish_reason(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.connection.find_h11", lambda _: None)
    faults.reply("text", finish_reason="length")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            assert (await client.chat("Hi")).finish_reason is None

    runtime.run(scenario)


@pytest.mark.parametrize("is_ours", [True, False], ids=["our transport", "httpx's"])
def test_a_custom_client_shows_trailers_only_over_our_transport(
    is_ours: bool, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.reply("text", finish_reason="length")

    async def scenario() -> None:
        kind = httpx.Client if runtime.is_blocking else httpx.AsyncClient
        transport: Any = Transport() if runtime.is_blocking else AsyncTransport()
        own: Any = kind(transport=transport if is_ours else None)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            for reply in await ask(client):
                assert reply.text == "text"
                assert reply.finish_reason == ("length" if is_ours else None)
        own.close() if runtime.is_blocking else await own.aclose()

    runtime.run(scenario)


def test_a_hook_that_reads_the_body_leaves_the_finish_reason(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.reply("text", finish_reason="length")

    def read(response: httpx.Response) -> None:
        response.read()

    async def aread(response: httpx.Response) -> None:
        await response.aread()

    async def scenario() -> None:
        own: Any
        if runtime.is_blocking:
            own = httpx.Client(transport=Transport(), event_hooks={"response": [read]})
        else:
            own = httpx.AsyncClient(transport=AsyncTransport(), event_hooks={"response": [aread]})
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert (await client.chat("Hi")).finish_reason == "length"
        own.close() if runtime.is_blocking else await own.aclose()

    runtime.run(scenario)


def test_the_test_client_of_starlette_takes_trailers() -> None:
    with (
        TestClient(create_app(tell)) as own,
        Client(base_url="http://testserver", token="abc", http_client=own) as client,
    ):
        reply = client.chat("Hi")
    assert (reply.text, reply.finish_reason) == ('["Hi", null, {}]', None)


def test_a_reply_pickles_with_its_finish_reason(faults: FaultyServer) -> None:
    faults.reply("text", finish_reason="length")
    with Client(base_url=faults.base_url) as client:
        reply = client.chat("Hi")
    assert pickle.loads(pickle.dumps(reply)) == reply
    assert "finish_reason='length'" in repr(reply)


# What is sent


def test_messages_and_options_reach_the_backend(runtime: Runtime) -> None:
    async def scenario() -> None:
        options = {"send_messages": True, "extra_body": {"seed": 1, "top_p": 0.5}}
        async with (
            runtime.client(base_url=server.base_url, token="abc", **options) as client,
            client.with_options(extra_body={"top_p": 1, "stop": ["ü"]}) as view,
        ):
            reply = await view.chat(CONVERSATION, extra_body={"stop": None})
            prompt, messages, received = json.loads(reply.text)
            assert prompt.endswith("\nUser: Bye\nAssistant:")
            assert messages == CONVERSATION.messages
            assert received == {"seed": 1, "top_p": 1, "stop": None}
            plain = client.with_options(send_messages=False)
            assert json.loads((await plain.chat(CONVERSATION)).text)[1] is None
            one = json.loads((await client.chat("Hi")).text)
            assert one == ["Hi", [{"role": "user", "content": "Hi"}], {"seed": 1, "top_p": 0.5}]

    with LocalServer(tell, allow_options=True) as server:
        runtime.run(scenario)


def test_a_server_that_does_not_accept_a_field_names_it(
    runtime: Runtime, echo: LocalServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=echo.base_url, send_messages=True) as client:
            assert (await client.chat(CONVERSATION)).text == "Bye"
            error = await outcome(client.chat("Hi", extra_body={"temperature": 1}))
            assert isinstance(error, BadRequestError)
            assert "'temperature'" in str(error)
            assert error.attempts == 1

    runtime.run(scenario)


def test_a_plain_client_sends_the_three_fields_and_nothing_else(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, extra_body={}) as client:
            await client.chat(CONVERSATION)

    runtime.run(scenario)
    (request,) = faults.requests
    assert list(request.json) == ["message", "token", "hash"]
    assert (request.messages, request.options) == (None, {})
    assert "te" not in request.headers


@pytest.mark.parametrize(
    "options",
    [
        {"extra_body": {"token": "x"}},
        {"extra_body": {"messages": []}},
        {"extra_body": {1: 2}},
        {"extra_body": {"temperature": float("nan")}},
        {"extra_body": {"user": "\ud800"}},
        {"send_messages": "yes"},
    ],
)
def test_an_invalid_extension_is_refused_before_anything_is_sent(
    options: dict[str, Any], runtime: Runtime, faults: FaultyServer
) -> None:
    (name,) = options

    async def scenario() -> None:
        with pytest.raises(ConfigurationError, match=name):
            runtime.client(base_url=faults.base_url, **options)
        async with runtime.client(base_url=faults.base_url) as client:
            with pytest.raises(ConfigurationError, match=name):
                client.with_options(**options)
            with pytest.raises(ConfigurationError, match=name):
                client.stream("Hi", **options)
            error = await outcome(client.chat("Hi", **options))
            assert isinstance(error, ConfigurationError)
            assert error.option == name

    runtime.run(scenario)
    assert not faults.connections


def test_a_retry_sends_the_same_fields(runtime: Runtime, faults: FaultyServer) -> None:
    faults.fail(503, retry_after=0).reply("text")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, send_messages=True) as client:
            await client.chat(iter(CONVERSATION), extra_body={"seed": 1})

    runtime.run(scenario)
    first, second = faults.requests
    assert first.body == second.body
    assert second.messages == CONVERSATION.messages
    assert second.options == {"seed": 1}


def test_a_pickled_client_sends_the_same_fields(faults: FaultyServer) -> None:
    with Client(base_url=faults.base_url, extra_body={"seed": 1}, send_messages=True) as client:
        twin = pickle.loads(pickle.dumps(client))
    with twin:
        twin.chat("Hi")
    (request,) = faults.requests
    assert (request.messages, request.options) == (
        [{"role": "user", "content": "Hi"}],
        {"seed": 1},
    )
