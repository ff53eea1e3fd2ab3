"""What `cromicle serve` serves: its options become an app, or the reason why they can't."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import click

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import Timeout
from cromicle_sdk._core.secrets import DEFAULT_TOKEN, Secret

__all__ = ["Service", "check_combination"]

# The flags that say something of the model server, by their parameters' names.
_OF_UPSTREAM = {
    "model": "--model",
    "upstream_key": "--upstream-key",
    "upstream_timeout": "--upstream-timeout",
    "system": "--system",
    "parse_roles": "--parse-roles",
}

# The options of the package, by which its errors speak, as flags.
_FLAGS = {
    "api_key": "--upstream-key",
    "base_url": "--upstream",
    "model": "--model",
    "system": "--system",
    "token": "--token",
    "tokens": "--tokens-file",
}

# What a whole answer may take at least, in seconds, as in the clients.
_TOTAL_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """The options of `cromicle serve` that say who answers whom; None where not given."""

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
    def how_to_sign(self) -> str | None:
        """Which token callers need, if it is not the one that they send by default."""
        if self.tokens_file is not None:
            return f"one of the tokens in {self.tokens_file}, in $CROMICLE_TOKEN or in --token."
        if self.token is not None and self.token.reveal() != DEFAULT_TOKEN:
            return "the same token in $CROMICLE_TOKEN, or in --token."
        return None

    def build_app(self, server: ModuleType) -> Any:
        """The app, by `cromicle_sdk.server`. Raises `ConfigurationError` in the words of flags."""
        try:
            return server.create_app(
                self._build_backend(server),
                **self._choose_tokens(server),
                max_request_bytes=self.max_request_bytes,
                max_concurrent=self.max_concurrent,
                metrics=self.metrics,
            )
        except ConfigurationError as error:
            message = re.sub(r"^\w+", lambda word: _FLAGS.get(word[0], word[0]), str(error))
        raise ConfigurationError(message)

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
    """Raise `click.UsageError` for options that contradict each other, and say what to do."""
    typed = {
        name
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    if "upstream" in typed and not context.params["model"]:
        raise click.UsageError("--upstream needs --model NAME: the model to ask it for.")
    if "upstream" in typed and "delay" in typed:
        raise click.UsageError("--delay slows down the echo, which --upstream replaces.")
    if "upstream" not in typed:
        for name in (name for name in _OF_UPSTREAM if name in typed):
            raise click.UsageError(
                f"{_OF_UPSTREAM[name]} is for a model server: pass its --upstream URL, too."
            )
    if "tokens_file" in typed and "token" in typed:
        raise click.UsageError("--token and --tokens-file exclude each other.")


def _build_timeout(seconds: float | None) -> Timeout:
    if seconds is None:
        return Timeout()
    total = max(seconds, _TOTAL_SECONDS)
    return Timeout(connect=seconds, first_byte=seconds, stall=seconds, total=total)
