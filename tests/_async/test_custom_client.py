"""Clients of the user's: test doubles, forks, exceptions that are not ours."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import threading
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import anyio
import h11
import httpcore
import httpx
import httpx2
import pytest
from runtimes import ASYNC_RUNTIMES, Runtime, outcome, run_blocking
from starlette.testclient import TestClient

from cromicle_sdk import (
    APIConnectionError,
    APITimeoutError,
    AsyncClient,
    AsyncTransport,
    Client,
    ConfigurationError,
    CromicleError,
    InternalServerError,
    RedirectError,
    Retry,
    Timeout,
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


# As a hook raises them that asks a server of its own: all but the last two look like the network's.
ERRORS_OF_HOOKS: list[Callable[[], Exception]] = [
    lambda: TimeoutError("mine"),
    lambda: ConnectionRefusedError(errno.ECONNREFUSED, "mine"),
    lambda: socket.gaierror(socket.EAI_NONAME, "mine"),
    lambda: ssl.SSLCertVerificationError(1, "mine"),
    lambda: UnicodeError("mine"),
    lambda: httpx.ConnectError("mine"),
    lambda: httpx.ReadTimeout("mine"),
    lambda: httpcore.ReadError("mine"),
    lambda: h11.RemoteProtocolError("mine"),
    lambda: InternalServerError("mine", status_code=503, headers={}, body=""),
    lambda: ValueError("mine"),
    # As httpx raises one where its client is closed.
    lambda: RuntimeError("mine"),
]


@pytest.mark.parametrize("make", ERRORS_OF_HOOKS, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize("place", ["request", "response", "auth"])
def test_an_exception_of_a_hook_passes_unchanged(
    place: str, make: Callable[[], Exception], runtime: Runtime, faults: FaultyServer
) -> None:
    error = make()

    def fail(*args: object) -> Any:
        raise error

    async def fail_later(*args: object) -> Any:
        raise error

    hook = fail if runtime.is_blocking else fail_later
    options: Any = {"auth": fail} if place == "auth" else {"event_hooks": {place: [hook]}}

    async def scenario() -> None:
        own = own_client(runtime, **options)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert await outcome(client.chat("Hi")) is error
        await close(own)
        assert len(faults.requests) == (1 if place == "response" else 0)

    runtime.run(scenario)
    # Its own frames are kept, and none of those that hold the request.
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert names[-1] in ("fail", "fail_later")
    assert "_send_handling_auth" not in names


@pytest.mark.parametrize("status", [None, 503])
def test_a_request_of_a_hook_that_fails_is_no_failure_of_the_call(
    status: int | None, runtime: Runtime, faults: FaultyServer
) -> None:
    """Such as one for a token."""

    async def scenario() -> None:
        with FaultyServer() as other:
            other.reset() if status is None else other.fail(status)

            def fetch(*args: object) -> None:
                httpx.post(other.base_url, trust_env=False).raise_for_status()

            async def fetch_later(*args: object) -> None:
                async with httpx.AsyncClient(trust_env=False) as inner:
                    (await inner.post(other.base_url)).raise_for_status()

            hook = fetch if runtime.is_blocking else fetch_later
            own = own_client(runtime, event_hooks={"request": [hook]})
            async with runtime.client(base_url=faults.base_url, http_client=own) as client:
                error = await outcome(client.chat("Hi"))
            assert isinstance(error, httpx.HTTPError)
            assert error.request.url == f"{other.base_url}"
            assert len(other.requests) == 1
            await close(own)

    runtime.run(scenario)
    assert faults.requests == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: httpx.ConnectError("theirs"),
        lambda: httpx.ReadTimeout("theirs"),
        lambda: ConnectionRefusedError(errno.ECONNREFUSED, "theirs"),
    ],
)
def test_an_exception_of_a_transport_is_a_failure_of_the_call(
    make: Callable[[], Exception], runtime: Runtime
) -> None:
    sent: list[httpx.Request] = []

    def fail(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        raise make()

    async def scenario() -> None:
        own = own_client(runtime, transport=httpx.MockTransport(fail))
        retry = Retry(attempts=2, first_delay=0)
        async with runtime.client(base_url=BASE_URL, http_client=own, retry=retry) as client:
            error = await outcome(client.chat("Hi"))
        assert isinstance(error, APIConnectionError)
        assert error.attempts == len(sent) == 2
        await close(own)

    runtime.run(scenario)


def test_a_defect_of_a_transport_passes_unchanged(runtime: Runtime) -> None:
    defect = RuntimeError("theirs")

    def fail(request: httpx.Request) -> httpx.Response:
        raise defect

    async def scenario() -> None:
        own = own_client(runtime, transport=httpx.MockTransport(fail))
        async with runtime.client(base_url=BASE_URL, http_client=own) as client:
            assert await outcome(client.chat("Hi")) is defect
        await close(own)

    runtime.run(scenario)


def test_a_body_that_stalls_for_a_custom_client_raises_a_timeout(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(after="Hel")

    async def scenario() -> None:
        own = own_client(runtime)
        retry, limits = Retry(attempts=1), Timeout(first_byte=20, stall=0.2)
        async with runtime.client(
            base_url=faults.base_url, http_client=own, retry=retry, timeout=limits
        ) as client:
            error = await outcome(client.chat("Hi"))
        await close(own)
        assert isinstance(error, APITimeoutError)
        assert (error.phase, error.partial_text) == ("stall", "Hel")

    runtime.run(scenario)


@pytest.mark.parametrize("then", ["reply", "stall", "hook"])
def test_the_wait_for_a_slot_does_not_count_for_total(
    then: str, runtime: Runtime, faults: FaultyServer
) -> None:
    """As with the default client, if the transport of the custom one is of this package."""
    begun, gate = threading.Event(), threading.Event()
    faults.reply(chunks=["a", "b"], gate=gate)
    faults.stall() if then == "stall" else faults.reply("second")
    # Blocking code does not end a hook.
    is_late = then == "stall" or (then == "hook" and not runtime.is_blocking)

    async def wait_after_the_slot(response: httpx.Response) -> None:
        if gate.is_set() and then == "hook":
            await anyio.sleep(20)

    async def scenario() -> None:
        transport: Any = Transport if runtime.is_blocking else AsyncTransport
        hooks = {} if runtime.is_blocking else {"response": [wait_after_the_slot]}
        own = own_client(runtime, transport=transport(max_connections=1), event_hooks=hooks)
        # The call has this time after its wait, which is longer. The reply is to arrive in it, also
        # on a busy machine.
        total = 0.3 if is_late else 1.5
        limits, expected = Timeout(total=total, pool=20), "total" if is_late else "second"
        async with runtime.client(
            base_url=faults.base_url, http_client=own, retry=Retry(attempts=1)
        ) as client:

            async def first() -> None:
                async with client.stream("first") as stream:
                    assert await anext(stream) == "a"
                    begun.set()
                    await stream.read()

            async def second() -> None:
                await runtime.wait(begun)
                timer = threading.Timer(total + 0.3, gate.set)
                timer.start()
                result = await outcome(client.chat("second", timeout=limits))
                assert gate.is_set()
                timer.join()
                assert getattr(result, "phase", str(result)) == expected

            await runtime.together(first, second)
        await close(own)

    runtime.run(scenario)


@pytest.mark.parametrize("reaches_the_network", [False, True])
def test_what_a_tool_wraps_around_a_request_is_not_a_hook(
    reaches_the_network: bool,
    runtime: Runtime,
    faults: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recorder has errors of its own; those of the network are the network's."""
    error = OSError("mine") if not reaches_the_network else None
    faults.reset()

    def wrap(send: Any) -> Any:
        def recorded(*args: Any, **options: Any) -> Any:
            if error is not None:
                raise error
            return send(*args, **options)

        async def recorded_later(*args: Any, **options: Any) -> Any:
            if error is not None:
                raise error
            return await send(*args, **options)

        return recorded if runtime.is_blocking else recorded_later

    kind = httpx.Client if runtime.is_blocking else httpx.AsyncClient
    monkeypatch.setattr(kind, "_send_single_request", wrap(kind._send_single_request))

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=Retry(attempts=1)) as client:
            raised = await outcome(client.chat("Hi"))
        assert raised is error if error is not None else isinstance(raised, APIConnectionError)

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


def test_a_redirect_is_not_followed_by_a_client_that_follows_others(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.redirect(307, location="/elsewhere").reply("Hello.")

    async def scenario() -> None:
        own = own_client(runtime, follow_redirects=True)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert isinstance(await outcome(client.chat("Hi")), RedirectError)
        await close(own)
        assert len(faults.requests) == 1

    runtime.run(scenario)


@pytest.mark.parametrize("transport", ["httpx's", "ours"])
def test_a_response_that_a_hook_keeps_is_closed_with_the_call(
    transport: str, runtime: Runtime, faults: FaultyServer
) -> None:
    kept: list[Any] = []

    def keep(response: httpx.Response) -> None:
        kept.append(response)

    async def keep_later(response: httpx.Response) -> None:
        keep(response)

    async def scenario() -> None:
        options: Any = {"event_hooks": {"response": [keep if runtime.is_blocking else keep_later]}}
        if transport == "ours":
            options["transport"] = Transport() if runtime.is_blocking else AsyncTransport()
        own = own_client(runtime, **options)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            stream = client.stream("Hi")
            async with stream:
                assert not kept[0].is_closed
            assert kept[0].is_closed
            await client.chat("Hi")
            assert kept[1].is_closed
            assert kept[1].elapsed.total_seconds() > 0
        await close(own)

    runtime.run(scenario)


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


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_request_that_is_sent_again_leaves_its_first_response_alone(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """One after the other, while the first response is not read yet."""
    faults.reply("first").reply("second")

    class Compare(AsyncTransport):
        async def handle_async_request(self, request: Any) -> Any:
            first = await super().handle_async_request(request)
            second = await super().handle_async_request(request)
            await second.aclose()
            return first

    async def scenario() -> None:
        own = httpx.AsyncClient(transport=Compare())
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert (await client.chat("Hi")).text == "first"
        await own.aclose()

    runtime.run(scenario)
    assert len(faults.requests) == 2


# The log


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["closed", "cancelled"])
def test_an_early_end_is_logged(
    is_cancelled: bool, runtime: Runtime, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    if runtime.is_blocking:
        is_cancelled = False  # there is no cancellation
    faults.stall(after="Hel")
    caplog.set_level("DEBUG", "cromicle_sdk")
    how = "closed by the caller"

    async def scenario() -> None:
        nonlocal how
        async with runtime.client(base_url=faults.base_url, timeout=Timeout(total=20)) as client:
            stream = client.stream("Hi")
            assert await anext(aiter(stream)) == "Hel"
            if is_cancelled:
                how = f"ended by {anyio.get_cancelled_exc_class().__name__}"
                with anyio.move_on_after(0.05):
                    await anext(stream)
            await stream.aclose()

    runtime.run(scenario)
    (line,) = [r.getMessage() for r in caplog.records if "end_of_call" in vars(r)]
    assert line == f"attempt 1 {how}"


@pytest.mark.parametrize("custom", [False, True])
def test_attempts_retries_and_ends_are_logged(
    custom: bool, runtime: Runtime, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    faults.fail(503, retry_after=0, body="secret-reply")
    faults.reply("secret-reply", headers={"x-request-id": "r1 secret-token"})
    faults.fail(401, headers={"x-request-id": "r2"})
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
    (retry,) = [record.__dict__["retry"] for record in caplog.records if "retry" in vars(record)]
    assert (retry["wait"], retry["attempt"], retry["attempts"]) == (0.0, 1, 3)
    assert retry["error"].status_code == 503
    assert [level for level, _ in lines] == ["DEBUG", "INFO", "DEBUG", "DEBUG", "DEBUG", "DEBUG"]
    texts = [text for _, text in lines]
    assert texts[:3] == [
        f"attempt 1: POST {url}",
        "retrying in 0.00 s, after attempt 1 of 3: status 503",
        f"attempt 2: POST {url}",
    ]
    assert re.fullmatch(
        r"attempt 2 succeeded: status 200, request id r1 \S+, 12 bytes in 1 chunks, \d+\.\d+ s",
        texts[3],
    )
    assert texts[4:] == [f"attempt 1: POST {url}", "attempt 1 failed: status 401, request id r2"]
    ends = [record.getMessage() for record in caplog.records if "end_of_call" in vars(record)]
    assert ends == [texts[3], texts[5]]
    assert "secret" not in caplog.text


def test_a_secret_that_the_server_echoes_is_not_in_the_log_of_httpcore(
    runtime: Runtime, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    faults.reply("Hello.", headers={"x-echo": "canary-token"})
    caplog.set_level("DEBUG", "httpcore.http11")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, token="canary-token") as client:
            await client.chat("Hi")

    runtime.run(scenario)
    assert "x-echo" in caplog.text
    assert "canary-token" not in caplog.text


def test_a_reused_connection_that_stalls_is_not_resent(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """Only a connection that was closed before the request was read gets it another one."""
    faults.reply("one").stall()

    async def scenario() -> None:
        retry = Retry(attempts=1)
        async with runtime.client(base_url=faults.base_url, retry=retry) as client:
            await client.chat("Hi")
            error = await outcome(client.chat("Hi", timeout=0.2))
            assert isinstance(error, APIConnectionError)
            assert error.attempts == 1
        # The server may read a request later than its call times out.
        faults.wait_for_requests(2)
        assert len(faults.requests) == 2

    runtime.run(scenario)
