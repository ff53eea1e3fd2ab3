"""The faulty server: a listener on loopback, a thread for each connection, a record."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from ._connection import Connection, DisconnectedError
from ._plan import Plan
from ._request import (
    MalformedRequestError,
    RecordedRequest,
    RequestHead,
    read_body,
    read_head,
)
from ._script import Script
from ._wire import build_head

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Self

__all__ = ["FaultyServer"]

_HOST = "127.0.0.1"

# A thousand clients may connect at once, before the first is accepted.
_BACKLOG = 2048

# A connection to loopback that takes longer than this has found the listen queue full.
_GETS_IN_SECONDS = 0.2

# How long to wait for a free file descriptor before the next accept.
_ACCEPT_RETRY_SECONDS = 0.05


class FaultyServer(Script):
    """A server on 127.0.0.1 that answers, badly, what its script says.

    ```python
    with FaultyServer() as server:
        server.fail(503, retry_after=0).cut(after="Hello, wor").reply("Hello, world!")
        ...  # your code talks to server.base_url
        assert [request.message for request in server.requests] == ["Hi", "Hi", "Hi"]
    ```

    It takes any method, path, token and hash, and remembers every request it has read. The
    methods that say what it does are those of `Script`. With `ssl_context`, a server's
    context with a certificate, it speaks TLS; its connections then end without close_notify,
    as a dying server's do. A connection is kept alive for as long as the behaviours let it.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self._ssl_context = ssl_context
        self._port = 0
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._plugs: list[socket.socket] = []
        self._stopping = threading.Event()
        self._accepted = 0
        self._live: dict[int, Connection] = {}
        self._requests: list[RecordedRequest] = []

    @property
    def base_url(self) -> str:
        """What to give a client as its base URL.

        It stays after `stop()`, when that port refuses connections.
        Raises `RuntimeError` before the first `start()`.
        """
        if not self._port:
            raise RuntimeError("The server has no port yet: use `with` or call start() first.")
        scheme = "https" if self._ssl_context else "http"
        return f"{scheme}://{_HOST}:{self._port}"

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests read so far, in order; a copy."""
        with self._changed:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """How many TCP connections have been accepted, closed ones included."""
        return self._accepted

    @property
    def open_connections(self) -> int:
        """How many of them are open now."""
        return len(self._live)

    def start(self) -> Self:
        """Listen; after a `stop()`, on the same port as before.

        Raises `RuntimeError` where it is listening already, `OSError` where the port of before
        is taken.
        """
        if self._listener is not None:
            raise RuntimeError("The server has been started already.")
        listener = self._listen(_BACKLOG)
        self._stopping.clear()
        self._accepting = self._run(self._accept, listener)
        return self

    def black_hole(self) -> Self:
        """Close everything, as `stop()` does, then let every attempt to connect hang.

        The connect phase times out, as with a firewall that drops packets; `stop()` ends it.
        It rests on a full listen queue: Windows refuses the connection instead.
        """
        self.stop()
        address = self._listen(0).getsockname()
        while _gets_in(plug := socket.socket(), address):
            self._plugs.append(plug)
        plug.close()
        return self

    def stop(self) -> None:
        """Close the listener and every connection, and wait for their threads to end.

        What they are doing is cut short. The record and `base_url` stay. Stopping twice is
        fine.
        """
        if self._listener is None:
            return
        self._stopping.set()
        if self._accepting is not None:
            # Closing a listener does not wake its accept() everywhere; one more connection does.
            with contextlib.suppress(OSError):
                socket.create_connection(self._listener.getsockname(), timeout=1).close()
            self._accepting.join()
        for sock in (self._listener, *self._plugs):
            sock.close()
        self._listener = self._accepting = None
        self._plugs.clear()
        with self._changed:
            live = list(self._live.values())
        for connection in live:
            connection.abort()
        # By name, since threads that have left the table may still be on their way out.
        for thread in threading.enumerate():
            if thread.name == self._thread_name:
                thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def clear(self) -> Self:
        """Forget every behaviour and every request; connections and their count stay."""
        with self._changed:
            super().clear()
            self._requests.clear()
        return self

    def wait_for_requests(self, count: int, *, timeout: float = 5.0) -> list[RecordedRequest]:
        """Wait until `count` requests have been read, and return them all.

        Raises `TimeoutError` after `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, timeout):
                raise TimeoutError(
                    f"{len(self._requests)} of {count} requests arrived within {timeout:g} s."
                )
            return list(self._requests)

    def wait_until_closed(self, *, timeout: float = 5.0) -> None:
        """Wait until no connection is open, in a test that nothing leaks.

        Raises `TimeoutError` after `timeout` seconds, with the number still open.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._live, timeout):
                raise TimeoutError(f"{len(self._live)} connections still open after {timeout:g} s.")

    @property
    def _thread_name(self) -> str:
        return f"cromicle-faults-{self._port}"

    def _listen(self, backlog: int) -> socket.socket:
        self._listener = socket.create_server((_HOST, self._port), backlog=backlog)
        self._port = self._listener.getsockname()[1]
        return self._listener

    def _run(self, target: Callable[..., None], argument: object) -> threading.Thread:
        thread = threading.Thread(
            target=target, args=(argument,), name=self._thread_name, daemon=True
        )
        thread.start()
        return thread

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            self._accept_one(listener)

    def _accept_one(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            # Out of file descriptors, most likely: the clients live in this process too.
            self._stopping.wait(_ACCEPT_RETRY_SECONDS)
        else:
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        if self._stopping.is_set():
            sock.close()
            return
        with self._changed:
            self._accepted += 1
            connection = Connection(sock, self._accepted)
            self._live[connection.number] = connection
        self._run(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            self._converse(connection)
        except DisconnectedError:
            pass
        except MalformedRequestError:
            with contextlib.suppress(DisconnectedError):
                connection.send(build_head(400, length=0))
        finally:
            connection.close()
            with self._changed:
                del self._live[connection.number]
                self._changed.notify_all()

    def _converse(self, connection: Connection) -> None:
        if plan := self.take_early("accept"):
            connection.play(plan)
        if self._ssl_context and not connection.closed:
            connection.start_tls(self._ssl_context)
        while not connection.closed:
            self._answer(connection)

    def _answer(self, connection: Connection) -> None:
        head = read_head(connection)
        if plan := self.take_early("head"):
            self._record(head, b"", connection)
            connection.play(plan)
            connection.close()
            return
        body = read_body(connection, head)
        # One lock for both, so that the n-th request of the record got the n-th behaviour.
        with self._changed:
            request = self._record(head, body, connection)
            behaviour = self.take()
        if isinstance(behaviour, Plan):
            connection.play(behaviour)
        else:
            behaviour(connection, request)

    def _record(self, head: RequestHead, body: bytes, connection: Connection) -> RecordedRequest:
        request = RecordedRequest(head.method, head.path, head.headers, body, connection.number)
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()
        return request


def _gets_in(sock: socket.socket, address: tuple[str, int]) -> bool:
    sock.settimeout(_GETS_IN_SECONDS)
    try:
        sock.connect(address)
    except OSError:
        return False
    return True
