"""What needs an interpreter of its own: imports, first and second clients, memory.

As a module that is run, it is that interpreter: `python -m benchmarks._isolated NAME URL QUICK`
measures one contender and prints its sample as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from ._measure import (
    Sample,
    Setting,
    Stopwatch,
    Unavailable,
    allow_many_files,
    peak_memory,
)
from ._rivals import ASYNC
from ._runtimes import Runtime, run, run_together
from ._server import Plan

__all__ = ["IMPORTED", "PARTS", "long_reply", "measure_apart", "measure_import"]

# Both load the better part when it is first asked for, so that the bare import would hide it.
_A_CLIENT = {
    "cromicle_sdk, a Client": "from cromicle_sdk import Client; Client()",
    "httpx, a Client": "import httpx; httpx.Client()",
}
IMPORTED = ("cromicle_sdk", "httpx", *_A_CLIENT, "httpx2", "aiohttp", "openai", "ollama")
_IDLE_STREAMS = 1000

_IMPORT = """
import time
cpu, wall = time.process_time(), time.perf_counter()
{statement}
print(time.process_time() - cpu, time.perf_counter() - wall)
"""


def long_reply(setting: Setting) -> Plan:
    """50 MiB in chunks of 64 KiB; 5 MiB in a quick run."""
    return Plan(tokens=setting.scale(800), size=64 * 1024)


def measure_import(name: str, setting: Setting) -> Sample:
    """What one of `IMPORTED` costs to load, in a new interpreter."""
    module = name.partition(",")[0]
    if find_spec(module) is None:
        raise Unavailable(f"{module} is not installed")
    statement = _A_CLIENT.get(name, f"import {module}")
    cpu, wall = _run_python("-c", _IMPORT.format(statement=statement)).split()
    return Sample(cpu=float(cpu), wall=float(wall))


def measure_apart(name: str, setting: Setting) -> Sample:
    """One contender of `PARTS`, in a new interpreter."""
    quick = "quick" if setting.quick else "full"
    answer = json.loads(_run_python("-m", __name__, name, setting.base_url, quick))
    if "unavailable" in answer:
        raise Unavailable(answer["unavailable"])
    return Sample(**answer)


def _run_python(*arguments: str) -> str:
    return subprocess.run(  # noqa: S603 - this interpreter, and code of this file
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def _construct(load: Callable[[], Callable[[], Any]], setting: Setting) -> Sample:
    """The second client of a process, and some more, since one is over too soon to be timed."""
    build = load()
    kept = [build()]
    samples: list[Sample] = []
    for _ in range(setting.scale(20)):
        with Stopwatch() as watch:
            kept.append(build())
        samples.append(watch.per(1))
    return Sample(
        cpu=median(sample.cpu for sample in samples), wall=median(sample.wall for sample in samples)
    )


def _load_cromicle() -> Callable[[], Any]:
    from cromicle_sdk import Client

    return Client


def _load_async_cromicle() -> Callable[[], Any]:
    from cromicle_sdk import AsyncClient

    return AsyncClient


def _load_httpx() -> Callable[[], Any]:
    import httpx

    return httpx.Client


def _load_httpx2() -> Callable[[], Any]:
    import httpx2

    return httpx2.Client


def _load_openai() -> Callable[[], Any]:
    import openai

    return partial(openai.OpenAI, api_key="none")


def _load_ollama() -> Callable[[], Any]:
    import ollama

    return ollama.Client


def _reply_of_cromicle(url: str) -> str:
    from cromicle_sdk import Client

    with Client(base_url=url) as client:
        return client.chat("x").text


def _reply_of_async_cromicle(url: str) -> str:
    from cromicle_sdk import AsyncClient

    async def chat() -> str:
        async with AsyncClient(base_url=url) as client:
            return (await client.chat("x")).text

    return run("asyncio", chat)


def _reply_of_httpx(url: str) -> str:
    import httpx

    with httpx.Client() as client:
        return client.post(f"{url}/chat", json={}).text


def _reply_of_httpx2(url: str) -> str:
    import httpx2

    with httpx2.Client() as client:
        return client.post(f"{url}/chat", json={}).text


def _reply_of_aiohttp(url: str) -> str:
    import aiohttp

    async def post() -> str:
        async with aiohttp.ClientSession() as session:
            response = await session.post(f"{url}/chat", json={})
            return await response.text()

    return run("asyncio", post)


def _take_long_reply(ask: Callable[[str], str], setting: Setting) -> Sample:
    ask(setting.base_url + Plan(tokens=2).path)
    before = peak_memory()
    plan = long_reply(setting)
    text = ask(setting.base_url + plan.path)
    if len(text) != plan.characters:
        raise RuntimeError(f"{len(text)} characters came instead of {plan.characters}")
    return Sample(memory=peak_memory() - before)


def _hold_idle(rival: str, runtime: Runtime, setting: Setting) -> Sample:
    """Streams that have had their first text and wait for the second, all at once."""
    streams = setting.scale(_IDLE_STREAMS)
    plan = Plan(tokens=2, gap=500 if setting.quick else 4000)

    async def hold() -> Sample:
        async with ASYNC[rival](setting.base_url + Plan(tokens=2).path) as ask:
            await ask()
        async with ASYNC[rival](setting.base_url + plan.path) as ask:
            before = peak_memory()
            await run_together(runtime, [ask] * streams)
            return Sample(memory=(peak_memory() - before) / streams)

    return run(runtime, hold)


PARTS: dict[str, dict[str, Callable[[Setting], Sample]]] = {
    "construct": {
        "cromicle.Client": partial(_construct, _load_cromicle),
        "cromicle.AsyncClient": partial(_construct, _load_async_cromicle),
        "httpx.Client": partial(_construct, _load_httpx),
        "httpx2.Client": partial(_construct, _load_httpx2),
        "openai.OpenAI": partial(_construct, _load_openai),
        "ollama.Client": partial(_construct, _load_ollama),
    },
    "memory": {
        "cromicle blocking": partial(_take_long_reply, _reply_of_cromicle),
        "cromicle asyncio": partial(_take_long_reply, _reply_of_async_cromicle),
        "httpx blocking": partial(_take_long_reply, _reply_of_httpx),
        "httpx2 blocking": partial(_take_long_reply, _reply_of_httpx2),
        "aiohttp asyncio": partial(_take_long_reply, _reply_of_aiohttp),
        "cromicle asyncio, idle": partial(_hold_idle, "cromicle", "asyncio"),
        "cromicle trio, idle": partial(_hold_idle, "cromicle", "trio"),
        "aiohttp asyncio, idle": partial(_hold_idle, "aiohttp", "asyncio"),
        "httpx asyncio, idle": partial(_hold_idle, "httpx", "asyncio"),
    },
}


def _main(name: str, base_url: str, amount: str) -> None:
    allow_many_files()
    measures = {name: measure for part in PARTS.values() for name, measure in part.items()}
    try:
        answer: dict[str, object] = asdict(
            measures[name](Setting(base_url, quick=amount == "quick"))
        )
    except Unavailable as error:
        answer = {"unavailable": str(error)}
    except ModuleNotFoundError as error:
        answer = {"unavailable": f"{error.name} is not installed"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
