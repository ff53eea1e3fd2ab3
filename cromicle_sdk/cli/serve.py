"""`cromicle serve`: its options become an app, which is served in the foreground."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import click

from cromicle_sdk import Timeout
from cromicle_sdk._core.secrets import DEFAULT_TOKEN, Secret

from .log import log_to_stderr
from .output import report

__all__ = ["FLAGS", "Service", "check_combination", "load_server", "serve_in_foreground"]

# The flags by the names of the SDK's options.
FLAGS = {
    "api_key": "--upstream-key",
    "base_url": "--upstream",
    "host": "--host",
    "model": "--model",
    "system": "--system",
    "token": "--token",
    "tokens": "--tokens-file",
}

# The flags that need --upstream, by the names of their parameters.
_OF_UPSTREAM = {
    "model": "--model",
    "upstream_key": "--upstream-key",
    "upstream_timeout": "--upstream-timeout",
    "system": "--system",
    "parse_roles": "--parse-roles",
}

# The total timeout is never below that of the clients, in seconds.
_TOTAL_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """The options of `cromicle serve` that make the app, None where not given."""

    token: Secret | None
    tokens_file: str | None
    upstream: str | None
    model: str | None
    upstream_key: Secret | None
    upstream_timeout: float | None
    system: str | None
    parse_roles: bool
    delay: float
    max_concurrent: int | None
    max_request_bytes: int
    metrics: bool

    @property
    def required_token(self) -> str | None:
        """A description of the token that callers need, None for the well-known one."""
        if self.tokens_file is not None:
            return f"one of the tokens in {self.tokens_file}, in $CROMICLE_TOKEN or in --token."
        if self.token is not None and self.token.reveal() != DEFAULT_TOKEN:
            return "the same token in $CROMICLE_TOKEN, or in --token."
        return None

    def build_app(self, server: ModuleType) -> Any:
        """The app. `server` is the package `cromicle_sdk.server`. Raises `ConfigurationError`."""
        return server.create_app(
            self._build_backend(server),
            **self._choose_tokens(server),
            max_request_bytes=self.max_request_bytes,
            max_concurrent=self.max_concurrent,
            metrics=self.metrics,
        )

    def _build_backend(self, server: ModuleType) -> Any:
        if self.upstream is None:
            return server.echo_backend(delay=self.delay)
        return server.openai_backend(
            self.upstream,
            self.model,
            api_key=None if self.upstream_key is None else self.upstream_key.reveal(),
            timeout=_build_timeout(self.upstream_timeout),
            system=self.system or None,
            parse_roles=self.parse_roles,
        )

    def _choose_tokens(self, server: ModuleType) -> dict[str, Any]:
        if self.tokens_file is not None:
            return {"tokens": server.TokenFile(self.tokens_file)}
        return {} if self.token is None else {"token": self.token.reveal()}


def check_combination(context: click.Context) -> None:
    """Raise `click.UsageError` for options that exclude each other."""
    typed = {
        name
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    if "upstream" in typed and not context.params["model"]:
        raise click.UsageError("--upstream needs --model NAME.")
    if "upstream" in typed and "delay" in typed:
        raise click.UsageError("--delay slows down the echo, which --upstream replaces.")
    if "upstream" not in typed:
        for name in (name for name in _OF_UPSTREAM if name in typed):
            raise click.UsageError(
                f"{_OF_UPSTREAM[name]} is for a model server: pass its --upstream URL as well."
            )
    if "tokens_file" in typed and "token" in typed:
        raise click.UsageError("--token and --tokens-file exclude each other.")


def serve_in_foreground(
    service: Service, *, host: str, port: int, grace: float, access_log: bool
) -> None:
    """Serve until Ctrl-C, with the server's log on stderr.

    Raises `ConfigurationError`, and `ClickException` if the extra is not installed or the address
    is not available.
    """
    server = load_server()
    app = service.build_app(server)

    def report_address(base_url: str) -> None:
        report(base_url, label="Serving at ")
        report(f'cromicle ask --base-url {base_url} "Hello, how are you?"', label="Try it with ")
        if service.required_token is not None:
            report(service.required_token, label="Callers need ")

    try:
        with log_to_stderr(access=access_log):
            server.serve(app, host=host, port=port, grace=grace, on_ready=report_address)
    except OSError as error:
        raise click.ClickException(
            f"The server cannot listen on {host} port {port}: {_describe(error)}. "
            "Choose another --port, or another --host."
        ) from None


def load_server() -> ModuleType:
    """The package `cromicle_sdk.server`. Raises `ClickException` if its extra is not installed."""
    # Its import takes as long as all others together, and `ask` rarely needs it.
    try:
        from cromicle_sdk import server
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    return server


def _describe(error: OSError) -> str:
    # `socket.create_server` adds the address as a Python tuple.
    return str(error.strerror).partition(" (while attempting")[0]


def _build_timeout(seconds: float | None) -> Timeout:
    if seconds is None:
        return Timeout()
    total = max(seconds, _TOTAL_SECONDS)
    return Timeout(connect=seconds, first_byte=seconds, stall=seconds, total=total)
