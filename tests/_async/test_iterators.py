"""The bodies of custom clients: their limits, and how they are closed."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio
import trio.testing
from runtimes import ASYNC_RUNTIMES, Runtime, outcome

from cromicle_sdk import (
    APITimeoutError,
    AsyncClient,
    IncompleteReplyError,
    Retry,
    Timeout,
)
from cromicle_sdk._async import concurrency, iterators
from cromicle_sdk.testing import FaultyServer, build_chunk, build_head

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

ONCE = Retry(attempts=1)

on_each_event_loop = pytest.mark.parametrize(
    "runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name
)


class Body(httpx.AsyncByteStream):
    """A body by a transport of the user's, from a generator."""

    def __init__(self, generate: Callable[[], AsyncIterator[bytes]]) -> None:
        self._generate = generate
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._generate()

    async def aclose(self) -> None:
        self.is_closed = True


def client_of(body: Any, **options: Any) -> AsyncClient:
    """A client over a transport of the user's with this body; `aclose` of it is not needed."""

    def respond(request: httpx.Request) -> httpx.Response:
        kind = "stream" if isinstance(body, httpx.AsyncByteStream) else "content"
        head: Any = {"headers": {"content-type": "text/plain"}, kind: body}
        return httpx.Response(200, **head)

    own = httpx.AsyncClient(transport=httpx.MockTransport(respond))
    return AsyncClient(base_url="http://h.example", http_client=own, retry=ONCE, **options)


# trio warns about every async generator that is dropped unfinished.
drops_a_generator = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@drops_a_generator
@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_a_body_that_is_no_longer_read_does_not_take_what_is_sent_to_another(end: str) -> None:
    """The task that dropped it waits for something else by then."""

    async def scenario() -> None:
        send, receive = trio.open_memory_channel[bytes](0)
        other_send, other_receive = trio.open_memory_channel[bytes](0)

        async def generate() -> AsyncIterator[bytes]:
            yield b"Hel"
            async for chunk in receive:
                yield chunk

        stream = client_of(Body(generate)).stream("Hi")
        assert await anext(stream) == "Hel"
        if end == "closed":
            await stream.aclose()
        del stream
        gc.collect()

        async def wait_for_another() -> None:
            assert await other_receive.receive() == b"right"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_another)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.WouldBlock):
                send.send_nowait(b"wrong")
            with pytest.raises(trio.WouldBlock):
                send.send_nowait(b"wrong")
            await other_send.send(b"right")

    trio.run(scenario)


@on_each_event_loop
def test_a_generator_of_a_mock_is_closed_with_its_stream(runtime: Runtime) -> None:
    """In its task, where it may wait; httpx's wrappers around it would close only themselves."""
    ended: list[str] = []

    async def generate() -> AsyncIterator[bytes]:
        try:
            yield b"Hel"
            yield b"lo."
        finally:
            await anyio.sleep(0)
            ended.append(anyio.get_current_task().name or "")

    async def scenario() -> None:
        for body in (Body(generate), generate()):
            async with client_of(body).stream("Hi") as stream:
                assert await anext(stream) == "Hel"
            assert ended.pop() == anyio.get_current_task().name

    runtime.run(scenario)


@on_each_event_loop
def test_a_stream_that_is_its_own_iterator_is_closed_once(runtime: Runtime) -> None:
    class Chunks(httpx.AsyncByteStream):
        def __init__(self) -> None:
            self.closed = 0

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            return b"Hel"

        async def aclose(self) -> None:
            self.closed += 1

    async def scenario() -> None:
        chunks = Chunks()
        async with client_of(chunks).stream("Hi") as stream:
            assert await anext(stream) == "Hel"
        assert chunks.closed == 1

    runtime.run(scenario)


@on_each_event_loop
def test_an_iterator_without_an_end_to_close_is_dropped(runtime: Runtime) -> None:
    class Chunks:
        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            return b"Hel"

    async def scenario() -> None:
        async with client_of(Body(Chunks)).stream("Hi") as stream:
            assert await anext(stream) == "Hel"

    runtime.run(scenario)


@pytest.mark.parametrize("count", [1, 5_000])
@on_each_event_loop
def test_closing_a_stream_over_httpx_finishes_its_generators(
    runtime: Runtime, count: int, faults: FaultyServer
) -> None:
    """Under trio one that is dropped is a warning, and so an error here."""
    faults.raw(build_head() + build_chunk(b"x") * count)

    async def scenario() -> None:
        async with (
            httpx.AsyncClient() as own,
            AsyncClient(base_url=faults.base_url, http_client=own) as client,
            client.stream("Hi") as stream,
        ):
            assert (await anext(stream)) == "x"

    runtime.run(scenario)
    gc.collect()
    faults.wait_until_closed()


@on_each_event_loop
def test_other_tasks_run_while_many_chunks_are_dropped(runtime: Runtime) -> None:
    iterations = 0

    async def generate() -> AsyncIterator[bytes]:
        for _ in range(1_000):
            yield b"x"

    async def count() -> None:
        nonlocal iterations
        while True:
            await anyio.lowlevel.checkpoint()
            iterations += 1

    async def scenario() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(count)
            await anyio.lowlevel.checkpoint()
            before = iterations
            await iterators.close_iterator(generate(), 1, is_nested=True)
            # Neither never nor at each chunk.
            assert 10 <= iterations - before <= 25
            group.cancel_scope.cancel()

    runtime.run(scenario)


async def in_a_task_group() -> AsyncIterator[bytes]:
    """Its task group is open from one chunk to the next."""
    send, receive = anyio.create_memory_object_stream[bytes](0)

    async def produce() -> None:
        await send.send(b"Hel")
        await anyio.sleep_forever()

    async with send, receive, anyio.create_task_group() as group:
        group.start_soon(produce)
        async for chunk in receive:
            yield chunk


async def in_a_group_of_asyncio() -> AsyncIterator[bytes]:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(50))
        yield b"Hel"
        await asyncio.sleep(50)


async def swallowing() -> AsyncIterator[bytes]:
    yield b"Hel"
    try:
        await anyio.sleep_forever()
    except BaseException:
        await anyio.sleep_forever()


async def swallowing_to_the_end() -> AsyncIterator[bytes]:
    yield b"Hel"
    try:
        await anyio.sleep_forever()
    except BaseException:
        yield b"lo."


async def ending() -> AsyncIterator[bytes]:
    yield b"Hel"
    try:
        await anyio.sleep_forever()
    except BaseException:
        return


async def raising() -> AsyncIterator[bytes]:
    yield b"Hel"
    try:
        await anyio.sleep_forever()
    except BaseException:
        raise ValueError("mine") from None


async def raising_a_group() -> AsyncIterator[bytes]:
    """As some versions of trio do for a nursery in which several tasks were cancelled."""
    yield b"Hel"
    try:
        await anyio.sleep_forever()
    except BaseException as error:
        raise BaseExceptionGroup("cancelled", [error]) from None


async def always_busy() -> AsyncIterator[bytes]:
    yield b"Hel"
    while True:
        await anyio.sleep(0)


BODIES = [in_a_task_group, swallowing, swallowing_to_the_end, ending, raising]
BODIES += [raising_a_group, always_busy]
GROUPS_OF_ASYNCIO = [in_a_group_of_asyncio] if sys.version_info >= (3, 11) else []


@pytest.mark.parametrize("reason", ["total", "close"])
@pytest.mark.parametrize("generate", BODIES + GROUPS_OF_ASYNCIO, ids=lambda body: body.__name__)
@on_each_event_loop
def test_the_end_of_a_wait_within_a_body_is_the_end_of_the_call(
    runtime: Runtime, generate: Callable[[], AsyncIterator[bytes]], reason: str
) -> None:
    """Whatever the body makes of it: it neither goes on nor looks like the end of the reply."""
    if generate is in_a_group_of_asyncio and runtime.name == "trio":
        generate = in_a_task_group

    async def scenario() -> None:
        limits = Timeout(total=0.2 if reason == "total" else 50)
        client = client_of(Body(generate), timeout=limits)

        async def close() -> None:
            await anyio.sleep(0.1)
            await client.aclose()

        async with anyio.create_task_group() as group:
            stream = client.stream("Hi")
            assert await anext(stream) == "Hel"
            started = time.monotonic()
            if reason == "close":
                group.start_soon(close)
            error = await outcome(anext(stream))
        assert time.monotonic() - started < 20
        if reason == "total":
            assert isinstance(error, APITimeoutError)
            assert error.phase == "total"
        else:
            assert isinstance(error, IncompleteReplyError)
            assert "closed" in str(error)
        assert error.partial_text == "Hel"

    runtime.run(scenario)


@on_each_event_loop
def test_a_body_may_wait_while_it_cleans_up(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, a short wait may take longer than the real limit.
    monkeypatch.setattr(iterators, "LAST_CLEANUP_SECONDS", 20)
    steps = []

    async def cleaning_up() -> AsyncIterator[bytes]:
        yield b"Hel"
        try:
            await anyio.sleep_forever()
        finally:
            steps.append("ended")
            await anyio.sleep(0.01)
            steps.append("cleaned up")

    async def scenario() -> None:
        client = client_of(Body(cleaning_up), timeout=Timeout(total=0.2))
        assert isinstance(await outcome(client.chat("Hi")), APITimeoutError)
        assert steps == ["ended", "cleaned up"]

    runtime.run(scenario)


@on_each_event_loop
def test_the_close_of_a_custom_response_has_a_limit(runtime: Runtime) -> None:
    class Slow(Body):
        async def aclose(self) -> None:
            await anyio.sleep(50)

    async def scenario() -> None:
        started = time.monotonic()
        client = client_of(Slow(ending), timeout=Timeout(total=0.2))
        error = await outcome(client.chat("Hi"))
        assert isinstance(error, APITimeoutError)
        async with client.with_options(timeout=50).stream("Hi") as stream:
            assert await anext(stream) == "Hel"
        assert time.monotonic() - started < 20

    runtime.run(scenario)


@pytest.mark.parametrize("reason", ["left", "closed"])
@on_each_event_loop
def test_a_custom_response_has_time_to_close_while_its_call_goes_on(
    reason: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a moment where the caller leaves the stream, and no more where it is closed."""
    # On a busy machine, the close below may take longer than the real limit.
    monkeypatch.setattr("cromicle_sdk._async.session._CLEANUP_SECONDS", 20)
    ended: list[str] = []

    class Slow(Body):
        async def aclose(self) -> None:
            await anyio.sleep(0.4)
            ended.append("close")

    async def scenario() -> None:
        client = client_of(Slow(ending), timeout=50)
        stream = client.stream("Hi")
        assert await anext(stream) == "Hel"
        if reason == "left":
            await stream.aclose()
            assert ended == ["close"]
            return

        async def read() -> None:
            assert isinstance(await outcome(stream.read()), IncompleteReplyError)

        async def close() -> None:
            await anyio.wait_all_tasks_blocked()
            await client.aclose()

        await runtime.together(read, close)
        assert ended == []

    runtime.run(scenario)


@on_each_event_loop
def test_the_total_ends_a_hook_that_waits(runtime: Runtime) -> None:
    async def wait(request: httpx.Request) -> None:
        await anyio.sleep(50)

    async def scenario() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, text="Hello."))
        async with (
            httpx.AsyncClient(transport=transport, event_hooks={"request": [wait]}) as own,
            AsyncClient(base_url="http://h.example", http_client=own, retry=ONCE) as client,
        ):
            started = time.monotonic()
            error = await outcome(client.chat("Hi", timeout=Timeout(total=0.2)))
            assert time.monotonic() - started < 20
        assert isinstance(error, APITimeoutError)
        assert error.phase == "total"

    runtime.run(scenario)


@on_each_event_loop
def test_the_end_of_a_step_that_had_to_wait_is_its_result(runtime: Runtime) -> None:
    async def generate() -> AsyncIterator[bytes]:
        for chunk in (b"Hel", b"lo."):
            await anyio.sleep(0)
            yield chunk
        await anyio.sleep(0)

    async def scenario() -> None:
        assert (await client_of(Body(generate)).chat("Hi")).text == "Hello."

    runtime.run(scenario)


def test_what_comes_with_the_end_of_the_time_counts() -> None:
    """The event loop was busy, and finds both at once."""

    async def step() -> bytes:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_later(0.01, future.set_result, b"x")
        loop.call_soon(time.sleep, 0.2)
        result: bytes = await future
        return result

    async def scenario() -> None:
        handle = concurrency.CancelHandle()
        assert await iterators.LimitedSteps(step, lambda: 0.05, handle).run() == b"x"

    asyncio.run(scenario())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="it has no asyncio.timeout")
def test_a_cancellation_from_outside_is_not_lost_in_a_cleanup() -> None:
    """asyncio sends it once: while the body ends, after the time of the call has run out."""
    tasks: list[asyncio.Task[None]] = []

    async def generate() -> AsyncIterator[bytes]:
        yield b"Hel"
        try:
            await asyncio.sleep(50)
        finally:
            tasks[0].cancel("from outside")
            await asyncio.sleep(50)

    async def call() -> None:
        await client_of(Body(generate), timeout=Timeout(total=0.1)).chat("Hi")

    async def scenario() -> None:
        tasks.append(asyncio.create_task(call()))
        with pytest.raises(asyncio.CancelledError, match="from outside"):
            await tasks[0]

    asyncio.run(scenario())


@on_each_event_loop
def test_an_interrupt_by_the_user_passes_through_a_body_that_ends(runtime: Runtime) -> None:
    async def generate() -> AsyncIterator[bytes]:
        yield b"Hel"
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            raise BaseExceptionGroup("both", [error, KeyboardInterrupt()]) from None

    async def scenario() -> None:
        with pytest.raises(BaseExceptionGroup, match="both"):
            await client_of(Body(generate), timeout=Timeout(total=0.1)).chat("Hi")

    runtime.run(scenario)


def test_a_response_that_came_with_the_close_of_its_client_is_closed(runtime: Runtime) -> None:
    closed: list[None] = []

    class Chunks(httpx.AsyncByteStream, httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"Hel"

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"Hel"

        def close(self) -> None:
            closed.append(None)

        async def aclose(self) -> None:
            closed.append(None)

    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/plain"}, stream=Chunks())

    async def scenario() -> None:
        kind: Any = httpx.Client if runtime.is_blocking else httpx.AsyncClient
        own = kind(transport=httpx.MockTransport(respond))
        client = runtime.client(base_url="http://h.example", http_client=own)
        async with client.stream("Hi"):
            assert not closed
        assert closed.pop() is None
        hook = client.inner.close if runtime.is_blocking else client.aclose
        own.event_hooks["response"].append(lambda response: hook())
        assert "closed" in str(await outcome(client.chat("Hi")))
        assert closed.pop() is None

    runtime.run(scenario)


def test_an_iterator_over_a_closed_connection_is_not_stepped_without_end() -> None:
    class Endless:
        steps = 0

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            self.steps += 1
            return b"x"

    chunks = Endless()
    iterators.finish_iterator(chunks)
    assert 0 < chunks.steps < 2000
