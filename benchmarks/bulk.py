"""The cost of bulk work compared to single calls, and its speed with a busy server."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Final

from .measure import Sample, Settings, Stopwatch, peak_memory

__all__ = [
    "BULK",
    "MEMORY_BOUND",
    "PATIENT",
    "get_memory_bound",
]

MEMORY_BOUND: Final = "50 MB"
PATIENT: Final = "5 at once, 5 patient callers"

_PROMPTS = 10_000
_LIMIT = 32

# The echo waits before the second word, so all prompts take 10 s if 5 are sent at a time.
_BUSY_SECONDS = 0.1
_BUSY_PROMPTS = 500
_BUSY = ("--max-concurrent", "5", "--max-waiting", "0", "--delay", str(_BUSY_SECONDS))


def get_memory_bound(settings: Settings) -> Sample:
    """Return a constant, because this bound is a size and not a ratio."""
    return Sample(memory=50e6)


@contextmanager
def _serve(*options: str) -> Iterator[str]:
    """Run `cromicle serve` as an echo in its own process, and yield its base URL."""
    command = [sys.executable, "-m", "cromicle_sdk", "serve", "--port", "0", "--no-access-log"]
    command += ["--token", "abc", *options]
    with subprocess.Popen(  # noqa: S603 - the command of this package
        command, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None, "it is a pipe"
        try:
            yield process.stderr.readline().split()[-1]
        finally:
            process.kill()


def _build_prompts(count: int) -> Iterator[str]:
    return (f"Number {number}" for number in range(count))


def _chat(base_url: str, count: int, *, limit: int) -> Iterator[str]:
    """The baseline: tasks that call `AsyncClient.chat` for one prompt after the other."""
    import anyio

    from cromicle_sdk import AsyncClient

    texts: list[str] = []

    async def main() -> None:
        prompts = _build_prompts(count)

        async def work() -> None:
            for prompt in prompts:
                texts.append((await client.chat(prompt)).text)  # noqa: PERF401 - of all tasks

        async with (
            AsyncClient(base_url=base_url, token="abc") as client,  # noqa: S106
            anyio.create_task_group() as group,
        ):
            for _ in range(limit):
                group.start_soon(work)

    anyio.run(main)
    return iter(texts)


def _bulk(base_url: str, count: int, *, limit: int) -> Iterator[str]:
    from cromicle_sdk import Client
    from cromicle_sdk.bulk import bulk

    with Client(base_url=base_url, token="abc") as client:  # noqa: S106
        for _, outcome in bulk(_build_prompts(count), client=client, limit=limit):
            yield str(outcome)


def _abulk(base_url: str, count: int, *, limit: int) -> Iterator[str]:
    import anyio

    from cromicle_sdk import AsyncClient
    from cromicle_sdk.bulk import abulk

    texts: list[str] = []

    async def main() -> None:
        async with (
            AsyncClient(base_url=base_url, token="abc") as client,  # noqa: S106
            abulk(_build_prompts(count), client=client, limit=limit) as outcomes,
        ):
            texts.extend([str(outcome) async for _, outcome in outcomes])

    anyio.run(main)
    return iter(texts)


def _batch(base_url: str, count: int, *, limit: int) -> Iterator[str]:
    from cromicle_sdk.cli import run

    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        source, target = Path(folder, "in.txt"), Path(folder, "out.jsonl")
        with source.open("w") as file:
            file.writelines(f"{prompt}\n" for prompt in _build_prompts(count))
        options = ["--base-url", base_url, "--token", "abc", "--concurrency", str(limit)]
        if run(["batch", str(source), str(target), *options]):
            raise RuntimeError("cromicle batch has failed")
        with target.open() as file:
            for line in file:
                yield json.loads(line)["text"]


_Run = Callable[..., Iterator[str]]


def _measure(run: _Run, settings: Settings) -> Sample:
    """Measure the CPU and wall time per prompt, and the increase of the peak memory."""
    count = settings.scale(_PROMPTS)
    with _serve() as base_url:
        # Imports and caches do not count.
        _check(run(base_url, 100, limit=_LIMIT), 100)
        before = peak_memory()
        with Stopwatch() as watch:
            _check(run(base_url, count, limit=_LIMIT), count)
    sample = watch.per(count)
    return Sample(cpu=sample.cpu, wall=sample.wall, memory=peak_memory() - before)


def _measure_busy(run: _Run, limit: int, settings: Settings) -> Sample:
    """Measure the time per prompt with a server that serves 5 at a time and rejects others."""
    count = settings.scale(_BUSY_PROMPTS)
    with _serve(*_BUSY) as base_url, Stopwatch() as watch:
        _check(run(base_url, count, limit=limit), count)
    return watch.per(count)


def _check(texts: Iterator[str], count: int) -> None:
    """Raise `RuntimeError` if a reply is missing or a duplicate."""
    seen: set[int] = set()
    for text in texts:
        word, _, number = text.partition(" ")
        if word != "Number" or int(number) in seen:
            raise RuntimeError(f"an error or a duplicate reply: {text}")
        seen.add(int(number))
    if len(seen) != count:
        raise RuntimeError(f"{len(seen)} replies instead of {count}")


BULK: dict[str, Callable[[Settings], Sample]] = {
    "AsyncClient.chat": partial(_measure, _chat),
    "bulk": partial(_measure, _bulk),
    "abulk": partial(_measure, _abulk),
    "cromicle batch": partial(_measure, _batch),
    PATIENT: partial(_measure_busy, _chat, 5),
    "5 at once, bulk": partial(_measure_busy, _bulk, _LIMIT),
    "5 at once, cromicle batch": partial(_measure_busy, _batch, _LIMIT),
}
