"""The server in the foreground: signals, reload and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Generator, Iterable
from functools import partial

from starlette.applications import Starlette
from starlette.types import ASGIApp

from cromicle_sdk._core.endpoint import is_loopback
from cromicle_sdk._core.options import check_count, check_seconds
from cromicle_sdk.server.app import find_tokens, has_well_known_token, resolve_app
from cromicle_sdk.server.backends import Backend
from cromicle_sdk.server.options import (
    DEFAULT_MAX_REQUEST_BYTES,
    check_callable,
    check_exposure,
    check_host,
)
from cromicle_sdk.server.tokens import TokenFile

from .uvicorn import build_server, format_base_url, listen

__all__ = ["serve"]

# How long replies in progress may take after Ctrl-C; a second Ctrl-C ends them earlier.
GRACE_SECONDS = 5.0


def serve(
    app_or_backend: Starlette | Backend | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
    allow_options: bool | Iterable[str] = False,
    grace: float = GRACE_SECONDS,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; blocks, and returns after Ctrl-C.

    `app_or_backend` is an app of `create_app`, which has its own token and limits, or a backend
    (an echo by default), for which `token`, `max_request_bytes` and `allow_options` are the
    options of `create_app`. Port 0 is any free port. `on_ready` is called once with the base URL,
    as soon as clients can connect.

    After Ctrl-C no new connection is accepted. Replies in progress have `grace` seconds to
    complete, or until a second Ctrl-C; then they are truncated. SIGTERM does the same and then
    ends the process, as it does by default. SIGHUP reloads the app's `TokenFile`, if it has one;
    an invalid file, or one that would make the server public, is ignored. Call `serve` from the
    main thread, which receives the signals.

    A request must be complete within 10 seconds for its headers and 60 more for its body.
    Otherwise it is answered with a 408, and the connection is closed.

    Raises `ConfigurationError`, which names the invalid option, before anything else, and
    `OSError` if the address cannot be bound.
    """
    given = (
        (None, app_or_backend) if isinstance(app_or_backend, Starlette) else (app_or_backend, None)
    )
    app = resolve_app(
        *given,
        token=token,
        max_request_bytes=max_request_bytes,
        allow_options=allow_options,
    )
    check_host(host)
    check_count("port", port, minimum=0, maximum=65535)
    check_exposure(host, well_known_token=has_well_known_token(app))
    check_seconds("grace", grace)
    if on_ready is not None:
        check_callable("on_ready", on_ready)
    reload = _find_reload(app, host)
    server = build_server(app, grace=grace, on_started=partial(_handle_hangup, reload))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        stack.enter_context(_hangup_ignored(when=reload is not None))
        # uvicorn raises the signal again once it has stopped.
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        if on_ready is not None:
            on_ready(format_base_url(listener))
        server.run(sockets=[listener])


def _find_reload(app: ASGIApp, host: str) -> Callable[[], object] | None:
    """The handler of SIGHUP for this app; None for the default, which ends the process."""
    tokens = find_tokens(app)
    if isinstance(tokens, TokenFile) and sys.platform != "win32":
        return partial(tokens.reload, allow_well_known=is_loopback(host))
    return None


def _handle_hangup(reload: Callable[[], object] | None) -> None:
    """Install `reload`; called from the server's event loop, which then runs it on SIGHUP."""
    if reload is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


@contextlib.contextmanager
def _hangup_ignored(*, when: bool) -> Generator[None]:
    """Ignore SIGHUP until the event loop handles it; restores the previous handler afterwards."""
    if not when:
        yield
        return
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, handler)
