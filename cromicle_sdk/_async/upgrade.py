"""The stream of a connection after HTTP: after a 101, or a 2xx to CONNECT."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import httpcore

from cromicle_sdk._http.libraries import convert_error
from cromicle_sdk._http.sockets import ClosedByCaller

from .connection import AsyncConnection

__all__ = ["AsyncUpgradedStream"]

T = TypeVar("T")


class AsyncUpgradedStream(httpcore.AsyncNetworkStream):
    """Writes are sent immediately. Each read and write has the timeout that is passed to it.

    A read and a write may wait at the same time, and `aclose` by another task ends both. They
    raise the errors of `library`. After `start_tls`, only the stream that it returns can be used.
    """

    def __init__(
        self,
        stream: httpcore.AsyncNetworkStream,
        connection: AsyncConnection,
        close: Callable[[], None],
        library: ModuleType,
    ) -> None:
        self._stream = stream
        self._connection = connection
        self._close = close
        self._library = library
        self._is_replaced = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._run(partial(self._stream.read, max_bytes, timeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._run(partial(self._stream.write, buffer, timeout))

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            stream = await self._run(
                partial(self._stream.start_tls, ssl_context, server_hostname, timeout),
                is_last=True,
            )
        except BaseException:
            # As httpcore does: nothing may be sent in plain text to a server that is not verified.
            self._close()
            raise
        return AsyncUpgradedStream(stream, self._connection, self._close, self._library)

    async def aclose(self) -> None:
        self._close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    async def _run(self, step: Callable[[], Awaitable[T]], *, is_last: bool = False) -> T:
        try:
            with self._connection.use():
                if self._is_replaced:
                    # As with a socket, which `wrap_socket` detaches: it would send plain text.
                    raise ClosedByCaller("start_tls has replaced it")
                self._is_replaced = is_last
                return await step()
        except ClosedByCaller as error:
            raise convert_error(httpcore.ReadError(str(error)), self._library) from error
        except Exception as error:  # noqa: BLE001 - raised as one of the library's
            raise convert_error(error, self._library)  # noqa: B904 - it has its cause
