"""Many calls, and all that can go wrong with them: nothing is lost, nothing is left.

The tests run with a tenth of the load; `CROMICLE_STRESS=full` runs them with all of it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from left_out import skip_if_left_out
from runtimes import ASYNC_RUNTIMES, Runtime, outcome, run_in_threads

from cromicle_sdk import (
    APITimeoutError,
    AsyncClient,
    Client,
    CromicleError,
    IncompleteReplyError,
    Reply,
    Retry,
    Timeout,
)
from cromicle_sdk._async import network as async_network
from cromicle_sdk._sync import network as sync_network
from cromicle_sdk.server import LocalServer, create_app
from cromicle_sdk.testing import (
    LAST_CHUNK,
    Connection,
    FaultyServer,
    RecordedRequest,
    build_chunk,
    build_head,
)

FULL = os.environ.get("CROMICLE_STRESS") == "full"
ONCE = Retry(attempts=1)


def scaled(full: int) -> int:
    return full if FULL else full // 10


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


# Chaos.

ALPHABET = "abc äöü €₴ 😀🎉\n"


def text_of(seed: str) -> str:
    chance = random.Random(seed)
    return "".join(chance.choices(ALPHABET, k=chance.randint(1, 400)))


def misbehave(connection: Connection, request: RecordedRequest) -> None:
    """Answer with the text that the prompt stands for; three times in ten, break something."""
    chance = random.Random(f"fault {request.message} {request.connection}")
    data = text_of(request.message).encode()
    cuts = sorted(chance.sample(range(len(data) + 1), min(3, len(data))))
    chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if b > a]
    body = b"".join(build_chunk(piece) for piece in chunks)
    good = build_head() + body + LAST_CHUNK
    if chance.random() > 0.3:
        for piece in chunks:
            connection.send(build_head() if piece is chunks[0] else b"")
            connection.send(build_chunk(piece))
        connection.send(LAST_CHUNK)
        return
    cut = chance.randrange(len(good))
    fault = chance.choice(["close", "reset", "status", "html", "gzip", "unframed", "latin-1", "two",
                           "short", "idle", "empty"])  # fmt: skip
    if fault in ("close", "reset"):
        connection.send(good[:cut])
        connection.close() if fault == "close" else connection.reset()
    elif fault == "status":
        status = chance.choice([429, 500, 503, 404])
        connection.send(build_head(status, length=0, headers=[("retry-after", "0")]))
    elif fault == "html":
        connection.send(build_head(content_type="text/html", length=5) + b"<html")
    elif fault == "gzip":
        connection.send(build_head(headers=[("content-encoding", "gzip")]) + body + LAST_CHUNK)
    elif fault == "unframed":
        connection.send(build_head(length="none") + data[: cut % (len(data) + 1)])
        connection.close()
    elif fault == "latin-1":
        connection.send(build_head() + build_chunk(b"\xe4") + body + LAST_CHUNK)
    elif fault == "two":
        connection.send(good + build_head() + build_chunk("not yours") + LAST_CHUNK)
    elif fault == "short":
        connection.send(build_head(length=len(data)) + data + b"and more")
    elif fault == "idle":
        connection.send(good)
        connection.close()
    else:
        connection.send(build_head(length=0))


def test_chaos_is_never_silent(runtime: Runtime, faults: FaultyServer) -> None:
    faults.script(misbehave)
    workers = 16
    per_worker = scaled(3000) // workers + 1
    wrong: list[Any] = []
    seen = {"good": 0, "bad": 0}

    async def scenario() -> None:
        retry = Retry(attempts=2, first_delay=0)
        async with runtime.client(base_url=faults.base_url, retry=retry) as client:

            async def worker(number: int) -> None:
                for turn in range(per_worker):
                    seed = f"{number} {turn}"
                    if turn % 2:
                        result = await outcome(client.chat(seed))
                    else:
                        result = await outcome(client.stream(seed).read())
                    owed = text_of(seed)
                    if isinstance(result, Reply):
                        seen["good"] += 1
                        right = result.text == owed
                    else:
                        seen["bad"] += 1
                        right = isinstance(result, CromicleError) and owed.startswith(
                            result.partial_text
                        )
                    if not right:
                        wrong.append((seed, result))

            await runtime.together(*(lambda n=n: worker(n) for n in range(workers)))

    runtime.run(scenario)
    assert wrong == []
    assert seen["bad"] > seen["good"] / 30, seen
    faults.wait_until_closed()


# Cancellation.


async def cancel_natively(call: Callable[[], Coroutine[Any, Any, Any]], delay: float) -> None:
    task = asyncio.get_running_loop().create_task(call())
    await asyncio.sleep(delay)
    task.cancel()
    await asyncio.sleep(0)
    # Twice, as frameworks do that lose their patience: the second one reaches through shields.
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


async def time_out_natively(call: Callable[[], Coroutine[Any, Any, Any]], delay: float) -> None:
    try:
        async with asyncio.timeout(delay):
            await call()
    except (TimeoutError, CromicleError):
        pass


async def cancel_by_anyio(call: Callable[[], Coroutine[Any, Any, Any]], delay: float) -> None:
    with anyio.move_on_after(delay):
        await outcome(call())


async def cancel_by_trio(call: Callable[[], Coroutine[Any, Any, Any]], delay: float) -> None:
    with trio.move_on_after(delay):
        await outcome(call())


CANCELLATIONS = [
    pytest.param("asyncio", cancel_natively, id="task.cancel"),
    pytest.param("uvloop", cancel_natively, id="task.cancel, uvloop"),
    pytest.param(
        "asyncio",
        time_out_natively,
        id="asyncio.timeout",
        marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is of 3.11"),
    ),
    pytest.param("asyncio", cancel_by_anyio, id="anyio"),
    pytest.param("trio", cancel_by_trio, id="trio"),
]


@pytest.mark.parametrize(("name", "cancel"), CANCELLATIONS)
def test_cancelled_calls_cost_nothing(name: str, cancel: Any, faults: FaultyServer) -> None:
    skip_if_left_out(name)
    faults.reply(chunks=["a", "b", "c", "d"], delay=0.002)
    runtime = next(runtime for runtime in ASYNC_RUNTIMES if runtime.name == name)
    workers = 20

    async def scenario() -> None:
        async with AsyncClient(
            base_url=faults.base_url, retry=ONCE, max_connections=workers
        ) as client:

            async def call(number: int) -> None:
                if number % 2:
                    await client.chat("Hi")
                else:
                    async for _ in client.stream("Hi"):
                        pass

            async def worker(number: int) -> None:
                chance = random.Random(number)
                for turn in range(scaled(12_000) // workers):
                    await cancel(lambda turn=turn: call(turn), chance.uniform(0, 0.012))

            await runtime.together(*(lambda n=n: worker(n) for n in range(workers)))
            for _ in range(15):
                assert (await client.chat("Hi", timeout=Timeout(total=20))).text == "abcd"
            if name != "trio":
                assert len(asyncio.all_tasks()) <= 1

    runtime.run(scenario)
    faults.wait_until_closed(timeout=20)


# Soak.


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_soak_leaves_nothing(runtime: Runtime, faults: FaultyServer) -> None:
    faults.reply(chunks=["Hello, ", "wörld"])

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:

            async def stream(number: int) -> None:
                streamed = client.stream("Hi")
                async for _ in streamed:
                    if number % 3 == 0:
                        break
                if number % 3 == 1:
                    await streamed.aclose()

            async def many(count: int) -> None:
                for number in range(count):
                    await stream(number)
                    if number % 100 == 0:
                        # The server's record would grow, and it lives in this process.
                        faults.clear().reply(chunks=["Hello, ", "wörld"])
                # A stream that ends leaves one idle connection, and a `break` leaves one or none.
                await stream(2)
                # The server closes its ends in its own time.
                deadline = time.monotonic() + 20
                while faults.open_connections > 1 and time.monotonic() < deadline:
                    time.sleep(0.05)

            await many(100)
            gc.collect()
            tracemalloc.start()
            before = (descriptors(), threading.active_count(), tracemalloc.get_traced_memory()[0])
            await many(scaled(5000))
            gc.collect()
            # Its threads end a moment after their connections.
            for _ in range(100):
                after = (descriptors(), threading.active_count())
                if after[0] <= before[0] and after[1] <= before[1]:
                    break
                time.sleep(0.05)
            grown = tracemalloc.get_traced_memory()[0] - before[2]
            tracemalloc.stop()
            assert after[0] <= before[0]
            assert after[1] <= before[1]
            assert grown < 2 * 1024 * 1024

    runtime.run(scenario)
    faults.wait_until_closed()


# Fuzz.


def mutate(chance: random.Random) -> bytes:
    data = bytearray(
        chance.choice(
            [
                build_head() + build_chunk("Hello") + build_chunk("wörld €😀") + LAST_CHUNK,
                build_head(length=5) + b"Hello",
                build_head(503, length=5) + b"Sorry",
                build_head(302, length=0, headers=[("location", "/x")]),
                build_head(content_type="text/html", length=5) + b"<html",
                build_head(headers=[("content-encoding", "gzip")]) + build_chunk("x") + LAST_CHUNK,
            ]
        )
    )
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(data))
        change = chance.randrange(4)
        if change == 0:
            data[place] = chance.randrange(256)
        elif change == 1:
            del data[place : place + chance.randint(1, 8)]
        elif change == 2:
            data[place:place] = data[chance.randrange(len(data)) :][: chance.randint(1, 8)]
        else:
            data[place:place] = chance.choice([b"\r\n", b"\n", b"0", b"\x00", b"\xff", b": ", b";"])
        if not data:
            data += b"H"
    return bytes(data)


def facts(result: Any) -> tuple[Any, ...]:
    if isinstance(result, Reply):
        return Reply, result.text, result.status_code
    assert isinstance(result, CromicleError), repr(result)
    return type(result), result.partial_text, getattr(result, "status_code", None)


def test_mutated_answers_come_out_the_same_however_they_are_cut(runtime: Runtime) -> None:
    """Whole, and byte by byte; without a real socket, so that it can be many."""
    chance = random.Random(runtime.name)

    async def scenario() -> None:
        for _ in range(scaled(20_000) // 4):
            data = mutate(chance)
            results = [
                facts(await outcome(scripted_call(runtime, [data]))),
                facts(await outcome(scripted_call(runtime, [bytes([b]) for b in data]))),
            ]
            assert results[0] == results[1], data

    with pytest.MonkeyPatch.context() as patch:
        patch_sockets(patch, runtime)
        runtime.run(scenario)


CHUNKS: list[bytes] = []


async def scripted_call(runtime: Runtime, chunks: list[bytes]) -> Any:
    CHUNKS[:] = chunks
    client = runtime.client(base_url="http://127.0.0.1:9", retry=ONCE)
    try:
        return await client.chat("Hi")
    finally:
        await client.aclose()


def patch_sockets(patch: pytest.MonkeyPatch, runtime: Runtime) -> None:
    def receive(*args: Any) -> bytes:
        return CHUNKS.pop(0) if CHUNKS else b""

    def nothing(*args: Any) -> None:
        return None

    async def async_receive(*args: Any) -> bytes:
        return receive()

    async def async_nothing(*args: Any) -> None:
        return None

    network: type = sync_network.Network if runtime.is_blocking else async_network.AsyncNetwork
    patch.setattr(network, "_connect_first", nothing if runtime.is_blocking else async_nothing)
    patch.setattr(network, "send", nothing if runtime.is_blocking else async_nothing)
    patch.setattr(network, "receive", receive if runtime.is_blocking else async_receive)


# Load on a server that is down, threads, forks, signals.


def test_retries_of_a_server_that_is_down_are_bounded(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.fail(503)

    async def scenario() -> None:
        retry = Retry(first_delay=0)
        async with runtime.client(base_url=faults.base_url, retry=retry) as client:

            async def worker() -> None:
                for _ in range(50):
                    assert (await outcome(client.chat("Hi"))).status_code == 503

            await runtime.together(*[worker] * 20)

    runtime.run(scenario)
    # Threads may each see the last of the budget; asyncio and trio can't.
    assert 1000 < len(faults.requests) <= 1100 + (20 if runtime.is_blocking else 0)


def test_a_batch_waits_for_a_server_that_takes_few_at_once(runtime: Runtime) -> None:
    """An obeyed `Retry-After` costs nothing of the budget, which pays for no retry here."""
    attempts: list[int] = []
    has_rejected = threading.Event()

    async def think(prompt: str) -> AsyncIterator[str]:
        # A busy machine may send the prompts one by one.
        await anyio.to_thread.run_sync(has_rejected.wait, 60)
        await anyio.sleep(0.05)
        yield prompt

    # Without a queue, the server rejects the calls above the limit.
    app = create_app(think, max_concurrent=20, max_waiting=0)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def notice(message: Any) -> None:
            if message.get("status") == 503:
                has_rejected.set()
            await send(message)

        await app(scope, receive, notice)

    async def scenario() -> None:
        with LocalServer(app=watched) as server:
            retry = Retry(attempts=50, budget=1)
            async with runtime.client(base_url=server.base_url, retry=retry) as client:
                prompts, texts = [f"prompt {number}" for number in range(scaled(400))], []

                async def work() -> None:
                    while prompts:
                        reply = await client.chat(prompts.pop())
                        texts.append(reply.text)
                        attempts.append(reply.attempts)

                await runtime.together(*[work] * 64)
                assert len(set(texts)) == scaled(400)

    runtime.run(scenario)
    assert max(attempts) > 1


def test_thirty_two_threads_share_a_client(faults: FaultyServer) -> None:
    def echo(connection: Connection, request: RecordedRequest) -> None:
        connection.send(build_head() + build_chunk(request.message) + LAST_CHUNK)

    faults.script(echo)
    with Client(base_url=faults.base_url, max_connections=8) as client:

        def work(number: int) -> None:
            for turn in range(50):
                text = f"{number} {turn}"
                assert client.chat(text).text == text

        run_in_threads(*(lambda n=n: work(n) for n in range(32)))
    faults.wait_until_closed()


def test_forks(faults: FaultyServer) -> None:
    def echo(connection: Connection, request: RecordedRequest) -> None:
        connection.send(build_head() + build_chunk(request.message) + LAST_CHUNK)

    faults.script(echo)
    with Client(base_url=faults.base_url, retry=ONCE) as client:
        for number in range(scaled(100)):
            client.chat("before")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                os._exit(0 if client.chat(f"child {number}").text == f"child {number}" else 1)
            assert client.chat("parent").text == "parent"
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    faults.wait_until_closed()


# An interrupt between two bytecodes may drop a socket before it is assigned: it is closed at once,
# with a ResourceWarning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts(faults: FaultyServer) -> None:
    faults.reply(chunks=["a", "b", "c"], delay=0.002)
    chance = random.Random(1)
    interrupted = 0
    with Client(base_url=faults.base_url, retry=ONCE) as client:
        for _ in range(scaled(100)):
            timer = threading.Timer(chance.uniform(0, 0.01), os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                while timer.is_alive():
                    assert client.chat("Hi").text == "abc"
                timer.join()
                time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
        assert interrupted > scaled(100) // 2
        assert client.chat("Hi").text == "abc"
    gc.collect()
    faults.wait_until_closed()


# The clock.

SLOW: dict[str, Callable[[FaultyServer], object]] = {
    "stalled head": lambda s: s.stall(),
    "stalled body": lambda s: s.stall(after="Hello"),
    "dripped head": lambda s: s.drip(where="head", forever=True),
    "dripped body": lambda s: s.drip(forever=True),
    "endless 1xx": lambda s: s.drip(where="informational", forever=True),
    "black hole": lambda s: s.black_hole(),
    "always 503": lambda s: s.fail(503, retry_after=0.1),
}


@pytest.mark.parametrize("fault", SLOW)
def test_total_holds_within_250_ms(fault: str, runtime: Runtime, faults: FaultyServer) -> None:
    SLOW[fault](faults)
    retry = Retry(attempts=100, first_delay=0.05)
    overs: list[float] = []

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=retry) as client:
            began = time.monotonic()
            timeout = Timeout(connect=30, total=1.0)
            error = await outcome(client.chat("Hi", timeout=timeout))
            overs.append(time.monotonic() - began - 1.0)
            assert isinstance(error, CromicleError)
            assert fault == "always 503" or isinstance(error, APITimeoutError)

    # The best of three: it is the clock that is under test, not the load of the machine.
    for _ in range(3):
        runtime.run(scenario)
        if overs[-1] <= 0.25:
            break
    assert min(overs) <= 0.25


def test_partial_text_of_a_cut_stream_is_exact(runtime: Runtime, faults: FaultyServer) -> None:
    text = text_of("partial") * 3

    def cut_it(connection: Connection, request: RecordedRequest) -> None:
        connection.send(build_head() + build_chunk(text.encode()[: int(request.message)]))
        connection.close()

    faults.script(cut_it)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            for cut in range(1, len(text.encode()), 7):
                error = await outcome(client.chat(str(cut)))
                assert isinstance(error, IncompleteReplyError)
                assert error.partial_text == text.encode()[:cut].decode(errors="ignore")

    runtime.run(scenario)


# Memory.


def flood_head(server: FaultyServer) -> None:
    def behave(connection: Connection, request: RecordedRequest) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            connection.send(b"y" * 65536)

    server.script(behave)


HEAVY: dict[str, Callable[[FaultyServer], object]] = {
    "an endless reply": lambda s: s.flood("x"),
    "an endless line": lambda s: s.flood("x", newline=False),
    "an endless error": lambda s: s.flood(status=500),
    "a bomb": lambda s: s.encoded("x", size=200_000_000),
    "an endless head": flood_head,
    "20,000 headers": lambda s: s.raw(
        build_head(headers=[(f"x-{n}", "1") for n in range(20_000)]), end="close"
    ),
}


@pytest.mark.parametrize("fault", HEAVY)
def test_nothing_makes_the_process_grow(fault: str, runtime: Runtime, faults: FaultyServer) -> None:
    HEAVY[fault](faults)

    async def scenario() -> None:
        options = {"max_reply_bytes": 4 * 1024 * 1024, "retry": ONCE}
        async with runtime.client(base_url=faults.base_url, **options) as client:
            tracemalloc.start()
            error = await outcome(client.chat("Hi"))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert isinstance(error, CromicleError)
        assert peak < 32 * 1024 * 1024

    runtime.run(scenario)
