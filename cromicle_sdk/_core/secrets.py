"""Secrets that are not shown in any repr, log or traceback: the token, the hash, a password."""

from __future__ import annotations

from typing import Any

__all__ = ["DEFAULT_TOKEN", "Secret", "hide_token"]

DEFAULT_TOKEN = "abc"  # noqa: S105 - the protocol's well-known token, which protects nothing


class Secret:
    """A text that only `reveal` returns."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "<secret>"


def hide_token(options: dict[str, Any]) -> dict[str, Any]:
    """Wrap the token in the options, in place and unchecked, and return them.

    Must be called before the options are checked, because the traceback of an error about another
    option may print the locals of its frames.
    """
    if "token" in options:
        options["token"] = Secret(options["token"])
    return options
