"""gpt4free's provider by its own call, on asyncio and trio."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cromicle_sdk import (
    AuthenticationError,
    ConfigurationError,
    InvalidMessageError,
    Retry,
)
from cromicle_sdk.integrations import gpt4free
from cromicle_sdk.integrations.gpt4free import Cromicle
from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer

MESSAGES = [{"role": "user", "content": "Hello, how are you?"}]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.delenv("CROMICLE_TOKEN", raising=False)
    with FaultyServer() as running:
        monkeypatch.setenv("CROMICLE_BASE_URL", running.base_url)
        yield running


async def read(**options: Any) -> str:
    generator = Cromicle.create_async_generator(
        model="gpt-3.5-turbo", messages=MESSAGES, **{"retry": Retry(attempts=1), **options}
    )
    return "".join([text async for text in generator])


@pytest.mark.anyio
async def test_the_example_of_the_readme(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CROMICLE_TOKEN", raising=False)
    with LocalServer() as local:
        monkeypatch.setenv("CROMICLE_BASE_URL", local.base_url)
        async for message in Cromicle.create_async_generator(
            model="gpt-3.5-turbo", messages=[{"role": "user", "content": "Hello, how are you?"}]
        ):
            print(message, end="")
    assert capsys.readouterr().out == "Hello, how are you?"


def test_it_has_the_attributes_of_the_provider_of_gpt4free() -> None:
    assert Cromicle.url == "https://cromicle.top"
    assert Cromicle.supports_gpt_35_turbo is True
    assert Cromicle.working is False
    assert inspect.isasyncgenfunction(Cromicle.create_async_generator)
    signature = inspect.signature(Cromicle.create_async_generator)
    assert list(signature.parameters) == ["model", "messages", "proxy", "kwargs"]


@pytest.mark.anyio
async def test_each_chunk_is_yielded_as_it_arrives(server: FaultyServer) -> None:
    gate = threading.Event()
    server.reply(chunks=["Hello, ", "world!"], gate=gate)
    generator = Cromicle.create_async_generator("any", MESSAGES)
    assert await anext(generator) == "Hello, "
    gate.set()
    assert [text async for text in generator] == ["world!"]
    server.wait_until_closed()


@pytest.mark.anyio
async def test_the_model_is_not_sent(server: FaultyServer) -> None:
    await read()
    (request,) = server.requests
    assert list(request.json) == ["message", "token", "hash"]
    assert "gpt-3.5-turbo" not in request.body.decode() + str(request.headers)


@pytest.mark.anyio
async def test_options_of_the_client_are_used_and_others_ignored(server: FaultyServer) -> None:
    with FaultyServer() as other:
        other.reply(chunks=["12345", "6"], headers={"x-served": "yes"})
        await read(
            base_url=other.base_url,
            token="mine",
            timeout=5,
            headers={"x-mine": "1"},
            strict=True,
            verify=None,
            stream=True,
            temperature=0.5,
            auth=None,
            api_key="ignored",
            cookies={},
        )
        (request,) = other.requests
    assert server.requests == []
    assert (request.token, request.headers["x-mine"]) == ("mine", "1")
    assert "ignored" not in request.body.decode() + str(request.headers)


@pytest.mark.anyio
async def test_a_proxy_is_used(server: FaultyServer) -> None:
    await read(base_url="http://cromicle.invalid", proxy=server.base_url)
    (request,) = server.requests
    assert request.headers["host"].partition(":")[0] == "cromicle.invalid"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"base_url": "nowhere"}, ConfigurationError),
        ({"proxy": "nowhere"}, ConfigurationError),
        ({"token": "s3cret", "timeout": -1}, ConfigurationError),
        ({"token": "s3cret"}, AuthenticationError),
    ],
)
async def test_errors_are_those_of_the_client_and_hide_the_token(
    options: dict[str, Any], error: type[Exception], server: FaultyServer
) -> None:
    server.fail(401)
    with pytest.raises(error) as caught:
        await read(**options)
    # Frames of this file hold it, as any caller's may.
    shown = [
        repr(frame.f_locals)
        for frame, _ in traceback.walk_tb(caught.value.__traceback__)
        if frame.f_code.co_filename == gpt4free.__file__
    ]
    assert shown
    assert "s3cret" not in "".join(shown)


@pytest.mark.anyio
async def test_invalid_messages_are_named(server: FaultyServer) -> None:
    with pytest.raises(InvalidMessageError):
        await anext(Cromicle.create_async_generator("any", []))
    assert server.requests == []


@pytest.mark.anyio
async def test_closing_it_early_closes_the_connection(server: FaultyServer) -> None:
    server.stall(after="Hello")
    generator = Cromicle.create_async_generator("any", MESSAGES)
    async with contextlib.aclosing(generator):
        async for text in generator:
            assert text == "Hello"
            break
    server.wait_until_closed()


@pytest.mark.anyio
async def test_an_error_in_the_callers_loop_closes_the_connection(server: FaultyServer) -> None:
    server.stall(after="Hello")
    generator = Cromicle.create_async_generator("any", MESSAGES)
    with pytest.raises(KeyError, match="mine"):
        async with contextlib.aclosing(generator):
            async for _ in generator:
                raise KeyError("mine")
    server.wait_until_closed()


@pytest.mark.anyio
async def test_dropping_it_closes_the_connection(server: FaultyServer, anyio_backend: str) -> None:
    server.stall(after="Hello")
    generator = Cromicle.create_async_generator("any", MESSAGES)
    assert await anext(generator) == "Hello"
    # trio has this to say about every async generator that was dropped.
    expected: Any = (
        pytest.warns(ResourceWarning, match="was garbage collected before it had been exhausted")
        if anyio_backend == "trio"
        else contextlib.nullcontext()
    )
    with expected:
        del generator
        gc.collect()
        await anyio.sleep(0)
    await anyio.to_thread.run_sync(server.wait_until_closed)


def test_the_end_of_the_event_loop_closes_the_connection(server: FaultyServer) -> None:
    server.stall(after="Hello")

    async def leave() -> None:
        async for _ in Cromicle.create_async_generator("any", MESSAGES):
            break

    asyncio.run(leave())
    server.wait_until_closed()
