"""An event loop in a thread of its own, which sends prompts through one client."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import anyio
from anyio.from_thread import BlockingPortal

from cromicle_sdk import AsyncClient, CromicleError

from .client import PacedClient
from .options import BulkOptions
from .prompts import Outcome, Prompt

__all__ = ["LoopThread", "Sink"]


class Sink(Protocol):
    """Where outcomes go. Both methods are called in the thread of the event loop."""

    def give(self, index: int, outcome: Outcome) -> None: ...

    def end(self, error: Exception) -> None:
        """There will be no more outcomes."""
        ...


class LoopThread:
    """Sends what any thread puts in, `options.limit` prompts at a time, until it is closed.

    It closes the client at its end if `owns_client`.
    """

    def __init__(self, client: AsyncClient, options: BulkOptions, *, owns_client: bool) -> None:
        self._client = client
        self._options = options
        self._owns_client = owns_client
        self._jobs: deque[tuple[int, Prompt, Sink]] = deque()
        self._sinks: set[Sink] = set()
        self._error: Exception | None = None
        # Whether streams wait for jobs. They say so before they look for one once more, and `put`
        # looks at it after it has put one in, so that no job is overlooked.
        self._is_waiting = False
        self._has_ended = False
        # Garbage may be collected, and a generator closed by it, while it is held.
        self._lock = threading.RLock()
        self._is_ready = threading.Event()
        # A daemon, so that a generator that nobody closes does not keep the interpreter from
        # ending.
        self._thread = threading.Thread(target=self._run, name="cromicle-bulk", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def attach(self, sink: Sink) -> None:
        """Promise this sink an `end` if there are no more outcomes. Raises `CromicleError`."""
        with self._lock:
            if self._has_ended:
                raise CromicleError("The event loop of these calls is closed.")
            self._sinks.add(sink)

    def detach(self, sink: Sink) -> None:
        """This sink has all of its outcomes."""
        with self._lock:
            self._sinks.discard(sink)

    def put(self, prompts: Iterable[tuple[int, Prompt]], sink: Sink) -> None:
        """Send these prompts when it is their turn. The sink is attached."""
        self._jobs.extend((index, prompt, sink) for index, prompt in prompts)
        if self._is_waiting:
            self._is_waiting = False
            with self._lock:
                if not self._has_ended:
                    self._portal.start_task_soon(self._wake)

    def close(self) -> None:
        """Cancel all calls, close their connections, and wait for the thread. Idempotent."""
        # A generator that is collected as garbage may be closed in any thread.
        if threading.current_thread() is self._thread:
            self._cancel()
            return
        with self._lock:
            if not self._has_ended:
                self._portal.start_task_soon(self._cancel)
        self._thread.join()

    def _run(self) -> None:
        anyio.run(self._main)

    async def _main(self) -> None:
        async with BlockingPortal() as self._portal:
            self._has_jobs = anyio.Event()
            paced = PacedClient(self._client, self._options)
            try:
                async with anyio.create_task_group() as self._group:
                    for _ in range(self._options.limit):
                        self._group.start_soon(self._stream, paced)
                    self._is_ready.set()
            finally:
                with self._lock:
                    self._has_ended = True
                    sinks = list(self._sinks)
                if self._owns_client:
                    await self._client.aclose()
                error = self._error or CromicleError("The event loop of these calls is closed.")
                for sink in sinks:
                    sink.end(error)

    async def _stream(self, paced: PacedClient) -> None:
        try:
            while True:
                index, prompt, sink = await self._take()
                sink.give(index, await paced.ask(prompt))
        except Exception as error:  # noqa: BLE001 - of the user's own hooks; the sinks raise it
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

    def _cancel(self) -> None:
        self._group.cancel_scope.cancel()
