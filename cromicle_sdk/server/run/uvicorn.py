"""How uvicorn serves an app here: one listening socket, no global state, an end that comes."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable
from typing import cast

import anyio
import uvicorn
from starlette.types import ASGIApp

from .protocol import Protocol

__all__ = ["CuttingServer", "build_server", "format_base_url", "listen"]

# Longer than clients keep an idle connection (httpx: 5 s), so that it is always the client that
# drops it; when both do at once a request is lost.
KEEP_ALIVE_SECONDS = 75

# What a backend may take to clean up after its client is gone, before it is cancelled.
RESIST_SECONDS = 1.0

_POLL_SECONDS = 0.01


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def format_base_url(listener: socket.socket) -> str:
    """The URL under which a client on this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    # The addresses for "every interface" are none that a client can go to everywhere.
    if host == "0.0.0.0":  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def build_server(app: ASGIApp, *, grace: float, on_started: Callable[[], None]) -> CuttingServer:
    """A uvicorn server for `app`; run it with `run(sockets=[listener])`.

    Once stopped it lets replies in flight go on for `grace` seconds and then cuts them off.
    `on_started` is called from its loop as soon as it accepts.
    """
    config = uvicorn.Config(
        app,
        # Not uvloop where that happens to be installed: the same server everywhere.
        loop="asyncio",
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    return CuttingServer(config, grace=grace, on_started=on_started)


class CuttingServer(uvicorn.Server):
    """uvicorn's server, except that it stops when it is told to, and says when it has started.

    uvicorn by itself waits for the replies in flight, and on Python 3.12 and later for idle
    connections too, even when it is told to exit by force.
    """

    def __init__(
        self, config: uvicorn.Config, *, grace: float, on_started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._grace = grace
        self._on_started = on_started
        self._wake: Callable[[], object] | None = None

    def stop(self) -> None:
        """Begin to stop; from any thread, at any time."""
        self.should_exit = True
        if self._wake is not None:
            # A loop that is closed already needs no waking.
            with contextlib.suppress(RuntimeError):
                self._wake()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Made here, for an event belongs to the loop that it is made in.
        self._woken = anyio.Event()
        loop = self.servers[0].get_loop()
        self._wake = functools.partial(loop.call_soon_threadsafe, self._woken.set)
        self._on_started()

    async def main_loop(self) -> None:
        # Ten times a second, as uvicorn does it for its clock and its signals.
        tick = 0
        while not await self.on_tick(tick):
            tick += 1
            with anyio.move_on_after(0.1):
                await self._woken.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with anyio.move_on_after(self._grace):
            while self._is_busy() and not self.force_exit:  # noqa: ASYNC110 - a signal sets it
                await anyio.sleep(_POLL_SECONDS)
        # Tasks that are left after that are cancelled when `run` closes the loop.
        with anyio.move_on_after(RESIST_SECONDS):
            await self._cut_off()

    async def _cut_off(self) -> None:
        while True:
            for connection in list(self.server_state.connections):
                # To the app it looks as if the client had left, which it is prepared for.
                cast("Protocol", connection).cut_off()
            # Also for connections that were just being accepted.
            await anyio.sleep(_POLL_SECONDS)
            if not self._is_busy():
                return

    def _is_busy(self) -> bool:
        return bool(self.server_state.connections or self.server_state.tasks)
