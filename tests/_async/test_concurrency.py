"""Waits that end: closed by another event loop, past a limit, in code of a custom client."""

from __future__ import annotations

import socket
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
    AsyncClient,
    AsyncTransport,
    Retry,
    Timeout,
)
from cromicle_sdk._async import concurrency
from cromicle_sdk._http import resolver
from cromicle_sdk.testing import FaultyServer

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
