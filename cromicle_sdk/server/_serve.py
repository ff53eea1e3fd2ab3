"""A server in the foreground, which is all that its process does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from starlette.applications import Starlette

from ._app import choose_app, has_well_known_token
from ._backends import Backend
from ._checks import (
    DEFAULT_MAX_REQUEST_BYTES,
    WELL_KNOWN_TOKEN,
    check_callable,
    check_exposure,
    check_host,
    check_port,
)
from ._uvicorn import build_server, format_base_url, listen

__all__ = ["serve"]

# What Ctrl-C leaves to replies in flight; whoever waits at a terminal presses it again.
GRACE_SECONDS = 5.0


def serve(
    app_or_backend: Starlette | Backend | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str = WELL_KNOWN_TOKEN,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; blocks, and returns after Ctrl-C.

    `app_or_backend` is an app of `create_app`, which brings its own token and limit, or a
    backend, by default an echo; with it, `token` and `max_request_bytes` are those of
    `create_app`. `port` 0 is any free one. `on_ready` is called once with the base URL, as
    soon as clients can connect to it.

    After Ctrl-C no connection is accepted any more; replies in flight have 5 seconds to end,
    or until a second Ctrl-C, and are then cut off. SIGTERM does the same and then ends the
    process, as it does by default. Call it from the main thread, for signals go there.

    Raises `ConfigurationError`, which names the option that is wrong, before anything else,
    and `OSError` where it can't listen there.
    """
    if isinstance(app_or_backend, Starlette):
        app = choose_app(None, app_or_backend, token=token, max_request_bytes=max_request_bytes)
    else:
        app = choose_app(app_or_backend, None, token=token, max_request_bytes=max_request_bytes)
    check_host(host)
    check_port(port)
    check_exposure(host, well_known_token=has_well_known_token(app))
    if on_ready is not None:
        check_callable("on_ready", on_ready)
    server = build_server(app, grace=GRACE_SECONDS)
    # uvicorn hands Ctrl-C on once it has stopped, which is what was asked for.
    with listen(host, port) as listener, contextlib.suppress(KeyboardInterrupt):
        if on_ready is not None:
            on_ready(format_base_url(listener))
        server.run(sockets=[listener])
