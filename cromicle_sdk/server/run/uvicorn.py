"""uvicorn's server on given listening sockets, without global state, with a bounded shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable
from typing import cast
from urllib.parse import unquote

import anyio
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from cromicle_sdk._core.endpoint import is_loopback
from cromicle_sdk.server.extension import ServerExtension, set_extension

from .acceptor import Acceptor
from .connection import Connection
from .registry import Connections

__all__ = ["StoppableServer", "build_server", "format_base_url", "listen"]

# Longer than clients keep an idle connection (httpx: 5 s), so that the client closes it first. If
# the server closes it just as the client sends a request, the request is lost.
KEEP_ALIVE_SECONDS = 75

# How long a backend may take to clean up after an abort before its task is cancelled.
CLEANUP_SECONDS = 1.0

# How many connections may wait to be accepted, as in uvicorn. The system may allow fewer.
BACKLOG = 2048

_POLL_SECONDS = 0.01


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket. Port 0 is any free port. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def format_base_url(listener: socket.socket) -> str:
    """Return the URL with which a client on this machine can connect to the socket."""
    host, port = listener.getsockname()[:2]
    # On some systems, clients cannot connect to the wildcard addresses.
    if host == "0.0.0.0":  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def build_server(
    app: ASGIApp,
    *,
    grace: float,
    on_started: Callable[[], None],
    host: str = "127.0.0.1",
    connections: Connections | None = None,
    forwarded_allow_ips: str = "",
) -> StoppableServer:
    """Return a uvicorn server for `app`. Start it with `run(sockets=[listener])`.

    `host` is the host that it listens on. When the server stops, replies in progress have `grace`
    seconds to complete before they are aborted. `on_started` is called in its event loop as soon as
    it accepts connections. `connections` limits their number; None for no limit.
    `forwarded_allow_ips` is uvicorn's option; by default no proxy is trusted.
    """
    config = uvicorn.Config(
        _Adapter(app, ServerExtension(is_loopback=is_loopback(host))),
        # Not uvloop, even if it is installed, so that the server behaves the same everywhere.
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=bool(forwarded_allow_ips),
        forwarded_allow_ips=forwarded_allow_ips,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    connections = Connections() if connections is None else connections
    return StoppableServer(config, connections, grace=grace, on_started=on_started)


class _Adapter:
    """Adds the `ServerExtension` to the scope, and handles requests for an absolute URL.

    "A server MUST accept the absolute-form in requests", and its host replaces the `Host` header
    (RFC 9112, section 3.2.2). uvicorn passes the whole URL as the path.
    """

    def __init__(self, app: ASGIApp, extension: ServerExtension) -> None:
        self._app = app
        self._extension = extension

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        set_extension(scope, self._extension)
        target: bytes = scope["raw_path"]
        scheme, _, rest = target.partition(b"://")
        host, _, path = rest.partition(b"/")
        # A URL with an empty host is invalid (RFC 9110, section 4.2.1).
        if host and scheme.lower() in (b"http", b"https"):
            headers = [each for each in scope["headers"] if each[0] != b"host"]
            scope = {
                **scope,
                # h11 accepts only ASCII in a request target.
                "path": f"/{unquote(path.decode('ascii'))}",
                "raw_path": b"/" + path,
                "headers": [(b"host", host), *headers],
            }
        await self._app(scope, receive, send)


class StoppableServer(uvicorn.Server):
    """uvicorn's server with a bounded shutdown and a callback once it accepts connections.

    uvicorn itself waits for replies in progress, and on Python 3.12 and later also for idle
    connections, even on a forced exit.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        connections: Connections,
        *,
        grace: float,
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._grace = grace
        self._on_started = on_started
        self._wake: Callable[[], object] | None = None

    def stop(self) -> None:
        """Start the shutdown. Thread-safe."""
        self.should_exit = True
        if self._wake is not None:
            # A closed event loop raises RuntimeError.
            with contextlib.suppress(RuntimeError):
                self._wake()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Without sockets, uvicorn listens on none: the acceptors below do.
        await super().startup([])
        # Created here, because an event belongs to the event loop in which it is created.
        self._woken = anyio.Event()
        loop = asyncio.get_running_loop()
        create_protocol = functools.partial(
            Connection,
            self.config,
            self.server_state,
            self.lifespan.state,
            loop,
            self._connections,
        )
        self._acceptors = [
            Acceptor(listener, create_protocol, self._connections) for listener in sockets or []
        ]
        self._wake = functools.partial(loop.call_soon_threadsafe, self._woken.set)
        self._on_started()

    async def main_loop(self) -> None:
        # Like uvicorn, poll ten times a second for the clock and signals.
        tick = 0
        while not await self.on_tick(tick):
            tick += 1
            with anyio.move_on_after(0.1):
                await self._woken.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for acceptor in self._acceptors:
            acceptor.stop()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with anyio.move_on_after(self._grace):
            while self._is_busy() and not self.force_exit:  # noqa: ASYNC110 - a signal sets it
                await anyio.sleep(_POLL_SECONDS)
        # Remaining tasks are cancelled when `run` closes the event loop.
        with anyio.move_on_after(CLEANUP_SECONDS):
            await self._abort_connections()

    async def _abort_connections(self) -> None:
        while True:
            for connection in list(self.server_state.connections):
                # The app receives `http.disconnect`.
                cast("Connection", connection).abort()
            # Repeated for connections that are just being accepted.
            await anyio.sleep(_POLL_SECONDS)
            if not self._is_busy():
                return

    def _is_busy(self) -> bool:
        return bool(self.server_state.connections or self.server_state.tasks)
