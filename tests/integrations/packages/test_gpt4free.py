"""`Cromicle` as a provider of gpt4free's own clients."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import g4f.client
import pytest
from g4f.providers.base_provider import AsyncGeneratorProvider

from cromicle_sdk import (
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    IncompleteReplyError,
    InvalidMessageError,
    Retry,
)
from cromicle_sdk.integrations.gpt4free import Cromicle
from cromicle_sdk.testing import FaultyServer

MESSAGES = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Hello, how are you?"},
]
PROMPT = "System: Answer briefly.\nUser: Hello, how are you?\nAssistant:"


def complete(messages: Any = MESSAGES, **options: Any) -> Any:
    client = g4f.client.Client(provider=Cromicle)
    return client.chat.completions.create(messages, model="any", **options)


async def complete_async(messages: Any = MESSAGES, **options: Any) -> Any:
    client = g4f.client.AsyncClient(provider=Cromicle)
    return await client.chat.completions.create(messages, model="any", **options)


def stream(messages: Any = MESSAGES, **options: Any) -> list[Any]:
    return list(complete(messages, stream=True, **options))


async def stream_async(messages: Any = MESSAGES, **options: Any) -> list[Any]:
    client = g4f.client.AsyncClient(provider=Cromicle)
    chunks = client.chat.completions.create(messages, model="any", stream=True, **options)
    return [chunk async for chunk in chunks]


def call(kind: str, messages: Any = MESSAGES, **options: Any) -> tuple[str, str]:
    """The text and the finish reason, by one of the four ways."""
    result: Any
    if kind == "whole":
        result = [complete(messages, **options)]
    elif kind == "whole, async":
        result = [asyncio.run(complete_async(messages, **options))]
    elif kind == "stream":
        result = stream(messages, **options)
    else:
        result = asyncio.run(stream_async(messages, **options))
    choices = [chunk.choices[0] for chunk in result]
    texts = [getattr(choice, "message", None) or choice.delta for choice in choices]
    return "".join(text.content or "" for text in texts), choices[-1].finish_reason


KINDS = ["whole", "whole, async", "stream", "stream, async"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def test_it_is_a_provider_of_gpt4free() -> None:
    assert issubclass(Cromicle, AsyncGeneratorProvider)
    assert {"model", "messages"} <= set(Cromicle.get_parameters())
    assert Cromicle.get_dict()["name"] == "Cromicle"


@every_kind
def test_a_reply(kind: str, faults: FaultyServer) -> None:
    faults.reply(chunks=["Fine, ", "thanks."])
    assert call(kind) == ("Fine, thanks.", "stop")
    (request,) = faults.requests
    assert request.json["message"] == PROMPT
    assert list(request.json) == ["message", "token", "hash"]


@every_kind
def test_a_reply_that_is_cut_short_by_the_model_says_so(kind: str, faults: FaultyServer) -> None:
    faults.reply("Fine, than", finish_reason="length")
    assert call(kind) == ("Fine, than", "length")


@pytest.mark.parametrize("kind", ["stream", "stream, async"])
def test_each_chunk_arrives_as_it_is_sent(kind: str, faults: FaultyServer) -> None:
    gate = threading.Event()
    faults.reply(chunks=["Fine, ", "thanks."], gate=gate)

    def read() -> None:
        chunks = complete(stream=True)
        assert next(chunks).choices[0].delta.content == "Fine, "
        gate.set()
        assert next(chunks).choices[0].delta.content == "thanks."
        list(chunks)

    async def read_async() -> None:
        client = g4f.client.AsyncClient(provider=Cromicle)
        chunks = client.chat.completions.create(MESSAGES, model="any", stream=True)
        assert (await anext(chunks)).choices[0].delta.content == "Fine, "
        gate.set()
        assert (await anext(chunks)).choices[0].delta.content == "thanks."
        assert [chunk async for chunk in chunks]

    if kind == "stream":
        read()
    else:
        asyncio.run(read_async())


@every_kind
def test_the_messages_of_the_caller_are_left_as_they_are(kind: str, faults: FaultyServer) -> None:
    messages = [dict(message) for message in MESSAGES]
    call(kind, messages)
    assert messages == MESSAGES


@every_kind
def test_it_can_be_called_from_one_event_loop_after_another(
    kind: str, faults: FaultyServer
) -> None:
    for _ in range(3):
        assert call(kind)[0]
    assert len(faults.requests) == 3


def test_a_blocking_call_in_a_running_event_loop(faults: FaultyServer) -> None:
    async def main() -> None:
        assert complete().choices[0].message.content
        assert stream()[-1].choices[0].finish_reason == "stop"
        await complete_async()

    asyncio.run(main())


@every_kind
def test_options_of_the_client_are_used_and_those_of_gpt4free_ignored(
    kind: str, faults: FaultyServer
) -> None:
    with FaultyServer() as other:
        call(
            kind,
            base_url=other.base_url,
            token="mine",
            timeout=20,
            headers={"x-mine": "1"},
            send_messages=True,
            temperature=0.5,
            max_tokens=None,
            api_key="not the token",
            conversation=None,
        )
        (request,) = other.requests
    assert faults.requests == []
    assert (request.token, request.headers["x-mine"]) == ("mine", "1")
    assert request.messages == MESSAGES
    assert "not the token" not in request.body.decode() + str(request.headers)


@every_kind
def test_a_proxy_of_gpt4free_is_used(kind: str, faults: FaultyServer) -> None:
    call(kind, base_url="http://cromicle.invalid", proxy=faults.base_url)
    (request,) = faults.requests
    assert request.headers["host"].partition(":")[0] == "cromicle.invalid"


def test_a_url_of_its_own(faults: FaultyServer) -> None:
    with FaultyServer() as own:

        class Subclass(Cromicle):
            url = own.base_url

        g4f.client.Client(provider=Subclass).chat.completions.create(MESSAGES, model="any")
        assert (len(own.requests), len(faults.requests)) == (1, 0)


@every_kind
def test_the_time_between_chunks_is_limited(kind: str, faults: FaultyServer) -> None:
    faults.stall(after="Fine")
    # In a stream, gpt4free itself may notice first.
    expected = (APITimeoutError, TimeoutError)
    with pytest.raises(expected):
        call(kind, stream_timeout=0.3, retry=Retry(attempts=1))


def test_a_limit_between_chunks_does_not_disturb_a_stream(faults: FaultyServer) -> None:
    # gpt4free then asks for each chunk in another task.
    for kind in ("stream", "stream, async"):
        faults.reply(chunks=["a", "b", "c"], delay=0.01)
        assert call(kind, stream_timeout=20)[0] == "abc"


@every_kind
def test_a_reply_that_breaks_off_is_an_error(kind: str, faults: FaultyServer) -> None:
    faults.cut(after="Fine, th")
    with pytest.raises(IncompleteReplyError) as caught:
        call(kind, retry=Retry(attempts=1))
    assert caught.value.partial_text == "Fine, th"


@pytest.mark.parametrize("kind", ["whole", "whole, async"])
def test_a_whole_reply_that_broke_off_is_retried(kind: str, faults: FaultyServer) -> None:
    faults.cut(after="Fine, th").reply("Fine, thanks.")
    assert call(kind, retry=Retry(first_delay=0))[0] == "Fine, thanks."


@every_kind
def test_errors_are_those_of_the_client(kind: str, faults: FaultyServer) -> None:
    faults.fail(401)
    with pytest.raises(AuthenticationError) as caught:
        call(kind, token="s3cret")
    assert "s3cret" not in str(caught.value) + repr(caught.value)
    with pytest.raises(ConfigurationError, match="base_url"):
        call(kind, base_url="nowhere", token="s3cret")
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(InvalidMessageError):
        call(kind, [{"role": "user", "content": [image]}])


def test_leaving_a_stream_closes_the_connection(faults: FaultyServer) -> None:
    faults.stall(after="Fine")
    chunks = complete(stream=True)
    assert next(chunks).choices[0].delta.content == "Fine"
    chunks.close()
    faults.wait_until_closed()
