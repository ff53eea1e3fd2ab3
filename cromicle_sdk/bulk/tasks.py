"""`abulk`: sending many prompts in tasks of the running event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from cromicle_sdk import AsyncClient, Messages

from .blocking import AHEAD
from .client import PacedClient
from .options import BulkOptions
from .prompts import InOrder, Outcome, Prompt

__all__ = ["AsyncPrompts", "Results", "run_in_tasks"]

AsyncPrompts = Iterable[Prompt | Messages] | AsyncIterable[Prompt | Messages]

_Send = MemoryObjectSendStream[tuple[int, Outcome]]
_Receive = MemoryObjectReceiveStream[tuple[int, Outcome]]


class _Source:
    """A common interface to an iterable and an async iterable."""

    def __init__(self, prompts: AsyncPrompts) -> None:
        self._iterator: AsyncIterator[Prompt | Messages] | Iterator[Prompt | Messages] = (
            aiter(prompts) if isinstance(prompts, AsyncIterable) else iter(prompts)
        )

    async def read(self) -> Prompt | Messages:
        """Return the next prompt. Raises `StopAsyncIteration` at the end."""
        if isinstance(self._iterator, AsyncIterator):
            return await anext(self._iterator)
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Close an async generator. Under trio, one that is not closed emits a warning."""
        aclose = getattr(self._iterator, "aclose", None)
        if aclose is not None:
            await aclose()


class _Run:
    """The tasks, which share a source and a memory stream of outcomes."""

    def __init__(self, prompts: AsyncPrompts, paced: PacedClient, limit: int) -> None:
        self._source = _Source(prompts)
        self._paced = paced
        self._limit = limit
        self._read = 0
        self._is_at_end = False
        self._reading = anyio.Lock()
        # The number of prompts that may be read before the next outcome is taken.
        self._ahead = anyio.Semaphore(AHEAD * limit)
        self.error: BaseException | None = None

    async def run(self, send: _Send) -> None:
        try:
            async with send, anyio.create_task_group() as group:
                for _ in range(self._limit):
                    group.start_soon(self._stream, send, group.cancel_scope)
        finally:
            with anyio.CancelScope(shield=True):
                await self._source.aclose()

    def count_taken(self) -> None:
        """Record that an outcome was taken, so that one more prompt may be read."""
        self._ahead.release()

    async def _stream(self, send: _Send, scope: anyio.CancelScope) -> None:
        try:
            while (job := await self._take()) is not None:
                index, prompt = job
                await send.send((index, await self._paced.ask(prompt)))
        except Exception as error:  # noqa: BLE001 - of a user's hook; re-raised by the iterator
            self.error = error
            scope.cancel()

    async def _take(self) -> tuple[int, Prompt] | None:
        await self._ahead.acquire()
        async with self._reading:
            if self._is_at_end:
                return None
            try:
                prompt = Prompt.of(await self._source.read())
            except StopAsyncIteration:
                self._is_at_end = True
                return None
            except Exception as error:  # noqa: BLE001 - re-raised after the outcomes before it
                self.error = error
                self._is_at_end = True
                return None
            self._read += 1
            return self._read - 1, prompt


class Results:
    """An async iterator of the outcomes, as `(index, Reply | CromicleError)`."""

    def __init__(self, receive: _Receive, run: _Run, order: InOrder) -> None:
        self._receive = receive
        self._run = run
        self._order = order
        self._passed: list[tuple[int, Outcome]] = []

    def __aiter__(self) -> AsyncIterator[tuple[int, Outcome]]:
        return self

    async def __anext__(self) -> tuple[int, Outcome]:
        while not self._passed:
            try:
                received = await self._receive.receive()
            except anyio.EndOfStream:
                if self._run.error is not None:
                    raise self._run.error from None
                raise StopAsyncIteration from None
            self._passed = list(self._order.add(*received))[::-1]
        self._run.count_taken()
        return self._passed.pop()


@asynccontextmanager
async def run_in_tasks(
    prompts: AsyncPrompts,
    client: AsyncClient,
    options: BulkOptions,
    *,
    ordered: bool,
    owns_client: bool,
) -> AsyncGenerator[Results]:
    """Yield an async iterator of the outcomes. Exiting the block cancels the calls."""
    error: BaseException | None = None
    try:
        run = _Run(prompts, PacedClient(client, options), options.limit)
        send, receive = anyio.create_memory_object_stream[tuple[int, Outcome]](
            AHEAD * options.limit
        )
        async with receive, anyio.create_task_group() as group:
            group.start_soon(run.run, send)
            try:
                yield Results(receive, run, InOrder(ordered=ordered))
            except (Exception, KeyboardInterrupt, SystemExit) as raised:  # noqa: BLE001 - see below
                error = raised
            group.cancel_scope.cancel()
    finally:
        if owns_client:
            with anyio.CancelScope(shield=True):
                await client.aclose()
    if error is not None:
        # Raised outside of the task group, so that it is not wrapped in an exception group.
        raise error
