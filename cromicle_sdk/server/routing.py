"""Routes, and the path of a request that they match."""

from __future__ import annotations

from starlette.routing import Match, Route
from starlette.types import Scope

__all__ = ["ExactRoute", "get_path"]


class ExactRoute(Route):
    """A route that matches its path exactly: Starlette's also match a trailing line break."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        if match is not Match.NONE and get_path(scope) != self.path:
            return Match.NONE, {}
        return match, child_scope


def get_path(scope: Scope) -> str:
    """Return the path of a request, relative to the mount point of the app."""
    # In ASGI, the path includes the prefix under which the app is mounted.
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
