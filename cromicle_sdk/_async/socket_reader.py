"""Reading from a socket in an event loop, at a low cost per chunk.

`_sync/socket_reader.py` has the same names for blocking code; a test compares the two.
"""

from __future__ import annotations

import contextvars
import math
import os
import socket
import threading
from contextlib import suppress
from typing import Any

from cromicle_sdk._http.sockets import ClosedByCaller, receive_now

from . import concurrency

__all__ = ["SocketReader"]


def _end_wait(future: Any) -> None:
    # It may already have a result, or be cancelled.
    if not future.done():
        future.set_result(None)


class SocketReader:
    """Waits for bytes of a socket, and closes it.

    In asyncio's own event loop, the socket and a timer stay registered between waits. Registering
    them for each wait, inside a cancel scope, costs three times as much, which is half of the cost
    of a short chunk.

    A reader belongs to the event loop that waits first. `close` may be called from any thread.
    """

    __slots__ = (
        *("_deadline", "_future", "_is_closed", "_is_registrable", "_loop", "_max_bytes"),
        *("_number", "_process", "_received", "_socket", "_stays_registered", "_thread"),
        *("_timer", "_timer_ends"),
    )

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._process = os.getpid()
        self._thread = 0
        self._loop: Any = None
        # False on trio, and with asyncio's Proactor loop.
        self._is_registrable = False
        self._stays_registered = False
        # The descriptor while it is registered, and not the socket, which uvloop would keep open.
        self._number: int | None = None
        self._max_bytes = 0
        # Data that the event loop has received for a wait. It is kept if the wait is cancelled at
        # the same time.
        self._received: bytes | OSError | None = None
        self._future: Any = None
        self._timer: Any = None
        self._timer_ends = self._deadline = math.inf
        self._is_closed = False

    async def receive(
        self, max_bytes: int, timeout: float | None, cancel_handle: concurrency.CancelHandle
    ) -> bytes | OSError | None:
        """Wait for bytes, and return them, b"" at the end, or an error of the system.

        Returns None if nothing arrived, perhaps before the `timeout`, in seconds. Raises
        `ClosedByCaller`.
        """
        if self._received is not None:
            return self.receive_now(max_bytes)
        if self._number is None and not self._register():
            is_ready = await cancel_handle.wait_readable(self._socket, timeout)
            return self.receive_now(max_bytes) if is_ready else None
        self._thread = threading.get_ident()
        self._max_bytes = max_bytes
        future = self._future = self._loop.create_future()
        self._set_timer(timeout)
        cancel_handle.set_interrupt(self._interrupt)
        try:
            cancel_handle.check()
            await future
        finally:
            self._future = None
            cancel_handle.set_interrupt(None)
            if not self._stays_registered:
                self._unregister()
        cancel_handle.check()
        if self._is_closed:
            raise ClosedByCaller
        received, self._received = self._received, None
        return received

    def receive_now(self, max_bytes: int) -> bytes | OSError | None:
        """Return what has arrived, without waiting, or None. Otherwise the same as `receive`."""
        received, self._received = self._received, None
        if received is None:
            return receive_now(self._socket, max_bytes)
        if isinstance(received, bytes) and len(received) > max_bytes:
            received, self._received = received[:max_bytes], received[max_bytes:]
        return received

    def close(self) -> None:
        """Close the socket, which ends a wait for it."""
        self._is_closed = True
        loop = self._loop
        is_known = self._number is not None or self._timer is not None
        # A forked child shares the selector with its parent, and a closed loop has none.
        if not is_known or self._process != os.getpid() or loop.is_closed():
            self._socket.close()
        elif self._thread == threading.get_ident() or not loop.is_running():
            self._release()
        else:
            # The event loop runs in another thread. Its descriptor must not be reused by another
            # socket before the loop has unregistered it. The peer notices the end at once.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            try:
                loop.call_soon_threadsafe(self._release)
            except RuntimeError:
                self._socket.close()  # the loop has been closed meanwhile

    def _interrupt(self) -> None:
        """End the wait, from any thread."""
        future = self._future
        # A closed event loop raises RuntimeError.
        if future is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_end_wait, future)

    def _release(self) -> None:
        self._unregister()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._socket.close()
        if self._future is not None:
            _end_wait(self._future)

    def _register(self) -> bool:
        """Register the socket. Return False if the event loop does not support it."""
        if self._loop is None:
            self._loop = concurrency.current_loop()
            self._is_registrable = hasattr(self._loop, "add_reader")
            # uvloop drops the registration of a socket with an error, although there may be more to
            # read.
            self._stays_registered = type(self._loop).__module__.startswith("asyncio.")
        if not self._is_registrable:
            return False
        number = self._socket.fileno()
        try:
            # In an empty context: the first task's would live as long as the connection.
            contextvars.Context().run(self._loop.add_reader, number, self._notify)
        except NotImplementedError:
            self._is_registrable = False
            return False
        self._number = number
        return True

    def _unregister(self) -> None:
        number, self._number = self._number, None
        if number is not None:
            self._loop.remove_reader(number)

    def _notify(self) -> None:
        """Called by the event loop while the socket is readable."""
        if self._future is None:
            # Nothing waits now, and the event loop would call this again and again.
            self._unregister()
        elif not self._future.done():
            # Read immediately: the event loop would call this again before the task runs.
            self._received = receive_now(self._socket, self._max_bytes)
            if self._received is not None:
                self._future.set_result(None)

    def _set_timer(self, timeout: float | None) -> None:
        if timeout is None:
            self._deadline = math.inf
            return
        self._deadline = self._loop.time() + timeout
        # A timer that ends earlier is started again for the rest.
        if self._timer is None or self._timer_ends > self._deadline:
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ends = self._deadline
        self._timer = self._loop.call_at(
            self._deadline, self._expire, context=contextvars.Context()
        )

    def _expire(self) -> None:
        self._timer = None
        if self._future is None or self._deadline == math.inf:
            return
        if self._loop.time() < self._deadline:
            self._start_timer()
        else:
            _end_wait(self._future)
