"""The options that `ask`, `chat` and `batch` share, and the client that they configure."""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import click

from cromicle_sdk import Client, Retry, Timeout
from cromicle_sdk._core.secrets import Secret

from .config import Settings, load_settings
from .input import parse_fields, parse_headers, parse_limit, read_file
from .profiles import NAMES, complete_profile
from .serve import load_server

__all__ = [
    "VISIBLE",
    "Target",
    "add_profile_option",
    "add_settings_options",
    "take_settings",
    "target_options",
]

VISIBLE = "Other users of this machine can see it in the list of processes; prefer $CROMICLE_TOKEN."

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Target:
    """The settings and the call options of a command, which are None if not given."""

    settings: Settings
    timeout: float | None = None
    total: float | None = None
    retries: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    local: bool = False

    @property
    def labels(self) -> Mapping[str, str]:
        """The names of the SDK's options in errors; "" for an option that cannot be given."""
        hidden = {"base_url": ""} if self.local else {}
        return {**_LABELS, **self.settings.labels, **hidden}

    @contextlib.contextmanager
    def open(
        self, *, send_messages: bool = False, has_many_calls: bool = False
    ) -> Generator[Client]:
        """Yield a client. Raises `ConfigurationError`, and `ClickException` for `local`."""
        with contextlib.ExitStack() as stack:
            token = self.settings.token
            if self.local:
                base_url, token = stack.enter_context(_serve_echo(token))
            else:
                base_url = self.settings.require_base_url()
            yield stack.enter_context(
                Client(
                    base_url=base_url,
                    token=None if token is None else token.reveal(),
                    timeout=_build_timeout(self.timeout, self.total),
                    retry=_build_retry(self.retries, has_many_calls=has_many_calls),
                    headers=self.headers,
                    extra_body=self.settings.extra_body,
                    send_messages=send_messages,
                )
            )


_LABELS = {
    "headers": "--header",
    "timeout.first_byte": "--timeout",
    "timeout.stall": "--timeout",
    "timeout.total": "--total",
}


def add_profile_option(function: Function) -> Function:
    """Add `--profile`."""
    return click.option(
        "--profile",
        metavar="NAME",
        shell_complete=complete_profile,
        help="The profile in config.toml for settings that are not set by an option or the"
        " environment.  [default: $CROMICLE_PROFILE, else the file's default_profile, else"
        " default]",
    )(function)


_SETTINGS = (
    add_profile_option,
    click.option(
        "--base-url",
        metavar="URL",
        help="The endpoint.  [default: $CROMICLE_BASE_URL, else the profile's]",
    ),
    click.option(
        "--token",
        metavar="TOKEN",
        help=f"The token to send. {VISIBLE}  [default: $CROMICLE_TOKEN, else the profile's, else"
        " abc]",
    ),
    click.option(
        "--model",
        metavar="NAME",
        help="The model, sent as the field model, for a server that lets callers choose."
        "  [default: the profile's, else the server's]",
    ),
    click.option("--system", metavar="TEXT", help="A system message.  [default: the profile's]"),
    click.option(
        "--system-file",
        metavar="FILE",
        type=click.Path(),
        help="A file with the system message; - is standard input.",
    ),
    click.option(
        "--body",
        "extra_body",
        multiple=True,
        callback=parse_fields,
        metavar="NAME=JSON",
        help="An additional field of the request, such as temperature=0.5. Repeatable. It is added"
        " to the fields of the profile.",
    ),
)

_CALL = (
    click.option(
        "--timeout",
        type=parse_limit,
        metavar="SECONDS",
        help="The time limit for a connection, for the first byte of the reply, and between two "
        "chunks.  [default: 5, 300 and 120]",
    ),
    click.option(
        "--total",
        type=parse_limit,
        metavar="SECONDS",
        help="The time limit for the whole call, including retries.  [default: 600]",
    ),
    click.option(
        "--retries",
        type=click.IntRange(min=0),
        metavar="N",
        help="The number of retries after the first attempt.  [default: 2]",
    ),
    click.option(
        "--header",
        "headers",
        multiple=True,
        callback=parse_headers,
        metavar="NAME:VALUE",
        help="An additional header. Repeatable.",
    ),
    click.option(
        "--local", is_flag=True, help="Use an embedded echo server instead of an endpoint."
    ),
)


def add_settings_options(function: Function) -> Function:
    """Add the options for `take_settings`."""
    return _decorate(function, _SETTINGS)


def target_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `Target`, which is passed to the function as `target`."""

    @functools.wraps(function)
    def call(**options: Any) -> None:
        settings = take_settings(options, needs_endpoint=True)
        names = ("timeout", "total", "retries", "headers", "local")
        target = Target(settings=settings, **{name: options.pop(name) for name in names})
        function(target=target, **options)

    return _decorate(call, (*_SETTINGS, *_CALL))


def _decorate(function: Function, options: tuple[Callable[[Any], Any], ...]) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


def take_settings(options: dict[str, Any], *, needs_endpoint: bool = False) -> Settings:
    """Remove the settings from `options`, and return the settings in effect."""
    is_local = options.get("local", False)
    given = {name: options.pop(name) for name in ("profile", *NAMES)}
    system_file = options.pop("system_file")
    for name, flag in (("base_url", "--base-url"), ("profile", "--profile")):
        if is_local and given[name] is not None:
            raise click.UsageError(f"--local and {flag} cannot be used together.")
    if given["system"] is not None and system_file is not None:
        raise click.UsageError("--system and --system-file cannot be used together.")
    if given["token"] is not None:
        given["token"] = Secret(given["token"])
    settings = load_settings(**given, options_only=is_local)
    if needs_endpoint and not is_local:
        # Checked before standard input is read, which may wait for a user to type.
        settings.require_base_url()
    if system_file is not None:
        settings = settings.with_system(read_file(system_file, "--system-file"), "--system-file")
    return settings


def _build_timeout(seconds: float | None, total: float | None) -> Timeout:
    limits: dict[str, float] = {}
    if seconds is not None:
        limits.update(connect=seconds, first_byte=seconds, stall=seconds)
    if total is not None:
        limits.update(total=total)
    return Timeout(**limits)


def _build_retry(retries: int | None, *, has_many_calls: bool) -> Retry:
    retry = Retry() if retries is None else Retry(attempts=retries + 1)
    # The budget limits the retries of many calls; a single call has --retries.
    return retry if retries is None or has_many_calls else replace(retry, budget=None)


@contextlib.contextmanager
def _serve_echo(token: Secret | None) -> Generator[tuple[str, Secret]]:
    """Run an echo server, and yield its base URL and its token, which is random by default."""
    server = load_server()
    own_token = Secret(secrets.token_hex(16)) if token is None else token
    with server.LocalServer(token=own_token.reveal()) as local:
        yield local.base_url, own_token
