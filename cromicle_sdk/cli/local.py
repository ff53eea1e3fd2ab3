"""The embedded server as the command uses it: for one call, or in the foreground."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Generator
from types import ModuleType

import click

from .log import log_to_stderr
from .report import report
from .serve import Service

__all__ = ["serve_for_one_call", "serve_in_foreground"]


@contextlib.contextmanager
def serve_for_one_call(token: str | None) -> Generator[tuple[str, str]]:
    """A server that echoes: its base URL and its token, a random one where none is given.

    Raises `ClickException` without the extra.
    """
    server = _load_server()
    own_token = secrets.token_hex(16) if token is None else token
    with server.LocalServer(token=own_token) as local:
        yield local.base_url, own_token


def serve_in_foreground(
    service: Service, *, host: str, port: int, grace: float, access_log: bool
) -> None:
    """Serve until Ctrl-C, with the server's log on stderr.

    Raises `ConfigurationError`, and `ClickException` without the extra or where it can't listen.
    """
    server = _load_server()
    app = service.build_app(server)

    def say_how_to_ask(base_url: str) -> None:
        report(base_url, label="Serving at ")
        report(f'cromicle ask --base-url {base_url} "Hello, how are you?"', label="Ask it with ")
        if service.how_to_sign is not None:
            report(service.how_to_sign, label="It wants ")

    try:
        with log_to_stderr(access=access_log):
            server.serve(app, host=host, port=port, grace=grace, on_ready=say_how_to_ask)
    except OSError as error:
        raise click.ClickException(
            f"The server can't listen on {host} port {port}: {_describe(error)}. "
            "Choose another --port, or another --host."
        ) from None


def _describe(error: OSError) -> str:
    # `socket.create_server` adds the address, in Python.
    return str(error.strerror).partition(" (while attempting")[0]


def _load_server() -> ModuleType:
    # It takes as long to import as the rest together, and is needed for few calls.
    try:
        from cromicle_sdk import server
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    return server
