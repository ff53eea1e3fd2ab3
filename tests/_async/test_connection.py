"""A connection that several tasks or threads use, and the idle ones."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpcore
import pytest
from runtimes import Runtime

from cromicle_sdk._async import connection as async_connection
from cromicle_sdk._http.proxies import Route
from cromicle_sdk._http.sockets import IDLE_SECONDS, ClosedByCaller
from cromicle_sdk._sync import connection as sync_connection
from cromicle_sdk.testing import FaultyServer

ORIGIN = httpcore.Origin(b"http", b"127.0.0.1", 9)


@contextlib.contextmanager
def open_connections(pool: Any, count: int) -> Iterator[list[Any]]:
    """Connections of one origin, each over a socket of its own."""
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            near, far = socket.socketpair()
            near.setblocking(False)
            stack.enter_context(near)
            stack.enter_context(far)
            connection = pool.open_connection(ORIGIN)
            connection._network._set_socket(near)
            connections.append(connection)
        yield connections


def is_open(connection: Any) -> bool:
    sock: socket.socket = connection._network._socket
    return sock.fileno() != -1


def open_pool(runtime: Runtime, max_connections: int = 10) -> Any:
    route = Route.build(proxy=None, verify=True)
    if runtime.is_blocking:
        return sync_connection.ProcessPool(route, max_connections)
    return async_connection.AsyncLoopPool(route, max_connections)


def test_a_connection_in_use_is_closed_by_its_last_user(runtime: Runtime) -> None:
    """Its descriptor must not be reused while another task or thread waits for it."""
    near, far = socket.socketpair()

    async def scenario() -> None:
        connection = open_pool(runtime).open_connection(ORIGIN)
        connection._network._set_socket(near)
        assert not connection.is_in_use
        with pytest.raises(ClosedByCaller), connection.use():
            with connection.use():
                pass
            assert connection.is_in_use
            with pytest.raises(ClosedByCaller), connection.use():
                connection.close()
            # Interrupted, but still there.
            assert far.recv(100) == b""
            assert connection.is_in_use
            assert near.fileno() != -1
        assert not connection.is_in_use
        assert near.fileno() == -1

    with near, far:
        runtime.run(scenario)


def test_a_connection_that_is_not_in_use_is_closed_at_once(runtime: Runtime) -> None:
    near, far = socket.socketpair()

    async def scenario() -> None:
        connection = open_pool(runtime).open_connection(ORIGIN)
        connection._network._set_socket(near)
        with connection.use():
            pass
        assert near.fileno() != -1
        connection.close()
        assert near.fileno() == -1
        with pytest.raises(ClosedByCaller), connection.use():
            pass

    with near, far:
        runtime.run(scenario)


def test_the_last_connection_to_become_idle_is_used_first(runtime: Runtime) -> None:
    async def scenario() -> None:
        pool = open_pool(runtime)
        with open_connections(pool, 3) as connections:
            for connection in connections:
                pool.put_idle(connection)
            assert pool.get_idle(httpcore.Origin(b"https", b"127.0.0.1", 9)) is None
            assert pool.get_idle(httpcore.Origin(b"http", b"127.0.0.1", 8)) is None
            assert [pool.get_idle(ORIGIN) for _ in connections] == connections[::-1]
            assert pool.get_idle(ORIGIN) is None
            assert all(map(is_open, connections))

    runtime.run(scenario)


def test_an_old_connection_is_closed_when_the_next_one_becomes_idle(runtime: Runtime) -> None:
    async def scenario() -> None:
        pool = open_pool(runtime)
        with open_connections(pool, 4) as (old, older, other, new):
            pool.put_idle(old)
            old.start_idle(time.monotonic() - IDLE_SECONDS - 1)
            assert pool.get_idle(ORIGIN) is None
            assert not is_open(old)
            for connection in (older, other):
                pool.put_idle(connection)
            older.start_idle(time.monotonic() - IDLE_SECONDS - 1)
            other.start_idle(time.monotonic() - IDLE_SECONDS + 20)
            pool.put_idle(new)
            assert [is_open(connection) for connection in (older, other, new)] == [
                False,
                True,
                True,
            ]
            pool.close()
            assert not is_open(other)
            assert not is_open(new)

    runtime.run(scenario)


def test_no_more_is_kept_of_hosts_than_of_idle_connections(runtime: Runtime) -> None:
    async def scenario() -> None:
        pool = open_pool(runtime, 2)
        origins = [httpcore.Origin(b"http", b"127.0.0.1", port) for port in range(1, 6)]
        for origin in origins:
            pool.put_idle(pool.open_connection(origin, "h.test"))
        assert [port for _, _, port, _ in pool._idle_by_origin] == [4, 5]
        # It has no socket, and is dropped.
        assert pool.get_idle(origins[-1], "h.test") is None
        assert [port for _, _, port, _ in pool._idle_by_origin] == [4]
        pool.close()
        assert pool._idle_by_origin == {}
        pool.put_idle(pool.open_connection(ORIGIN))
        assert pool._idle_by_origin == {}

    runtime.run(scenario)


def test_calls_at_the_same_time_leave_their_connections_to_the_next_ones(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.reply(chunks=["one ", "two"])

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            for _ in "12":
                streams = [client.stream("Hi") for _ in "123"]
                for stream in streams:
                    await stream.start()
                for stream in streams:
                    await stream.read()
            assert faults.connections == 3

    runtime.run(scenario)


def test_no_certificates_are_loaded_for_plain_http(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take tens of milliseconds."""
    for module in (async_connection, sync_connection):
        monkeypatch.delattr(module, "default_ssl_context")

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            assert (await client.chat("Hi")).text

    runtime.run(scenario)
