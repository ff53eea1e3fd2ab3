"""A server in a thread of this process, for tests and first steps."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from types import TracebackType

from starlette.types import ASGIApp

from cromicle_sdk._core.options import check_count
from cromicle_sdk.server.app import has_well_known_token, resolve_app
from cromicle_sdk.server.backends import Backend
from cromicle_sdk.server.options import (
    DEFAULT_MAX_REQUEST_BYTES,
    check_exposure,
    check_host,
)

from .uvicorn import StoppableServer, build_server, format_base_url, listen

__all__ = ["LocalServer"]

# Stopping takes 0.02 s, or 1 s more if a backend ignores cancellation. After this long, a backend
# must be blocking the event loop.
STOP_SECONDS = 5.0


class LocalServer:
    """The embedded server: serves the protocol from a daemon thread until it is stopped.

    ```python
    with LocalServer() as server:
        print(server.base_url)      # http://127.0.0.1:49152, a free port
    ```

    `backend`, `token`, `max_request_bytes`, `allow_options` and `page` are the options of
    `create_app`. Instead of them, `app` may be any ASGI app. `host` and `port` are the address to
    listen on; port 0, the default, is any free port.

    The server has its own event loop, so blocking, asyncio and trio clients in the same process
    can connect to it. Stopping takes a fraction of a second and truncates replies in progress.
    A stopped server can be started again, by `start` or another `with`; if `port` is 0, the new
    port may differ.

    Raises `ConfigurationError`, which names the invalid option.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        app: ASGIApp | None = None,
        token: str | None = None,
        max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
        allow_options: bool | Iterable[str] = False,
        page: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._app = resolve_app(
            backend,
            app,
            token=token,
            max_request_bytes=max_request_bytes,
            allow_options=allow_options,
            page=page,
            default_page=False,
        )
        check_host(host)
        check_count("port", port, minimum=0, maximum=65535)
        check_exposure(host, well_known_token=has_well_known_token(self._app))
        self._host = host
        self._port = port
        self._base_url: str | None = None
        self._server: StoppableServer | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def base_url(self) -> str:
        """The base URL for clients, without a trailing slash; it stays set after `stop`.

        Raises `RuntimeError` before the first start.
        """
        if self._base_url is None:
            raise RuntimeError(
                "the server has no base_url before it is started; use it in a with block, or call "
                "start() first"
            )
        return self._base_url

    def start(self) -> LocalServer:
        """Start serving. Returns the server itself once it accepts connections.

        Call `stop` at the end. Raises `OSError` if the address cannot be bound, and `RuntimeError`
        if the server is already running, or fails to start, with the reason as its cause.
        """
        if self._thread is not None:
            raise RuntimeError("the server is already running; call stop() first")
        ready = threading.Event()
        server = build_server(self._app, host=self._host, grace=0, on_started=ready.set)
        listener = listen(self._host, self._port)
        self._base_url = format_base_url(listener)
        self._server = server
        self._thread = threading.Thread(
            target=self._run,
            args=(server, listener, ready),
            name="cromicle-local-server",
            daemon=True,
        )
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            self.stop()
        return self

    def stop(self) -> None:
        """Stop serving and release the port. Does nothing if the server is not running.

        Raises `RuntimeError` if the server has failed, with the reason as its cause, or if it does
        not stop within 5 seconds because a backend blocks its event loop.
        """
        if self._server is None or self._thread is None:
            return
        self._server.stop()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            raise RuntimeError("the server does not stop: a backend blocks its event loop")
        self._server = self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise RuntimeError("the server failed") from failure

    def __enter__(self) -> LocalServer:  # noqa: PYI034 - Python 3.10 has no Self
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(
        self, server: StoppableServer, listener: socket.socket, ready: threading.Event
    ) -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:  # noqa: BLE001 - re-raised by `stop`
            self._failure = error
        finally:
            listener.close()
            ready.set()
