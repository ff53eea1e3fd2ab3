"""One accepted TCP connection: reading, writing, and waiting until the client disconnects."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Generator
from itertools import chain, cycle
from typing import TYPE_CHECKING, NoReturn

from .scripted_response import End, ScriptedResponse

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection", "DisconnectedError"]

_RECEIVE_BYTES = 1 << 18

# The standard library cannot wait for an event and a socket at the same time, so the event is
# polled. The intervals grow: most events are set soon, and with four polls a second, a thousand
# waiting threads use 28 % of a core.
_FIRST_POLL_SECONDS = 0.001
_MAX_POLL_SECONDS = 0.25

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class DisconnectedError(ConnectionError):
    """The client has disconnected, or the server is stopping.

    Every method of `Connection` that sends or waits raises it. The server handles it, so a
    behaviour need not catch it.
    """


class Connection:
    """One accepted connection, the first argument of a behaviour that is passed to `script()`.

    When the behaviour returns, the connection stays open for the next request, unless `close`
    or `reset` was called. To wait, call `pause`, `wait` or `stall` instead of `time.sleep`: they
    end when the client disconnects or the server stops.

    `number` is the serial number of the connection, from 1.
    """

    def __init__(self, sock: socket.socket, number: int) -> None:
        # Sends each chunk at once, in its own packet. On some systems this fails if the client
        # has already disconnected, which the first read or write reports.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._buffer = bytearray()
        self._aborted = threading.Event()
        self._closed = False
        self.number = number

    @property
    def closed(self) -> bool:
        """Whether this side has closed the connection."""
        return self._closed

    def send(self, data: bytes) -> None:
        """Send all of `data` unchanged. Raises `DisconnectedError`."""
        with _translate_errors():
            self._sock.settimeout(None)
            self._sock.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait for `seconds`. Raises `DisconnectedError` as soon as the client disconnects."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._receive(left)

    def wait(self, event: threading.Event) -> None:
        """Wait until `event` is set. Returns at most a quarter of a second later.

        Raises `DisconnectedError` as soon as the client disconnects.
        """
        interval = _FIRST_POLL_SECONDS
        while not event.is_set():
            self.pause(interval)
            interval = min(2 * interval, _MAX_POLL_SECONDS)

    def stall(self, *, read: bool = True) -> NoReturn:
        """Send nothing until the client disconnects, then raise `DisconnectedError`.

        With `read=False` nothing is received, so a client blocks while it sends a long body.
        Because unread bytes also hide a disconnect, only `stop()` of the server ends this stall.
        """
        if not read:
            self._aborted.wait()
        while True:
            self._receive(None)
            self._buffer.clear()

    def close(self) -> None:
        """Close with a FIN, or with a RST if received bytes are unread, as TCP requires."""
        self._closed = True
        self._sock.close()

    def reset(self) -> None:
        """Close with a RST at once."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    def play(self, response: ScriptedResponse) -> None:
        """Send a scripted response. Raises `DisconnectedError`."""
        for step in chain(response.steps, cycle(response.endless)):
            if isinstance(step, bytes):
                self.send(step)
            elif isinstance(step, threading.Event):
                self.wait(step)
            else:
                self.pause(step)
        self._end(response.end, read=response.when != "head")

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Perform the TLS handshake as the server. Raises `DisconnectedError` if it fails."""
        with _translate_errors():
            wrapped = context.wrap_socket(
                self._sock, server_side=True, do_handshake_on_connect=False
            )
            self._sock = wrapped
            # `abort` may have shut down the socket that `wrap_socket` has just detached.
            if self._aborted.is_set():
                raise DisconnectedError("The server is stopping.")
            wrapped.do_handshake()

    def read_until(self, separator: bytes) -> bytes:
        """Return the bytes up to `separator`, and skip it. Raises `DisconnectedError`."""
        while (found := self._buffer.find(separator)) < 0:
            self._receive(None)
        data = bytes(self._buffer[:found])
        del self._buffer[: found + len(separator)]
        return data

    def read_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises `DisconnectedError`."""
        while len(self._buffer) < count:
            self._receive(None)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def abort(self) -> None:
        """End the current read, write or wait of this connection. Thread-safe."""
        self._aborted.set()
        # `SSLSocket.shutdown` would drop the TLS state while another thread uses it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def _end(self, end: End, *, read: bool) -> None:
        if end == "close":
            self.close()
        elif end == "reset":
            self.reset()
        elif end == "stall":
            self.stall(read=read)

    def _receive(self, timeout: float | None) -> None:
        """Add the bytes that arrive within `timeout` seconds to the buffer, if any."""
        try:
            self._sock.settimeout(timeout)
            data = self._sock.recv(_RECEIVE_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            raise DisconnectedError(str(error)) from error
        if not data:
            raise DisconnectedError("The client has disconnected, or the server is stopping.")
        self._buffer += data


@contextlib.contextmanager
def _translate_errors() -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise DisconnectedError(str(error)) from error
