"""Translation of the SDK's errors for the command: flags for options, and hints for the shell."""

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
    """An option, a variable or a file is invalid. `advice` is printed on its own line."""

    exit_code = 2

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


# The sources of a token if its actual source is unknown.
_BOTH = "--token or $CROMICLE_TOKEN"


@contextlib.contextmanager
def errors_for_the_shell(flags: Mapping[str, str]) -> Generator[None]:
    """Raise `ClickException` for each error of the SDK.

    `flags` maps the SDK's options to the command's flags.
    """
    try:
        yield
    except CromicleError as error:
        is_misuse = isinstance(error, (ConfigurationError, InvalidMessageError))
        kind = Misuse if is_misuse else click.ClickException
        raise kind(describe_error(error, flags)) from error


def describe_error(error: CromicleError, flags: Mapping[str, str]) -> str:
    """Return the message of an error, with flags in place of the names of options.

    Names are replaced only where the SDK writes them, at the beginning of a `ConfigurationError`
    and in hints. The rest of a message may quote a server.
    """
    problem = error.problem
    if isinstance(error, ConfigurationError) and error.option is not None:
        problem = f"{flags.get(error.option, error.option)}: {error.detail}"
    # `CromicleError` joins the problem and the hint.
    return str(CromicleError(problem, hint=_choose_hint(error, flags)))


def _choose_hint(error: CromicleError, flags: Mapping[str, str]) -> str:
    """Return the hint of the error, or another one if it is useful only in Python."""
    match error:
        case InvalidMessageError():
            return ""
        case ConfigurationError(option="host") if error.hint:
            return "pass your own --token, a --tokens-file without it, or a loopback --host"
        case ConfigurationError(option="extra_body"):
            return ""
        case APIConnectionError(option="verify") if "certificate authority" in error.hint:
            return "For a private certificate authority, set $SSL_CERT_FILE to its certificate."
        case APIConnectionError(option="verify"):
            return "The command has no option for that: use Client(verify=ssl_context) in Python."
        case APIConnectionError(option="proxy"):
            return "Check the proxy variables of the environment."
        case APIConnectionError(option="max_connections"):
            return "Raise the limit of open files (ulimit -n)."
        case UnexpectedContentError(option="strict"):
            return "The model sent no text: change the prompt."
        case APIStatusError(option="token") | AuthenticationError():
            label = flags.get("token", "token")
            if label.startswith("token "):
                return f"Check the {label}."
            return f"Check the token: {_BOTH if label == '--token' else label}."
        case IncompleteReplyError():
            return "Retry to get the complete reply."
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
            # A hint about an option that the command does not have is useless.
            hint = hint.replace(option, flag) if flag else ""
    return hint
