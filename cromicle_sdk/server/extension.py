"""The ASGI extension by which an app recognizes `serve` and `LocalServer`."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

__all__ = ["ServerExtension", "find_extension", "set_extension"]

_KEY = "cromicle_sdk.server"


@dataclass(frozen=True)
class ServerExtension:
    """A server of this package, which aborts a connection whose client reads nothing.

    `is_loopback` is true if only its own machine can connect to it.
    """

    is_loopback: bool


def set_extension(scope: Scope, extension: ServerExtension) -> None:
    """Add the extension to the scope of a request."""
    scope.setdefault("extensions", {})[_KEY] = extension


def find_extension(scope: Scope) -> ServerExtension | None:
    """Return the extension, or None under any other server."""
    extension = scope.get("extensions", {}).get(_KEY)
    return extension if isinstance(extension, ServerExtension) else None
