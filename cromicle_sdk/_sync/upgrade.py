# Generated from _async/upgrade.py by tests/unasync.py; do not edit.
"""The stream of a connection after HTTP: after a 101, or a 2xx to CONNECT."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import httpcore

from cromicle_sdk._http.libraries import convert_error
from cromicle_sdk._http.sockets import ClosedByCaller

from .connection import Connection

__all__ = ["UpgradedStream"]

T = TypeVar("T")


class UpgradedStream(httpcore.NetworkStream):
    """Writes are sent immediately. Each read and write has the timeout that is passed to it.

    A read and a write may wait at the same time, and `close` by another thread ends both. They
    raise the errors of `library`. After `start_tls`, only the stream that it returns can be used.
    """

    def __init__(
        self,
        stream: httpcore.NetworkStream,
        connection: Connection,
        close: Callable[[], None],
        library: ModuleType,
    ) -> None:
        self._stream = stream
        self._connection = connection
        self._close = close
        self._library = library
        self._is_replaced = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._run(partial(self._stream.read, max_bytes, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._run(partial(self._stream.write, buffer, timeout))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            stream = self._run(
                partial(self._stream.start_tls, ssl_context, server_hostname, timeout),
                is_last=True,
            )
        except BaseException:
            # As httpcore does: nothing may be sent in plain text to a server that is not verified.
            self._close()
            raise
        return UpgradedStream(stream, self._connection, self._close, self._library)

    def close(self) -> None:
        self._close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _run(self, step: Callable[[], T], *, is_last: bool = False) -> T:
        try:
            with self._connection.use():
                if self._is_replaced:
                    # As with a socket, which `wrap_socket` detaches: it would send plain text.
                    raise ClosedByCaller("start_tls has replaced it")
                self._is_replaced = is_last
                return step()
        except ClosedByCaller as error:
            raise convert_error(httpcore.ReadError(str(error)), self._library) from error
        except Exception as error:  # noqa: BLE001 - raised as one of the library's
            raise convert_error(error, self._library)  # noqa: B904 - it has its cause
