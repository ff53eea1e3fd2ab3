"""The scenarios: their cases, libraries and numbers of rounds."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter

from .bulk import MEMORY_BOUND, get_memory_bound
from .gateway import CASES as GATEWAY
from .isolated import (
    IMPORTS,
    ISOLATED,
    TOTAL_BOUND,
    iterated_reply,
    long_reply,
    measure_import,
    measure_isolated,
)
from .libraries import ASYNC, BLOCKING, AsyncCall, Call, Received
from .measure import Case, Measure, Sample, Settings, Stopwatch
from .runtimes import RUNTIMES, Runtime, run, run_together
from .server import ReplySpec

__all__ = ["FAN_OUT_SIZES", "SCENARIOS", "Scenario"]

FAN_OUT_SIZES = (100, 500, 1000, 2000)
_THREADS = 32

# `http_client=` is measured only in the scenarios call, burst and paced.
_LIBRARIES = [name for name in BLOCKING if name != "cromicle http_client"]
_ASYNC_LIBRARIES = [name for name in ASYNC if name != "cromicle http_client"]


@dataclass(frozen=True)
class Scenario:
    """A list of cases. `columns` are the headings of the measures in their samples."""

    name: str
    description: str
    columns: dict[Measure, str]
    cases: Sequence[Case]
    rounds: int

    def rounds_in(self, settings: Settings) -> int:
        return 1 if settings.quick else self.rounds


def _call_repeatedly(library: str, full: ReplySpec, count: int, settings: Settings) -> Sample:
    """Measure the cost per token in `count` successive calls on a keep-alive connection."""
    count, spec = settings.scale(count), _scale(full, settings)
    with BLOCKING[library](settings.base_url + spec.path) as call:
        _check(call(), spec)
        with Stopwatch() as watch:
            for _ in range(count):
                _check(call(), spec)
    return watch.per(count * spec.tokens)


def _call_repeatedly_async(
    library: str, runtime: Runtime, full: ReplySpec, count: int, settings: Settings
) -> Sample:
    """`_call_repeatedly` on an event loop."""
    count, spec = settings.scale(count), _scale(full, settings)

    async def measure() -> Sample:
        async with ASYNC[library](settings.base_url + spec.path) as call:
            _check(await call(), spec)
            with Stopwatch() as watch:
                for _ in range(count):
                    _check(await call(), spec)
        return watch.per(count * spec.tokens)

    return run(runtime, measure)


def _all_libraries(spec: ReplySpec, count: int) -> list[Case]:
    """Return a blocking, an asyncio and a trio case of each library that supports them."""
    cases = [
        Case(f"{library} blocking", partial(_call_repeatedly, library, spec, count))
        for library in BLOCKING
    ]
    runtimes: tuple[Runtime, ...] = ("asyncio", "trio")
    for runtime in runtimes:
        cases += [
            Case(
                f"{library} {runtime}",
                partial(_call_repeatedly_async, library, runtime, spec, count),
            )
            for library in ASYNC
            if runtime == "asyncio" or library in ("cromicle", "httpx", "httpx2")
        ]
    return cases


def _fan_out(library: str, runtime: Runtime, streams: int, settings: Settings) -> Sample:
    """Measure concurrent streams: the CPU time per stream and the wall time of all."""
    spec = _scale(ReplySpec(tokens=50, gap=20), settings)
    streams = settings.scale(streams)

    async def measure() -> Sample:
        async with ASYNC[library](settings.base_url + spec.path) as call:

            async def job() -> None:
                _check(await call(), spec)

            with Stopwatch() as watch:
                await run_together(runtime, [job] * streams)
        return Sample(cpu=watch.cpu / streams, wall=watch.wall)

    return run(runtime, measure)


def _fan_outs() -> list[Case]:
    variants: list[tuple[str, Runtime]] = [("cromicle", runtime) for runtime in RUNTIMES]
    variants += [("aiohttp", "asyncio"), ("aiohttp", "uvloop")]
    cases = [
        Case(f"{library} {runtime} {streams}", partial(_fan_out, library, runtime, streams))
        for streams in FAN_OUT_SIZES
        for library, runtime in variants
    ]
    # httpx takes quadratic time: about 23 s with 1,000 streams, 90 s with 2,000.
    quadratic: list[Runtime] = ["asyncio", "trio"]
    cases += [
        Case(f"httpx {runtime} {streams}", partial(_fan_out, "httpx", runtime, streams), 1)
        for streams in FAN_OUT_SIZES[:3]
        for runtime in quadratic
    ]
    return cases


def _call_in_threads(library: str, settings: Settings) -> Sample:
    """Measure the cost per call in 32 threads that share one client."""
    spec, count = ReplySpec(tokens=20), settings.scale(20)
    barrier = threading.Barrier(_THREADS + 1)

    def start_together() -> None:
        # The failed call of the thread that has broken the barrier is raised below.
        with suppress(threading.BrokenBarrierError):
            barrier.wait()

    def work(call: Call) -> None:
        try:
            _check(call(), spec)
        except BaseException:
            # All others would wait for this thread for ever.
            barrier.abort()
            raise
        start_together()
        for _ in range(count):
            _check(call(), spec)

    with ExitStack() as stack:
        call = stack.enter_context(BLOCKING[library](settings.base_url + spec.path))
        pool = stack.enter_context(ThreadPoolExecutor(_THREADS))
        done = [pool.submit(work, call) for _ in range(_THREADS)]
        start_together()
        with Stopwatch() as watch:
            for future in done:
                future.result()
    return watch.per(_THREADS * count)


def _first_text(library: str, settings: Settings) -> Sample:
    """Measure the median time from a call to its first text."""
    spec = ReplySpec(tokens=2, gap=1)
    with BLOCKING[library](settings.base_url + spec.path) as call:
        call()
        waits: list[float] = []
        for _ in range(settings.scale(100)):
            started = perf_counter()
            waits.append(call().first_text_at - started)
    return Sample(wall=median(waits))


def _async_first_text(library: str, settings: Settings) -> Sample:
    spec = ReplySpec(tokens=2, gap=1)

    async def measure(call: AsyncCall) -> float:
        started = perf_counter()
        return (await call()).first_text_at - started

    async def repeat() -> Sample:
        async with ASYNC[library](settings.base_url + spec.path) as call:
            await call()
            return Sample(wall=median([await measure(call) for _ in range(settings.scale(100))]))

    return run("asyncio", repeat)


def _build_conversation() -> list[dict[str, str]]:
    """Build a conversation of 10 MB, in which every second message has non-ASCII characters."""
    texts = ("All the lights are on. " * 440, "Où est la clé du phare ? " * 400)
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": texts[i % 2]} for i in range(1000)]


def _prompt_cromicle(settings: Settings) -> Sample:
    from cromicle_sdk import Client

    conversation = _build_conversation()
    with Client(base_url=settings.base_url, token="abc") as client:  # noqa: S106 - the default
        # This builds the request. Nothing is sent before the stream is iterated.
        return _repeat(lambda: client.stream(conversation), settings)


def _prompt_bare(settings: Settings) -> Sample:
    """Measure only the necessary operations: join, hash, JSON."""
    conversation = _build_conversation()

    def build() -> bytes:
        lines = [f"{each['role'].capitalize()}: {each['content']}" for each in conversation]
        prompt = "\n".join([*lines, "Assistant:"])
        digest = hashlib.sha256(("abc" + prompt).encode()).hexdigest()
        content = {"message": prompt, "token": "abc", "hash": digest}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()

    return _repeat(build, settings)


def _repeat(build: Callable[[], object], settings: Settings) -> Sample:
    build()
    count = settings.scale(5)
    with Stopwatch() as watch:
        for _ in range(count):
            build()
    return watch.per(count)


def _get_reply_size(get_spec: Callable[[Settings], ReplySpec], settings: Settings) -> Sample:
    return Sample(memory=get_spec(settings).characters)


def _get_total_bound(settings: Settings) -> Sample:
    """Return a constant, because this bound is a time and not a ratio."""
    return Sample(wall=TOTAL_BOUND)


def _scale(spec: ReplySpec, settings: Settings) -> ReplySpec:
    return replace(spec, tokens=settings.scale(spec.tokens))


def _check(received: Received, spec: ReplySpec) -> None:
    """Raise `RuntimeError` if text was lost."""
    if received.characters != spec.characters:
        raise RuntimeError(
            f"received {received.characters} characters instead of {spec.characters}"
        )


def _isolated(scenario: str) -> list[Case]:
    return [Case(name, partial(measure_isolated, scenario, name)) for name in ISOLATED[scenario]]


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "call",
            "a reply of one chunk, on a keep-alive connection",
            {"cpu": "CPU per call", "wall": "wall per call"},
            _all_libraries(ReplySpec(tokens=1), 150),
            rounds=11,
        ),
        Scenario(
            "burst",
            "2,000 tokens, all sent in one write",
            {"cpu": "CPU per token", "wall": "wall per token"},
            _all_libraries(ReplySpec(tokens=2000), 3),
            rounds=11,
        ),
        Scenario(
            "paced",
            "200 tokens, one write each, 1 ms apart",
            {"cpu": "CPU per token"},
            _all_libraries(ReplySpec(tokens=200, gap=1), 2),
            rounds=3,
        ),
        Scenario(
            "paced-streams",
            "1,000 concurrent streams of 50 tokens, 20 ms apart",
            {"cpu": "CPU per stream", "wall": "wall of all"},
            [
                Case(f"{library} asyncio", partial(_fan_out, library, "asyncio", 1000))
                for library in ("cromicle", "aiohttp")
            ],
            rounds=7,
        ),
        Scenario(
            "fan-out",
            "100 to 2,000 concurrent streams of 50 tokens, 20 ms apart",
            {"cpu": "CPU per stream", "wall": "wall of all"},
            _fan_outs(),
            rounds=3,
        ),
        Scenario(
            "threads",
            f"replies of 20 tokens to {_THREADS} threads that share one client",
            {"cpu": "CPU per call", "wall": "wall per call"},
            [
                Case(library, partial(_call_in_threads, library))
                for library in _LIBRARIES
                if library != "raw socket"
            ],
            rounds=5,
        ),
        Scenario(
            "first-text",
            "from the call to the first text, on a keep-alive connection",
            {"wall": "latency"},
            [
                *(Case(f"{name} blocking", partial(_first_text, name)) for name in _LIBRARIES),
                *(
                    Case(f"{name} asyncio", partial(_async_first_text, name))
                    for name in _ASYNC_LIBRARIES
                ),
            ],
            rounds=5,
        ),
        Scenario(
            "import",
            "the first import in a new interpreter",
            {"cpu": "CPU", "wall": "wall"},
            [Case(name, partial(measure_import, name)) for name in IMPORTS],
            rounds=9,
        ),
        Scenario(
            "construct",
            "the second client of a process",
            {"cpu": "CPU", "wall": "wall"},
            _isolated("construct"),
            rounds=5,
        ),
        Scenario(
            "prompt",
            "build the request of a 10 MB conversation",
            {"cpu": "CPU", "wall": "wall"},
            [Case("cromicle", _prompt_cromicle), Case("bare", _prompt_bare)],
            rounds=9,
        ),
        Scenario(
            "memory",
            "peak memory of a reply of 50 MB, and of each of 1,000 idle streams",
            {"memory": "peak"},
            [
                *_isolated("memory"),
                Case("its size", partial(_get_reply_size, long_reply)),
                Case("its size, iterated", partial(_get_reply_size, iterated_reply)),
            ],
            rounds=3,
        ),
        Scenario(
            "flood",
            "the time by which a call exceeds timeout.total while an endless reply arrives",
            {"wall": "excess"},
            [*_isolated("flood"), Case("250 ms", _get_total_bound)],
            rounds=3,
        ),
        Scenario(
            "bulk",
            "10,000 prompts, 32 at a time; and 500 to a server that serves 5 at a time",
            {"cpu": "CPU per prompt", "wall": "wall per prompt", "memory": "added to the peak"},
            [*_isolated("bulk"), Case(MEMORY_BOUND, get_memory_bound)],
            rounds=5,
        ),
        Scenario(
            "gateway",
            "from the call to the first text, directly and through the gateway",
            {"wall": "latency"},
            GATEWAY,
            rounds=5,
        ),
    )
}
