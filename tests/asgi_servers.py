"""ASGI servers in threads: uvicorn, and hypercorn with each of its workers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any

import hypercorn.asyncio
import hypercorn.trio
import trio
from hypercorn.config import Config
from starlette.types import ASGIApp

from cromicle_sdk.server import LocalServer

Serve = Callable[[ASGIApp], contextlib.AbstractContextManager[str]]


@contextlib.contextmanager
def serve_with_uvicorn(app: ASGIApp) -> Generator[str]:
    """The embedded server; yields its base URL."""
    with LocalServer(app=app) as server:
        yield server.base_url


@contextlib.contextmanager
def serve_with_hypercorn(app: ASGIApp) -> Generator[str]:
    """hypercorn on asyncio."""
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()

    def run(config: Config) -> None:
        loop.run_until_complete(
            hypercorn.asyncio.serve(app, config, shutdown_trigger=stopped.wait)  # type: ignore[arg-type]  # its own types
        )
        loop.close()

    with _run_in_thread(run, lambda: loop.call_soon_threadsafe(stopped.set)) as base_url:
        yield base_url


@contextlib.contextmanager
def serve_with_hypercorn_on_trio(app: ASGIApp) -> Generator[str]:
    """hypercorn with its trio worker."""
    stopped = trio.Event()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def main(config: Config) -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        await hypercorn.trio.serve(app, config, shutdown_trigger=stopped.wait)  # type: ignore[arg-type]  # its own types

    def stop() -> None:
        tokens[0].run_sync_soon(stopped.set)

    with _run_in_thread(lambda config: trio.run(main, config), stop) as base_url:
        yield base_url


@contextlib.contextmanager
def _run_in_thread(run: Callable[[Config], None], stop: Callable[[], Any]) -> Generator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = Config()
        # hypercorn closes the socket itself.
        config.bind = [f"fd://{listener.detach()}"]
        config.graceful_timeout = 0.1
        config.shutdown_timeout = 1
        config.errorlog = None
        thread = threading.Thread(target=run, args=(config,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            stop()
            thread.join(20)
            assert not thread.is_alive()


SERVERS: dict[str, Serve] = {
    "uvicorn": serve_with_uvicorn,
    "hypercorn": serve_with_hypercorn,
    "hypercorn on trio": serve_with_hypercorn_on_trio,
}
