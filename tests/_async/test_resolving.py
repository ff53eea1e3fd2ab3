"""A resolver that hangs delays nothing but the calls that wait for it, and those to their limit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from runtimes import ASYNC_RUNTIMES, Runtime, outcome

from cromicle_sdk import APIConnectionError, APITimeoutError, AsyncClient, Retry, Timeout
from cromicle_sdk._http import resolver
from cromicle_sdk.testing import FaultyServer

ONCE = Retry(attempts=1)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A resolver that answers after the test, which sets the event."""
    released = threading.Event()
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if "hangs" not in str(host):
            return look_up(host, *arguments, **options)
        released.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield released
    released.set()


def test_hanging_look_ups_delay_neither_others_nor_the_end(
    runtime: Runtime, faults: FaultyServer, hanging: threading.Event
) -> None:
    url = faults.base_url.replace("127.0.0.1", "localhost")

    async def call(host: str) -> None:
        async with runtime.client(base_url=f"http://{host}", retry=ONCE) as client:
            error = await outcome(client.chat("Hi", timeout=Timeout(connect=0.3)))
        assert isinstance(error, APITimeoutError)
        assert error.phase == "connect"

    async def scenario() -> None:
        await runtime.together(*[lambda n=n: call(f"hangs{n}.example") for n in range(12)])
        if not runtime.is_blocking:
            limiter = anyio.to_thread.current_default_thread_limiter()
            assert limiter.borrowed_tokens == 0
        async with runtime.client(base_url=url) as client:
            assert (await client.chat("Hi")).text

    started = time.monotonic()
    runtime.run(scenario)
    assert time.monotonic() - started < 30
    assert not hanging.is_set()


def test_a_thousand_calls_to_one_host_share_a_thread(
    runtime: Runtime, hanging: threading.Event
) -> None:
    before = threading.active_count()

    async def scenario() -> None:
        async with runtime.client(base_url="http://hangs.example", retry=ONCE) as client:

            async def call() -> None:
                error = await outcome(client.chat("Hi", timeout=20))
                assert type(error) is APIConnectionError
                assert "name resolution" in str(error)

            async def release() -> None:
                while not any(t.name == "cromicle-resolve" for t in threading.enumerate()):
                    time.sleep(0.01) if runtime.is_blocking else await anyio.sleep(0.01)
                count = threading.active_count() - before
                assert count <= (100 if runtime.is_blocking else 10)
                hanging.set()

            calls = 40 if runtime.is_blocking else 1000
            await runtime.together(*[call] * calls, release)

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_closing_in_another_thread_wakes_a_call_that_waits_for_the_resolver(
    runtime: Runtime, hanging: threading.Event
) -> None:
    client = AsyncClient(base_url="http://hangs.example", retry=ONCE)

    async def scenario() -> None:
        threading.Timer(0.2, anyio.run, (client.aclose,)).start()
        assert "closed" in str(await outcome(client.chat("Hi", timeout=50)))

    started = time.monotonic()
    runtime.run(scenario)
    assert time.monotonic() - started < 20


def test_an_answer_after_the_end_of_the_loop_is_dropped(hanging: threading.Event) -> None:
    for backend in ("asyncio", "trio"):

        async def scenario() -> None:
            async with AsyncClient(base_url="http://hangs.example", retry=ONCE) as client:
                await outcome(client.chat("Hi", timeout=Timeout(connect=0.1)))

        anyio.run(scenario, backend=backend)
    threads = [t for t in threading.enumerate() if t.name == "cromicle-resolve"]
    hanging.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_where_no_thread_starts_the_host_is_looked_up_in_place(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> Any:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(resolver, "threading", SimpleNamespace(Thread=refuse))
    url = faults.base_url.replace("127.0.0.1", "localhost")

    async def scenario() -> None:
        async with runtime.client(base_url=url, retry=ONCE) as client:
            assert (await client.chat("Hi")).text
        async with runtime.client(base_url="http://nothing.invalid", retry=ONCE) as client:
            assert type(await outcome(client.chat("Hi"))) is APIConnectionError

    runtime.run(scenario)


AT_EXIT = """
import atexit, sys
from cromicle_sdk import Client

client = Client(base_url=sys.argv[1])
atexit.register(lambda: print(client.chat("Hi").text))
"""


def test_a_call_while_the_interpreter_ends(faults: FaultyServer) -> None:
    faults.reply("Goodbye.")
    url = faults.base_url.replace("127.0.0.1", "localhost")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AT_EXIT, url],
        env=os.environ | {"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("Goodbye.\n", "")


IN_SUBINTERPRETER = """
import os, sys

# Importing trio starts a process, which some isolated interpreters may not.
SCRIPT = f'''
import asyncio, sys
sys.modules["trio"] = None
sys.path[:0] = {sys.path!r}
from cromicle_sdk import APIConnectionError, AsyncClient, Client, Retry

def chat(base_url):
    with Client(base_url=base_url, retry=Retry(attempts=1)) as client:
        return client.chat("Hi").text

async def chat_async(base_url):
    async with AsyncClient(base_url=base_url) as client:
        return (await client.chat("Hi")).text

texts = [chat({sys.argv[1]!r}), asyncio.run(chat_async({sys.argv[1]!r}))]
try:
    chat("http://nothing.invalid")
except APIConnectionError as error:
    texts.append(type(error).__name__)
print(*texts, flush=True)
'''

try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
run = getattr(interpreters, "exec", None) or interpreters.run_string
failure = run(interpreters.create(), SCRIPT)
# To end an interpreter crashes some versions of Python.
os._exit(failure is not None)
"""


def test_a_call_in_a_subinterpreter(faults: FaultyServer) -> None:
    """No daemon thread starts there."""
    faults.reply("Hello.")
    url = faults.base_url.replace("127.0.0.1", "localhost")
    done = subprocess.run(
        [sys.executable, "-c", IN_SUBINTERPRETER, url],
        env=os.environ | {"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello. Hello. APIConnectionError\n"


def test_a_hanging_look_up_does_not_delay_the_end_of_the_process() -> None:
    code = """
import socket, threading
from cromicle_sdk import APITimeoutError, Client, Retry

socket.getaddrinfo = lambda *a, **o: threading.Event().wait()
try:
    Client(base_url="http://h.example", retry=Retry(attempts=1)).chat("Hi", timeout=0.2)
except APITimeoutError as error:
    print(error.phase)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("connect\n", "")
