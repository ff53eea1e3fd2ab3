"""An event loop in its own thread, which sends prompts with one client."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import anyio

from cromicle_sdk import AsyncClient, CromicleError

from .client import PacedClient
from .options import BulkOptions
from .prompts import Outcome, Prompt

__all__ = ["LoopThread", "Sink"]


class Sink(Protocol):
    """A receiver of outcomes. Both methods are called in the thread of the event loop."""

    def give(self, index: int, outcome: Outcome) -> None:
        """Receive the outcome of a prompt."""
        ...

    def end(self, error: Exception) -> None:
        """Receive the reason why there will be no more outcomes."""
        ...


class LoopThread:
    """Sends prompts that are put in from any thread, `options.limit` at a time, until closed.

    If `owns_client` is true, it closes the client at its end. Raises `CromicleError` if the system
    has no file descriptors left for an event loop.
    """

    def __init__(self, client: AsyncClient, options: BulkOptions, *, owns_client: bool) -> None:
        self._client = client
        self._options = options
        self._owns_client = owns_client
        self._jobs: deque[tuple[int, Prompt, Sink]] = deque()
        self._sinks: set[Sink] = set()
        self._error: Exception | None = None
        self._failure: OSError | None = None
        # The number of `_stream` tasks. They are started as jobs need them, up to the limit.
        self._streams = 0
        # Whether tasks wait for jobs, or more can be started. A task sets it before it checks for
        # jobs once more, and `put` reads it after adding jobs, so that no job is missed.
        self._is_waiting = True
        self._is_closing = False
        self._has_ended = False
        # Reentrant, because garbage collection may close a generator while it is held.
        self._lock = threading.RLock()
        self._is_ready = threading.Event()
        # A daemon thread, so that a generator that is never closed does not keep the interpreter
        # from exiting.
        self._thread = threading.Thread(target=self._run, name="cromicle-bulk", daemon=True)
        self._thread.start()
        self._is_ready.wait()
        if self._failure is not None:
            raise CromicleError(
                f"The event loop cannot start ({type(self._failure).__name__}: {self._failure})",
                hint="raise the limit of open files (ulimit -n)",
            ) from self._failure

    def attach(self, sink: Sink) -> None:
        """Register a sink, whose `end` is called if the loop ends. Raises `CromicleError`."""
        with self._lock:
            if self._has_ended:
                raise CromicleError("The event loop of these calls is closed.")
            self._sinks.add(sink)

    def detach(self, sink: Sink) -> None:
        """Unregister a sink, which has all of its outcomes."""
        with self._lock:
            self._sinks.discard(sink)

    def put(self, prompts: Iterable[tuple[int, Prompt]], sink: Sink) -> None:
        """Queue prompts. Their sink must be attached."""
        self._jobs.extend((index, prompt, sink) for index, prompt in prompts)
        if self._is_waiting:
            self._is_waiting = False
            with self._lock:
                if not self._has_ended:
                    self._notify()

    def close(self) -> None:
        """Cancel all calls, close their connections, and wait for the thread. Idempotent."""
        # Garbage collection may close a generator in any thread, including this one.
        if threading.current_thread() is self._thread:
            self._cancel()
            return
        with self._lock:
            self._is_closing = True
            if not self._has_ended:
                self._notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            anyio.run(self._main)
        except OSError as error:
            self._failure = error
        finally:
            self._is_ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._has_news = asyncio.Event()
        self._has_jobs = anyio.Event()
        self._paced = PacedClient(self._client, self._options)
        try:
            async with anyio.create_task_group() as self._group:
                self._is_ready.set()
                while True:
                    await self._has_news.wait()
                    self._has_news.clear()
                    if self._is_closing:
                        self._cancel()
                    else:
                        self._wake()
        finally:
            with self._lock:
                self._has_ended = True
                sinks = list(self._sinks)
            if self._owns_client:
                await self._client.aclose()
            error = self._error or CromicleError("The event loop of these calls is closed.")
            for sink in sinks:
                sink.end(error)

    def _notify(self) -> None:
        # Does not block: the event loop may be waiting for the lock that the caller holds.
        self._loop.call_soon_threadsafe(self._has_news.set)

    async def _stream(self) -> None:
        try:
            while True:
                index, prompt, sink = await self._take()
                sink.give(index, await self._paced.ask(prompt))
        except Exception as error:  # noqa: BLE001 - of a user's hook; passed to the sinks
            self._error = self._error or error
            self._cancel()

    async def _take(self) -> tuple[int, Prompt, Sink]:
        while True:
            if self._jobs:
                return self._jobs.popleft()
            has_jobs = self._has_jobs
            self._is_waiting = True
            if not self._jobs:
                await has_jobs.wait()

    def _wake(self) -> None:
        self._has_jobs.set()
        self._has_jobs = anyio.Event()
        missing = self._options.limit - self._streams
        if missing:
            self._is_waiting = True
        for _ in range(min(len(self._jobs), missing)):
            self._streams += 1
            self._group.start_soon(self._stream)

    def _cancel(self) -> None:
        self._group.cancel_scope.cancel()
