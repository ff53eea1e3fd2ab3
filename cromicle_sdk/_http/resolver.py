"""DNS lookups in daemon threads, so that a cancelled call does not wait for them."""

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

# How long after its start other calls share a lookup, in seconds. Sharing bounds the number of
# threads if the resolver hangs: glibc's gives up after 5 to 30 s. A later lookup may succeed.
_SHARED_SECONDS = 1.0


class Lookup:
    """The lookup of a host's addresses in a thread.

    The resolver has no timeout and cannot be cancelled. Its thread is therefore a daemon, which
    delays the end of neither an event loop nor the process.
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
        """Whether other calls may wait for this lookup."""
        return time.monotonic() - self._started < _SHARED_SECONDS

    @property
    def is_done(self) -> bool:
        return self._result is not None

    def start(self) -> None:
        """Start the thread. Raises `RuntimeError` if it cannot start."""
        _lookups[self._key] = self
        try:
            threading.Thread(target=self._run, name="cromicle-resolve", daemon=True).start()
        except BaseException:
            # Including interrupts: calls that share a lookup without a thread would wait for ever.
            self._forget()
            raise

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the result is available: in the lookup's thread, or at once."""
        self._callbacks.append(callback)
        if self.is_done:
            self._call_back()

    def result(self) -> list[Address]:
        """Return the addresses, or raise the error of the resolver."""
        assert self._result is not None, "the result comes after the callback"
        if isinstance(self._result, Exception):
            # Each call raises its own copy.
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
        # `popleft` is atomic, so each callback is called once, by either thread.
        while True:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            callback()


# The lookups in progress, by process, host and port. There is no lock, which a fork could leave
# locked: at worst, two threads look up the same host.
_lookups: dict[tuple[int, str, int], Lookup] = {}


def start_lookup(host: str, port: int) -> Lookup | None:
    """Start a lookup, or return one that has just started.

    Returns None if no thread can start, as in some subinterpreters and while the interpreter exits.
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
    """Look up the addresses of a host in this thread. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]
