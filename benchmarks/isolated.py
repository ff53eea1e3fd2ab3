"""Measurements in a new interpreter: imports, clients, memory, and time limits.

`python -m benchmarks.isolated SCENARIO CASE URL full|quick` measures one case in its own process
and prints the sample as JSON.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from .bulk import BULK
from .libraries import ASYNC
from .measure import (
    Sample,
    Settings,
    Stopwatch,
    Unavailable,
    allow_many_files,
    peak_memory,
)
from .runtimes import Runtime, run, run_together
from .server import ReplySpec

__all__ = [
    "IMPORTS",
    "ISOLATED",
    "TOTAL_BOUND",
    "iterated_reply",
    "long_reply",
    "measure_import",
    "measure_isolated",
]

# `cromicle_sdk` and `httpx` import some of their modules at first use.
IMPORTS = (
    "import httpx",
    "from cromicle_sdk import Client",
    "from cromicle_sdk import AsyncClient",
    "import cromicle_sdk",
    "from cromicle_sdk import Client; Client()",
    "import httpx; httpx.Client()",
    "import httpx2",
    "import aiohttp",
    "import openai",
    "import ollama",
)

# The maximum time by which a call may exceed `timeout.total`, in seconds.
TOTAL_BOUND = 0.25

_IDLE_STREAMS = 1000
# The values of `timeout.total`: the next one is used if no text arrives within one, as on a busy
# machine.
_FLOOD_SECONDS = (2.0, 4.0, 8.0, 16.0, 32.0)
_ENDLESS = ReplySpec(tokens=0, size=64 * 1024)

# httpx, httpcore and anyio import these if they are installed. Benchmarks and tests install them,
# but users do not.
_OPTIONAL = ("brotli", "brotlicffi", "click", "h2", "pygments", "rich", "socksio", "trio", "uvloop")

_IMPORT = """
import sys, time
sys.modules.update(dict.fromkeys({optional}))
cpu, wall = time.process_time(), time.perf_counter()
{statement}
print(time.process_time() - cpu, time.perf_counter() - wall)
"""


def long_reply(settings: Settings) -> ReplySpec:
    """Return a spec of 50 MiB in chunks of 64 KiB; 5 MiB in a quick run."""
    return ReplySpec(tokens=settings.scale(800), size=64 * 1024)


def iterated_reply(settings: Settings, *, dashes: bool = False) -> ReplySpec:
    """Return a spec of 48 MiB in chunks of 64 KiB; 5 MiB in a quick run."""
    return ReplySpec(tokens=settings.scale(768), size=64 * 1024, dashes=dashes)


def measure_import(statement: str, settings: Settings) -> Sample:
    """Measure one of `IMPORTS` with cached bytecode, as in a plain installation."""
    module = statement.split()[1].rstrip(";")
    if find_spec(module) is None:
        raise Unavailable(f"{module} is not installed")
    _fill_bytecode_cache(statement)
    cpu, wall = _run_import(statement).split()
    return Sample(cpu=float(cpu), wall=float(wall))


@cache
def _fill_bytecode_cache(statement: str) -> None:
    _run_import(statement)


def _run_import(statement: str) -> str:
    code = _IMPORT.format(statement=statement, optional=_OPTIONAL)
    cache_folder = _make_cache_folder()
    return _run_python("-c", code, PYTHONPYCACHEPREFIX=cache_folder, PYTHONDONTWRITEBYTECODE="")


@cache
def _make_cache_folder() -> str:
    folder = tempfile.TemporaryDirectory(prefix="cromicle-benchmarks-")
    atexit.register(folder.cleanup)
    return folder.name


def measure_isolated(scenario: str, case: str, settings: Settings) -> Sample:
    """Measure one case of `ISOLATED`."""
    quick = "quick" if settings.quick else "full"
    output = _run_python("-m", __name__, scenario, case, settings.base_url, quick)
    sample = json.loads(output)
    if "unavailable" in sample:
        raise Unavailable(sample["unavailable"])
    return Sample(**sample)


def _run_python(*arguments: str, **variables: str) -> str:
    return subprocess.run(  # noqa: S603 - this interpreter, and code of this file
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def _construct(load: Callable[[], Callable[[], Any]], settings: Settings) -> Sample:
    """Measure the construction of a client: the median, without the first in the process."""
    build = load()
    kept = [build()]
    samples: list[Sample] = []
    for _ in range(settings.scale(20)):
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


def _get_reply_cromicle(url: str) -> str:
    from cromicle_sdk import Client

    with Client(base_url=url) as client:
        return client.chat("x").text


def _get_reply_async_cromicle(url: str) -> str:
    from cromicle_sdk import AsyncClient

    async def chat() -> str:
        async with AsyncClient(base_url=url) as client:
            return (await client.chat("x")).text

    return run("asyncio", chat)


def _get_reply_httpx(url: str) -> str:
    import httpx

    with httpx.Client() as client:
        return client.post(f"{url}/chat", json={}).text


def _get_reply_httpx2(url: str) -> str:
    import httpx2

    with httpx2.Client() as client:
        return client.post(f"{url}/chat", json={}).text


def _get_reply_aiohttp(url: str) -> str:
    import aiohttp

    async def post() -> str:
        async with aiohttp.ClientSession() as session:
            response = await session.post(f"{url}/chat", json={})
            return await response.text()

    return run("asyncio", post)


def _receive_long_reply(get_reply: Callable[[str], str], settings: Settings) -> Sample:
    get_reply(settings.base_url + ReplySpec(tokens=2).path)
    before = peak_memory()
    spec = long_reply(settings)
    text = get_reply(settings.base_url + spec.path)
    if len(text) != spec.characters:
        raise RuntimeError(f"received {len(text)} characters instead of {spec.characters}")
    return Sample(memory=peak_memory() - before)


def _iterate(
    count_characters: Callable[[str], int], settings: Settings, *, dashes: bool = False
) -> Sample:
    count_characters(settings.base_url + ReplySpec(tokens=2).path)
    before = peak_memory()
    spec = iterated_reply(settings, dashes=dashes)
    characters = count_characters(settings.base_url + spec.path)
    if characters != spec.characters:
        raise RuntimeError(f"received {characters} characters instead of {spec.characters}")
    return Sample(memory=peak_memory() - before)


def _count_characters(url: str) -> int:
    from cromicle_sdk import Client

    with Client(base_url=url) as client:
        return sum(len(text) for text in client.stream("x"))


def _count_characters_async(url: str) -> int:
    from cromicle_sdk import AsyncClient

    async def count() -> int:
        characters = 0
        async with AsyncClient(base_url=url) as client:
            async for text in client.stream("x"):
                characters += len(text)
        return characters

    return run("asyncio", count)


def _flood(settings: Settings) -> Sample:
    """Measure by how much a call exceeds `timeout.total` while an endless reply arrives."""
    from cromicle_sdk import APITimeoutError, Client

    with Client(base_url=settings.base_url + _ENDLESS.path, max_reply_bytes=1 << 62) as client:
        for seconds in _FLOOD_SECONDS:
            started = perf_counter()
            try:
                client.chat("x", timeout=_limit_total(seconds))
            except APITimeoutError as error:
                excess = perf_counter() - started - seconds
                # Joining the gigabytes of the text takes as long again.
                if error.partial_text:
                    return Sample(wall=max(excess, 0.0))
            else:
                raise RuntimeError("the endless reply ended")
    raise RuntimeError("no text of the endless reply arrived")


def _flood_async(runtime: Runtime, settings: Settings) -> Sample:
    from cromicle_sdk import APITimeoutError, AsyncClient

    async def measure() -> Sample:
        async with AsyncClient(
            base_url=settings.base_url + _ENDLESS.path, max_reply_bytes=1 << 62
        ) as client:
            for seconds in _FLOOD_SECONDS:
                started = perf_counter()
                try:
                    await client.chat("x", timeout=_limit_total(seconds))
                except APITimeoutError as error:
                    excess = perf_counter() - started - seconds
                    # Joining the gigabytes of the text takes as long again.
                    if error.partial_text:
                        return Sample(wall=max(excess, 0.0))
                else:
                    raise RuntimeError("the endless reply ended")
        raise RuntimeError("no text of the endless reply arrived")

    return run(runtime, measure)


def _limit_total(seconds: float) -> Any:
    """Return a `Timeout` of which only `total` can expire."""
    from cromicle_sdk import Timeout

    return Timeout(connect=None, first_byte=None, stall=None, pool=None, total=seconds)


def _hold_idle(library: str, runtime: Runtime, settings: Settings) -> Sample:
    """Measure the memory of concurrent streams that wait for their second chunk."""
    streams = settings.scale(_IDLE_STREAMS)
    spec = ReplySpec(tokens=2, gap=500 if settings.quick else 4000)

    async def hold() -> Sample:
        async with ASYNC[library](settings.base_url + ReplySpec(tokens=2).path) as call:
            await call()
        async with ASYNC[library](settings.base_url + spec.path) as call:
            before = peak_memory()
            await run_together(runtime, [call] * streams)
            return Sample(memory=(peak_memory() - before) / streams)

    return run(runtime, hold)


ISOLATED: dict[str, dict[str, Callable[[Settings], Sample]]] = {
    "construct": {
        "cromicle.Client": partial(_construct, _load_cromicle),
        "cromicle.AsyncClient": partial(_construct, _load_async_cromicle),
        "httpx.Client": partial(_construct, _load_httpx),
        "httpx2.Client": partial(_construct, _load_httpx2),
        "openai.OpenAI": partial(_construct, _load_openai),
        "ollama.Client": partial(_construct, _load_ollama),
    },
    "memory": {
        "cromicle blocking": partial(_receive_long_reply, _get_reply_cromicle),
        "cromicle asyncio": partial(_receive_long_reply, _get_reply_async_cromicle),
        "httpx blocking": partial(_receive_long_reply, _get_reply_httpx),
        "httpx2 blocking": partial(_receive_long_reply, _get_reply_httpx2),
        "aiohttp asyncio": partial(_receive_long_reply, _get_reply_aiohttp),
        "cromicle blocking, iterated": partial(_iterate, _count_characters),
        "cromicle asyncio, iterated": partial(_iterate, _count_characters_async),
        "cromicle blocking, iterated, dashes": partial(_iterate, _count_characters, dashes=True),
        "cromicle asyncio, idle": partial(_hold_idle, "cromicle", "asyncio"),
        "cromicle trio, idle": partial(_hold_idle, "cromicle", "trio"),
        "aiohttp asyncio, idle": partial(_hold_idle, "aiohttp", "asyncio"),
        "httpx asyncio, idle": partial(_hold_idle, "httpx", "asyncio"),
    },
    "bulk": BULK,
    "flood": {
        "cromicle blocking": _flood,
        "cromicle asyncio": partial(_flood_async, "asyncio"),
        "cromicle trio": partial(_flood_async, "trio"),
    },
}


def _main(scenario: str, case: str, base_url: str, length: str) -> None:
    allow_many_files()
    settings = Settings(base_url, quick=length == "quick")
    try:
        sample: dict[str, object] = asdict(ISOLATED[scenario][case](settings))
    except Unavailable as error:
        sample = {"unavailable": str(error)}
    except ModuleNotFoundError as error:
        sample = {"unavailable": f"{error.name} is not installed"}
    json.dump(sample, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
