"""Load on the gateway: many concurrent streams, many disconnects, and callers that do not read.

The tests run with a tenth of the load; `CROMICLE_STRESS=full` runs them with all of it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from upstreams import DONE, STOP, say

from cromicle_sdk import AsyncClient, Client, Retry, Timeout
from cromicle_sdk.server import LocalServer

FULL = os.environ.get("CROMICLE_STRESS") == "full"
ONCE = Retry(attempts=1)
PATIENT = Timeout(connect=60, first_byte=120, stall=120)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def scaled(full: int) -> int:
    return full if FULL else full // 10


class ModelServer:
    """A model server that repeats the prompt word by word.

    The prompt "hang" gets one word and no end, the prompt "flood" gets kilobytes without end.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.requests = 0
        self.flooded = 0

    async def answer(self, request: Request) -> StreamingResponse:
        prompt = (await request.json())["messages"][-1]["content"]
        return StreamingResponse(self._stream(prompt), media_type="text/event-stream")

    async def _stream(self, prompt: str) -> AsyncIterator[str]:
        self.in_flight += 1
        self.requests += 1
        try:
            if prompt == "hang":
                yield say("one")[0]
                await asyncio.Event().wait()
            while prompt == "flood":
                yield say("x" * 1000)[0]
                self.flooded += 1000
                # uvicorn does not suspend its `send` once the gateway has disconnected.
                await asyncio.sleep(0)
            for word in prompt.split(" "):
                yield say(f"{word} ")[0]
                await asyncio.sleep(0.01)
            yield STOP
            yield DONE
        finally:
            self.in_flight -= 1

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self.answer, methods=["POST"])])


class Gateway:
    """`cromicle serve` in its own process, so that its memory and sockets can be measured."""

    def __init__(self, process: subprocess.Popen[str], base_url: str) -> None:
        self._folder = Path(f"/proc/{process.pid}")
        self.base_url = base_url

    @property
    def sockets(self) -> int:
        """The number of open sockets, its listener included."""
        count = 0
        for file in (self._folder / "fd").iterdir():
            try:
                count += str(file.readlink()).startswith("socket:")
            except FileNotFoundError:
                continue
        return count

    @property
    def memory(self) -> int:
        """The resident set size in bytes."""
        pages = int((self._folder / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def in_flight(self) -> float:
        text = httpx.get(f"{self.base_url}/metrics").text
        return next(
            family.samples[0].value
            for family in text_string_to_metric_families(text)
            if family.name == "cromicle_requests_in_flight"
        )


@pytest.fixture
def model_server() -> ModelServer:
    return ModelServer()


@pytest.fixture
def gateway(model_server: ModelServer) -> Iterator[Gateway]:
    with LocalServer(app=model_server.app) as upstream:
        command = [sys.executable, "-m", "cromicle_sdk", "serve", "--port", "0", "--no-access-log"]
        command += ["--upstream", f"{upstream.base_url}/v1", "--model", "m"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                yield Gateway(process, process.stderr.readline().split()[-1])
            finally:
                process.kill()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("target", ["gateway", "echo"])
def test_concurrent_streams_get_their_own_replies(
    target: str, backend: str, request: pytest.FixtureRequest, model_server: ModelServer
) -> None:
    """Always with the full load, because a tenth of it would not be concurrent enough."""
    streams = 500
    replies: dict[str, str] = {}
    base_url: str = request.getfixturevalue(target).base_url

    async def ask(client: AsyncClient, number: int) -> None:
        prompt = f"{number} " + "é🎉 " * 20 + str(number)
        replies[prompt] = (await client.chat(prompt)).text

    async def main() -> None:
        async with AsyncClient(
            base_url=base_url, token="abc", retry=ONCE, timeout=PATIENT
        ) as client:
            async with anyio.create_task_group() as group:
                for number in range(streams):
                    group.start_soon(ask, client, number)

    anyio.run(main, backend=backend)
    assert len(replies) == streams
    assert [prompt for prompt, text in replies.items() if text.rstrip() != prompt] == []
    assert model_server.requests == (streams if target == "gateway" else 0)


@LINUX
def test_disconnects_leak_no_socket_and_no_memory(
    gateway: Gateway, model_server: ModelServer
) -> None:
    callers, at_once = scaled(1000), 50

    async def disconnect(client: AsyncClient) -> None:
        async with client.stream("hang") as stream:
            async for _ in stream:
                return

    async def disconnect_all(count: int) -> None:
        async with AsyncClient(
            base_url=gateway.base_url, token="abc", retry=ONCE, timeout=PATIENT
        ) as client:
            for _ in range(count // at_once):
                async with anyio.create_task_group() as group:
                    for _ in range(at_once):
                        group.start_soon(disconnect, client)

    # Modules and caches that are loaded the first time do not count as growth.
    anyio.run(disconnect_all, 2 * at_once)
    wait_until(lambda: model_server.in_flight == 0)
    before = gateway.memory
    anyio.run(disconnect_all, callers)
    wait_until(lambda: model_server.in_flight == 0)
    wait_until(lambda: gateway.in_flight == 0)
    wait_until(lambda: gateway.sockets <= 3)
    assert model_server.requests == callers + 2 * at_once
    gc.collect()
    assert gateway.memory - before < 8 * 1024 * 1024


@LINUX
def test_a_caller_that_does_not_read_uses_no_memory(
    gateway: Gateway, model_server: ModelServer
) -> None:
    with Client(base_url=gateway.base_url, token="abc", retry=ONCE) as client:
        client.chat("warm up")
        before = gateway.memory
        with client.stream("flood") as stream:
            next(stream)
            seen = -1
            # Nothing more within 0.5 s: the model server is suspended.
            while seen != model_server.flooded:
                seen = model_server.flooded
                time.sleep(0.5)
            # The buffers of two connections on loopback hold some megabytes.
            assert seen < 64 * 1024 * 1024
            assert gateway.memory - before < 8 * 1024 * 1024
            assert model_server.in_flight == 1
    wait_until(lambda: model_server.in_flight == 0)


def wait_until(condition: Callable[[], Any]) -> None:
    """It takes up to 1 s; this allows for a busy machine."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
