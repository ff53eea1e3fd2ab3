"""Reading from a socket, in blocking code.

`_async/socket_reader.py` has the same names for async code; a test compares the two.
"""

from __future__ import annotations

import socket

from cromicle_sdk._http.sockets import receive_now

from . import concurrency

__all__ = ["SocketReader"]


class SocketReader:
    """Waits for bytes of a socket, and closes it."""

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def receive(
        self, max_bytes: int, timeout: float | None, cancel_handle: concurrency.CancelHandle
    ) -> bytes | OSError | None:
        """Wait for bytes, and return them, b"" at the end, or an error of the system.

        Returns None if nothing arrived, perhaps before the `timeout`, in seconds. Raises
        `ClosedByCaller`.
        """
        is_ready = cancel_handle.wait_readable(self._socket, timeout)
        return self.receive_now(max_bytes) if is_ready else None

    def receive_now(self, max_bytes: int) -> bytes | OSError | None:
        """Return what has arrived, without waiting, or None. Otherwise the same as `receive`."""
        return receive_now(self._socket, max_bytes)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
