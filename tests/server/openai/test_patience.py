"""A model that thinks for minutes: default clients behind a default gateway, on a faster clock."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio.testing
from runtimes import Runtime, run_blocking, run_in_threads
from upstreams import EVENTS, answer_texts, say

from cromicle_sdk import AsyncClient, Client
from cromicle_sdk._http import sockets as _sockets
from cromicle_sdk.server import create_app, openai_backend
from cromicle_sdk.server.run.uvicorn import build_server, format_base_url, listen
from cromicle_sdk.testing import (
    LAST_CHUNK,
    Connection,
    FaultyServer,
    RecordedRequest,
    build_chunk,
    build_head,
)

# How fast the clock runs while a model thinks: 5 seconds are the 100 of the model.
RATE = 20
THINKING_SECONDS = 100


class FastClock:
    """A monotonic clock that runs at `rate`; loops and waits follow it."""

    def __init__(self) -> None:
        self.trio_clock = trio.testing.MockClock(rate=1)
        self._rate = 1
        self._since = time.monotonic()
        self._time = 0.0

    @property
    def rate(self) -> int:
        return self._rate

    @rate.setter
    def rate(self, rate: int) -> None:
        self._time, self._since = self.monotonic(), time.monotonic()
        self._rate = rate
        self.trio_clock.rate = rate

    def monotonic(self) -> float:
        return self._time + self._rate * (time.monotonic() - self._since)

    def build_loop(self) -> asyncio.AbstractEventLoop:
        clock = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                return super().select(None if timeout is None else timeout / clock.rate)

        class Loop(asyncio.SelectorEventLoop):
            def time(self) -> float:
                return clock.monotonic()

        return Loop(Selector())

    def run(self, runtime: Runtime, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if runtime.is_blocking:
            run_blocking(scenario())
        elif runtime.name == "trio":
            anyio.run(scenario, backend="trio", backend_options={"clock": self.trio_clock})
        else:
            anyio.run(scenario, backend_options={"loop_factory": self.build_loop})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FastClock:
    """The clock of this package's modules."""
    # Those of a client are loaded when the first one is made.
    Client(base_url="http://127.0.0.1").close()
    anyio.run(AsyncClient(base_url="http://127.0.0.1").aclose)
    clock = FastClock()
    fast_time = SimpleNamespace(**{**vars(time), "monotonic": clock.monotonic})
    for name, module in list(sys.modules.items()):
        is_ours = name.startswith("cromicle_sdk.") and not name.startswith("cromicle_sdk.testing")
        if is_ours and getattr(module, "time", None) is time:
            monkeypatch.setattr(module, "time", fast_time)
    to_milliseconds = _sockets._to_milliseconds
    monkeypatch.setattr(
        _sockets, "_to_milliseconds", lambda seconds: to_milliseconds(seconds / clock.rate)
    )
    return clock


@contextlib.contextmanager
def serve_gateway(upstream: FaultyServer, clock: FastClock) -> Iterator[str]:
    """The base URL of a default gateway, whose loop follows the clock."""
    app = create_app(openai_backend(f"{upstream.base_url}/v1", "m"))
    ready = threading.Event()
    server = build_server(app, grace=0, on_started=ready.set)
    loop = clock.build_loop()
    with listen("127.0.0.1", 0) as listener:

        def run() -> None:
            loop.run_until_complete(server.serve(sockets=[listener]))
            loop.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert ready.wait(20)
        try:
            yield format_base_url(listener)
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.skipif(sys.platform == "win32", reason="a selector of asyncio is replaced")
def test_a_default_client_waits_for_a_model_that_thinks_for_100_seconds(
    clock: FastClock, faults: FaultyServer
) -> None:
    runtimes = [Runtime(name) for name in ("blocking", "asyncio", "trio")]
    thinking = threading.Semaphore(0)
    is_fast = threading.Event()

    def think(connection: Connection, request: RecordedRequest) -> None:
        thinking.release()
        connection.wait(is_fast)
        connection.pause(THINKING_SECONDS / RATE)
        connection.send(build_head(content_type=EVENTS))
        connection.send(build_chunk("".join([*say("At last."), "data: [DONE]\n\n"])) + LAST_CHUNK)

    for _ in runtimes:
        answer_texts(faults, "At once.")
    faults.script(think)
    replies: dict[str, Any] = {}
    connected = threading.Barrier(len(runtimes) + 1)

    def ask(runtime: Runtime) -> None:
        async def scenario() -> None:
            async with runtime.client(base_url=base_url, token="abc") as client:
                # The connections are made before the clock runs fast: 5 s would be 0.25 s.
                assert (await client.chat("Hi")).text == "At once."
                connected.wait(20)
                replies[runtime.name] = await client.chat("Think.")

        clock.run(runtime, scenario)

    def hurry() -> None:
        connected.wait(20)
        for _ in runtimes:
            assert thinking.acquire(timeout=20)
        clock.rate = RATE
        is_fast.set()

    with serve_gateway(faults, clock) as base_url:
        run_in_threads(hurry, *(lambda each=each: ask(each) for each in runtimes))
    assert [replies[runtime.name].text for runtime in runtimes] == ["At last."] * 3
    assert [replies[runtime.name].attempts for runtime in runtimes] == [1] * 3
    assert min(reply.elapsed for reply in replies.values()) > 0.8 * THINKING_SECONDS
    assert len(faults.requests) == 2 * len(runtimes)
