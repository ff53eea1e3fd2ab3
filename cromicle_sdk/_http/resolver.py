"""DNS lookups, each in a daemon thread: a call that is cancelled does not wait for it."""

from __future__ import annotations

import copy
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from .sockets import Address

__all__ = ["Lookup", "look_up", "start_lookup"]

# How long after its start a look-up is shared, in seconds. It bounds the threads of a resolver that
# hangs: glibc's gives up after 5 to 30 s. A call that comes later may succeed where it does not.
_SHARED_SECONDS = 1.0


class Lookup:
    """The look-up of a host's addresses in a thread.

    The resolver takes no timeout and cannot be cancelled, so the thread is a daemon: it delays
    neither the end of an event loop nor that of the process.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._key = (os.getpid(), host, port)
        self._started = time.monotonic()
        self._result: list[Address] | Exception | None = None
        self._callbacks: deque[Callable[[], object]] = deque()

    @property
    def is_shared(self) -> bool:
        """Whether another call may wait for it, too."""
        return time.monotonic() - self._started < _SHARED_SECONDS

    @property
    def is_done(self) -> bool:
        return self._result is not None

    def start(self) -> None:
        """Start the thread. Raises `RuntimeError` where none starts."""
        _lookups[self._key] = self
        try:
            threading.Thread(target=self._run, name="cromicle-resolve", daemon=True).start()
        except BaseException:
            # Also an interrupt: calls that share a look-up without a thread would wait for ever.
            self._forget()
            raise

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Call it once there is a result: in the thread of the look-up, or at once in this one."""
        self._callbacks.append(callback)
        if self.is_done:
            self._call_back()

    def result(self) -> list[Address]:
        """The addresses. Raises what the resolver raised."""
        assert self._result is not None, "the result comes after the callback"
        if isinstance(self._result, Exception):
            # Each call has an error of its own.
            raise copy.copy(self._result)
        return self._result

    def _run(self) -> None:
        try:
            self._result = look_up(self._host, self._port)
        except Exception as error:  # noqa: BLE001 - raised by `result`, in the caller's thread
            self._result = error.with_traceback(None)
        self._forget()
        self._call_back()

    def _forget(self) -> None:
        if _lookups.get(self._key) is self:
            _lookups.pop(self._key, None)

    def _call_back(self) -> None:
        # `popleft` is atomic: each callback is called once, by the one thread or by the other.
        while True:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            callback()


# Those under way, by process, host and port. No lock guards them, which a fork could leave locked:
# at worst two threads look up the same host.
_lookups: dict[tuple[int, str, int], Lookup] = {}


def start_lookup(host: str, port: int) -> Lookup | None:
    """A look-up, shared with other calls where one has just begun.

    None where no thread starts: in some subinterpreters, and while the interpreter ends.
    """
    lookup = _lookups.get((os.getpid(), host, port))
    if lookup is None or not lookup.is_shared:
        lookup = Lookup(host, port)
        try:
            lookup.start()
        except RuntimeError:
            return None
    return lookup


def look_up(host: str, port: int) -> list[Address]:
    """The addresses of a host, looked up in this thread. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]
