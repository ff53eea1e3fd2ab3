"""Waiting for a socket on asyncio and uvloop, where it may stay registered with the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
from left_out import is_left_out

from cromicle_sdk._async.concurrency import CancelHandle
from cromicle_sdk._async.socket_reader import SocketReader
from cromicle_sdk._http.sockets import ClosedByCaller

LOOPS: dict[str, Callable[[], Any]] = {"asyncio": asyncio.SelectorEventLoop}
if not is_left_out("uvloop"):
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[Any]:
    loop = LOOPS[request.param]()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


def receive(reader: SocketReader, timeout: float | None = 20) -> Awaitable[bytes | OSError | None]:
    return reader.receive(100, timeout, CancelHandle())


def test_bytes_and_ends_are_seen(loop: Any, pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader = SocketReader(near)
        for text in (b"one", b"two"):
            loop.call_soon(far.send, text)
            assert await receive(reader) == text
        loop.call_soon(far.close)
        assert await receive(reader, None) == b""
        reader.close()

    loop.run_until_complete(scenario())


@pytest.mark.parametrize("timeouts", [(20, 0.1), (0.1, 0.2), (0.1, 0.1)])
def test_each_wait_has_its_own_timeout(
    timeouts: tuple[float, float], loop: Any, pair: Pair
) -> None:
    near, far = pair
    first, second = timeouts

    async def scenario() -> None:
        reader = SocketReader(near)
        far.send(b"x")
        assert await receive(reader, first)
        started = time.monotonic()
        assert not await receive(reader, second)
        assert time.monotonic() - started > second - 0.01
        reader.close()

    loop.run_until_complete(scenario())


def test_what_arrives_with_a_cancellation_is_kept(loop: Any, pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader = SocketReader(near)
        task: Any = asyncio.ensure_future(receive(reader))
        await asyncio.sleep(0)
        far.send(b"one")
        # As the event loop does just before the task is cancelled.
        reader._notify()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        far.send(b"two")
        assert await reader.receive(2, 20, CancelHandle()) == b"on"
        # To its last byte, which is not the end of what is received.
        assert reader.receive_now(1) == b"e"
        assert reader.receive_now(100) == b"two"
        assert reader.receive_now(100) is None
        reader.close()

    loop.run_until_complete(scenario())


def test_a_wait_without_a_limit_outlasts_the_timer_of_the_one_before(loop: Any, pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader = SocketReader(near)
        far.send(b"x")
        assert await receive(reader, 0.05)
        loop.call_later(0.2, far.send, b"y")
        assert await receive(reader, None)
        reader.close()

    loop.run_until_complete(scenario())


def test_a_timer_may_end_when_nothing_waits(loop: Any, pair: Pair) -> None:
    near, far = pair
    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))

    async def scenario() -> None:
        reader = SocketReader(near)
        far.send(b"x")
        assert await receive(reader, 0.05)
        await asyncio.sleep(0.1)
        assert not await receive(reader, 0.05)
        reader.close()

    loop.run_until_complete(scenario())
    assert errors == []


def test_only_a_loop_that_allows_it_keeps_the_socket_registered(loop: Any, pair: Pair) -> None:
    """asyncio's own loops do, where each registration costs as much as a short chunk."""
    near, far = pair
    is_of_asyncio = isinstance(loop, asyncio.SelectorEventLoop)

    async def scenario() -> None:
        reader = SocketReader(near)
        far.send(b"x")
        assert await receive(reader)
        assert bool(loop.remove_reader(near.fileno())) is is_of_asyncio
        reader.close()

    loop.run_until_complete(scenario())


def test_bytes_that_nothing_waits_for_do_not_keep_the_loop_busy(loop: Any, pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader = SocketReader(near)
        far.send(b"x")
        assert await receive(reader)
        far.send(b"y")
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not loop.remove_reader(near.fileno()), "it is still registered"
        assert await receive(reader) == b"y"
        reader.close()

    loop.run_until_complete(scenario())


def test_the_loop_may_call_too_early_and_too_often(loop: Any, pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader = SocketReader(near)

        def notify() -> None:
            reader._notify()
            far.send(b"x")
            reader._notify()
            far.send(b"y")
            reader._notify()

        loop.call_soon(notify)
        assert [await receive(reader), await receive(reader)] == [b"x", b"y"]
        reader.close()

    loop.run_until_complete(scenario())


def test_an_error_comes_after_the_bytes(loop: Any) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            near.setblocking(False)
            far, _ = listener.accept()
            reader = SocketReader(near)
            far.send(b"x")
            assert await receive(reader) == b"x"
            # What makes `close` send a reset.
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            loop.call_soon(far.close)
            assert isinstance(await receive(reader), ConnectionResetError)
            reader.close()

    loop.run_until_complete(scenario())


def test_close_ends_the_wait_and_frees_the_descriptor(loop: Any, pair: Pair) -> None:
    near, _far = pair

    async def scenario() -> None:
        reader = SocketReader(near)
        number = near.fileno()
        loop.call_later(0.05, reader.close)
        with pytest.raises(ClosedByCaller):
            await receive(reader)
        assert near.fileno() == -1
        assert not loop.remove_reader(number)

    loop.run_until_complete(scenario())


def test_close_in_the_thread_of_the_loop_is_done_when_it_returns(loop: Any, pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader = SocketReader(near)
        far.send(b"x")
        # Without a timeout only the socket is registered.
        assert await receive(reader, None)
        number = near.fileno()
        reader.close()
        assert near.fileno() == -1
        assert not loop.remove_reader(number)

    loop.run_until_complete(scenario())


def test_another_thread_closes_it(loop: Any, pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader = SocketReader(near)
        far.send(b"x")
        assert await receive(reader)
        number = near.fileno()
        thread = threading.Thread(target=reader.close)
        thread.start()
        thread.join()
        assert far.recv(1) == b"", "the peer sees the end at once"
        assert near.fileno() == number, "another socket must not have the number yet"
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert near.fileno() == -1
        assert not loop.remove_reader(number)

    loop.run_until_complete(scenario())


def test_another_thread_closes_it_as_its_loop_ends(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = pair
    reader = SocketReader(near)

    def call_soon_threadsafe(*arguments: object) -> None:
        raise RuntimeError("Event loop is closed")

    async def scenario() -> None:
        far.send(b"x")
        assert await receive(reader)
        thread = threading.Thread(target=reader.close)
        thread.start()
        thread.join()

    loop = asyncio.SelectorEventLoop()
    monkeypatch.setattr(loop, "call_soon_threadsafe", call_soon_threadsafe)
    loop.run_until_complete(scenario())
    assert near.fileno() == -1
    loop.close()


@pytest.mark.parametrize("is_loop_closed", [False, True])
def test_it_is_closed_after_its_loop_has_stopped(
    is_loop_closed: bool, loop: Any, pair: Pair
) -> None:
    near, far = pair
    reader = SocketReader(near)
    far.send(b"x")
    assert loop.run_until_complete(receive(reader))
    if is_loop_closed:
        loop.close()
    reader.close()
    assert near.fileno() == -1


def test_a_child_process_that_closes_it_leaves_its_parent_waiting(pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader = SocketReader(near)
        far.send(b"x")
        assert await receive(reader)
        child = os.fork()
        if not child:
            reader.close()
            os._exit(0)
        os.waitpid(child, 0)
        far.send(b"y")
        assert await receive(reader)
        reader.close()

    asyncio.run(scenario())


def test_a_cancelled_handle_ends_the_wait(loop: Any, pair: Pair) -> None:
    near, _far = pair

    async def scenario() -> None:
        reader, handle = SocketReader(near), CancelHandle()
        loop.call_later(0.05, handle.cancel)
        with pytest.raises(ClosedByCaller):
            await reader.receive(100, 20, handle)
        with pytest.raises(ClosedByCaller):
            await reader.receive(100, 20, handle)
        reader.close()

    loop.run_until_complete(scenario())


def test_a_cancelled_handle_may_find_the_wait_over(loop: Any, pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader, handle = SocketReader(near), CancelHandle()
        far.send(b"x")
        assert await receive(reader) == b"x"
        # Read by another thread just before the wait was over.
        handle.set_interrupt(reader._interrupt)
        handle.cancel()
        far.send(b"y")
        assert await receive(reader) == b"y"
        reader.close()

    loop.run_until_complete(scenario())


def test_a_task_that_is_cancelled_leaves_the_next_wait_alone(loop: Any, pair: Pair) -> None:
    near, far = pair

    async def scenario() -> None:
        reader = SocketReader(near)
        with anyio.move_on_after(0.05) as scope:
            await receive(reader)
        assert scope.cancelled_caught
        far.send(b"x")
        assert await receive(reader)
        reader.close()

    loop.run_until_complete(scenario())


def test_a_registered_socket_keeps_no_context_alive(pair: Pair) -> None:
    near, far = pair
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("of a task")

    class Value:
        pass

    async def task(reader: SocketReader) -> Any:
        value = Value()
        variable.set(value)
        assert await receive(reader)
        return weakref.ref(value)

    async def scenario() -> None:
        reader = SocketReader(near)
        far.send(b"x")
        seen = await asyncio.create_task(task(reader))
        await asyncio.sleep(0)  # the loop drops what ran last
        gc.collect()
        assert seen() is None
        reader.close()

    asyncio.run(scenario())


def test_a_loop_that_registers_no_sockets(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = pair

    def add_reader(*arguments: object) -> None:
        raise NotImplementedError

    async def scenario() -> None:
        # As asyncio's Proactor loop on Windows.
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
        reader = SocketReader(near)
        for _ in range(2):
            far.send(b"x")
            assert await receive(reader)
        assert not await receive(reader, 0.05)
        reader.close()

    anyio.run(scenario)
