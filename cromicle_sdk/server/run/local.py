"""A server in a thread of this process, for tests and first steps."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

from starlette.types import ASGIApp

from cromicle_sdk._core.options import check_count
from cromicle_sdk.server.app import choose_app, has_well_known_token
from cromicle_sdk.server.backends import Backend
from cromicle_sdk.server.options import (
    DEFAULT_MAX_REQUEST_BYTES,
    check_exposure,
    check_host,
)

from .uvicorn import CuttingServer, build_server, format_base_url, listen

__all__ = ["LocalServer"]

# To stop takes 0.02 s, and 1 s more if a backend resists; after this long one blocks the loop.
STOP_SECONDS = 5.0


class LocalServer:
    """The embedded server: serves the protocol from a daemon thread until it is stopped.

    ```python
    with LocalServer() as server:
        print(server.base_url)      # http://127.0.0.1:49152, a free port
    ```

    `backend`, `token` and `max_request_bytes` are those of `create_app`; or `app` is an ASGI
    app to serve instead. `host` and `port` say where to listen, port 0 on any free one.

    It has its own event loop, so that blocking, asyncio and trio clients in the same process
    can use it. Stopping takes a fraction of a second: replies in flight are cut off. It may be
    started again after that, by `start` or another `with`, and port 0 then is another one.

    Raises `ConfigurationError`, which names the option that is wrong.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        app: ASGIApp | None = None,
        token: str | None = None,
        max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._app = choose_app(backend, app, token=token, max_request_bytes=max_request_bytes)
        check_host(host)
        check_count("port", port, minimum=0, maximum=65535)
        check_exposure(host, well_known_token=has_well_known_token(self._app))
        self._host = host
        self._port = port
        self._base_url: str | None = None
        self._server: CuttingServer | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def base_url(self) -> str:
        """Where clients find it, without a slash at the end; kept after it has stopped.

        Raises `RuntimeError` before the first start.
        """
        if self._base_url is None:
            raise RuntimeError("the server has no address before it is started")
        return self._base_url

    def start(self) -> LocalServer:
        """Start serving and return, once requests are accepted, the server itself.

        Raises `OSError` where it can't listen there, `RuntimeError` if it is running already
        or does not start, with the reason as its cause. Call `stop` in the end.
        """
        if self._thread is not None:
            raise RuntimeError("the server is running already; call stop() first")
        ready = threading.Event()
        server = build_server(self._app, grace=0, on_started=ready.set)
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
        """Stop serving and free the port; does nothing if it isn't running.

        Raises `RuntimeError` if the server has failed, with the reason as its cause, or if it
        does not stop within 5 seconds, because a backend blocks its thread.
        """
        if self._server is None or self._thread is None:
            return
        self._server.stop()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            raise RuntimeError("the server does not stop: a backend blocks its thread")
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

    def _run(self, server: CuttingServer, listener: socket.socket, ready: threading.Event) -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:  # noqa: BLE001 - raised where the server is used
            self._failure = error
        finally:
            listener.close()
            ready.set()
