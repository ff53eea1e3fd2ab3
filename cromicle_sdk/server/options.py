"""The server's options: defaults and checks, beside those that it shares with the clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from cromicle_sdk._core.endpoint import is_loopback
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.fields import PROTOCOL_FIELDS
from cromicle_sdk._core.options import check_text

__all__ = [
    "DEFAULT_MAX_REQUEST_BYTES",
    "check_allow_options",
    "check_callable",
    "check_exposure",
    "check_host",
]

# A megabyte of text is about 250,000 tokens of a model, longer than most context windows.
DEFAULT_MAX_REQUEST_BYTES = 1024 * 1024


def check_callable(name: str, value: object) -> None:
    """Raise `ConfigurationError` unless `value` is callable."""
    if not callable(value):
        raise ConfigurationError(f"expected a callable, not {type(value).__name__}", option=name)


def check_host(host: object) -> None:
    """Raise `ConfigurationError` unless `host` is a host name or an IP address."""
    if not isinstance(host, str) or not host:
        raise ConfigurationError(
            f"expected a host name or an IP address, not {host!r}", option="host"
        )


def check_exposure(host: str, *, well_known_token: bool) -> None:
    """Raise `ConfigurationError` if other machines could connect with the well-known token."""
    if well_known_token and not is_loopback(host):
        raise ConfigurationError(
            f"other machines can connect to {host!r}, and the token is the well-known one",
            option="host",
            hint="pass a token of your own, or a loopback host",
        )


def check_allow_options(value: bool | Iterable[str]) -> frozenset[str] | None:
    """The names of the fields that requests may have beside the protocol's; None for any name.

    Raises `ConfigurationError`.
    """
    option = "allow_options"
    if isinstance(value, bool):
        return None if value else frozenset()
    if isinstance(value, (str, bytes)) or not isinstance(cast("object", value), Iterable):
        raise ConfigurationError(
            f"expected True, False or an iterable of names, not {type(value).__name__}",
            option=option,
        )
    names = [check_text(option, name) for name in value]
    for name in PROTOCOL_FIELDS.intersection(names):
        raise ConfigurationError(f"{name!r} is a field of the protocol itself", option=option)
    return frozenset(names)
