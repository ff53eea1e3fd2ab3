"""Accepting connections, within the limits of the server and of the system."""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
from collections.abc import Callable
from typing import Any

from .registry import Connections

__all__ = ["Acceptor"]

# The system has no file descriptor or no memory for another connection.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# How long to wait for a connection to end in that case. New ones wait in the system's queue.
RETRY_SECONDS = 0.1

# How many connections are accepted before the event loop serves the others. An idle connection that
# is replaced is closed only then, so this many additional file descriptors may be in use.
BATCH = 16


class Acceptor:
    """Accepts the connections of a listening socket until `stop`.

    Without a free file descriptor, asyncio's own server makes 2,048 attempts to accept a
    connection, logs a traceback for each, and starts again after a second.
    """

    def __init__(
        self,
        listener: socket.socket,
        create_protocol: Callable[[str], asyncio.BaseProtocol],
        connections: Connections,
    ) -> None:
        """`create_protocol` is called with the address of each client that is admitted."""
        listener.setblocking(False)
        self._listener = listener
        self._create_protocol = create_protocol
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[Any]] = set()
        self._task = self._loop.create_task(self._accept_all())

    def stop(self) -> None:
        """Accept no more connections."""
        self._task.cancel()

    async def _accept_all(self) -> None:
        while True:
            for _ in range(BATCH):
                await self._accept()
            await asyncio.sleep(0)

    async def _accept(self) -> None:
        try:
            connection, address = await self._loop.sock_accept(self._listener)
        except OSError as error:
            # Any other error means that the connection has already ended.
            if error.errno in _EXHAUSTED:
                has_closed_one = self._connections.close_idle()
                await asyncio.sleep(0 if has_closed_one else RETRY_SECONDS)
            return
        host = str(address[0])
        if not self._connections.admit(host):
            connection.close()
            return
        opening = self._loop.connect_accepted_socket(
            functools.partial(self._create_protocol, host), connection
        )
        task = self._loop.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
