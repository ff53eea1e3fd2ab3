"""Clients of the user's: test doubles, forks, exceptions that are not ours."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from runtimes import ASYNC_RUNTIMES, Runtime, outcome, run_blocking
from starlette.testclient import TestClient

from cromicle_sdk import (
    APIConnectionError,
    AsyncClient,
    AsyncTransport,
    Client,
    ConfigurationError,
    CromicleError,
    RedirectError,
    Retry,
    Transport,
)
from cromicle_sdk.server import create_app
from cromicle_sdk.testing import FaultyServer

BASE_URL = "http://mocked.test"


def own_client(runtime: Runtime, **options: Any) -> Any:
    return httpx.Client(**options) if runtime.is_blocking else httpx.AsyncClient(**options)


async def close(client: Any) -> None:
    client.close() if isinstance(client, httpx.Client) else await client.aclose()


# Test doubles: a response that came over no network needs neither a length nor chunks.


def test_a_mock_transport_answers(runtime: Runtime) -> None:
    class Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from (b"one ", b"", "zwei €".encode())

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for part in self:
                yield part

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Stream())

    async def scenario() -> None:
        own = own_client(runtime, transport=httpx.MockTransport(answer))
        async with runtime.client(base_url=BASE_URL, http_client=own) as client:
            assert (await client.chat("Hi")).text == "one zwei €"
            assert [text async for text in client.stream("Hi")] == ["one ", "zwei €"]
        await close(own)

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_an_asgi_transport_answers(runtime: Runtime) -> None:
    async def scenario() -> None:
        transport = httpx.ASGITransport(app=create_app())
        async with (
            httpx.AsyncClient(transport=transport) as own,
            AsyncClient(base_url=BASE_URL, http_client=own) as client,
        ):
            assert (await client.chat("Hello there")).text == "Hello there"

    runtime.run(scenario)


def test_the_test_client_of_starlette_answers() -> None:
    with (
        TestClient(create_app()) as own,
        Client(base_url="http://testserver", http_client=own) as client,
    ):
        assert client.chat("Hello there").text == "Hello there"


# What is not an error of the call passes unchanged, at once.


@pytest.mark.parametrize(
    "error", [TimeoutError("mine"), ConnectionError("mine"), OSError("mine"), ValueError("mine")]
)
def test_an_exception_of_a_hook_passes_unchanged(
    error: Exception, runtime: Runtime, faults: FaultyServer
) -> None:
    def fail(request: httpx.Request) -> None:
        raise error

    async def fail_later(request: httpx.Request) -> None:
        raise error

    async def scenario() -> None:
        hooks = {"request": [fail if runtime.is_blocking else fail_later]}
        own = own_client(runtime, event_hooks=hooks)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert await outcome(client.chat("Hi")) is error
        await close(own)
        assert faults.requests == []

    runtime.run(scenario)


@pytest.mark.parametrize("library", [None, httpx, httpx2], ids=["default", "httpx", "httpx2"])
def test_a_redirect_whose_location_httpx_cannot_parse_is_a_redirect(
    library: Any, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.redirect(307, location="http://[:::::]/")

    async def scenario() -> None:
        own: Any = None
        if library is not None:
            own = library.Client() if runtime.is_blocking else library.AsyncClient()
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, RedirectError)
            assert error.location == "http://[:::::]/"
            assert (error.status_code, error.attempts) == (307, 1)
        assert len(faults.requests) == 1
        if own is not None:
            own.close() if runtime.is_blocking else await own.aclose()

    runtime.run(scenario)
    faults.wait_until_closed()


# Forks


def in_child(run: Any) -> int:
    """The exit status of a forked child that runs a function."""
    with warnings.catch_warnings():
        # The tests' own threads are alive, which is what newer Pythons warn about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        status = 1
        try:
            status = run()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("transport", [None, Transport], ids=["httpx's", "ours"])
def test_a_client_that_was_used_before_a_fork_is_rejected(
    transport: Any, faults: FaultyServer
) -> None:
    faults.reply("Hello.")
    options = {} if transport is None else {"transport": transport()}
    with (
        httpx.Client(**options) as own,
        Client(base_url=faults.base_url, http_client=own) as client,
    ):
        client.chat("Hi")

        def call() -> int:
            for each in (client, Client(base_url=faults.base_url, http_client=own)):
                with pytest.raises(ConfigurationError) as caught:
                    each.chat("Hi")
                assert caught.value.option == "http_client"
            return 0

        assert in_child(call) == 0
        assert client.chat("Hi").text == "Hello."
    assert len(faults.requests) == 2


def test_a_client_that_was_not_used_before_a_fork_works(faults: FaultyServer) -> None:
    faults.reply("Hello.")
    with httpx.Client() as own, Client(base_url=faults.base_url, http_client=own) as client:
        assert in_child(lambda: 0 if client.chat("Hi").text == "Hello." else 2) == 0


# Requests beside that of the call, through the same transport


def own_client_of_ours(runtime: Runtime, **options: Any) -> Any:
    transport: Any = Transport() if runtime.is_blocking else AsyncTransport()
    return own_client(runtime, transport=transport, **options)


@pytest.mark.parametrize("when", ["request", "response"])
@pytest.mark.parametrize("reads", [True, False], ids=["read", "left open"])
def test_a_hook_that_sends_another_request_with_the_same_extensions_gets_its_own_answer(
    when: str, reads: bool, runtime: Runtime, faults: FaultyServer
) -> None:
    """Tools pass a request's extensions on, for its timeouts and its trace."""
    texts = ("hook", "call") if when == "request" else ("call", "hook")
    for text in texts:
        faults.reply(text)
    read: list[str] = []

    async def scenario() -> None:
        own = own_client_of_ours(runtime)
        other = own_client(runtime, transport=own._transport)

        async def send(message: Any) -> None:
            extensions = getattr(message, "request", message).extensions
            url = f"{faults.base_url}/chat"
            request = other.build_request("POST", url, json={}, extensions=extensions)
            sent = other.send(request, stream=True)
            response = sent if runtime.is_blocking else await sent
            if reads:
                content = response.read() if runtime.is_blocking else await response.aread()
                read.append(content.decode())
            else:
                responses.append(response)

        def send_now(message: Any) -> None:
            run_blocking(send(message))

        responses: list[Any] = []
        own.event_hooks[when].append(send_now if runtime.is_blocking else send)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert (await client.chat("Hi")).text == "call"
        for response in responses:
            content = response.read() if runtime.is_blocking else await response.aread()
            read.append(content.decode())
        await close(own)

    runtime.run(scenario)
    assert read == ["hook"]


def test_a_request_that_authentication_sends_again_is_that_of_the_call(
    runtime: Runtime, faults: FaultyServer
) -> None:
    class Again(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, Any, None]:
            response = yield request
            assert response.status_code == 401
            request.headers["authorization"] = "granted"
            yield request

    faults.fail(401).reply("Hello.", finish_reason="stop")

    async def scenario() -> None:
        own = own_client_of_ours(runtime, auth=Again())
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            reply = await client.chat("Hi")
            assert (reply.text, reply.attempts) == ("Hello.", 1)
            # Only a response that is read directly has its trailers.
            assert reply.finish_reason == "stop"
        await close(own)

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_transport_that_sends_the_request_twice_gets_two_answers(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """At the same time, as one that hedges does."""
    faults.reply("one of them").reply("one of them")

    class Twice(AsyncTransport):
        async def handle_async_request(self, request: Any) -> Any:
            responses: list[httpx.Response] = []

            async def send() -> None:
                responses.append(await super(Twice, self).handle_async_request(request))

            async with anyio.create_task_group() as group:
                group.start_soon(send)
                group.start_soon(send)
            await responses[1].aclose()
            return responses[0]

    async def scenario() -> None:
        own = httpx.AsyncClient(transport=Twice())
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert (await client.chat("Hi")).text == "one of them"
        await own.aclose()

    runtime.run(scenario)
    assert len(faults.requests) == 2


# The log


@pytest.mark.parametrize("custom", [False, True])
def test_attempts_retries_and_ends_are_logged(
    custom: bool, runtime: Runtime, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    faults.fail(503, retry_after=0, body="secret-reply").reply("secret-reply").fail(401)
    caplog.set_level("DEBUG", "cromicle_sdk")

    async def scenario() -> None:
        own = own_client(runtime)
        options = {"http_client": own} if custom else {}
        async with runtime.client(
            base_url=faults.base_url, token="secret-token", **options
        ) as client:
            await client.chat("secret-prompt")
            assert isinstance(await outcome(client.chat("secret-prompt")), CromicleError)
        await close(own)

    runtime.run(scenario)
    lines = [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "cromicle_sdk"
    ]
    url = f"{faults.base_url}/chat"
    assert [level for level, _ in lines] == ["DEBUG", "INFO", "DEBUG", "DEBUG", "DEBUG", "DEBUG"]
    texts = [text for _, text in lines]
    assert texts[:3] == [
        f"attempt 1: POST {url}",
        "retrying in 0.00 s, after attempt 1 of 3: status 503",
        f"attempt 2: POST {url}",
    ]
    assert texts[3].startswith("attempt 2 succeeded: 12 bytes in 1 chunks, ")
    assert texts[4:] == [f"attempt 1: POST {url}", "attempt 1 failed: status 401"]
    assert "secret" not in caplog.text


def test_a_reused_connection_that_stalls_is_not_resent(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """Only a connection that was closed before the request was read gets it another one."""
    faults.reply("one").stall()

    async def scenario() -> None:
        retry = Retry(attempts=1)
        async with runtime.client(base_url=faults.base_url, retry=retry, timeout=0.2) as client:
            await client.chat("Hi")
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, APIConnectionError)
            assert error.attempts == 1
        assert len(faults.requests) == 2

    runtime.run(scenario)
