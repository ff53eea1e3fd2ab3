"""The server's own options: defaults and checks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

from cromicle_sdk._core.endpoint import is_loopback
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.fields import PROTOCOL_FIELDS
from cromicle_sdk._core.options import check_count, check_text

__all__ = [
    "DEFAULT_MAX_REQUEST_BYTES",
    "check_allow_options",
    "check_callable",
    "check_concurrency",
    "check_exposure",
    "check_host",
    "choose_max_buffered_bytes",
]

# A megabyte of text is about 250,000 tokens of a model, longer than most context windows.
DEFAULT_MAX_REQUEST_BYTES = 1024 * 1024

# 64 bodies of the maximum size, or 10,000 of the usual size.
DEFAULT_MAX_BUFFERED_BYTES = 64 * 1024 * 1024


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


def choose_max_buffered_bytes(value: int | None, max_request_bytes: int) -> int:
    """Return the option `max_buffered_bytes`, or its default. Raises `ConfigurationError`."""
    if value is None:
        return max(DEFAULT_MAX_BUFFERED_BYTES, max_request_bytes)
    check_count("max_buffered_bytes", value)
    if value < max_request_bytes:
        raise ConfigurationError(
            f"{value} is less than the maximum size of one request, {max_request_bytes}",
            option="max_buffered_bytes",
        )
    return value


def check_concurrency(limit: object, per_token: object, waiting: object) -> None:
    """Raise `ConfigurationError` for an invalid limit, or for one that has no effect."""
    limit = None if limit is None else check_count("max_concurrent", limit)
    if per_token is not None:
        name = "max_concurrent_per_token"
        if check_count(name, per_token) > (math.inf if limit is None else limit):
            raise ConfigurationError(
                f"{per_token} is more than the limit for all tokens, {limit}", option=name
            )
    if waiting is not None:
        check_count("max_waiting", waiting, minimum=0)
        if limit is None and per_token is None:
            raise ConfigurationError(
                "it has no effect without a limit of concurrent replies",
                option="max_waiting",
                hint="set a limit for all tokens or for each token, too",
            )


def check_exposure(host: str, *, well_known_token: bool) -> None:
    """Raise `ConfigurationError` if other machines can connect with the well-known token."""
    if well_known_token and not is_loopback(host):
        raise ConfigurationError(
            f"other machines can connect to {host!r}, and the token is the well-known one",
            option="host",
            hint="pass a token of your own, or a loopback host",
        )


def check_allow_options(value: bool | Iterable[str]) -> frozenset[str] | None:
    """Return the accepted names of fields beside the protocol's; None for any name.

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
