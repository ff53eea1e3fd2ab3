"""The turns of the drivers that no plain call takes, each as a caller would notice it."""

from __future__ import annotations

import gc
import inspect
import os
import pickle
import socket
import ssl
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import click
import httpx
import pytest
import trustme
from click.testing import CliRunner
from runtimes import ASYNC_RUNTIMES, RUNTIMES, Runtime, outcome

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
from cromicle_sdk._async import concurrency as _async_io
from cromicle_sdk._async import pool as _async_transport
from cromicle_sdk._core.retry import Decision
from cromicle_sdk._http import sockets as _transport
from cromicle_sdk._sync import concurrency as _sync_io
from cromicle_sdk._sync import pool as _sync_transport
from cromicle_sdk.cli import commands as _commands
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
    faults.reply(chunks=["a", "b"])

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            with pytest.raises(CromicleError, match="not ended"):
                stream.reply  # noqa: B018 - a property that raises
            await anext(stream)
            async with stream:  # it may be entered late
                assert (await stream.read()).text == "ab"

    runtime.run(scenario)


def test_a_defect_is_not_dressed_up_as_an_error_of_the_network(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError

    for colour in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{colour}.pool.Body", broken)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            assert isinstance(await outcome(client.chat("Hi")), ZeroDivisionError)

    runtime.run(scenario)


def test_closing_a_stream_ends_its_pause(runtime: Runtime, faults: FaultyServer) -> None:
    faults.fail(503, retry_after=50)

    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        stream = client.stream("Hi")

        async def reader() -> None:
            error = await outcome(stream.read())
            assert isinstance(error, APIConnectionError)
            assert "closed" in str(error)

        async def closer() -> None:
            inner: Any = getattr(stream, "inner", stream)
            while inner._pause is None:
                if runtime.is_blocking:
                    time.sleep(0.01)
                else:
                    await anyio.sleep(0.01)
            await stream.aclose()

        began = time.monotonic()
        await runtime.together(reader, closer)
        assert time.monotonic() - began < 20
        assert len(faults.requests) == 1
        await client.aclose()

    runtime.run(scenario)


def test_a_stream_that_was_closed_on_the_way_to_its_pause_does_not_rest(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.fail(503, retry_after=50)

    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        stream = client.stream("Hi")
        inner: Any = getattr(stream, "inner", stream)
        decide = inner._attempts.decide

        class Attempts:
            count = 1

            def begin(self) -> None: ...

            def decide(self, error: CromicleError, *, time_left: float) -> Decision:
                inner._state = "closed"
                decision: Decision = decide(error, time_left=time_left)
                return decision if type(error) is APIConnectionError else Decision(50.0, error)

        inner._attempts = Attempts()
        assert "closed" in str(await outcome(stream.read()))
        await client.aclose()

    runtime.run(scenario)


def test_a_client_that_is_closed_does_not_rest(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        for options in ({}, {"http_client": own_client(runtime)}):
            client = runtime.client(base_url=faults.base_url, **options)
            await client.aclose()
            inner: Any = getattr(client, "inner", client)
            pause: Any = Never()
            result = inner._connections.wait(50, pause)
            if not runtime.is_blocking:
                await result
            if options:
                await close_own(options["http_client"])

    runtime.run(scenario)


class Never:
    def wait(self, seconds: float) -> None:
        raise AssertionError("it rested")


def own_client(runtime: Runtime, **options: Any) -> Any:
    return httpx.Client(**options) if runtime.is_blocking else httpx.AsyncClient(**options)


async def close_own(client: Any) -> None:
    if isinstance(client, httpx.Client):
        client.close()
    else:
        await client.aclose()


def test_closing_ends_the_pause_of_a_call_over_your_own_client(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.fail(503, retry_after=50)

    async def scenario() -> None:
        own = own_client(runtime)
        client = runtime.client(base_url=faults.base_url, http_client=own)

        async def reader() -> None:
            assert "closed" in str(await outcome(client.chat("Hi")))

        async def closer() -> None:
            inner: Any = getattr(client, "inner", client)
            while not inner._connections._pauses._waiting:
                if runtime.is_blocking:
                    time.sleep(0.01)
                else:
                    await anyio.sleep(0.01)
            await client.aclose()

        await runtime.together(reader, closer)
        await close_own(own)

    runtime.run(scenario)


@pytest.mark.parametrize("closed", ["stream", "client"])
def test_closing_ends_a_call_over_your_own_client(
    closed: str, runtime: Runtime, faults: FaultyServer
) -> None:
    """At once where a task can be cancelled, at the next bytes where a thread can't be."""
    gate, reading = threading.Event(), threading.Event()
    faults.reply(chunks=["a", "b"], gate=gate)

    async def scenario() -> None:
        own = own_client(runtime)
        client = runtime.client(base_url=faults.base_url, http_client=own, retry=ONCE)
        stream = client.stream("Hi")
        assert await anext(stream) == "a"
        inner: Any = getattr(stream, "inner", stream)

        async def reader() -> None:
            reading.set()
            error = await outcome(anext(stream))
            assert isinstance(error, IncompleteReplyError)
            assert error.partial_text == "a"
            gate.set()

        async def closer() -> None:
            await runtime.wait(reading)
            while not inner._turn.locked():
                await anyio.sleep(0) if not runtime.is_blocking else None
            await (stream if closed == "stream" else client).aclose()
            if runtime.is_blocking:
                gate.set()

        await runtime.together(reader, closer)
        another = runtime.client(base_url=faults.base_url, http_client=own).stream("Hi")
        assert (await another.read()).text == "ab"
        await close_own(own)

    runtime.run(scenario)


def hook_that(runtime: Runtime, act: Callable[[Any], Any]) -> Any:
    """A response hook of httpx's in the colour of the runtime."""

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

    def fetch_token(_: httpx.Request) -> None:
        raise httpx.HTTPStatusError(
            "refused", request=other, response=httpx.Response(403, request=other)
        )

    async def fetch_token_later(request: httpx.Request) -> None:
        fetch_token(request)

    async def scenario() -> None:
        hook = fetch_token if runtime.is_blocking else fetch_token_later
        own = own_client(runtime, event_hooks={"request": [hook]})
        async with runtime.client(base_url=faults.base_url, http_client=own, retry=ONCE) as client:
            assert type(await outcome(client.chat("Hi"))) is APIConnectionError
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


def test_an_endless_body_of_your_own_transport_can_be_left(runtime: Runtime) -> None:
    class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b"x" * 1000

        async def __aiter__(self) -> Any:
            while True:
                yield b"x" * 1000

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"transfer-encoding": "chunked"}, stream=Endless())

    async def scenario() -> None:
        own = own_client(runtime, transport=httpx.MockTransport(answer))
        client = runtime.client(
            base_url="http://x.invalid", http_client=own, retry=ONCE, max_reply_bytes=5000
        )
        assert isinstance(await outcome(client.chat("Hi")), ReplyTooLargeError)
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
            count = 0
            with pytest.raises(APITimeoutError) as caught:
                async for _ in stream:
                    count += 1
                    time.sleep(0.002)
            assert caught.value.phase == "total"
            assert caught.value.partial_text == "x" * count
            assert count < 1000

    runtime.run(scenario)


def test_a_burst_gives_other_tasks_their_turn(faults: FaultyServer) -> None:
    faults.raw(build_head() + build_chunk("x") * 2000 + LAST_CHUNK)

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
                for _ in range(1000):
                    await anext(stream)
                assert turns - before >= 5
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
            async with client.stream("Hi", retry=ONCE) as stream:
                await pause(runtime, 0.8)
                error = await outcome(stream.read())
                assert error.phase == "first_byte"

    runtime.run(scenario)
    assert len(faults.requests) == 1


async def pause(runtime: Runtime, seconds: float) -> None:
    """What a caller does between two lines of its own."""
    time.sleep(seconds) if runtime.is_blocking else await anyio.sleep(seconds)


@pytest.mark.parametrize("kind", [Stream, AsyncStream])
def test_a_stream_that_an_interrupt_kept_from_being_made_can_be_shown(kind: Any) -> None:
    assert repr(kind.__new__(kind)) == f"<{kind.__name__} that was not made>"


def test_a_resolver_without_a_thread_is_a_failure_of_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with (
        Client(base_url="http://h.invalid", retry=ONCE) as client,
        pytest.raises(APIConnectionError, match="can't start new thread"),
    ):
        client.chat("Hi")


def test_a_name_that_the_resolver_can_not_take_is_said_at_once() -> None:
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


def test_a_base_url_of_your_own_client_is_not_passed_over(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        own = own_client(runtime, base_url="http://127.0.0.1:9/v1")
        with pytest.raises(ConfigurationError, match="base_url: pass it here"):
            runtime.client(http_client=own)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert (await client.chat("Hi")).text
        await close_own(own)

    runtime.run(scenario)


def test_a_call_that_waited_its_turn_stays_on_its_own_loop(faults: FaultyServer) -> None:
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


def test_a_client_that_is_collected_in_a_ring_closes_its_connections(
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
            patch.setattr(_sync_io, "find_place", lambda: "a child")
            client.chat("Hi")
        client.chat("Hi")
    assert len({request.connection for request in faults.requests}) == 3
    faults.wait_until_closed()


def test_closing_wakes_who_waits_on_another_loop(faults: FaultyServer) -> None:
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
def test_a_stream_that_is_over_can_not_be_entered(
    end: str, runtime: Runtime, faults: FaultyServer
) -> None:
    if end == "failed":
        faults.fail(400)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            await (stream.aclose() if end == "closed" else outcome(stream.read()))
            with pytest.raises(CromicleError, match="Start a new one"):
                await stream.__aenter__()

    runtime.run(scenario)


def test_a_transport_of_your_own_may_send_empty_pieces(runtime: Runtime) -> None:
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


def test_dropping_a_stream_over_your_own_client_is_quiet() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"Hello")

    with httpx.Client(transport=httpx.MockTransport(answer)) as own:
        with Client(base_url="http://x.invalid", http_client=own) as client:
            for _ in client.stream("Hi"):
                break


def test_a_stream_in_a_forked_process_says_why_it_ends(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.drip("x", forever=True)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            stream = client.stream("Hi")
            assert await anext(stream) == "x"
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: -1)
                with pytest.raises(IncompleteReplyError, match="forked"):
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
    authority = trustme.CA()
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
def test_a_slot_that_comes_back_while_a_call_gets_in_line_is_its_own(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the garbage collector, which may run wherever something is made."""

    async def scenario() -> None:
        slots = _async_io.Slots(1)
        await slots.acquire(None, _async_io.Interrupt())
        make = anyio.Event

        def make_while_collecting() -> anyio.Event:
            slots.release()
            return make()

        with monkeypatch.context() as patch:
            patch.setattr(anyio, "Event", make_while_collecting)
            with anyio.fail_after(20):
                await slots.acquire(None, _async_io.Interrupt())

    runtime.run(scenario)


def test_a_set_is_read_while_others_change_it() -> None:
    class Item:
        pass

    class Changing(weakref.WeakSet[Item]):
        turns = 0

        def __iter__(self) -> Iterator[Item]:
            self.turns += 1
            if self.turns == 1:
                raise RuntimeError("Set changed size during iteration")
            return super().__iter__()

    item = Item()
    assert _transport.snapshot(Changing([item])) == [item]


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_turn_that_came_with_the_cancellation_is_passed_on(runtime: Runtime) -> None:
    async def scenario() -> None:
        slots = _async_io.Slots(1)
        await slots.acquire(None, _async_io.Interrupt())
        scope = anyio.CancelScope()

        async def wait() -> None:
            with scope:
                await slots.acquire(None, _async_io.Interrupt())
                slots.release()

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            slots.release()
        await slots.acquire(1, _async_io.Interrupt())

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_wake_up_for_nothing_is_slept_through(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            waits = []

            async def wait_readable(sock: socket.socket) -> None:
                waits.append(sock)
                if len(waits) == 2:
                    other.sendall(b"x")

            monkeypatch.setattr(anyio, "wait_readable", wait_readable)
            assert await _async_io.receive(one, 10, 5) == b"x"
            assert len(waits) == 2

    runtime.run(scenario)


def test_a_socket_that_is_gone_is_not_quiet() -> None:
    sock = socket.socket()
    sock.close()
    assert not _transport.is_quiet(sock)


@pytest.fixture
def _hidden_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """An httpcore that keeps its h11 connection elsewhere."""
    assert _transport.find_protocol(object()) is None
    for module in (_async_transport, _sync_transport):
        monkeypatch.setattr(module, "find_protocol", lambda _: None)


@pytest.mark.usefixtures("_hidden_protocol")
def test_what_httpcore_hides_from_us_comes_through_it_and_is_not_used_again(
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
    first, second = faults.requests
    assert first.connection != second.connection
    faults.wait_until_closed()


def test_a_call_that_is_closed_before_it_is_sent(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, timeout=Timeout(total=20)) as client:
            stream = client.stream("Hi")
            inner: Any = getattr(stream, "inner", stream)
            start = inner._connections.start

            def start_aborted(limits: Any) -> Any:
                exchange = start(limits)
                exchange.abort()
                return exchange

            inner._connections.start = start_aborted
            assert "closed" in str(await outcome(stream.read()))
        assert faults.requests == []

    runtime.run(scenario)


def test_serve_that_was_interrupted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_commands, "serve_in_foreground", lambda *args, **options: None)
    with pytest.raises(click.Abort):
        CliRunner().invoke(_commands.serve, [], standalone_mode=False, catch_exceptions=False)


def test_a_name_that_is_being_looked_up_can_be_given_up(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def getaddrinfo(*args: Any, **options: Any) -> Any:
        asked.set()
        assert answered.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9))]

    async def async_getaddrinfo(*args: Any, **options: Any) -> Any:
        return await anyio.to_thread.run_sync(getaddrinfo)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(anyio, "getaddrinfo", async_getaddrinfo)

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


@pytest.mark.usefixtures("_hidden_protocol")
def test_pieces_that_nobody_wants_any_more_are_dropped(
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


@pytest.mark.usefixtures("_hidden_protocol")
def test_an_empty_piece_is_not_the_end(runtime: Runtime, faults: FaultyServer) -> None:
    faults.reply(chunks=["a", "b"])

    class Pieces:
        def __init__(self, rest: Any) -> None:
            self.pieces: list[Any] = [b"", b"x"]
            self.rest = rest

        def __iter__(self) -> Any:
            return self

        __aiter__ = __iter__

        def __next__(self) -> Any:
            return self.pieces.pop(0) if self.pieces else next(self.rest)

        async def __anext__(self) -> Any:
            return self.pieces.pop(0) if self.pieces else await anext(self.rest)

    async def scenario() -> None:
        async with (
            runtime.client(base_url=faults.base_url) as client,
            client.stream("Hi") as stream,
        ):
            assert await anext(stream) == "a"
            exchange = getattr(stream, "inner", stream)._exchange
            exchange._chunks = Pieces(exchange._chunks)
            assert (await stream.read()).text == "axb"

    runtime.run(scenario)


def test_a_slot_is_given_back_once(runtime: Runtime, faults: FaultyServer) -> None:
    faults.stall(after="Hello")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, max_connections=1) as client:
            stream = client.stream("Hi")
            await anext(stream)
            exchange = getattr(stream, "inner", stream)._exchange
            exchange.drop()
            await stream.aclose()
            other = client.stream("Hi")
            await anext(other)
            error = await outcome(client.chat("Hi", timeout=Timeout(total=0.1)))
            assert error.phase == "pool"
            await other.aclose()

    runtime.run(scenario)


def test_a_reply_that_ends_after_close_is_not_kept(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url)
        stream = client.stream("Hi")
        await anext(stream)
        getattr(stream, "inner", stream)._connections._here[0].leave()
        assert (await stream.read()).text
        faults.wait_until_closed()

    runtime.run(scenario)
