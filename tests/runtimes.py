"""One scenario, four runtimes: blocking, asyncio, asyncio on uvloop, and trio.

A scenario is an async function that uses a `Runtime`. On the blocking runtime, its client is a
`Client` in a thin wrapper whose coroutines never wait, so that the same code runs.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import anyio
import trio
from left_out import is_left_out

from cromicle_sdk import AsyncClient, Client, Reply, Stream

if TYPE_CHECKING:
    from typing_extensions import Self

if not is_left_out("uvloop"):
    import uvloop

    assert uvloop, "uvloop is required: its tests must not be skipped"
assert trio, "trio is required: its tests must not be skipped"

Scenario = Callable[["Runtime"], Coroutine[Any, Any, None]]


class Runtime:
    """The runtime of a scenario: `run` runs it, and `client` creates a blocking or async client."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def is_blocking(self) -> bool:
        return self.name == "blocking"

    def run(self, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self.is_blocking:
            run_blocking(scenario())
        elif self.name == "trio":
            anyio.run(scenario, backend="trio")
        else:
            options = {"use_uvloop": self.name == "uvloop"}
            anyio.run(scenario, backend="asyncio", backend_options=options)

    def client(self, **options: Any) -> Any:
        return WrappedClient(Client(**options)) if self.is_blocking else AsyncClient(**options)

    async def together(self, *parts: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run the parts concurrently, in threads or tasks."""
        if self.is_blocking:
            run_in_threads(*(lambda part=part: run_blocking(part()) for part in parts))
        else:
            async with anyio.create_task_group() as group:
                for part in parts:
                    group.start_soon(part)

    async def wait(self, event: threading.Event) -> None:
        """Wait for an event that another thread sets. Fail after 20 s."""
        if self.is_blocking:
            assert event.wait(20)
        else:
            assert await anyio.to_thread.run_sync(event.wait, 20)


RUNTIMES = [
    Runtime(name) for name in ("blocking", "asyncio", "uvloop", "trio") if not is_left_out(name)
]
ASYNC_RUNTIMES = RUNTIMES[1:]


def run_blocking(coroutine: Coroutine[Any, Any, Any]) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("a scenario waited for something on the blocking runtime")


def run_in_threads(*parts: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def run(part: Callable[[], object]) -> None:
        try:
            part()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(part,), daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    for failure in failures:
        raise failure


class WrappedClient:
    """A `Client` with the methods of an `AsyncClient`."""

    def __init__(self, client: Client) -> None:
        self.inner = client

    async def chat(self, *args: Any, **options: Any) -> Reply:
        return self.inner.chat(*args, **options)

    def stream(self, *args: Any, **options: Any) -> WrappedStream:
        return WrappedStream(self.inner.stream(*args, **options))

    def with_options(self, **options: Any) -> WrappedClient:
        return WrappedClient(self.inner.with_options(**options))

    async def aclose(self) -> None:
        self.inner.close()

    @property
    def is_closed(self) -> bool:
        return self.inner.is_closed

    async def __aenter__(self) -> Self:
        self.inner.__enter__()
        return self

    async def __aexit__(self, *args: Any) -> None:
        self.inner.__exit__(*args)


class WrappedStream:
    """A `Stream` with the methods of an `AsyncStream`. Common methods are passed on."""

    def __init__(self, stream: Stream) -> None:
        self.inner = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return repr(self.inner)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            return next(self.inner)
        except StopIteration:
            raise StopAsyncIteration from None

    async def start(self) -> Self:
        assert self.inner.start() is self.inner
        return self

    async def read(self) -> Reply:
        return self.inner.read()

    async def aclose(self) -> None:
        self.inner.close()

    async def __aenter__(self) -> Self:
        self.inner.__enter__()
        return self

    async def __aexit__(self, *args: Any) -> None:
        self.inner.__exit__(*args)


def notice_reads(stream: Any) -> threading.Event:
    """Return an event that is set when a stream that has yielded text is read again.

    By then the stream is known to be open: closing it ends the read, and does not prevent it.
    """
    reading = threading.Event()
    attempt: Any = getattr(stream, "inner", stream)._attempt
    read = attempt.read

    def notice() -> Any:
        reading.set()
        return read()

    attempt.read = notice
    return reading


async def outcome(call: Awaitable[Any]) -> Any:
    """Return the result of a call, or the error that it raises."""
    try:
        return await call
    except Exception as error:
        return error
