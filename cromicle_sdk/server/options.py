"""What the server's options may be: each wrong one is refused by name, before any I/O."""

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

# Prompts are text: a megabyte is some 250,000 tokens of a model, longer than most contexts.
DEFAULT_MAX_REQUEST_BYTES = 1024 * 1024


def check_callable(name: str, value: object) -> None:
    """Raise `ConfigurationError` unless `value` can be called."""
    if not callable(value):
        raise ConfigurationError(f"{name} must be callable, not {type(value).__name__}")


def check_max_request_bytes(max_request_bytes: object) -> None:
    """Raise `ConfigurationError` unless it is a whole number of at least one byte."""
    if not _is_int(max_request_bytes) or max_request_bytes < 1:
        raise ConfigurationError(
            f"max_request_bytes must be an int of at least 1, not {max_request_bytes!r}"
        )


def check_max_concurrent(max_concurrent: object) -> None:
    """Raise `ConfigurationError` unless it is None or a whole number of at least one reply."""
    if max_concurrent is not None and (not _is_int(max_concurrent) or max_concurrent < 1):
        raise ConfigurationError(
            f"max_concurrent must be None or an int of at least 1, not {max_concurrent!r}"
        )


def check_port(port: object) -> None:
    """Raise `ConfigurationError` unless it is a TCP port, or 0 for any free one."""
    if not _is_int(port) or not 0 <= port <= 65535:
        raise ConfigurationError(
            f"port must be an int from 0 (any free one) to 65535, not {port!r}"
        )


def check_seconds(name: str, seconds: object) -> None:
    """Raise `ConfigurationError` unless it is a number of seconds that ends."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ConfigurationError(f"{name} must be a number of seconds, not {seconds!r}")
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(f"{name} must be finite and at least 0 seconds, not {seconds!r}")


def check_text(name: str, text: object) -> None:
    """Raise `ConfigurationError`, without the value, unless it is a text that UTF-8 can carry."""
    if not isinstance(text, str) or not text:
        raise ConfigurationError(f"{name} must be a str with at least one character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name} has a lone surrogate") from None


def check_host(host: object) -> None:
    """Raise `ConfigurationError` unless it is a host name or an address."""
    if not isinstance(host, str) or not host:
        raise ConfigurationError(f"host must be a host name or an IP address, not {host!r}")


def check_exposure(host: str, *, well_known_token: bool) -> None:
    """Raise `ConfigurationError` where other machines could use a token that everyone knows."""
    if well_known_token and not is_loopback(host):
        raise ConfigurationError(
            f"host {host!r} can be reached by others and the token is the well-known one; "
            "pass a token of your own, or a loopback host"
        )


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Another name may resolve to anything, tomorrow if not today.
        return False


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
