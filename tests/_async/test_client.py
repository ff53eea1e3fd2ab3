"""What both clients do on a good network, and how they are used: one table, four runtimes."""

from __future__ import annotations

import gc
import hashlib
import pickle
import ssl
import threading
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from runtimes import ASYNC_RUNTIMES, Runtime, outcome, run_in_threads

from cromicle_sdk import (
    APIConnectionError,
    APIStatusError,
    AsyncClient,
    AuthenticationError,
    CallOptions,
    Client,
    ConfigurationError,
    CromicleError,
    IncompleteReplyError,
    InvalidMessageError,
    Retry,
    Timeout,
)
from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer

QUICK = Retry(first_delay=0)


def test_a_reply_has_text_and_facts(runtime: Runtime, faults: FaultyServer) -> None:
    faults.reply(chunks=["Hel", "lo"], headers={"X-Request-ID": "r-1"})

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            reply = await client.chat("Hi")
        assert str(reply) == reply.text == "Hello"
        assert (reply.status_code, reply.attempts) == (200, 1)
        assert reply.request_id == reply.headers["x-request-id"] == "r-1"
        assert 1 <= reply.chunks <= 2
        assert 0 < reply.first_text_after <= reply.elapsed < 60
        assert pickle.loads(pickle.dumps(reply)) == reply

    runtime.run(scenario)


def test_the_request_is_the_protocols(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        url = faults.base_url + "/api/"
        async with runtime.client(base_url=url, token="tökən", headers={"X-Tag": "7"}) as client:
            await client.chat("Grüß dich", headers={"x-other": "8"})

    runtime.run(scenario)
    (request,) = faults.requests
    assert (request.method, request.path) == ("POST", "/api/chat")
    assert request.body.startswith('{"message":"Grüß dich","token":"tökən","hash":"'.encode())
    assert request.hash == hashlib.sha256("tökənGrüß dich".encode()).hexdigest()
    assert list(request.headers) == [
        "host",
        "accept",
        "content-type",
        "accept-encoding",
        "user-agent",
        "x-tag",
        "x-other",
        "content-length",
    ]
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"].startswith("cromicle-sdk/")


def test_the_embedded_server_agrees(runtime: Runtime, echo: LocalServer) -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "user", "content": "two three"}]

    async def scenario() -> None:
        async with runtime.client(base_url=echo.base_url) as client:
            assert (await client.chat("Hello, how are you?")).text == "Hello, how are you?"
            assert (await client.chat(messages)).text == "two three"
            wrong = client.with_options(token="not the one")
            error = await outcome(wrong.chat("Hi"))
            assert isinstance(error, AuthenticationError)
            assert "token" in str(error)

    runtime.run(scenario)


def test_text_arrives_while_the_server_still_sends(runtime: Runtime, faults: FaultyServer) -> None:
    gate = threading.Event()
    faults.reply(chunks=["first ", "second"], gate=gate)

    async def scenario() -> None:
        async with (
            runtime.client(base_url=faults.base_url) as client,
            client.stream("Hi") as stream,
        ):
            assert stream.status_code == 200
            assert stream.headers["content-type"].startswith("text/plain")
            assert await anext(stream) == "first "
            assert stream.text == "first "
            gate.set()
            assert await anext(stream) == "second"
            assert [text async for text in stream] == []
            assert stream.reply.text == stream.text == "first second"

    runtime.run(scenario)


def test_a_stream_that_is_only_iterated_closes_itself(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            for _ in range(3):
                stream = client.stream("Hi")
                assert "".join([text async for text in stream]) == "Hello from the faulty server."
                assert (await stream.read()) is stream.reply
            assert faults.connections == 1
        faults.wait_until_closed()

    runtime.run(scenario)


def test_nothing_is_sent_before_a_stream_is_entered_or_iterated(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            assert "new" in repr(stream)
            for name in ("status_code", "headers"):
                with pytest.raises(CromicleError) as caught:
                    getattr(stream, name)
                assert str(caught.value) == (
                    "This stream has not begun, so there is no status yet. "
                    "Enter or iterate it first."
                )
            await stream.aclose()
            with pytest.raises(CromicleError, match="closed"):
                await anext(stream)
            assert faults.requests == []

    runtime.run(scenario)


def test_breaking_out_leaves_nothing(runtime: Runtime, faults: FaultyServer) -> None:
    faults.drip("x" * 100, forever=True)

    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        async with client.stream("entered") as stream:
            async for _ in stream:
                break
        async for _ in client.stream("dropped"):
            break
        with pytest.raises(KeyError):
            async with client.stream("raises") as stream:
                async for _ in stream:
                    raise KeyError
        stream = client.stream("closed")
        assert await anext(stream)
        await stream.aclose()
        await stream.aclose()
        gc.collect()
        # The client is still open: it was the streams that let go.
        faults.wait_until_closed()
        assert len(faults.requests) == 4
        await client.aclose()

    runtime.run(scenario)


def test_a_dropped_stream_with_text_waiting_leaves_nothing(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 500)

    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        async for _ in client.stream("dropped"):
            break
        gc.collect()
        faults.wait_until_closed()
        await client.aclose()

    runtime.run(scenario)


def test_two_streams_at_once_do_not_mix(runtime: Runtime, echo: LocalServer) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=echo.base_url) as client:
            one, two = client.stream("a b c d"), client.stream("1 2 3 4")
            assert "a b c d".startswith(await anext(one))
            assert "1 2 3 4".startswith(await anext(two))
            assert (await two.read()).text == "1 2 3 4"
            assert (await one.read()).text == "a b c d"

    runtime.run(scenario)


def test_many_calls_share_a_client(runtime: Runtime, echo: LocalServer) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=echo.base_url, max_connections=4) as client:

            async def call(number: int) -> None:
                for turn in range(5):
                    text = f"call {number} turn {turn}"
                    assert (await client.chat(text)).text == text

            await runtime.together(*(lambda number=number: call(number) for number in range(16)))

    runtime.run(scenario)


def test_a_connection_is_used_again(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            for _ in range(5):
                await client.chat("Hi")
            assert faults.connections == 1
            assert faults.open_connections == 1
        faults.wait_until_closed()

    runtime.run(scenario)


def test_calls_past_max_connections_are_queued(runtime: Runtime, faults: FaultyServer) -> None:
    gate, begun = threading.Event(), threading.Event()
    faults.reply(chunks=["a", "b"], gate=gate).reply("second")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, max_connections=1) as client:

            async def first() -> None:
                async with client.stream("first") as stream:
                    assert await anext(stream) == "a"
                    begun.set()
                    assert (await stream.read()).text == "ab"

            async def second() -> None:
                await runtime.wait(begun)
                error = await outcome(client.chat("no slot", timeout=Timeout(pool=0.2)))
                assert error.phase == "pool"
                assert error.attempts == 1
                gate.set()
                assert (await client.chat("second")).text == "second"

            await runtime.together(first, second)
        assert [request.message for request in faults.requests] == ["first", "second"]

    runtime.run(scenario)


def test_a_retry_waits_as_long_as_the_server_asks(runtime: Runtime, faults: FaultyServer) -> None:
    faults.fail(503, retry_after=0.3).reply("At last.")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            reply = await client.chat("Hi")
        assert (reply.text, reply.attempts) == ("At last.", 2)
        assert reply.elapsed >= 0.3

    runtime.run(scenario)


def test_a_longer_retry_after_is_raised_at_once(runtime: Runtime, faults: FaultyServer) -> None:
    faults.fail(429, retry_after=3600)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            error = await outcome(client.chat("Hi"))
        assert (error.status_code, error.retry_after, error.attempts) == (429, 3600, 1)

    runtime.run(scenario)


def test_an_error_says_that_the_retry_budget_is_used_up(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.fail(500).fail(500)

    async def scenario() -> None:
        retry = Retry(attempts=9, first_delay=0, budget=5)
        async with runtime.client(base_url=faults.base_url, retry=retry) as client:
            error = await outcome(client.chat("Hi"))
        assert (error.status_code, error.attempts) == (500, 2)
        assert "the budget of the client is used up (retry.budget)" in str(error)

    runtime.run(scenario)


def test_chat_retries_a_truncated_reply_and_stream_does_not(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.cut(after="Hello, wor").reply("Hello, world!").cut(after="Hello, wor")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=QUICK) as client:
            reply = await client.chat("Hi")
            assert (reply.text, reply.attempts) == ("Hello, world!", 2)
            stream = client.stream("Hi")
            assert await anext(stream) == "Hello, wor"
            error = await outcome(anext(stream))
            assert isinstance(error, IncompleteReplyError)
            assert (error.partial_text, error.attempts) == ("Hello, wor", 1)
            assert (await outcome(anext(stream))).partial_text == "Hello, wor"
            assert "failed" in repr(stream)

    runtime.run(scenario)


def test_a_stream_is_retried_before_it_has_yielded_text(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.cut(after="").reset().fail(500).reply("Hello")

    async def scenario() -> None:
        retry = Retry(attempts=4, first_delay=0)
        async with runtime.client(base_url=faults.base_url, retry=retry) as client:
            stream = client.stream("Hi")
            assert (await stream.read()).attempts == 4

    runtime.run(scenario)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 418, 422, 429, 500, 529])
def test_each_status_is_its_own_error(status: int, faults: FaultyServer) -> None:
    faults.fail(
        status,
        body='{"error": {"code": "x", "message": "It said no."}}',
        content_type="application/json",
        headers={"x-request-id": "r-9"},
    )
    with Client(base_url=faults.base_url, retry=Retry(attempts=1)) as client:
        with pytest.raises(APIStatusError, match=r"It said no\.") as caught:
            client.chat("Hi")
    error = caught.value
    assert (error.status_code, error.request_id) == (status, "r-9")
    assert "It said no." in error.body
    assert faults.base_url in str(error)
    assert pickle.loads(pickle.dumps(error)) == error


def test_options_of_one_call(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, headers={"a": "1"}) as client:
            with pytest.raises(CromicleError, match="max_reply_bytes"):
                await client.chat("Hi", max_reply_bytes=3)
            await client.chat("Hi", headers={"B": "2"}, timeout=5, strict=False, retry=QUICK)
        assert faults.requests[-1].headers["a"] == "1"
        assert faults.requests[-1].headers["b"] == "2"

    runtime.run(scenario)


def test_with_options_is_a_view_on_the_same_connections(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        async with client.with_options(token="other token", headers={"x": "y"}) as view:
            await view.chat("Hi")
        assert view.is_closed and not client.is_closed
        await client.chat("Hi")
        assert faults.connections == 1
        assert [request.token for request in faults.requests] == ["other token", "abc"]
        last = client.with_options(timeout=1)
        await client.aclose()
        assert last.is_closed
        with pytest.raises(CromicleError, match="closed"):
            await last.chat("Hi")

    runtime.run(scenario)


def test_the_environment_gives_what_is_not_given(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", faults.base_url)
    monkeypatch.setenv("CROMICLE_TOKEN", "from the environment")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    async def scenario() -> None:
        async with runtime.client() as client:
            await client.chat("Hi")
        assert faults.requests[0].token == "from the environment"

    runtime.run(scenario)


def test_bad_input_is_refused_before_anything_is_sent(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            with pytest.raises(InvalidMessageError, match="message 1"):
                client.stream([{"role": "user", "content": "x"}, {"role": "user"}])
            with pytest.raises(TypeError, match=r"chat\(\) .* 'temperature'"):
                await client.chat("Hi", temperature=1)
            with pytest.raises(ConfigurationError, match="retry: expected a Retry, not NoneType"):
                await client.chat("Hi", retry=None)
            with pytest.raises(ConfigurationError, match=r"timeout\.total"):
                client.stream("Hi", timeout=Timeout(connect=1, total=-1))
            with pytest.raises(TypeError, match=r"with_options\(\) .* 'max_connections'"):
                client.with_options(max_connections=1)
            with pytest.raises(ConfigurationError, match="token: expected a str, not NoneType"):
                client.with_options(token=None)
        assert faults.connections == 0

    runtime.run(scenario)


@pytest.mark.parametrize("name", CallOptions.__annotations__)
def test_each_method_takes_each_option_of_a_call(
    name: str, runtime: Runtime, faults: FaultyServer
) -> None:
    invalid = {name: object()}

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            with pytest.raises(ConfigurationError, match=rf"^{name}: "):
                await client.chat("Hi", **invalid)
            with pytest.raises(ConfigurationError, match=rf"^{name}: "):
                client.stream("Hi", **invalid)
            with pytest.raises(ConfigurationError, match=rf"^{name}: "):
                client.with_options(**invalid)
        assert faults.connections == 0

    runtime.run(scenario)


def test_a_closed_client_raises_an_error(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        stream = client.stream("Hi")
        await client.aclose()
        await client.aclose()
        assert client.is_closed
        with pytest.raises(CromicleError) as caught:
            await client.chat("Hi")
        assert str(caught.value) == "This client is closed. Create a new one."
        with pytest.raises(CromicleError, match="closed"):
            async with client:
                pass
        with pytest.raises(APIConnectionError, match=": its client is closed"):
            await anext(stream)
        assert faults.connections == 0

    runtime.run(scenario)


def test_the_repr_of_a_client() -> None:
    client = Client(base_url="http://user:canary@h:81/api/", token="canary")
    assert repr(client) == "<Client http://h:81/api>"
    client.close()
    assert repr(client) == "<Client http://h:81/api closed>"
    # A debugger may show one whose options are being rejected.
    assert repr(Client.__new__(Client)) == "<Client without options>"

    async def scenario() -> None:
        client = AsyncClient(base_url="http://h")
        assert repr(client) == "<AsyncClient http://h>"
        await client.aclose()
        assert repr(client) == "<AsyncClient http://h closed>"
        assert repr(AsyncClient.__new__(AsyncClient)) == "<AsyncClient without options>"

    anyio.run(scenario)


def test_a_pickled_client_has_the_same_options(faults: FaultyServer) -> None:
    client = Client(base_url=faults.base_url, token="pickled token", timeout=3)
    with pickle.loads(pickle.dumps(client)) as twin, client:
        twin.chat("Hi")
        client.chat("Hi")
    assert [request.token for request in faults.requests] == ["pickled token"] * 2
    assert faults.connections == 2
    another = AsyncClient(base_url=faults.base_url, token="another token")
    assert pickle.loads(pickle.dumps(another)).is_closed is False


def test_a_client_with_a_context_of_its_own_cannot_be_pickled() -> None:
    with (
        Client(verify=ssl.create_default_context()) as client,
        pytest.raises(ConfigurationError, match=r"verify: .* cannot be pickled"),
    ):
        pickle.dumps(client)
    proxy = httpx.Proxy("https://127.0.0.1:9", ssl_context=ssl.create_default_context())
    with Client(proxy=proxy) as client, pytest.raises(ConfigurationError, match="proxy: "):
        pickle.dumps(client)


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_client_of_your_own_is_used_and_not_closed(
    library: Any, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.reply(chunks=["one ", "two"]).fail(503, retry_after=0).reply("x").cut(after="Hel")

    async def scenario() -> None:
        if runtime.is_blocking:
            own = library.Client(headers={"x-own": "1"}, cookies={"a": "b"})
        else:
            own = library.AsyncClient(headers={"x-own": "1"}, cookies={"a": "b"})
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert (await client.chat("Hi")).text == "one two"
            assert (await client.chat("Hi")).attempts == 2
            error = await outcome(client.stream("Hi").read())
            assert isinstance(error, IncompleteReplyError)
            assert error.partial_text == "Hel"
            last = client.stream("Hi")
        assert not own.is_closed
        with pytest.raises(APIConnectionError, match="closed"):
            await anext(last)
        request = faults.requests[0]
        assert request.headers["x-own"] == "1"
        assert "cookie" not in request.headers
        assert request.headers["accept-encoding"] == "identity"
        if runtime.is_blocking:
            own.close()
        else:
            await own.aclose()

    runtime.run(scenario)


def test_a_client_of_the_wrong_side_or_type_is_rejected() -> None:
    with httpx.Client() as blocking:
        with pytest.raises(ConfigurationError, match=r"http_client.*AsyncClient"):
            AsyncClient(http_client=blocking)  # type: ignore[arg-type]  # the mistake under test
        with pytest.raises(ConfigurationError, match="cannot be pickled"):
            pickle.dumps(Client(http_client=blocking))
        with pytest.raises(ConfigurationError, match="proxy"):
            Client(http_client=blocking, proxy="http://127.0.0.1:1")
        with pytest.raises(ConfigurationError, match="verify"):
            Client(http_client=blocking, verify=False)  # type: ignore[arg-type]  # as above
    with pytest.raises(ConfigurationError, match="http_client"):
        Client(http_client=object())  # type: ignore[arg-type]  # as above


def test_a_stream_has_one_reader_at_a_time(runtime: Runtime, faults: FaultyServer) -> None:
    gate = threading.Event()
    faults.reply(chunks=["one ", "two"], gate=gate)
    outcomes: list[Any] = []

    async def scenario() -> None:
        async with (
            runtime.client(base_url=faults.base_url) as client,
            client.stream("Hi") as stream,
        ):
            assert await anext(stream) == "one "

            async def reader() -> None:
                outcomes.append(await outcome(anext(stream)))
                # The one that is refused lets the other go on.
                gate.set()

            await runtime.together(reader, reader)
            assert (await stream.read()).text == "one two"

    runtime.run(scenario)
    refused, text = outcomes
    assert isinstance(refused, CromicleError)
    assert str(refused) == (
        "This stream is being read elsewhere at the same time. Create a stream for each reader."
    )
    assert text == "two"


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_cancelled_call_leaves_nothing(runtime: Runtime, faults: FaultyServer) -> None:
    faults.stall(after="Hello")

    async def scenario() -> None:
        async with AsyncClient(base_url=faults.base_url) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.chat, "Hi")
                while not faults.requests:
                    await anyio.sleep(0.01)
                group.cancel_scope.cancel()
            faults.wait_until_closed()
            stream = client.stream("Hi")
            assert await anext(stream) == "Hello"
            with anyio.move_on_after(0.05):
                await anext(stream)
            faults.wait_until_closed()
            with pytest.raises(CromicleError, match="failed"):
                await anext(stream)

    runtime.run(scenario)


def test_threads_share_a_client(echo: LocalServer) -> None:
    with Client(base_url=echo.base_url) as client:

        def work(number: int) -> None:
            for turn in range(20):
                text = f"thread {number} turn {turn}"
                assert client.chat(text).text == text

        run_in_threads(*(lambda number=number: work(number) for number in range(16)))
