"""The pool below the transports: slots and connections that no interrupt loses."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import anyio
import pytest
from runtimes import ASYNC_RUNTIMES, RUNTIMES, Runtime, outcome

from cromicle_sdk import APITimeoutError, Client, CromicleError, Retry, Timeout
from cromicle_sdk._async import concurrency as async_concurrency
from cromicle_sdk._async import connection as async_connection
from cromicle_sdk._async import network as async_network
from cromicle_sdk._http import slots
from cromicle_sdk._sync import concurrency as sync_concurrency
from cromicle_sdk._sync import connection as sync_connection
from cromicle_sdk._sync import network as sync_network
from cromicle_sdk.testing import FaultyServer

ONCE = Retry(attempts=1)


class Mine(BaseException):
    """What a signal handler of the caller's raises."""


class Interruption:
    """Runs a function before the n-th step that the interpreter takes in some functions."""

    def __init__(self, names: set[str], number: int, run: Callable[[], object]) -> None:
        self._names = names
        self._left = number
        self._run = run
        # Python 3.11 does not hold what it calls.
        self._tracers = (self._enter, self._trace)

    @property
    def has_come(self) -> bool:
        return self._left <= 0

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        # Python 3.12 looks for this when the tracer is set.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._tracers[0])

    def __exit__(self, *args: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        if (
            frame.f_code.co_name not in self._names
            or "cromicle_sdk" not in frame.f_code.co_filename
        ):
            return None
        # In this order: Python 3.13 ignores the second without the first.
        frame.f_trace = self._tracers[1]
        frame.f_trace_opcodes = True
        return self._tracers[1]

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        # What is raised while an object is freed is not raised anywhere.
        if event == "opcode" and self._left and not is_freeing(frame):
            self._left -= 1
            if not self._left:
                self._run()
        return self._tracers[1]


def is_freeing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def interrupt() -> None:
    raise Mine


SLOT_STEPS = {"__init__", "_acquire_slot", "abandon", "acquire", "fill", "put_back"} | {
    *("_own", "_forget_if_empty", "get_idle", "open_connection", "put_idle", "release"),
    *("_find", "find_loop_pool", "start_idle", "take", "wake_first"),
}

QUEUE_STEPS = {
    "__init__",
    "_acquire_slot",
    "abandon",
    "acquire",
    "leave",
    "put_back",
    "release",
} | {
    *("_find", "find_first", "take", "take_first", "wait", "wake_by", "wake_first"),
}


# Where it comes between a coroutine and its `await`.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("runtime", "is_kept"),
    [*((runtime, True) for runtime in RUNTIMES), (RUNTIMES[0], False)],
    ids=[*(f"{runtime.name}, kept connection" for runtime in RUNTIMES), "blocking, new connection"],
)
def test_an_interrupt_at_any_step_loses_no_slot(
    runtime: Runtime, is_kept: bool, faults: FaultyServer
) -> None:
    async def call_interrupted(number: int) -> bool:
        """Whether there were so many steps."""
        interruption = Interruption(SLOT_STEPS, number, interrupt)
        limits = Timeout(pool=0.2)
        async with runtime.client(
            base_url=faults.base_url, max_connections=1, timeout=limits, retry=ONCE
        ) as client:
            if is_kept:
                await client.chat("Hi")
            try:
                with interruption:
                    await client.chat("Hi")
            except Mine:
                pass
            for inner in open_pool(runtime, client)[1].values():
                # Closed, it would be another thread's by now.
                assert all(connection.is_reusable for connection in inner._idle), number
            assert (await client.chat("Hi")).text, number
        return interruption.has_come

    async def scenario() -> None:
        gc.disable()
        try:
            number = 1
            while await call_interrupted(number):
                number += 1
            assert number > 200
        finally:
            gc.enable()

    runtime.run(scenario)
    faults.wait_until_closed()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_of_a_queued_call_does_not_block_the_next_one(runtime: Runtime) -> None:
    """At whatever step it comes: before, in or after the wait for a slot."""

    async def acquire_interrupted(number: int) -> bool:
        limiter, handle = open_limiter(runtime, 1)
        interruption = Interruption(QUEUE_STEPS, number, interrupt)
        slot = await acquire(limiter, handle)
        with contextlib.suppress(Mine), interruption:
            await acquire(limiter, handle, 0.001)
        slot.release()
        del slot
        assert await acquire(limiter, handle, 5) is not None, number
        return interruption.has_come

    async def scenario() -> None:
        gc.disable()
        try:
            number = 1
            while await acquire_interrupted(number):
                number += 1
            assert number > 100
        finally:
            gc.enable()

    runtime.run(scenario)


def test_a_signal_handler_may_close_the_client_at_any_step(faults: FaultyServer) -> None:
    names = {"_close_all", "_forget_if_empty", "_own", "get_idle", "put_idle", "start_idle"} | {
        *("close", "find_loop_pool", "handle_request", "_handle", "_close_surplus", "find_first"),
        *("_send", "send", "start_attempt", "start_call"),
    }
    ended: list[bool] = []

    def call(number: int) -> None:
        with Client(base_url=faults.base_url, max_connections=2, retry=ONCE) as client:
            client.chat("Hi")
            interruption = Interruption(names, number, client.close)
            with contextlib.suppress(CromicleError), interruption:
                client.chat("Hi")
            ended.append(interruption.has_come)

    number = 1
    while not ended or ended[-1]:
        thread = threading.Thread(target=call, args=(number,), daemon=True)
        thread.start()
        thread.join(20)
        assert len(ended) == number, "it waits for itself, or has failed"
        number += 1
    assert number > 200
    faults.wait_until_closed()


def open_pool(runtime: Runtime, client: Any) -> Any:
    """The one pool of a client's loop or process, and the place where it is kept."""
    pool = getattr(client, "inner", client)._session._http_client._transport._pool
    return pool, pool._process_pools if runtime.is_blocking else pool._loop_pools


class Racing(deque[Any]):
    """The last item of which another thread takes just before this one."""

    def __bool__(self) -> bool:
        return not getattr(self, "was_asked", False)

    def pop(self) -> Any:  # type: ignore[override]
        self.was_asked = True
        super().clear()
        return super().pop()


@pytest.mark.parametrize("race", ["before", "after"])
def test_threads_take_an_idle_connection_at_the_same_time(
    race: str, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            await client.chat("Hi")
            (inner,) = open_pool(runtime, client)[1].values()
            ((key, connections),) = inner._idle_by_origin.items()
            if race == "before":
                inner._idle_by_origin[key] = Racing(connections)
            else:
                inner._idle.clear()
            assert (await client.chat("Hi")).text
            assert faults.connections == 2

    runtime.run(scenario)
    faults.wait_until_closed()


def test_threads_close_an_idle_connection_at_the_same_time(
    runtime: Runtime, faults: FaultyServer
) -> None:
    class Sharing(OrderedDict[Any, None]):
        """The first item of which another thread removes just before this one."""

        def __delitem__(self, key: Any) -> None:
            super().__delitem__(key)
            raise KeyError(key)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            await client.chat("Hi")
            (inner,) = open_pool(runtime, client)[1].values()
            inner._idle = Sharing(inner._idle)

    runtime.run(scenario)


def test_a_pool_that_another_thread_has_removed_is_not_closed_twice(
    runtime: Runtime, faults: FaultyServer
) -> None:
    class Pools(dict[Any, Any]):
        def __iter__(self) -> Iterator[Any]:
            yield (-1, None) if not runtime.is_blocking else -1

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            pool, pools = open_pool(runtime, client)
            name = "_process_pools" if runtime.is_blocking else "_loop_pools"
            setattr(pool, name, Pools(pools))
            assert (await client.chat("Hi")).text

    runtime.run(scenario)


# Slots


def open_limiter(runtime: Runtime, count: int) -> tuple[Any, Any]:
    module: Any = sync_concurrency if runtime.is_blocking else async_concurrency
    return module.ConnectionLimiter(count), module.CancelHandle()


async def acquire(limiter: Any, handle: Any, timeout: float | None = 0.05) -> Any:
    result = limiter.acquire(timeout, handle)
    return result if not hasattr(result, "__await__") else await result


def test_a_slot_that_is_dropped_comes_back(runtime: Runtime) -> None:
    async def scenario() -> None:
        limiter, handle = open_limiter(runtime, 2)
        for _ in range(10):
            slots = [await acquire(limiter, handle) for _ in "12"]
            assert None not in slots
            assert await acquire(limiter, handle) is None
            slots.clear()

    runtime.run(scenario)


@pytest.mark.parametrize("end", ["collected", "released twice"])
def test_a_slot_comes_back_once(end: str, runtime: Runtime) -> None:
    """In a cycle, the collector finalizes it as well as the object that releases it."""

    class Exchange:
        def __init__(self, slot: Any) -> None:
            self.slot = slot
            self.cycle = self

        def __del__(self) -> None:
            self.slot.release()

    async def scenario() -> None:
        limiter, handle = open_limiter(runtime, 1)
        if end == "collected":
            Exchange(await acquire(limiter, handle))
            gc.collect()
        else:
            slot = await acquire(limiter, handle)
            slot.release()
            slot.release()
        slot = await acquire(limiter, handle)
        assert slot is not None
        assert await acquire(limiter, handle) is None

    runtime.run(scenario)


def test_a_stream_that_is_collected_in_a_cycle_gives_one_slot_back(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(after="Hel")

    async def scenario() -> None:
        async with runtime.client(
            base_url=faults.base_url, max_connections=1, timeout=Timeout(pool=0.05), retry=ONCE
        ) as client:
            for _ in range(3):
                stream = client.stream("Hi")
                assert await stream.__anext__() == "Hel"
                owned: Any = getattr(stream, "inner", stream)
                owned.cycle = owned
                del stream, owned
                gc.collect()
            async with client.stream("Hi"):
                error = await outcome(client.chat("Hi"))
                assert isinstance(error, APITimeoutError)
                assert error.phase == "pool"

    runtime.run(scenario)
    faults.wait_until_closed()


def test_a_slot_outlives_its_limiter(runtime: Runtime) -> None:
    async def scenario() -> None:
        for end in ("released", "dropped"):
            limiter, handle = open_limiter(runtime, 1)
            slot = await acquire(limiter, handle)
            del limiter
            if end == "released":
                slot.release()

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
@pytest.mark.parametrize("end", ["cancelled", "timed out", "waiting"])
def test_slots_are_given_in_the_order_in_which_calls_came(end: str, runtime: Runtime) -> None:
    async def scenario() -> None:
        limiter, handle = open_limiter(runtime, 1)
        slot = await acquire(limiter, handle)
        order: list[int] = []
        scope = anyio.CancelScope()

        async def wait(number: int) -> None:
            own = await acquire(limiter, handle, None)
            order.append(number)
            own.release()

        async def leave() -> None:
            with scope:
                await acquire(limiter, handle, 0.01 if end == "timed out" else 20)

        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            await anyio.wait_all_tasks_blocked()
            for number in range(5):
                group.start_soon(wait, number)
                await anyio.wait_all_tasks_blocked()
            if end == "cancelled":
                scope.cancel()
            elif end == "timed out":
                await anyio.sleep(0.1)
            slot.release()
            del slot
        assert order == list(range(5))

    runtime.run(scenario)


def test_threads_take_slots_in_the_order_in_which_they_came() -> None:
    """Without it, a thread that calls again and again keeps the slot to itself."""
    limiter, handle = open_limiter(RUNTIMES[0], 1)
    slot = limiter.acquire(0, handle)
    order: list[int] = []
    go_on = threading.Event()

    def wait(number: int) -> None:
        own = limiter.acquire(20, handle)
        assert own is not None
        order.append(number)
        assert go_on.wait(20)
        own.release()

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(5)]
    for number, thread in enumerate(threads):
        thread.start()
        while len(limiter._slots._queue) <= number:
            time.sleep(0.001)
    slot.release()
    # It is free now, and another thread's.
    assert limiter.acquire(0, handle) is None
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert order == list(range(5))


def test_a_waiter_that_is_dropped_leaves_the_queue() -> None:
    held = slots.Slots(1)
    woken: list[str] = []
    slot = held.take()
    assert slot is not None
    first, second = held.wait(lambda: None), held.wait(lambda: woken.append("second"))
    slot.release()
    assert second.take() is None
    del first
    assert woken == ["second"]
    assert second.take() is not None
    slots.Waiter.__new__(slots.Waiter)


def test_a_call_that_is_woken_for_nothing_waits_on(runtime: Runtime) -> None:
    """Another thread may have taken the slot, or have seen it before this one took it."""

    async def scenario() -> None:
        limiter, handle = open_limiter(runtime, 1)
        slot = await acquire(limiter, handle)
        assert slot is not None

        async def wake() -> None:
            await until(lambda: limiter._slots._queue)
            (wake_up,) = limiter._slots._queue.values()
            wake_up()
            slot.release()

        async def until(condition: Callable[[], object]) -> None:
            while not condition():
                time.sleep(0.001) if runtime.is_blocking else await anyio.sleep(0.001)

        async def wait() -> None:
            assert await acquire(limiter, handle, 20) is not None

        await runtime.together(wait, wake)

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_slot_that_another_thread_frees_wakes_the_first_call(runtime: Runtime) -> None:
    """As the garbage collector does, which runs in any thread."""

    async def scenario() -> None:
        limiter, handle = open_limiter(runtime, 1)
        slots = [await acquire(limiter, handle)]
        async with anyio.create_task_group() as group:
            with anyio.fail_after(20):
                group.start_soon(acquire, limiter, handle, None)
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(slots.clear)

    runtime.run(scenario)


def test_a_connection_that_is_dropped_is_closed(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            await client.chat("Hi")
            (inner,) = open_pool(runtime, client)[1].values()
            gc.disable()
            inner._idle_by_origin.clear()
            inner._idle.clear()
            faults.wait_until_closed()
            gc.enable()

    runtime.run(scenario)


def test_a_connection_that_an_interrupt_left_half_made_is_dropped_in_silence(
    runtime: Runtime,
) -> None:
    module: Any = sync_connection if runtime.is_blocking else async_connection
    kind = module.Connection if runtime.is_blocking else module.AsyncConnection
    kind.__new__(kind)


def test_a_forked_child_does_not_interrupt_the_connection_of_its_parent(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = sync_network if runtime.is_blocking else async_network
    network = module.Network() if runtime.is_blocking else module.AsyncNetwork()
    near, far = socket.socketpair()
    with near, far:
        network._set_socket(near)
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            network.interrupt()
        near.send(b"still open")
        assert far.recv(100) == b"still open"
        network.interrupt()
        assert far.recv(100) == b""


def test_a_call_whose_client_was_closed_raises_an_error(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """Closed by a signal handler or another thread, just before httpx is asked to send."""

    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url, retry=ONCE)
        session = getattr(client, "inner", client)._session
        start = session.start_attempt

        def start_and_close(call: Any) -> Any:
            attempt = start(call)
            # Not by its `close`, which would wait on the async side.
            session._http_client._state = type(session._http_client._state).CLOSED
            return attempt

        session.start_attempt = start_and_close
        error = await outcome(client.chat("Hi"))
        assert isinstance(error, CromicleError)
        assert ": its client is closed" in str(error)
        transport = session._http_client._transport
        transport.close() if runtime.is_blocking else await transport.aclose()

    runtime.run(scenario)
    assert not faults.requests
