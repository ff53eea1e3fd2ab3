"""What must not be seen: the token, the hash, a password."""

from __future__ import annotations

import re
from html import escape
from typing import Any
from urllib.parse import quote_plus

__all__ = ["DEFAULT_TOKEN", "Secret", "hide_token"]

DEFAULT_TOKEN = "abc"  # noqa: S105 - the protocol's well-known token, which protects nothing

# What is quoted as one.
_RUNS = re.compile(r"\\+|.", re.DOTALL)


class Secret:
    """A text that shows itself to nobody but who calls `reveal`."""

    __slots__ = ("_pattern", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._pattern: re.Pattern[str] | None = None

    def reveal(self) -> str:
        return self._text

    def hide_in(self, text: str) -> str:
        """A text of somebody else's without this secret that it may quote.

        It is found as it is and as JSON, Python and URLs write it. The well-known token, which
        is none, may be a part of an innocent word, and is left where it stands.
        """
        if self._text == DEFAULT_TOKEN:
            return text
        if self._text.isalnum() and self._text.isascii():
            # Such a one, each request's hash for one, is written in one way only.
            return text.replace(self._text, "[redacted]")
        if self._pattern is None:
            self._pattern = re.compile("".join(map(_match_quoted, _RUNS.findall(self._text))))
        return self._pattern.sub("[redacted]", text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "<secret>"


def hide_token(options: dict[str, Any]) -> dict[str, Any]:
    """The same options with the token wrapped, in place and unchecked.

    The first thing to do with a call's keywords: an error about another option leaves through
    frames whose locals a traceback may print.
    """
    if "token" in options:
        options["token"] = Secret(options["token"])
    return options


def _match_quoted(run: str) -> str:
    """A pattern for a character, or a run of backslashes, as others may quote it.

    JSON, Python, HTML and URLs write it otherwise, and one may quote the other, by which
    backslashes multiply.
    """
    character = run[0]
    if character.isalnum() and character.isascii():
        return character
    data, units = character.encode(), character.encode("utf-16-be").hex()
    escapes = [
        "".join(rf"\\+u{units[i : i + 4]}" for i in range(0, len(units), 4)),  # JSON
        "".join(rf"%{byte:02x}" for byte in data),
        "".join(rf"\\+x{byte:02x}" for byte in data),  # the repr of bytes
        rf"\\+x{ord(character):02x}",
        rf"\\+U{ord(character):08x}",
        rf"&#0*{ord(character)};",
        rf"&#x0*{ord(character):x};",
    ]
    in_any_case = f"(?i:{'|'.join(escapes)})"
    if character == "\\":
        # As one: a choice for each of them could be made in more ways than there is time for.
        return rf"(?:\\{{{len(run)},}}|{in_any_case}{{{len(run)}}})"
    forms = sorted({character, escape(character), quote_plus(character)}, key=len, reverse=True)
    short = repr(character)[1:-1]
    if short[0] == "\\" and len(short) == 2:
        in_any_case += rf"|\\+{short[1]}"  # a line break, a tab
    return rf"(?:\\*(?:{'|'.join(map(re.escape, forms))})|{in_any_case})"
