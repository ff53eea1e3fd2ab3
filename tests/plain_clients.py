"""Plain httpx and httpx2 clients over the transports of this package, and servers for them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from runtimes import Runtime

from cromicle_sdk import AsyncTransport, Transport
from cromicle_sdk._http.clients import find_source
from cromicle_sdk.testing import Connection

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "RawServer",
    "SyncClient",
    "close",
    "open_client",
    "send",
    "wait_until",
    "wait_until_all_others_wait",
    "wait_until_read",
]


def open_client(library: Any, runtime: Runtime, timeout: Any = 20, **options: Any) -> Any:
    """A client of the library over our transport, with the methods of an async one."""
    if runtime.is_blocking:
        return SyncClient(library.Client(transport=Transport(**options), timeout=timeout))
    return library.AsyncClient(transport=AsyncTransport(**options), timeout=timeout)


class SyncClient:
    """A blocking client with coroutine methods that never wait."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def post(self, url: str, **options: Any) -> Any:
        return self.client.post(url, **options)

    async def get(self, url: str, **options: Any) -> Any:
        return self.client.get(url, **options)

    async def aclose(self) -> None:
        self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        self.client.close()


class RawServer:
    """Accepts one connection, and leaves it to a function."""

    def __init__(self, behave: Any) -> None:
        self._behave = behave

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/chat"

    def _serve(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        with accepted:
            self._behave(Connection(accepted, 1))

    def __exit__(self, kind: object, *args: object) -> None:
        if kind is not None:
            # The client may have failed before it has connected.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._listener.close()


async def send(client: Any, *args: Any, **options: Any) -> Any:
    """The response to a request, whose body has yet to be read."""
    inner = getattr(client, "client", client)
    sent = inner.send(inner.build_request(*args, **options), stream=True)
    return await sent if hasattr(sent, "__await__") else sent


async def close(thing: Any, runtime: Runtime) -> None:
    thing.close() if runtime.is_blocking else await thing.aclose()


async def wait_until(condition: Callable[[], object], runtime: Runtime) -> None:
    """Let other tasks or threads run until the condition is true. Fail after 20 s."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001) if runtime.is_blocking else await anyio.sleep(0.001)


async def wait_until_read(response: Any, runtime: Runtime) -> None:
    """Wait until another task or thread reads a response over our transport."""
    exchange = find_source(response.stream)
    await wait_until(lambda: exchange._connection.is_in_use, runtime)
    await wait_until_all_others_wait(runtime)


async def wait_until_all_others_wait(runtime: Runtime) -> None:
    """What others wait for is a socket, which they come to a moment after this."""
    time.sleep(0.2) if runtime.is_blocking else await anyio.wait_all_tasks_blocked()
