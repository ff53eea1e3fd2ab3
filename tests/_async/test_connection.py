"""A connection that several tasks or threads use, and the idle ones."""

from __future__ import annotations

import logging
import socket
from functools import partial
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
