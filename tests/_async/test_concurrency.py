"""Waits that end: closed by another event loop, past a limit, on a busy machine."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from runtimes import ASYNC_RUNTIMES, Runtime, outcome

from cromicle_sdk import (
    APIConnectionError,
    APITimeoutError,
    AsyncClient,
    AsyncTransport,
    Retry,
    Timeout,
)
from cromicle_sdk._async import concurrency, iterators
from cromicle_sdk._http import resolver, sockets
from cromicle_sdk._sync import concurrency as sync_concurrency
from cromicle_sdk.testing import (
    LAST_CHUNK,
    Connection,
    FaultyServer,
    RecordedRequest,
    build_chunk,
    build_head,
)

if sys.version_info < (3, 11):
    pass

ONCE = Retry(attempts=1)

on_each_event_loop = pytest.mark.parametrize(
    "runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name
)


# Closing from another event loop


def in_another_loop(function: Callable[[], Any], other: Runtime) -> None:
    """Run an async function in an event loop of its own, in another thread."""
    thread = threading.Thread(target=other.run, args=(function,))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("other", ASYNC_RUNTIMES, ids=lambda other: f"closed in {other.name}")
@pytest.mark.parametrize("wait", ["retry", "slot", "resolver", "connection", "addresses", "hook"])
@on_each_event_loop
def test_a_client_that_is_closed_in_another_event_loop_ends_every_wait(
    runtime: Runtime,
    wait: str,
    other: Runtime,
    faults: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved, is_waiting = threading.Event(), threading.Event()
    url, options = faults.base_url, {}
    if wait == "retry":
        faults.fail(503, retry_after=50)
        notice(concurrency.CancelHandle, "sleep", is_waiting, monkeypatch)
    elif wait == "slot":
        faults.stall(after="Hel")
        options = {"max_connections": 1}
    elif wait == "resolver":
        url = "http://h.example"

        def look_up(*args: object) -> Any:
            is_waiting.set()
            resolved.wait(60)
            raise OSError(1, "no such host")

        monkeypatch.setattr(resolver, "look_up", look_up)
    elif wait in ("connection", "addresses"):
        faults.black_hole()
        name = "wait_writable" if wait == "connection" else "wait_any_writable"
        owner = concurrency.CancelHandle if wait == "connection" else concurrency
        notice(owner, name, is_waiting, monkeypatch)
    if wait == "addresses":
        host, port = "127.0.0.1", int(url.rpartition(":")[2])
        url = f"http://h.example:{port}"
        found = [(socket.AF_INET, (host, port))] * 2
        monkeypatch.setattr(resolver, "look_up", lambda *args: found)

    async def sleep(response: httpx.Response) -> None:
        is_waiting.set()
        await anyio.sleep(50)

    async def scenario() -> None:
        hooks: Any = {"response": [sleep]}
        async with httpx.AsyncClient(transport=AsyncTransport(), event_hooks=hooks) as own:
            custom: Any = {"http_client": own} if wait == "hook" else options
            limits = Timeout(connect=50, pool=50)
            client = AsyncClient(base_url=url, timeout=limits, **custom)
            errors: list[Any] = []
            streams: list[Any] = []

            async def call() -> None:
                if wait == "slot":
                    streams.append(await client.stream("first").__aenter__())
                    is_waiting.set()
                errors.append(await outcome(client.chat("Hi")))

            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await anyio.to_thread.run_sync(is_waiting.wait, 20)
                await anyio.wait_all_tasks_blocked()
                started = time.monotonic()
                await anyio.to_thread.run_sync(in_another_loop, client.aclose, other)
            assert time.monotonic() - started < 20
            (error,) = errors
            assert isinstance(error, APIConnectionError)
            assert "closed" in str(error)

    runtime.run(scenario)
    resolved.set()


def notice(owner: Any, name: str, called: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set an event when a function is called."""
    function = getattr(owner, name)

    def notice(*args: Any) -> Any:
        called.set()
        return function(*args)

    monkeypatch.setattr(owner, name, notice)


@on_each_event_loop
def test_a_slot_that_another_thread_gives_back_is_the_next_calls(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """As where the garbage collector runs there."""
    faults.stall(after="Hel").reply("Hello.")

    async def scenario() -> None:
        if runtime.name != "trio":
            asyncio.get_running_loop().set_debug(True)
        async with AsyncClient(base_url=faults.base_url, max_connections=1) as client:
            streams = [client.stream("first")]
            assert await anext(streams[0]) == "Hel"
            replies: list[Any] = []

            async def call() -> None:
                replies.append(await outcome(client.chat("second")))

            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(call)
                    await anyio.wait_all_tasks_blocked()
                    await anyio.to_thread.run_sync(streams.clear)
            assert str(replies[0]) == "Hello."

    runtime.run(scenario)


@on_each_event_loop
def test_a_call_is_cancelled_in_another_thread_as_its_wait_ends(runtime: Runtime) -> None:
    async def scenario() -> None:
        cancel_handle = concurrency.CancelHandle()
        await cancel_handle.sleep(0)
        # In this event loop's thread nothing else runs meanwhile.
        thread = threading.Thread(target=cancel_handle.cancel)
        thread.start()
        thread.join(20)
        await anyio.sleep(0)
        assert isinstance(await outcome(cancel_handle.run(anyio.sleep_forever, None)), Exception)

    runtime.run(scenario)


@pytest.mark.parametrize("wait", ["readable", "writable", "step"])
@on_each_event_loop
def test_another_thread_ends_each_kind_of_wait(runtime: Runtime, wait: str) -> None:
    async def scenario() -> None:
        cancel_handle = concurrency.CancelHandle()
        near, far = open_full_pair()
        with near, far:
            waits: dict[str, Callable[[], Any]] = {
                "readable": lambda: cancel_handle.wait_readable(near, 50),
                "writable": lambda: cancel_handle.wait_writable(near, 50),
                "step": lambda: iterators.LimitedSteps(
                    anyio.sleep_forever, lambda: 50, cancel_handle
                ).run(),
            }

            async def cancel() -> None:
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(cancel_handle.cancel)

            async with anyio.create_task_group() as group:
                group.start_soon(cancel)
                with anyio.fail_after(20), pytest.raises(sockets.ClosedByCaller):
                    await waits[wait]()

    runtime.run(scenario)


def open_full_pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets, of which the first one takes no more bytes and has none to read."""
    near, far = socket.socketpair()
    near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(b"x" * 1000)
    return near, far


# Waits and their limits


@on_each_event_loop
def test_a_socket_is_waited_for_until_it_takes_bytes(runtime: Runtime) -> None:
    async def scenario() -> None:
        cancel_handle = concurrency.CancelHandle()
        near, far = open_full_pair()
        with near, far:

            async def drain() -> None:
                await anyio.wait_all_tasks_blocked()
                far.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while far.recv(100_000):
                        pass

            async with anyio.create_task_group() as group:
                group.start_soon(drain)
                assert await cancel_handle.wait_writable(near, 20)

    runtime.run(scenario)


@pytest.mark.parametrize("count", [1, 2])
@on_each_event_loop
def test_a_socket_that_takes_no_bytes_is_waited_for_until_the_timeout(
    runtime: Runtime, count: int
) -> None:
    async def scenario() -> None:
        cancel_handle = concurrency.CancelHandle()
        pairs = [open_full_pair() for _ in range(count)]
        full = [near for near, _ in pairs]
        durations: list[float] = []
        # Where the machine is busy, one of them may take longer.
        for _ in range(3):
            started = time.monotonic()
            with anyio.fail_after(20):
                if count == 1:
                    assert not await cancel_handle.wait_writable(full[0], 0.05)
                else:
                    found = await concurrency.wait_any_writable(full, 0.05, cancel_handle)
                    assert found == []
            durations.append(time.monotonic() - started)
        assert 0.04 < min(durations) < 0.9
        for sock in itertools.chain.from_iterable(pairs):
            sock.close()

    runtime.run(scenario)


@on_each_event_loop
def test_the_code_of_a_custom_client_has_a_limit(runtime: Runtime) -> None:
    async def scenario() -> None:
        with anyio.fail_after(20), pytest.raises(sockets.TimeLimitReached):
            await concurrency.time_limit(anyio.sleep_forever, 0.05, concurrency.CancelHandle())

    runtime.run(scenario)


@on_each_event_loop
def test_a_cleanup_goes_on_in_a_cancelled_call_for_so_long(runtime: Runtime) -> None:
    async def scenario() -> None:
        ended: list[str] = []
        with anyio.fail_after(20), anyio.CancelScope() as scope:
            scope.cancel()
            with concurrency.shield(50):
                await anyio.sleep(0.01)
                ended.append("in time")
            with concurrency.shield(0.05):
                await anyio.sleep_forever()
            ended.append("at the limit")
        assert ended == ["in time", "at the limit"]

    runtime.run(scenario)


@pytest.mark.parametrize("is_windows", [False, True])
@on_each_event_loop
def test_only_asyncio_on_windows_limits_the_connections_itself(
    runtime: Runtime, is_windows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrency, "_IS_WINDOWS", is_windows)
    monkeypatch.setattr(concurrency, "_SELECT_CAPACITY", 1)
    is_limited = is_windows and runtime.name == "asyncio"

    async def scenario() -> None:
        limiter, cancel_handle = concurrency.ConnectionLimiter(2), concurrency.CancelHandle()
        slots = [await limiter.acquire(0, cancel_handle) for _ in range(3)]
        assert [slot is not None for slot in slots] == [True, not is_limited, False]

    runtime.run(scenario)


@on_each_event_loop
def test_another_thread_wakes_a_queued_call_again(runtime: Runtime) -> None:
    """The first time there was no slot for it, since another thread was faster."""

    async def scenario() -> None:
        if runtime.name != "trio":
            # Raises where another thread calls what only the loop's own may.
            asyncio.get_running_loop().set_debug(True)
        limiter, cancel_handle = concurrency.ConnectionLimiter(1), concurrency.CancelHandle()
        slot = await limiter.acquire(None, cancel_handle)
        assert slot is not None
        taken: list[Any] = []

        async def wait() -> None:
            taken.append(await limiter.acquire(None, cancel_handle))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                (wake,) = limiter._slots._queue.values()
                wake()
                await anyio.sleep(0.01)
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(slot.release)
        assert taken[0] is not None

    runtime.run(scenario)


# What has come in time, and is looked at late


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what waits already be read for longer: the machine that runs this may be busy, too."""
    for side, module in itertools.product(("async", "sync"), ("network", "stream")):
        monkeypatch.setattr(f"cromicle_sdk._{side}.{module}.LATE_SECONDS", 20)
    monkeypatch.setattr(iterators, "_LEAST_WAIT_SECONDS", 0.5)


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("phase", ["first_byte", "total"])
@on_each_event_loop
def test_an_answer_that_came_while_the_event_loop_was_busy_is_no_timeout(
    runtime: Runtime, phase: str, faults: FaultyServer
) -> None:
    gate, sent = threading.Event(), threading.Event()

    def answer(connection: Connection, request: RecordedRequest) -> None:
        connection.send(b"HTTP")
        connection.wait(gate)
        connection.send(build_head(length=6)[4:] + b"Hello.")
        sent.set()

    faults.script(answer)

    async def scenario() -> None:
        limits = Timeout(**{phase: 0.6})
        async with AsyncClient(base_url=faults.base_url, timeout=limits, retry=ONCE) as client:
            async with anyio.create_task_group() as group:
                stream = client.stream("Hi")
                replies: list[Any] = []

                async def call() -> None:
                    replies.append(await outcome(stream.read()))

                group.start_soon(call)
                await anyio.to_thread.run_sync(faults.wait_for_requests, 1)
                gate.set()
                assert sent.wait(20)
                time.sleep(0.9)
            assert str(replies[0]) == "Hello."

    runtime.run(scenario)


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("custom", [False, True])
def test_what_has_arrived_while_the_caller_was_busy_is_read_after_the_total(
    runtime: Runtime, custom: bool, faults: FaultyServer
) -> None:
    gate, sent = threading.Event(), threading.Event()

    def answer(connection: Connection, request: RecordedRequest) -> None:
        connection.send(build_head() + build_chunk("Hel"))
        connection.wait(gate)
        connection.send(build_chunk("lo.") + LAST_CHUNK)
        sent.set()

    faults.script(answer).stall(after="Hel")

    async def scenario() -> None:
        own = httpx.Client() if runtime.is_blocking else httpx.AsyncClient()
        options: Any = {"http_client": own} if custom else {}
        async with runtime.client(base_url=faults.base_url, retry=ONCE, **options) as client:
            # As if the caller was busy for longer than the total. What comes before is to arrive in
            # time, also on a busy machine.
            stream = client.stream("Hi", timeout=Timeout(total=20))
            assert await anext(stream) == "Hel"
            gate.set()
            assert sent.wait(20)
            getattr(stream, "inner", stream)._call.timeouts._deadline = time.monotonic() - 0.2
            assert (await stream.read()).text == "Hello."
            with pytest.raises(APITimeoutError) as caught:
                stream = client.stream("Hi", timeout=Timeout(total=0.3))
                assert await anext(stream) == "Hel"
                time.sleep(0.5)
                await stream.read()
            assert caught.value.phase == "total"
        own.close() if isinstance(own, httpx.Client) else await own.aclose()

    runtime.run(scenario)


def test_a_wait_that_comes_to_its_timeout_first_sees_what_is_ready(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = sync_concurrency if runtime.is_blocking else concurrency
    address = [(socket.AF_INET, ("127.0.0.1", 80))]
    monkeypatch.setattr(resolver, "look_up", lambda *args: address)
    lookup = resolver.Lookup("h.example", 80)
    lookup._run()
    monkeypatch.setattr(module, "start_lookup", lambda *args: lookup)

    async def scenario() -> None:
        cancel_handle = module.CancelHandle()
        near, far = socket.socketpair()
        with near, far:
            for result, expected in (
                (cancel_handle.wait_writable(near, -1), True),
                (module.wait_any_writable([near, far], -1, cancel_handle), [near, far]),
                (module.resolve("h.example", 80, -1, cancel_handle), address),
            ):
                found = await result if inspect.isawaitable(result) else result
                assert found == expected

    runtime.run(scenario)


@on_each_event_loop
def test_a_resolver_that_answers_as_the_time_runs_out_is_in_time(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup = resolver.Lookup("h.example", 80)
    address = (socket.AF_INET, ("127.0.0.1", 80))
    monkeypatch.setattr(concurrency, "start_lookup", lambda *args: lookup)

    async def answer() -> None:
        await anyio.wait_all_tasks_blocked()
        # Its thread has not told the event loop yet.
        lookup._result = [address]

    async def scenario() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            handle = concurrency.CancelHandle()
            assert await concurrency.resolve("h.example", 80, 0.3, handle) == [address]

    runtime.run(scenario)
