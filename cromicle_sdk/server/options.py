"""Checks of the server's options, which run before any I/O and name the invalid option."""

from __future__ import annotations

import ipaddress
import math
from typing import TypeGuard

from cromicle_sdk._core.errors import ConfigurationError

__all__ = [
    "DEFAULT_MAX_REQUEST_BYTES",
    "check_callable",
    "check_exposure",
    "check_host",
    "check_max_concurrent",
    "check_max_request_bytes",
    "check_port",
    "check_seconds",
    "check_text",
]

# A megabyte of text is about 250,000 tokens of a model, longer than most context windows.
DEFAULT_MAX_REQUEST_BYTES = 1024 * 1024


def check_callable(name: str, value: object) -> None:
    """Raise `ConfigurationError` unless `value` is callable."""
    if not callable(value):
        raise ConfigurationError(f"{name} must be callable, not {type(value).__name__}")


def check_max_request_bytes(max_request_bytes: object) -> None:
    """Raise `ConfigurationError` unless it is an int of at least 1."""
    if not _is_int(max_request_bytes) or max_request_bytes < 1:
        raise ConfigurationError(
            f"max_request_bytes must be an int of at least 1, not {max_request_bytes!r}"
        )


def check_max_concurrent(max_concurrent: object) -> None:
    """Raise `ConfigurationError` unless it is None or an int of at least 1."""
    if max_concurrent is not None and (not _is_int(max_concurrent) or max_concurrent < 1):
        raise ConfigurationError(
            f"max_concurrent must be None or an int of at least 1, not {max_concurrent!r}"
        )


def check_port(port: object) -> None:
    """Raise `ConfigurationError` unless it is a TCP port, or 0 for any free port."""
    if not _is_int(port) or not 0 <= port <= 65535:
        raise ConfigurationError(
            f"port must be an int from 0 (any free port) to 65535, not {port!r}"
        )


def check_seconds(name: str, seconds: object) -> None:
    """Raise `ConfigurationError` unless it is a finite number of seconds, 0 or more."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ConfigurationError(f"{name} must be a number of seconds, not {seconds!r}")
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(f"{name} must be finite and at least 0 seconds, not {seconds!r}")


def check_text(name: str, text: object) -> None:
    """Raise `ConfigurationError`, without the value, unless it is a non-empty str in Unicode."""
    if not isinstance(text, str) or not text:
        raise ConfigurationError(f"{name} must be a str with at least one character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name} has a lone surrogate") from None


def check_host(host: object) -> None:
    """Raise `ConfigurationError` unless it is a host name or an IP address."""
    if not isinstance(host, str) or not host:
        raise ConfigurationError(f"host must be a host name or an IP address, not {host!r}")


def check_exposure(host: str, *, well_known_token: bool) -> None:
    """Raise `ConfigurationError` if other machines could connect with the well-known token."""
    if well_known_token and not is_loopback(host):
        raise ConfigurationError(
            f"host {host!r} is reachable from other machines and the token is the well-known "
            "one; pass a token of your own, or a loopback host"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Any other name may resolve to any address.
        return False


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
