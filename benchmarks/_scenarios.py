"""The scenarios: what is done, by whom, how often."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter

from ._gateway import CONTENDERS as GATEWAY
from ._isolated import IMPORTED, PARTS, long_reply, measure_apart, measure_import
from ._measure import Contender, Measure, Sample, Setting, Stopwatch
from ._rivals import ASYNC, BLOCKING, Answer, Ask, AsyncAsk
from ._runtimes import RUNTIMES, Runtime, run, run_together
from ._server import Plan

__all__ = ["FAN_OUT_SIZES", "SCENARIOS", "Scenario"]

FAN_OUT_SIZES = (100, 500, 1000, 2000)
_THREADS = 32


@dataclass(frozen=True)
class Scenario:
    """One thing to measure. The columns say what a sample's CPU, wall and memory are of."""

    name: str
    does: str
    columns: dict[Measure, str]
    contenders: Sequence[Contender]
    rounds: int

    def rounds_in(self, setting: Setting) -> int:
        return 1 if setting.quick else self.rounds


def _ask_in_turn(rival: str, full: Plan, count: int, setting: Setting) -> Sample:
    """So many calls, one after another on a warm connection; the cost of a token."""
    count, plan = setting.scale(count), _scale(full, setting)
    with BLOCKING[rival](setting.base_url + plan.path) as ask:
        _check(ask(), plan)
        with Stopwatch() as watch:
            for _ in range(count):
                _check(ask(), plan)
    return watch.per(count * plan.tokens)


def _await_in_turn(
    rival: str, runtime: Runtime, full: Plan, count: int, setting: Setting
) -> Sample:
    """As `_ask_in_turn`, on an event loop."""
    count, plan = setting.scale(count), _scale(full, setting)

    async def measure() -> Sample:
        async with ASYNC[rival](setting.base_url + plan.path) as ask:
            _check(await ask(), plan)
            with Stopwatch() as watch:
                for _ in range(count):
                    _check(await ask(), plan)
        return watch.per(count * plan.tokens)

    return run(runtime, measure)


def _everybody(plan: Plan, count: int) -> list[Contender]:
    """Every rival in every colour it has."""
    contenders = [
        Contender(f"{rival} blocking", partial(_ask_in_turn, rival, plan, count))
        for rival in BLOCKING
    ]
    runtimes: tuple[Runtime, ...] = ("asyncio", "trio")
    for runtime in runtimes:
        contenders += [
            Contender(f"{rival} {runtime}", partial(_await_in_turn, rival, runtime, plan, count))
            for rival in ASYNC
            if runtime == "asyncio" or rival in ("cromicle", "httpx", "httpx2")
        ]
    return contenders


def _fan_out(rival: str, runtime: Runtime, streams: int, setting: Setting) -> Sample:
    """All streams at once; CPU of each, wall time of all."""
    plan = _scale(Plan(tokens=50, gap=20), setting)
    streams = setting.scale(streams)

    async def measure() -> Sample:
        async with ASYNC[rival](setting.base_url + plan.path) as ask:

            async def job() -> None:
                _check(await ask(), plan)

            with Stopwatch() as watch:
                await run_together(runtime, [job] * streams)
        return Sample(cpu=watch.cpu / streams, wall=watch.wall)

    return run(runtime, measure)


def _fan_outs() -> list[Contender]:
    who: list[tuple[str, Runtime]] = [("cromicle", runtime) for runtime in RUNTIMES]
    who += [("aiohttp", "asyncio"), ("aiohttp", "uvloop")]
    contenders = [
        Contender(f"{rival} {runtime} {streams}", partial(_fan_out, rival, runtime, streams))
        for streams in FAN_OUT_SIZES
        for rival, runtime in who
    ]
    # Its time is quadratic: some 23 s at 1,000 streams, a minute and a half at 2,000.
    quadratic: list[Runtime] = ["asyncio", "trio"]
    contenders += [
        Contender(f"httpx {runtime} {streams}", partial(_fan_out, "httpx", runtime, streams), 1)
        for streams in FAN_OUT_SIZES[:3]
        for runtime in quadratic
    ]
    return contenders


def _share_by_threads(rival: str, setting: Setting) -> Sample:
    """32 threads on one client."""
    plan, count = Plan(tokens=20), setting.scale(20)
    barrier = threading.Barrier(_THREADS + 1)

    def work(ask: Ask) -> None:
        _check(ask(), plan)
        barrier.wait()
        for _ in range(count):
            _check(ask(), plan)

    with ExitStack() as stack:
        ask = stack.enter_context(BLOCKING[rival](setting.base_url + plan.path))
        pool = stack.enter_context(ThreadPoolExecutor(_THREADS))
        done = [pool.submit(work, ask) for _ in range(_THREADS)]
        barrier.wait()
        with Stopwatch() as watch:
            for future in done:
                future.result()
    return watch.per(_THREADS * count)


def _first_text(rival: str, setting: Setting) -> Sample:
    """The median time from a call's begin to its first text."""
    plan = Plan(tokens=2, gap=1)
    with BLOCKING[rival](setting.base_url + plan.path) as ask:
        ask()
        waits: list[float] = []
        for _ in range(setting.scale(100)):
            started = perf_counter()
            waits.append(ask().first_text_at - started)
    return Sample(wall=median(waits))


def _async_first_text(rival: str, setting: Setting) -> Sample:
    plan = Plan(tokens=2, gap=1)

    async def measure(ask: AsyncAsk) -> float:
        started = perf_counter()
        return (await ask()).first_text_at - started

    async def repeat() -> Sample:
        async with ASYNC[rival](setting.base_url + plan.path) as ask:
            await ask()
            return Sample(wall=median([await measure(ask) for _ in range(setting.scale(100))]))

    return run("asyncio", repeat)


def _build_conversation() -> list[dict[str, str]]:
    """10 MB; every other message has letters that are not ASCII."""
    texts = ("All the lights are on. " * 440, "Où est la clé du phare ? " * 400)
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": texts[i % 2]} for i in range(1000)]


def _prompt_cromicle(setting: Setting) -> Sample:
    from cromicle_sdk import Client

    conversation = _build_conversation()
    with Client(base_url=setting.base_url, token="abc") as client:  # noqa: S106 - the default
        # It builds the request, and sends nothing before it is iterated.
        return _repeat(lambda: client.stream(conversation), setting)


def _prompt_bare(setting: Setting) -> Sample:
    """What can't be left out: join, hash, JSON."""
    conversation = _build_conversation()

    def build() -> bytes:
        lines = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in conversation]
        prompt = "\n".join([*lines, "Assistant:"])
        digest = hashlib.sha256(("abc" + prompt).encode()).hexdigest()
        content = {"message": prompt, "token": "abc", "hash": digest}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()

    return _repeat(build, setting)


def _repeat(build: Callable[[], object], setting: Setting) -> Sample:
    build()
    count = setting.scale(5)
    with Stopwatch() as watch:
        for _ in range(count):
            build()
    return watch.per(count)


def _reply_size(setting: Setting) -> Sample:
    return Sample(memory=long_reply(setting).characters)


def _scale(plan: Plan, setting: Setting) -> Plan:
    return replace(plan, tokens=setting.scale(plan.tokens))


def _check(answer: Answer, plan: Plan) -> None:
    """A rival that loses text has not done the work."""
    if answer.characters != plan.characters:
        raise RuntimeError(f"{answer.characters} characters came instead of {plan.characters}")


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "call",
            "a reply of one chunk on a kept connection",
            {"cpu": "CPU a call", "wall": "wall a call"},
            _everybody(Plan(tokens=1), 150),
            rounds=11,
        ),
        Scenario(
            "burst",
            "2,000 tokens, all sent in one write",
            {"cpu": "CPU a token", "wall": "wall a token"},
            _everybody(Plan(tokens=2000), 3),
            rounds=11,
        ),
        Scenario(
            "paced",
            "200 tokens, one write each, 1 ms apart",
            {"cpu": "CPU a token"},
            _everybody(Plan(tokens=200, gap=1), 2),
            rounds=3,
        ),
        Scenario(
            "fan-out",
            "streams at once, 50 tokens each, 20 ms apart",
            {"cpu": "CPU a stream", "wall": "wall of all"},
            _fan_outs(),
            rounds=3,
        ),
        Scenario(
            "threads",
            f"{_THREADS} threads on one client, replies of 20 tokens",
            {"cpu": "CPU a call", "wall": "wall a call"},
            [Contender(rival, partial(_share_by_threads, rival)) for rival in BLOCKING][:-1],
            rounds=5,
        ),
        Scenario(
            "first-text",
            "from the call to its first text, on a kept connection",
            {"wall": "latency"},
            [
                *(Contender(f"{name} blocking", partial(_first_text, name)) for name in BLOCKING),
                *(Contender(f"{name} asyncio", partial(_async_first_text, name)) for name in ASYNC),
            ],
            rounds=5,
        ),
        Scenario(
            "import",
            "the first import in a new interpreter",
            {"cpu": "CPU", "wall": "wall"},
            [Contender(name, partial(measure_import, name)) for name in IMPORTED],
            rounds=9,
        ),
        Scenario(
            "construct",
            "the second client of a process",
            {"cpu": "CPU", "wall": "wall"},
            [Contender(name, partial(measure_apart, name)) for name in PARTS["construct"]],
            rounds=5,
        ),
        Scenario(
            "prompt",
            "build the request of a 10 MB conversation",
            {"cpu": "CPU", "wall": "wall"},
            [Contender("cromicle", _prompt_cromicle), Contender("bare", _prompt_bare)],
            rounds=9,
        ),
        Scenario(
            "memory",
            "what a reply of 50 MB adds to the peak, and each of 1,000 idle streams",
            {"memory": "peak"},
            [
                *(Contender(name, partial(measure_apart, name)) for name in PARTS["memory"]),
                Contender("the reply's size", _reply_size),
            ],
            rounds=3,
        ),
        Scenario(
            "gateway",
            "from the call to its first text, of a model server and through the gateway before it",
            {"wall": "latency"},
            GATEWAY,
            rounds=5,
        ),
    )
}
