"""What the server's options may be: each wrong one is refused by name, before any I/O."""

from __future__ import annotations

import ipaddress
import math
from typing import TypeGuard

from cromicle_sdk._errors import ConfigurationError

__all__ = [
    "DEFAULT_MAX_REQUEST_BYTES",
    "WELL_KNOWN_TOKEN",
    "check_callable",
    "check_delay",
    "check_exposure",
    "check_host",
    "check_max_request_bytes",
    "check_port",
    "check_token",
]

# The public service's token, in the source of every client: it keeps nobody out.
WELL_KNOWN_TOKEN = "abc"  # noqa: S105 - see above

# Prompts are text: a megabyte is some 250,000 tokens of a model, longer than most contexts.
DEFAULT_MAX_REQUEST_BYTES = 1024 * 1024


def check_callable(name: str, value: object) -> None:
    """Raise `ConfigurationError` unless `value` can be called."""
    if not callable(value):
        raise ConfigurationError(f"{name} must be callable, not {type(value).__name__}")


def check_token(token: object) -> None:
    """Raise `ConfigurationError`, without the value, unless `token` can be sent and compared."""
    if not isinstance(token, str) or not token:
        raise ConfigurationError("token must be a str with at least one character")
    try:
        token.encode()
    except UnicodeEncodeError:
        pass
    else:
        return
    # Raised out here so that the error above, which holds the token, is not its context.
    raise ConfigurationError("token has a lone surrogate, which UTF-8 cannot carry")


def check_max_request_bytes(max_request_bytes: object) -> None:
    """Raise `ConfigurationError` unless it is a whole number of at least one byte."""
    if not _is_int(max_request_bytes) or max_request_bytes < 1:
        raise ConfigurationError(
            f"max_request_bytes must be an int of at least 1, not {max_request_bytes!r}"
        )


def check_port(port: object) -> None:
    """Raise `ConfigurationError` unless it is a TCP port, or 0 for any free one."""
    if not _is_int(port) or not 0 <= port <= 65535:
        raise ConfigurationError(
            f"port must be an int from 0 (any free one) to 65535, not {port!r}"
        )


def check_delay(delay: object) -> None:
    """Raise `ConfigurationError` unless it is a number of seconds that ends."""
    if isinstance(delay, bool) or not isinstance(delay, (int, float)):
        raise ConfigurationError(f"delay must be a number of seconds, not {delay!r}")
    if not 0 <= delay < math.inf:
        raise ConfigurationError(f"delay must be finite and at least 0 seconds, not {delay!r}")


def check_host(host: object) -> None:
    """Raise `ConfigurationError` unless it is a host name or an address."""
    if not isinstance(host, str) or not host:
        raise ConfigurationError(f"host must be a host name or an IP address, not {host!r}")


def check_exposure(host: str, *, well_known_token: bool) -> None:
    """Raise `ConfigurationError` where other machines could use a token that everyone knows."""
    if well_known_token and not _is_loopback(host):
        raise ConfigurationError(
            f"host {host!r} can be reached by others and the token is the well-known one; "
            "pass a token of your own, or a loopback host"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Another name may resolve to anything, tomorrow if not today.
        return False


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
