"""The turns of the drivers that no plain call takes, each as a caller would notice it."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import pickle
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
from certificates import build_authority
from runtimes import ASYNC_RUNTIMES, RUNTIMES, Runtime, notice_reads, outcome

from cromicle_sdk import (
    APIConnectionError,
    APITimeoutError,
    AsyncClient,
    AsyncStream,
    Client,
    ConfigurationError,
    CromicleError,
    IncompleteReplyError,
    RateLimitError,
    ReplyTooLargeError,
    Retry,
    Stream,
    Timeout,
)
from cromicle_sdk._async import concurrency as async_concurrency
from cromicle_sdk._core.observers import OBSERVERS
from cromicle_sdk._http import framing
from cromicle_sdk._sync import concurrency as sync_concurrency
from cromicle_sdk.testing import (
    LAST_CHUNK,
    Connection,
    FaultyServer,
    RecordedRequest,
    build_chunk,
    build_head,
)

ONCE = Retry(attempts=1)


def test_there_is_no_reply_before_the_end(runtime: Runtime, faults: FaultyServer) -> None:
    gate = threading.Event()
    faults.reply(chunks=["a", "b"], gate=gate)

    def check(stream: Any) -> None:
        with pytest.raises(CromicleError) as caught:
            stream.reply  # noqa: B018 - a property that raises
        assert str(caught.value) == (
            "This stream has not ended, so there is no reply yet. "
            "Iterate over it to its end, or call read(); text has what has arrived."
        )

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            check(stream)
            assert await anext(stream) == "a"
            check(stream)
            gate.set()
            async with stream:  # it may be entered late
                assert (await stream.read()).text == "ab"

    runtime.run(scenario)


def test_a_stream_ends_with_its_last_text(runtime: Runtime, faults: FaultyServer) -> None:
    """What has arrived together is known together: the text, and that it was the last one."""
    faults.raw(build_head(length=6) + b"Hello.", end="keep")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            assert stream.text == ""
            assert await anext(stream) == stream.text == "Hello."
            assert stream.reply.text == "Hello."
            kind = "Stream" if runtime.is_blocking else "AsyncStream"
            assert repr(stream) == f"<{kind} from {faults.base_url}/chat, ended>"
            # It has given its connection back.
            assert (await client.chat("Hi")).text == "Hello."
            assert faults.connections == 1
            for _ in "12":
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
            await stream.aclose()
            assert stream.reply.text == "Hello."

    runtime.run(scenario)


class Observer:
    """Records the calls of this process, and what each attempt sends."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.sent: list[Any] = []
        self.ends: list[Any] = []

    def start_call(self, *call: Any) -> Observer:
        self.calls.append(call)
        return self

    @contextlib.contextmanager
    def send(self, request: Any) -> Iterator[Any]:
        self.sent.append(request)
        header = (b"x-attempt", b"%d" % len(self.sent))
        yield request._replace(fixed_headers=(*request.fixed_headers, header))

    def end(self, end: Any) -> None:
        self.ends.append(end)


@pytest.fixture
def observer(monkeypatch: pytest.MonkeyPatch) -> Observer:
    observer = Observer()
    monkeypatch.setattr(OBSERVERS, "start_call", observer.start_call)
    return observer


def test_an_observer_sees_each_call_and_attempt(
    runtime: Runtime, faults: FaultyServer, observer: Observer
) -> None:
    faults.fail(503, retry_after=0).reply(chunks=["one ", "two"])

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            reply = await client.chat("Hi", retry=Retry(first_delay=0))
            ((request, options, is_streamed),) = observer.calls
            assert request.endpoint.url == options.endpoint.url == f"{faults.base_url}/chat"
            assert is_streamed is False
            assert observer.sent == [request, request]
            assert [sent.headers["x-attempt"] for sent in faults.requests] == ["1", "2"]
            (end,) = observer.ends
            assert (end.attempts, end.reply, end.error) == (2, reply, None)
            assert end.first_text_after == reply.first_text_after
            await client.stream("Hi").read()
            assert observer.calls[1][2] is True

    runtime.run(scenario)


@pytest.mark.parametrize("when", ["before text", "after text"])
def test_an_observer_sees_a_call_that_fails(
    when: str, runtime: Runtime, faults: FaultyServer, observer: Observer
) -> None:
    faults.fail(400) if when == "before text" else faults.cut(after="Hel")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            error = await outcome(client.chat("Hi"))
        (end,) = observer.ends
        assert (end.attempts, end.reply) == (1, None)
        assert end.error is error
        assert (end.first_text_after is None) == (when == "before text")

    runtime.run(scenario)


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_an_observer_sees_a_stream_that_is_left(
    how: str, runtime: Runtime, faults: FaultyServer, observer: Observer
) -> None:
    faults.drip("x" * 100, forever=True)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            await anext(stream)
            assert observer.ends == []
            if how == "closed":
                await stream.aclose()
                await stream.aclose()
            del stream
            gc.collect()
            (end,) = observer.ends
            assert (end.attempts, end.reply, end.error) == (1, None, None)

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_an_observer_sees_a_call_that_is_cancelled(
    runtime: Runtime, faults: FaultyServer, observer: Observer
) -> None:
    faults.stall(after="Hel")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            await anext(stream)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anext(stream)
            (end,) = observer.ends
            assert isinstance(end.error, anyio.get_cancelled_exc_class())
            assert end.reply is None

    runtime.run(scenario)


def test_an_observer_sees_an_exception_of_the_callers(
    runtime: Runtime, faults: FaultyServer, observer: Observer
) -> None:
    async def scenario() -> None:
        def refuse(request: httpx.Request) -> None:
            raise LookupError("mine")

        async def refuse_async(request: httpx.Request) -> None:
            refuse(request)

        hooks = {"request": [refuse if runtime.is_blocking else refuse_async]}
        own = own_client(runtime, event_hooks=hooks)
        client = runtime.client(base_url=faults.base_url, http_client=own)
        error = await outcome(client.chat("Hi"))
        (end,) = observer.ends
        assert isinstance(error, LookupError)
        assert end.error is error

    runtime.run(scenario)


def test_an_observer_sees_a_call_that_is_not_sent(
    runtime: Runtime, faults: FaultyServer, observer: Observer
) -> None:
    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        stream = client.stream("Hi")
        await client.aclose()
        error = await outcome(stream.read())
        assert isinstance(error, APIConnectionError)
        assert observer.ends == [(0, None, None, error)]

    runtime.run(scenario)


def test_an_observer_sees_a_defect(
    runtime: Runtime, faults: FaultyServer, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect = ZeroDivisionError()

    def broken(*args: Any, **options: Any) -> Any:
        raise defect

    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.pool.receive_body", broken)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            assert await outcome(client.chat("Hi")) is defect
        (end,) = observer.ends
        assert end.error is defect

    runtime.run(scenario)


def test_text_that_arrives_with_bad_framing_is_yielded_before_the_error(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.raw(build_head() + build_chunk("Hel") + b"no size\r\n", end="keep")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            stream = client.stream("Hi")
            assert await anext(stream) == "Hel"
            with pytest.raises(IncompleteReplyError, match="illegal chunk header") as caught:
                await anext(stream)
            assert caught.value.partial_text == "Hel"

    runtime.run(scenario)


def test_a_defect_is_not_reported_as_an_error_of_the_network(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError

    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.pool.receive_body", broken)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            assert isinstance(await outcome(client.chat("Hi")), ZeroDivisionError)

    runtime.run(scenario)


def test_closing_a_stream_ends_its_wait_for_the_next_attempt(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.fail(503, retry_after=50)
    waiting = threading.Event()
    notice_waits(runtime, waiting, monkeypatch)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")

            async def reader() -> None:
                error = await outcome(stream.read())
                assert isinstance(error, APIConnectionError)
                assert "closed" in str(error)

            async def closer() -> None:
                await runtime.wait(waiting)
                await stream.aclose()

            began = time.monotonic()
            await runtime.together(reader, closer)
            assert time.monotonic() - began < 20
            assert len(faults.requests) == 1

    runtime.run(scenario)


def notice_waits(
    runtime: Runtime, waiting: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set the event when a call begins to wait for its next attempt."""
    module: Any = sync_concurrency if runtime.is_blocking else async_concurrency
    sleep = module.CancelHandle.sleep

    def notice(cancel_handle: Any, seconds: float) -> Any:
        waiting.set()
        return sleep(cancel_handle, seconds)

    monkeypatch.setattr(module.CancelHandle, "sleep", notice)


@pytest.mark.parametrize("custom", [False, True])
def test_closing_the_client_ends_the_wait_for_the_next_attempt(
    custom: bool, runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.fail(503, retry_after=50)
    waiting = threading.Event()
    notice_waits(runtime, waiting, monkeypatch)

    async def scenario() -> None:
        http_client = own_client(runtime)
        options = {"http_client": http_client} if custom else {}
        client = runtime.client(base_url=faults.base_url, **options)

        async def caller() -> None:
            assert "closed" in str(await outcome(client.chat("Hi")))

        async def closer() -> None:
            await runtime.wait(waiting)
            await client.aclose()

        began = time.monotonic()
        await runtime.together(caller, closer)
        assert time.monotonic() - began < 20
        await close_own(http_client)

    runtime.run(scenario)


def test_a_call_that_was_cancelled_before_its_wait_does_not_wait(runtime: Runtime) -> None:
    async def scenario() -> None:
        started = time.monotonic()
        if runtime.is_blocking:
            sync_handle = sync_concurrency.CancelHandle()
            sync_handle.cancel()
            sync_handle.sleep(50)
        else:
            async_handle = async_concurrency.CancelHandle()
            async_handle.cancel()
            await async_handle.sleep(50)
        assert time.monotonic() - started < 20

    runtime.run(scenario)


def own_client(runtime: Runtime, **options: Any) -> Any:
    return httpx.Client(**options) if runtime.is_blocking else httpx.AsyncClient(**options)


async def close_own(client: Any) -> None:
    if isinstance(client, httpx.Client):
        client.close()
    else:
        await client.aclose()


@pytest.mark.parametrize("closed", ["stream", "client"])
def test_closing_ends_a_call_over_your_own_client(
    closed: str, runtime: Runtime, faults: FaultyServer
) -> None:
    """At once where a task can be cancelled, at the next bytes where a thread can't be."""
    gate = threading.Event()
    faults.reply(chunks=["a", "b"], gate=gate)

    async def scenario() -> None:
        own = own_client(runtime)
        client = runtime.client(base_url=faults.base_url, http_client=own, retry=ONCE)
        stream = client.stream("Hi")
        assert await anext(stream) == "a"
        reading = notice_reads(stream)

        async def reader() -> None:
            error = await outcome(anext(stream))
            assert isinstance(error, IncompleteReplyError)
            assert error.partial_text == "a"
            gate.set()

        async def closer() -> None:
            await runtime.wait(reading)
            await (stream if closed == "stream" else client).aclose()
            if runtime.is_blocking:
                gate.set()

        await runtime.together(reader, closer)
        another = runtime.client(base_url=faults.base_url, http_client=own).stream("Hi")
        assert (await another.read()).text == "ab"
        await close_own(own)

    runtime.run(scenario)


def hook_that(runtime: Runtime, act: Callable[[Any], Any]) -> Any:
    """A response hook of httpx's for the runtime, sync or async."""

    async def act_later(response: httpx.Response) -> None:
        result = act(response)
        if inspect.isawaitable(result):
            await result

    return {"response": [act if runtime.is_blocking else act_later]}


def read(response: httpx.Response) -> Any:
    is_blocking = isinstance(response.stream, httpx.SyncByteStream)
    return response.read() if is_blocking else response.aread()


def test_what_a_hook_has_read_is_the_reply_and_no_other(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """The connection is another call's by then; its bytes must not be taken for this one's."""

    def answer(connection: Connection, request: RecordedRequest) -> None:
        connection.send(build_head() + build_chunk(f"to {request.message}") + LAST_CHUNK)

    faults.script(answer)

    async def scenario() -> None:
        own = own_client(runtime, event_hooks=hook_that(runtime, read))
        async with runtime.client(base_url=faults.base_url, http_client=own, retry=ONCE) as client:

            async def ask(caller: int) -> None:
                for turn in range(5):
                    assert (await client.chat(f"{caller} {turn}")).text == f"to {caller} {turn}"

            await runtime.together(*(lambda n=n: ask(n) for n in range(8)))
        await close_own(own)

    runtime.run(scenario)


def test_a_status_that_a_hook_raises_for_is_still_that_status(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.fail(429, retry_after=7)

    async def scenario() -> None:
        own = own_client(
            runtime, event_hooks=hook_that(runtime, lambda response: response.raise_for_status())
        )
        async with runtime.client(base_url=faults.base_url, http_client=own, retry=ONCE) as client:
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, RateLimitError)
            assert error.retry_after == 7
        await close_own(own)

    runtime.run(scenario)


def test_an_answer_to_another_request_of_a_hook_is_not_ours(
    runtime: Runtime, faults: FaultyServer
) -> None:
    other = httpx.Request("POST", "http://auth.invalid")
    refused = httpx.HTTPStatusError(
        "refused", request=other, response=httpx.Response(403, request=other)
    )

    def fetch_token(_: httpx.Request) -> None:
        raise refused

    async def fetch_token_later(request: httpx.Request) -> None:
        fetch_token(request)

    async def scenario() -> None:
        hook = fetch_token if runtime.is_blocking else fetch_token_later
        own = own_client(runtime, event_hooks={"request": [hook]})
        async with runtime.client(base_url=faults.base_url, http_client=own, retry=ONCE) as client:
            assert await outcome(client.chat("Hi")) is refused
        await close_own(own)

    runtime.run(scenario)
    assert faults.requests == []


def test_a_body_that_a_hook_has_dropped_is_no_empty_reply(
    runtime: Runtime, faults: FaultyServer
) -> None:
    def drop(response: httpx.Response) -> Any:
        is_blocking = isinstance(response.stream, httpx.SyncByteStream)
        return response.close() if is_blocking else response.aclose()

    async def scenario() -> None:
        own = own_client(runtime, event_hooks=hook_that(runtime, drop))
        async with runtime.client(
            base_url=faults.base_url, http_client=own, retry=ONCE, strict=False
        ) as client:
            assert isinstance(await outcome(client.chat("Hi")), IncompleteReplyError)
        await close_own(own)

    runtime.run(scenario)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_reply_bytes": 5000}, ReplyTooLargeError),
        ({"timeout": Timeout(total=0.2)}, APITimeoutError),
    ],
    ids=["by its size", "by the total"],
)
def test_an_endless_body_of_your_own_transport_ends(
    runtime: Runtime, options: dict[str, Any], error: type[Exception]
) -> None:
    class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b"x" * 10

        async def __aiter__(self) -> Any:
            while True:
                yield b"x" * 10

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"transfer-encoding": "chunked"}, stream=Endless())

    async def scenario() -> None:
        own = own_client(runtime, transport=httpx.MockTransport(answer))
        client = runtime.client(base_url="http://x.invalid", http_client=own, retry=ONCE, **options)
        assert isinstance(await outcome(client.chat("Hi")), error)
        await close_own(own)

    # trio tells of the generator that is left unfinished, which is the transport's own.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        runtime.run(scenario)
        gc.collect()


def test_the_total_ends_a_burst_whose_reader_is_slow(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """All of it has arrived at once, so that no wait for the network looks at the clock."""
    faults.raw(build_head() + build_chunk("x") * 2000 + LAST_CHUNK)

    async def scenario() -> None:
        limits = Timeout(total=0.5)
        async with runtime.client(base_url=faults.base_url, timeout=limits, retry=ONCE) as client:
            stream = client.stream("Hi")
            texts = []
            with pytest.raises(APITimeoutError) as caught:
                async for text in stream:
                    texts.append(text)
                    time.sleep(0.1)
            assert caught.value.phase == "total"
            assert caught.value.partial_text == "".join(texts)
            assert len("".join(texts)) < 1000

    runtime.run(scenario)


def test_other_tasks_run_during_a_burst(faults: FaultyServer) -> None:
    faults.raw(build_head() + build_chunk("x") * 10_000 + LAST_CHUNK)

    async def scenario() -> None:
        turns = 0
        async with AsyncClient(base_url=faults.base_url) as client:

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as group:
                group.start_soon(count)
                stream = client.stream("Hi")
                await anext(stream)
                before = turns
                assert len((await stream.read()).text) == 10_000
                assert turns - before >= 50
                group.cancel_scope.cancel()

    anyio.run(scenario)


def test_the_callers_own_time_after_the_head_is_not_the_servers(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """Nor is the request sent once more, while its answer lies there to be read."""
    faults.reply("Hello")

    async def scenario() -> None:
        limits = Timeout(first_byte=0.5)
        async with runtime.client(base_url=faults.base_url, timeout=limits) as client:
            async with client.stream("Hi") as stream:
                await pause(runtime, 0.8)
                assert (await stream.read()).text == "Hello"
            faults.clear().raw(build_head())
            with pytest.raises(APITimeoutError) as caught:
                async with client.stream("Hi", retry=ONCE) as stream:
                    await pause(runtime, 0.8)
                    await stream.read()
            assert caught.value.phase == "first_byte"

    runtime.run(scenario)
    assert len(faults.requests) == 1


async def pause(runtime: Runtime, seconds: float) -> None:
    """What a caller does between two lines of its own."""
    time.sleep(seconds) if runtime.is_blocking else await anyio.sleep(seconds)


@pytest.mark.parametrize("kind", [Stream, AsyncStream])
def test_a_stream_that_an_interrupt_kept_from_being_made_can_be_shown(kind: Any) -> None:
    assert repr(kind.__new__(kind)) == f"<{kind.__name__} that was not made>"


def test_where_no_thread_starts_names_are_resolved_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9))]
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    with (
        Client(base_url="http://h.invalid", retry=ONCE) as client,
        pytest.raises(APIConnectionError, match="refused"),
    ):
        client.chat("Hi")


def test_an_invalid_host_name_raises_at_once() -> None:
    limits = Timeout(connect=50)
    with Client(base_url=f"http://[fe80::1%{'a' * 70}]", timeout=limits, retry=ONCE) as client:
        started = time.monotonic()
        with pytest.raises(APIConnectionError):
            client.chat("Hi")
        assert time.monotonic() - started < 20


def test_the_auth_of_your_own_client_is_used(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        own = own_client(runtime, auth=("user", "password"))
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            await client.chat("Hi")
        await close_own(own)

    runtime.run(scenario)
    assert faults.requests[0].headers["authorization"] == "Basic dXNlcjpwYXNzd29yZA=="


def test_a_base_url_of_a_custom_client_is_rejected(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        own = own_client(runtime, base_url="http://127.0.0.1:9/v1")
        with pytest.raises(ConfigurationError, match="base_url: pass it here"):
            runtime.client(http_client=own)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert (await client.chat("Hi")).text
        await close_own(own)

    runtime.run(scenario)


def test_a_queued_call_stays_on_its_own_loop(faults: FaultyServer) -> None:
    """Even where another loop has used the client meanwhile: no socket has two loops."""
    client = AsyncClient(base_url=faults.base_url, max_connections=1, retry=ONCE)
    texts: dict[str, str] = {}

    async def chat(prompt: str) -> None:
        texts[prompt] = (await client.chat(prompt)).text

    async def main() -> None:
        async with anyio.create_task_group() as group:
            async with client.stream("first"):
                group.start_soon(chat, "queued")
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(lambda: anyio.run(chat, "other", backend="trio"))
        await client.aclose()

    anyio.run(main)
    assert texts.keys() == {"queued", "other"}
    connections = {request.message: request.connection for request in faults.requests}
    assert len(set(connections.values())) == 3
    faults.wait_until_closed()


def test_a_client_that_is_collected_in_a_cycle_closes_its_connections(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """Without a warning: the collector may come to a socket before it comes to its client."""

    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        await client.chat("Hi")
        ring = {"client": client}
        ring["ring"] = ring

    runtime.run(scenario)
    gc.collect()
    faults.wait_until_closed()


def test_another_process_has_connections_of_its_own(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(base_url=faults.base_url) as client:
        client.chat("Hi")
        with monkeypatch.context() as patch:
            patch.setattr(sync_concurrency, "current_runtime", lambda: -1)
            client.chat("Hi")
        client.chat("Hi")
    assert [request.connection for request in faults.requests] == [1, 2, 1]
    faults.wait_until_closed()


def test_closing_ends_the_waits_on_another_loop(faults: FaultyServer) -> None:
    faults.stall(after="Hello")
    client = AsyncClient(base_url=faults.base_url, max_connections=1, retry=ONCE)
    seen: list[Any] = []

    async def queue() -> None:
        seen.append(await outcome(client.chat("queued")))

    async def elsewhere() -> None:
        await anext(client.stream("other"))
        await client.aclose()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            stream = client.stream("first")
            await anext(stream)
            group.start_soon(queue)
            await anyio.wait_all_tasks_blocked()
            await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend="trio"))

    anyio.run(main)
    assert "closed" in str(seen[0])
    faults.wait_until_closed()


@pytest.mark.parametrize("end", ["closed", "failed"])
def test_a_stream_that_is_over_cannot_be_entered(
    end: str, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.cut(after="Hel") if end == "failed" else faults.stall(after="Hel")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            await anext(stream)
            await (stream.aclose() if end == "closed" else outcome(stream.read()))
            for again in (stream.__aenter__, stream.__anext__):
                with pytest.raises(CromicleError) as caught:
                    await again()
                assert str(caught.value) == (
                    f"This stream {'was closed' if end == 'closed' else 'failed'} before its "
                    "end, so there is no more text. Create a new one."
                )
                assert (caught.value.partial_text, caught.value.attempts) == ("Hel", 1)

    runtime.run(scenario)


def test_a_custom_transport_may_send_empty_chunks(runtime: Runtime) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (b"", b"Hel", b"", b"lo")

    class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            return pieces()

        async def __aiter__(self) -> Any:
            for piece in pieces():
                yield piece

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"transfer-encoding": "chunked"}
        return httpx.Response(200, headers=headers, stream=Body())

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no")

    async def scenario() -> None:
        for handler in (answer, refuse):
            own = own_client(runtime, transport=httpx.MockTransport(handler))
            client = runtime.client(base_url="http://x.invalid", http_client=own, retry=ONCE)
            result = await outcome(client.chat("Hi"))
            assert str(result) == "Hello" or isinstance(result, APIConnectionError)
            await close_own(own)

    runtime.run(scenario)


def test_dropping_a_stream_over_your_own_client_causes_no_warning() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"Hello")

    with httpx.Client(transport=httpx.MockTransport(answer)) as own:
        with Client(base_url="http://x.invalid", http_client=own) as client:
            for _ in client.stream("Hi"):
                break


def test_a_stream_in_a_forked_process_says_why_it_ends(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.stall(after="x")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            stream = client.stream("Hi")
            assert await anext(stream) == "x"
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: -1)
                message = ": it belongs to the process that this one was forked from"
                with pytest.raises(IncompleteReplyError, match=message):
                    await stream.read()

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_an_async_client_with_a_client_of_your_own_is_not_pickled(runtime: Runtime) -> None:
    async def scenario() -> None:
        own = httpx.AsyncClient()
        with pytest.raises(ConfigurationError, match="cannot be pickled"):
            pickle.dumps(AsyncClient(http_client=own))
        await own.aclose()

    runtime.run(scenario)


@pytest.mark.parametrize("notify", [True, False], ids=["said goodbye", "just gone"])
@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_body_without_length_over_tls_ends_with_a_goodbye(runtime: Runtime, notify: bool) -> None:
    """Lenient: over TLS an end that the server has signed can be told from a cut."""
    authority = build_authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def serve() -> None:
        raw, _ = listener.accept()
        sock = context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=True)
        with sock:
            sock.recv(65536)
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nHello")
            if notify:
                try:
                    sock.unwrap().close()
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"

        async def scenario() -> None:
            options = {"base_url": url, "verify": trusting, "strict": False, "retry": ONCE}
            async with runtime.client(**options) as client:
                result = await outcome(client.chat("Hi"))
            if notify:
                assert result.text == "Hello"
            else:
                assert isinstance(result, IncompleteReplyError)
                assert result.partial_text == "Hello"

        runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_slot_that_is_released_while_a_call_is_queued_is_its_own(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the garbage collector, which may run wherever something is made."""

    async def scenario() -> None:
        limiter = async_concurrency.ConnectionLimiter(1)
        slots = [await limiter.acquire(None, async_concurrency.CancelHandle())]
        make = anyio.Event

        def make_while_collecting() -> anyio.Event:
            slots.clear()
            return make()

        with monkeypatch.context() as patch:
            patch.setattr(anyio, "Event", make_while_collecting)
            with anyio.fail_after(20):
                await limiter.acquire(None, async_concurrency.CancelHandle())

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_slot_that_came_with_the_cancellation_is_passed_on(runtime: Runtime) -> None:
    async def scenario() -> None:
        limiter = async_concurrency.ConnectionLimiter(1)
        slot = await limiter.acquire(None, async_concurrency.CancelHandle())
        assert slot is not None
        scope = anyio.CancelScope()

        async def wait() -> None:
            with scope:
                await limiter.acquire(None, async_concurrency.CancelHandle())

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            slot.release()
        assert await limiter.acquire(1, async_concurrency.CancelHandle())

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_spurious_wake_up_is_no_end(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_readable, waits = anyio.wait_readable, []

    async def wake_at_once(sock: socket.socket) -> None:
        waits.append(sock)
        if len(waits) > 3:
            await wait_readable(sock)

    monkeypatch.setattr(anyio, "wait_readable", wake_at_once)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            assert (await client.chat("Hi")).text == "Hello from the faulty server."

    runtime.run(scenario)


def test_the_private_names_of_httpcore_are_where_they_were() -> None:
    framing.is_h11_reachable.cache_clear()
    assert framing.is_h11_reachable(), "bodies are read through httpcore, at twice the cost"


@pytest.fixture
def _other_httpcore(monkeypatch: pytest.MonkeyPatch) -> None:
    """An httpcore that keeps its h11 connection under another name."""
    assert framing.find_h11(object()) is None
    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.connection.find_h11", lambda _: None)
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.is_h11_reachable", lambda: False)


@pytest.mark.usefixtures("_other_httpcore")
def test_with_another_httpcore_bodies_are_read_through_it(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.reply(chunks=["one ", "two"]).cut(after="Hel")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            reply = await client.chat("Hi")
            assert (reply.text, reply.chunks) == ("one two", 2)
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, IncompleteReplyError)
            assert error.partial_text == "Hel"

    runtime.run(scenario)
    faults.wait_until_closed()


@pytest.mark.usefixtures("_other_httpcore")
def test_with_another_httpcore_connections_are_reused_when_clean(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.reply("one").trailing("two").reply("three")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            for text in ("one", "two", "three"):
                assert (await client.chat("Hi")).text == text

    runtime.run(scenario)
    first, second, third = faults.requests
    assert first.connection == second.connection != third.connection
    faults.wait_until_closed()


def test_with_another_httpx_bodies_are_read_through_it(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose streams keep those below them under other names."""
    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.session.find_source", lambda stream: stream)
    faults.reply(chunks=["one ", "two"]).reply("three").trailing("four").cut(after="Hel")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            for text in ("one two", "three", "four"):
                assert (await client.chat("Hi")).text == text
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, IncompleteReplyError)
            assert error.partial_text == "Hel"

    runtime.run(scenario)
    first, second, third, fourth = faults.requests
    assert first.connection == second.connection == third.connection != fourth.connection
    faults.wait_until_closed()


def test_a_call_that_is_closed_before_it_is_sent(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, timeout=Timeout(total=20)) as client:
            stream = client.stream("Hi")
            session: Any = getattr(stream, "inner", stream)._session
            start_call = session.start_call

            def start_cancelled(timeout: Any) -> Any:
                call = start_call(timeout)
                call.cancel_handle.cancel()
                return call

            session.start_call = start_cancelled
            assert "closed" in str(await outcome(stream.read()))
        assert faults.requests == []

    runtime.run(scenario)


def test_a_name_that_is_being_looked_up_can_be_given_up(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def getaddrinfo(*args: Any, **options: Any) -> Any:
        asked.set()
        assert answered.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scenario() -> None:
        client = runtime.client(base_url="http://slow.invalid", retry=ONCE)

        async def reader() -> None:
            assert "closed" in str(await outcome(client.chat("Hi")))

        async def closer() -> None:
            await runtime.wait(asked)
            await client.aclose()
            answered.set()

        await runtime.together(reader, closer)

    runtime.run(scenario)


@pytest.mark.usefixtures("_other_httpcore")
def test_unread_chunks_of_a_closed_stream_are_dropped(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.raw(build_head() + build_chunk("a") + build_chunk("b") + build_chunk("c"))

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            assert await anext(stream) == "a"
            await stream.aclose()
            assert stream.text == "a"

    runtime.run(scenario)
    faults.wait_until_closed()


@pytest.mark.usefixtures("_other_httpcore")
def test_an_empty_chunk_is_not_the_end(runtime: Runtime, faults: FaultyServer) -> None:
    faults.reply(chunks=["a", "b"])

    class Chunks:
        def __init__(self, rest: Any) -> None:
            self.chunks: list[Any] = [b"", b"x"]
            self.rest = rest

        def __iter__(self) -> Any:
            return self

        __aiter__ = __iter__

        def __next__(self) -> Any:
            return self.chunks.pop(0) if self.chunks else next(self.rest)

        async def __anext__(self) -> Any:
            return self.chunks.pop(0) if self.chunks else await anext(self.rest)

    async def scenario() -> None:
        async with (
            runtime.client(base_url=faults.base_url) as client,
            client.stream("Hi") as stream,
        ):
            assert await anext(stream) == "a"
            exchange = getattr(stream, "inner", stream)._attempt._exchange
            exchange._chunks = Chunks(exchange._chunks)
            assert (await stream.read()).text == "axb"

    runtime.run(scenario)


def test_a_slot_is_given_back_once(runtime: Runtime, faults: FaultyServer) -> None:
    faults.stall(after="Hello")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, max_connections=1) as client:
            stream = client.stream("Hi")
            await anext(stream)
            getattr(stream, "inner", stream)._attempt.abandon()
            await stream.aclose()
            other = client.stream("Hi")
            await anext(other)
            error = await outcome(client.chat("Hi", timeout=Timeout(pool=0.1)))
            assert error.phase == "pool"
            await other.aclose()

    runtime.run(scenario)


def test_a_reply_that_ends_after_close_is_not_kept(runtime: Runtime, faults: FaultyServer) -> None:
    gate = threading.Event()
    faults.reply(chunks=["Hel", "lo"], gate=gate)

    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        stream = client.stream("Hi")
        await anext(stream)
        getattr(stream, "inner", stream)._attempt._exchange._pool.close()
        gate.set()
        assert (await stream.read()).text
        faults.wait_until_closed()

    runtime.run(scenario)
