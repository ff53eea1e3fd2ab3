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
from cromicle_sdk.server.addresses import Proxies
from cromicle_sdk.server.app import find_tokens, has_well_known_token, resolve_app
from cromicle_sdk.server.backends import Backend
from cromicle_sdk.server.options import (
    DEFAULT_MAX_REQUEST_BYTES,
    check_callable,
    check_exposure,
    check_host,
)
from cromicle_sdk.server.tokens import TokenFile

from .descriptors import choose_max_connections, raise_descriptor_limit
from .registry import Connections
from .uvicorn import build_server, format_base_url, listen

__all__ = ["serve"]

# How long replies in progress may take after Ctrl-C; a second Ctrl-C ends them earlier.
GRACE_SECONDS = 5.0

# A proxy on this machine, as in uvicorn.
DEFAULT_FORWARDED_ALLOW_IPS = "127.0.0.1,::1"


def serve(
    app_or_backend: Starlette | Backend | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
    allow_options: bool | Iterable[str] = False,
    page: bool = True,
    grace: float = GRACE_SECONDS,
    forwarded_allow_ips: str = DEFAULT_FORWARDED_ALLOW_IPS,
    max_connections: int | None = None,
    max_connections_per_address: int | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve an app or a backend until Ctrl-C or SIGTERM.

    This blocks, and returns after Ctrl-C. Call it from the main thread, which receives the signals.

    - `app_or_backend`: an app of `create_app` or `create_openai_app`, which has its own token and
      limits; or a backend, by default `echo_backend()`, which is served by
      `create_app(backend, token=…, max_request_bytes=…, allow_options=…, page=…)`.
    - `host`, `port`: the address to listen on. Port 0 is any free port.
    - `grace`: the seconds that replies in progress have to complete after Ctrl-C.
    - `forwarded_allow_ips`: the proxies whose `X-Forwarded-For` is trusted, as for uvicorn:
      addresses and networks, separated by commas, or `*` for any.
    - `max_connections`: the maximum number of open connections. Defaults to half of the file
      descriptors, whose soft limit is raised to the hard limit, and to at most 10,000; the other
      half is for connections to a model server. At the limit, a new connection replaces the one
      that has been idle for longest; if none is idle, the new one is closed.
    - `max_connections_per_address`: the maximum number of open connections from one address, by
      default a quarter of `max_connections`. It does not apply to loopback addresses and those of
      `forwarded_allow_ips`.
    - `on_ready`: called once with the base URL, as soon as clients can connect.

    After Ctrl-C, no new connection is accepted. Replies in progress are truncated after `grace`
    seconds, or at a second Ctrl-C. SIGTERM does the same and then ends the process, as it does by
    default. SIGHUP reloads the app's `TokenFile` if it has one. An invalid file is ignored. If
    other machines can connect, a file with the well-known token is ignored, too, and tokens of
    fewer than 16 characters cause a warning in the log.

    The headers of a request must be complete within 10 seconds, and its body within 60 more.
    Otherwise the response is a 408, and the connection is closed. A connection is also closed if
    the client reads nothing of a response for 60 seconds.

    Raises `ConfigurationError`, which names the invalid option, before it listens, and `OSError` if
    the address cannot be bound.
    """
    given = (
        (None, app_or_backend) if isinstance(app_or_backend, Starlette) else (app_or_backend, None)
    )
    app = resolve_app(
        *given,
        token=token,
        max_request_bytes=max_request_bytes,
        allow_options=allow_options,
        page=page,
        default_page=True,
    )
    check_host(host)
    check_count("port", port, minimum=0, maximum=65535)
    check_exposure(host, well_known_token=has_well_known_token(app))
    check_seconds("grace", grace)
    proxies = Proxies("forwarded_allow_ips", forwarded_allow_ips)
    connections = _limit_connections(max_connections, max_connections_per_address, proxies)
    if on_ready is not None:
        check_callable("on_ready", on_ready)
    reload = _find_reload(app, host)
    server = build_server(
        app,
        host=host,
        grace=grace,
        on_started=partial(_handle_hangup, reload),
        connections=connections,
        forwarded_allow_ips=forwarded_allow_ips,
    )
    if not is_loopback(host):
        for tokens in find_tokens(app):
            tokens.warn_of_short_ones()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        stack.enter_context(_hangup_ignored(when=reload is not None))
        # uvicorn raises the signal again once it has stopped.
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        if on_ready is not None:
            on_ready(format_base_url(listener))
        server.run(sockets=[listener])


def _limit_connections(
    max_connections: int | None, per_address: int | None, proxies: Proxies
) -> Connections:
    """Check the limits of `serve`. Raises `ConfigurationError`, which names the invalid option."""
    if max_connections is not None:
        check_count("max_connections", max_connections)
    if per_address is not None:
        check_count("max_connections_per_address", per_address)
    limit = choose_max_connections(max_connections, raise_descriptor_limit())
    return Connections(
        limit=limit,
        per_address=per_address or (limit + 3) // 4,
        is_exempt=lambda address: is_loopback(address) or address in proxies,
    )


def _find_reload(app: ASGIApp, host: str) -> Callable[[], object] | None:
    """Return the handler of SIGHUP for this app; None for the default, which ends the process."""
    files = [tokens for tokens in find_tokens(app) if isinstance(tokens, TokenFile)]
    if not files or sys.platform == "win32":
        return None

    def reload() -> None:
        for file in files:
            file.reload(allow_well_known=is_loopback(host))

    return reload


def _handle_hangup(reload: Callable[[], object] | None) -> None:
    """Install the handler of SIGHUP. Must be called in the server's event loop, which runs it."""
    if reload is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


@contextlib.contextmanager
def _hangup_ignored(*, when: bool) -> Generator[None]:
    """Ignore SIGHUP until the event loop handles it, and restore the previous handler at exit."""
    if not when:
        yield
        return
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, handler)
