"""Errors of the SDK as the command prints them: flags for options, and hints for a shell."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping

import click

from cromicle_sdk import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    ConfigurationError,
    CromicleError,
    IncompleteReplyError,
    InvalidMessageError,
    ReplyDecodeError,
    ReplyTooLargeError,
    UnexpectedContentError,
)

__all__ = ["Misuse", "describe_error", "errors_for_the_shell"]


class Misuse(click.ClickException):
    """Options, variables or a file that do not do; `advice` is a line of its own."""

    exit_code = 2

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


# Where a token comes from, for whom it is not known.
_BOTH = "--token or $CROMICLE_TOKEN"


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
        case APIConnectionError(option="verify"):
            return "For a private certificate authority, set $SSL_CERT_FILE to its certificate."
        case APIConnectionError(option="proxy"):
            return "Check the proxy variables of the environment."
        case APIConnectionError(option="max_connections"):
            return "Raise the limit of open files (ulimit -n)."
        case UnexpectedContentError(option="strict"):
            return "The model ended without text: change the prompt."
        case APIStatusError(option="token") | AuthenticationError():
            label = flags.get("token", "token")
            if label.startswith("token "):
                return f"Check the {label}."
            return f"Check the token: {_BOTH if label == '--token' else label}."
        case IncompleteReplyError():
            return "Retry for the whole reply."
        case ReplyTooLargeError():
            return "Ask for a shorter reply."
        case ReplyDecodeError():
            return _name_options("Check that base_url is a Cromicle endpoint.", error, flags)
        case _:
            return _name_options(error.hint, error, flags)


def _name_options(hint: str, error: CromicleError, flags: Mapping[str, str]) -> str:
    for option in {error.option or "base_url", "base_url"}:
        if option in hint:
            flag = flags.get(option, option)
            # Where the option cannot be given, advice about it is of no use.
            hint = hint.replace(option, flag) if flag else ""
    return hint
