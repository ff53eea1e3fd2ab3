"""The event loops of async cases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

__all__ = ["RUNTIMES", "Runtime", "run", "run_together"]

T = TypeVar("T")

Runtime = Literal["asyncio", "uvloop", "trio"]
RUNTIMES: tuple[Runtime, ...] = ("asyncio", "uvloop", "trio")


def run(runtime: Runtime, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` on a new event loop."""

    async def call() -> T:
        return await main()

    if runtime == "trio":
        import trio

        return trio.run(call)
    loop = _new_loop(runtime)
    try:
        return loop.run_until_complete(call())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _new_loop(runtime: Literal["asyncio", "uvloop"]) -> asyncio.AbstractEventLoop:
    if runtime == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


async def run_together(runtime: Runtime, jobs: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Run all jobs concurrently, each in its own task."""
    if runtime == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job)
    else:
        await asyncio.gather(*(job() for job in jobs))
