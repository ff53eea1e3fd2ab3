"""The faulty server: a listener on loopback, and one thread for each connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from .connection import Connection, DisconnectedError
from .request import (
    MalformedRequestError,
    RecordedRequest,
    RequestHead,
    read_body,
    read_head,
)
from .response import build_head
from .script import Script
from .scripted_response import ScriptedResponse

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Self

__all__ = ["FaultyServer"]

_HOST = "127.0.0.1"

# A thousand clients may connect at once, before the first is accepted.
_BACKLOG = 2048

# If a connection attempt to loopback takes longer than this, the listen queue is full.
_FULL_QUEUE_SECONDS = 0.2

# How long to wait for a free file descriptor before the next accept.
_ACCEPT_RETRY_SECONDS = 0.05


class FaultyServer(Script):
    """A server on 127.0.0.1 that plays a script of replies and faults, one for each request.

    ```python
    with FaultyServer() as server:
        server.fail(503, retry_after=0).cut(after="Hello, wor").reply("Hello, world!")
        ...  # your code sends "Hi" to server.base_url
        assert [request.message for request in server.requests] == ["Hi", "Hi", "Hi"]
    ```

    It accepts any method, path, token and hash, and records every request. The methods of
    `Script` define its behaviour. With `ssl_context`, an `ssl.SSLContext` with a certificate, it
    uses TLS, and closes its connections without close_notify. A connection is kept alive until a
    behaviour closes it.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self._ssl_context = ssl_context
        self._port = 0
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._queue_fillers: list[socket.socket] = []
        self._stopping = threading.Event()
        self._accepted = 0
        self._open: dict[int, Connection] = {}
        self._requests: list[RecordedRequest] = []

    @property
    def base_url(self) -> str:
        """The base URL for a client.

        It stays the same after `stop()`; its port then refuses connections. Raises `RuntimeError`
        before the first `start()`.
        """
        if not self._port:
            raise RuntimeError(
                "The server has no base_url before it is started: use it in a with block, or call"
                " start() first."
            )
        scheme = "https" if self._ssl_context else "http"
        return f"{scheme}://{_HOST}:{self._port}"

    @property
    def requests(self) -> list[RecordedRequest]:
        """A copy of the list of requests read so far, in order."""
        with self._changed:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """The number of accepted TCP connections, including closed ones."""
        return self._accepted

    @property
    def open_connections(self) -> int:
        """The number of connections that are open now."""
        return len(self._open)

    def start(self) -> Self:
        """Start to listen, and return the server itself.

        After a `stop()`, it listens on the same port as before. Raises `RuntimeError` if it is
        already started, and `OSError` if the port is in use.
        """
        if self._listener is not None:
            raise RuntimeError("The server is already started: call stop() first.")
        listener = self._listen(_BACKLOG)
        self._stopping.clear()
        self._accepting = self._run(self._accept, listener)
        return self

    def black_hole(self) -> Self:
        """Stop the server, and make every connection attempt hang until `stop()` is called.

        Clients time out while connecting, as behind a firewall that drops packets. This fills the
        listen queue; on Windows, connections are refused instead.
        """
        self.stop()
        address = self._listen(0).getsockname()
        while _connects(filler := socket.socket(), address):
            self._queue_fillers.append(filler)
        filler.close()
        return self

    def stop(self) -> None:
        """Close the listener and every connection, and wait until their threads have ended.

        Responses in progress are cut off. `requests` and `base_url` are kept. Idempotent.
        """
        if self._listener is None:
            return
        self._stopping.set()
        if self._accepting is not None:
            # On some systems, closing a listener does not wake its accept(); a connection does.
            with contextlib.suppress(OSError):
                socket.create_connection(self._listener.getsockname(), timeout=1).close()
            self._accepting.join()
        for sock in (self._listener, *self._queue_fillers):
            sock.close()
        self._listener = self._accepting = None
        self._queue_fillers.clear()
        with self._changed:
            open_connections = list(self._open.values())
        for connection in open_connections:
            connection.abort()
        # By name: a thread may still run after its connection has been removed from `_open`.
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
        """Remove all behaviours and recorded requests. Connections and their number are kept."""
        with self._changed:
            super().clear()
            self._requests.clear()
        return self

    def wait_for_requests(self, count: int, *, timeout: float = 5.0) -> list[RecordedRequest]:
        """Wait until `count` requests have been read, and return all requests.

        Raises `TimeoutError` after `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, timeout):
                raise TimeoutError(
                    f"{len(self._requests)} of {count} requests arrived within {timeout:g} s."
                )
            return list(self._requests)

    def wait_until_closed(self, *, timeout: float = 5.0) -> None:
        """Wait until no connection is open, to test that a client closes its connections.

        Raises `TimeoutError`, with the number of open connections, after `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._open, timeout):
                raise TimeoutError(f"{len(self._open)} connections still open after {timeout:g} s.")

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
            # Most likely out of file descriptors, which clients in this process also use.
            self._stopping.wait(_ACCEPT_RETRY_SECONDS)
        else:
            self._start_connection(sock)

    def _start_connection(self, sock: socket.socket) -> None:
        if self._stopping.is_set():
            sock.close()
            return
        with self._changed:
            self._accepted += 1
            connection = Connection(sock, self._accepted)
            self._open[connection.number] = connection
        self._run(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            self._serve_requests(connection)
        except DisconnectedError:
            pass
        except MalformedRequestError:
            with contextlib.suppress(DisconnectedError):
                connection.send(build_head(400, length=0))
        finally:
            connection.close()
            with self._changed:
                del self._open[connection.number]
                self._changed.notify_all()

    def _serve_requests(self, connection: Connection) -> None:
        if response := self.take_early("accept"):
            connection.play(response)
        if self._ssl_context and not connection.closed:
            connection.start_tls(self._ssl_context)
        while not connection.closed:
            self._serve_one(connection)

    def _serve_one(self, connection: Connection) -> None:
        head = read_head(connection)
        if response := self.take_early("head"):
            self._record(head, b"", connection)
            connection.play(response)
            connection.close()
            return
        body = read_body(connection, head)
        # In one critical section, so that the n-th recorded request gets the n-th behaviour.
        with self._changed:
            request = self._record(head, body, connection)
            behaviour = self.take()
        if isinstance(behaviour, ScriptedResponse):
            connection.play(behaviour)
        else:
            behaviour(connection, request)

    def _record(self, head: RequestHead, body: bytes, connection: Connection) -> RecordedRequest:
        request = RecordedRequest(head.method, head.path, head.headers, body, connection.number)
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()
        return request


def _connects(sock: socket.socket, address: tuple[str, int]) -> bool:
    sock.settimeout(_FULL_QUEUE_SECONDS)
    try:
        sock.connect(address)
    except OSError:
        return False
    return True
