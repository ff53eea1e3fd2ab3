"""Errors of the SDK as the command prints them: flags for options, and hints for a shell."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping

import click

from cromicle_sdk import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    CromicleError,
    IncompleteReplyError,
    InvalidMessageError,
    ReplyDecodeError,
    ReplyTooLargeError,
)

__all__ = ["Misuse", "describe_error", "errors_for_the_shell"]


class Misuse(click.ClickException):
    """Options, variables or a file that do not do; `advice` is a line of its own."""

    exit_code = 2

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


@contextlib.contextmanager
def errors_for_the_shell(flags: Mapping[str, str]) -> Generator[None]:
    """Raise `ClickException` for each error of the SDK.

    `flags` are the flags of the command by the names of the SDK's options.
    """
    try:
        yield
    except CromicleError as error:
        is_misuse = isinstance(error, (ConfigurationError, InvalidMessageError))
        kind = Misuse if is_misuse else click.ClickException
        raise kind(describe_error(error, flags)) from error


def describe_error(error: CromicleError, flags: Mapping[str, str]) -> str:
    """The message of an error, with flags for the names of options.

    Names are replaced where the SDK wrote them, which is at the beginning of a
    `ConfigurationError` and in hints: the rest may quote a server.
    """
    problem = error.problem
    if isinstance(error, ConfigurationError) and error.option is not None:
        problem = f"{flags.get(error.option, error.option)}: {error.detail}"
    # The hint goes with the problem as in the error itself.
    return str(CromicleError(problem, hint=_choose_hint(error, flags)))


def _choose_hint(error: CromicleError, flags: Mapping[str, str]) -> str:
    """The hint of the error, or another one if that is only of use in Python."""
    match error:
        case InvalidMessageError():
            return ""
        case ConfigurationError(option="host") if error.hint:
            return "pass a --token of your own, or --tokens-file without it, or a loopback --host"
        case ConfigurationError(option="extra_body"):
            return ""
        case APITimeoutError(phase="first_byte" | "stall"):
            return "Raise --timeout if the server is known to be slow."
        case APITimeoutError(phase="total"):
            return "Raise --total if the reply is long."
        case APIConnectionError(option="verify"):
            return "For a private certificate authority, set $SSL_CERT_FILE to its certificate."
        case APIConnectionError(option="proxy"):
            return "Check the proxy variables of the environment."
        case AuthenticationError():
            return "Check the token: --token or $CROMICLE_TOKEN."
        case IncompleteReplyError():
            return "Retry for the whole reply."
        case ReplyTooLargeError():
            return "Ask for a shorter reply."
        case ReplyDecodeError():
            return "Check that --base-url is a Cromicle endpoint."
        case _:
            label = flags.get("base_url", "base_url")
            # Where it cannot be given, such advice is of no use.
            is_useless = not label and "base_url" in error.hint
            return "" if is_useless else error.hint.replace("base_url", label)
