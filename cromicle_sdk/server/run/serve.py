"""A server in the foreground, which is all that its process does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Generator
from functools import partial

from starlette.applications import Starlette
from starlette.types import ASGIApp

from cromicle_sdk._core.endpoint import is_loopback
from cromicle_sdk._core.options import check_count, check_seconds
from cromicle_sdk.server.app import choose_app, find_tokens, has_well_known_token
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

# What Ctrl-C leaves to replies in flight; whoever waits at a terminal presses it again.
GRACE_SECONDS = 5.0


def serve(
    app_or_backend: Starlette | Backend | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
    grace: float = GRACE_SECONDS,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; blocks, and returns after Ctrl-C.

    `app_or_backend` is an app of `create_app`, which brings its own token and limits, or a
    backend, by default an echo; with it, `token` and `max_request_bytes` are those of
    `create_app`. `port` 0 is any free one. `on_ready` is called once with the base URL, as
    soon as clients can connect to it.

    After Ctrl-C no connection is accepted any more; replies in flight have `grace` seconds to
    end, or until a second Ctrl-C, and are then cut off. SIGTERM does the same and then ends the
    process, as it does by default. SIGHUP has the app's `TokenFile` read again, where it has one;
    one that is wrong, or that would let everybody in from elsewhere, changes nothing. Call it
    from the main thread, for signals go there.

    A request must arrive whole: 10 seconds for its head, 60 more for its body; then it is a 408
    and the connection is closed.

    Raises `ConfigurationError`, which names the option that is wrong, before anything else,
    and `OSError` where it can't listen there.
    """
    if isinstance(app_or_backend, Starlette):
        app = choose_app(None, app_or_backend, token=token, max_request_bytes=max_request_bytes)
    else:
        app = choose_app(app_or_backend, None, token=token, max_request_bytes=max_request_bytes)
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
        # uvicorn hands Ctrl-C on once it has stopped, which is what was asked for.
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        if on_ready is not None:
            on_ready(format_base_url(listener))
        server.run(sockets=[listener])


def _find_reload(app: ASGIApp, host: str) -> Callable[[], object] | None:
    """What SIGHUP does for this app; None for the default, which ends the process."""
    tokens = find_tokens(app)
    if isinstance(tokens, TokenFile) and sys.platform != "win32":
        return partial(tokens.reload, allow_well_known=is_loopback(host))
    return None


def _handle_hangup(reload: Callable[[], object] | None) -> None:
    """Called from the server's loop, which then calls `reload` between two of its tasks."""
    if reload is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


@contextlib.contextmanager
def _hangup_ignored(*, when: bool) -> Generator[None]:
    """SIGHUP does nothing before the loop handles it, and what it did before afterwards."""
    if not when:
        yield
        return
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, handler)
