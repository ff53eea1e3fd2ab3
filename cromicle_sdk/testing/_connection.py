"""One accepted TCP connection: bytes in and out, waits that the client's leaving ends."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Generator
from itertools import chain, cycle
from typing import TYPE_CHECKING, NoReturn

from ._plan import End, Plan

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection", "DisconnectedError"]

_RECEIVE_BYTES = 1 << 18

# Nothing in the standard library waits for an event and a socket at once, so the event is
# looked at, at growing intervals: most are set soon, and a thousand threads that wait for one
# that is not take 28 % of a core at four looks a second.
_FIRST_LOOK_SECONDS = 0.001
_LONGEST_LOOK_SECONDS = 0.25

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class DisconnectedError(ConnectionError):
    """The client has left, or the server stops: nothing more can happen on this connection.

    Every method of `Connection` that sends or waits raises it; the server expects it, so a
    behaviour of your own lets it pass.
    """


class Connection:
    """One accepted connection, as a behaviour given to `script()` sees it.

    A behaviour that returns leaves the connection open for the next request, unless it has
    called `close` or `reset`. Wait with `pause`, `wait` or `stall` rather than with
    `time.sleep`: those end when the client leaves or the server stops.
    """

    def __init__(self, sock: socket.socket, number: int) -> None:
        # Each chunk is to be a packet of its own, at once. A client that has left already makes
        # this fail on some systems; the first read or write will say so.
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
        """Send `data` as it is, all of it. Raises `DisconnectedError`."""
        with _translated():
            self._sock.settimeout(None)
            self._sock.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait. Raises `DisconnectedError` as soon as the client leaves."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._receive(left)

    def wait(self, event: threading.Event) -> None:
        """Wait until `event` is set, and up to a quarter of a second longer.

        Raises `DisconnectedError` as soon as the client leaves.
        """
        look = _FIRST_LOOK_SECONDS
        while not event.is_set():
            self.pause(look)
            look = min(2 * look, _LONGEST_LOOK_SECONDS)

    def stall(self, *, read: bool = True) -> NoReturn:
        """Stay silent until the client leaves, then raise `DisconnectedError`.

        With `read=False` what the client sends stays unread, so that it blocks in the middle
        of a long body; nobody can look past unread bytes, so only the server's stop ends it.
        """
        if not read:
            self._aborted.wait()
        while True:
            self._receive(None)
            self._buffer.clear()

    def close(self) -> None:
        """Close with a FIN, or, as TCP has it, with a RST where sent bytes are unread."""
        self._closed = True
        self._sock.close()

    def reset(self) -> None:
        """Close with a RST at once."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    def play(self, plan: Plan) -> None:
        """Do what `plan` says. Raises `DisconnectedError`."""
        for step in chain(plan.steps, cycle(plan.endless)):
            if isinstance(step, bytes):
                self.send(step)
            elif isinstance(step, threading.Event):
                self.wait(step)
            else:
                self.pause(step)
        self._end(plan.end, read=plan.when != "head")

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Make the handshake, as the server. Raises `DisconnectedError` where it fails."""
        with _translated():
            wrapped = context.wrap_socket(
                self._sock, server_side=True, do_handshake_on_connect=False
            )
            self._sock = wrapped
            # `abort` may have shut down the socket that has just been detached.
            if self._aborted.is_set():
                raise DisconnectedError("The server stops.")
            wrapped.do_handshake()

    def read_until(self, separator: bytes) -> bytes:
        """The bytes before the next `separator`, which is dropped. Raises `DisconnectedError`."""
        while (found := self._buffer.find(separator)) < 0:
            self._receive(None)
        data = bytes(self._buffer[:found])
        del self._buffer[: found + len(separator)]
        return data

    def read_exactly(self, count: int) -> bytes:
        """The next `count` bytes. Raises `DisconnectedError`."""
        while len(self._buffer) < count:
            self._receive(None)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def abort(self) -> None:
        """From any thread: end whatever this connection is doing or waiting for."""
        self._aborted.set()
        # An SSLSocket's own shutdown would drop its TLS state under the thread that uses it.
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
        """Take in what arrives within `timeout` seconds, which may be nothing."""
        try:
            self._sock.settimeout(timeout)
            data = self._sock.recv(_RECEIVE_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            raise DisconnectedError(str(error)) from error
        if not data:
            raise DisconnectedError("The client has left, or the server stops.")
        self._buffer += data


@contextlib.contextmanager
def _translated() -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise DisconnectedError(str(error)) from error
