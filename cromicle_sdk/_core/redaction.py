"""Redaction: the search for secrets in text that a server wrote, in every usual spelling."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

from .secrets import DEFAULT_TOKEN, Secret

__all__ = ["redact"]

_REDACTED = "[redacted]"

# A character as JSON, Python, URLs or HTML spell it. Quotes of quotes multiply backslashes, so a
# run of backslashes is one spelling, with or without an escape behind it: if a run could fail to
# match, it would be tried from each of its backslashes, which takes quadratic time. All
# alternatives begin with a literal, because `re` then skips ordinary text fast.
_HEX = "[0-9A-Fa-f]"
_PLAIN = rf"%{_HEX}{{2}}|&(?:#[0-9]+|#[xX]{_HEX}+|amp|lt|gt|quot|apos);"
_ESCAPED = (
    rf"[uU][dD][89abAB]{_HEX}{{2}}\\+[uU][dD][c-fC-F]{_HEX}{{2}}|U{_HEX}{{8}}|[uU]{_HEX}{{4}}"
    rf"|[xX]{_HEX}{{2}}"
)
_SPELLING = re.compile(rf"(\\+(?:[^uUxX%&]|{_ESCAPED}|{_PLAIN}|.)?|{_PLAIN})", re.DOTALL)

_SHORT_ESCAPES = {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "0": "\0",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}

# UTF-8 that was decoded as Latin-1, as headers are.
_MOJIBAKE = re.compile(
    "([\u00c2-\u00df][\u0080-\u00bf]"
    "|[\u00e0-\u00ef][\u0080-\u00bf]{2}"
    "|[\u00f0-\u00f4][\u0080-\u00bf]{3})"
)


def redact(text: str, secrets: Iterable[Secret]) -> str:
    """The text with `[redacted]` in place of each secret that it echoes.

    A secret is found as it is, as JSON, Python, URLs and HTML spell it, in several layers of
    quotes, and as UTF-8 that was decoded as Latin-1. It takes linear time for any text and any
    secret. The well-known token is not a secret, and may be part of an ordinary word: it stays.
    """
    for secret in secrets:
        if secret.reveal() != DEFAULT_TOKEN:
            text = _redact(text, secret)
    return text


def _redact(text: str, secret: Secret) -> str:
    text = text.replace(secret.reveal(), _REDACTED)
    # Letters and digits have one spelling.
    if secret.reveal().isascii() and secret.reveal().isalnum():
        return text
    pieces: list[str] = []
    copied = 0
    for start, end in _find_spelled(text, secret):
        if start >= copied:
            pieces += (text[copied:start], _REDACTED)
            copied = end
    return "".join((*pieces, text[copied:]))


def _find_spelled(text: str, secret: Secret) -> list[tuple[int, int]]:
    """Where a spelling of the secret begins and ends, in order.

    Text and secret are compared without backslashes: whether one is part of the secret or of its
    spelling cannot be told.
    """
    characters = {c for c in secret.reveal() if not (c.isascii() and c.isalnum())}
    units: set[str] = set()
    if not secret.reveal().isascii():
        units.update(secret.reveal().encode().decode("latin-1"))
    unescape, join = _Escapes(characters | units), _Mojibake(characters)

    def rewrite(written: str) -> list[_Rewriting]:
        if " " in characters:
            written = written.replace("+", " ")
        first = _Rewriting(written, _SPELLING, unescape)
        return [first, _Rewriting(first.text, _MOJIBAKE, join)] if units else [first]

    rewritings = rewrite(text)
    # The secret may itself look like a spelling.
    needles = {secret.reveal().replace("\\", ""), rewrite(secret.reveal())[-1].text} - {""}
    found = [span for needle in needles for span in _find_all(needle, rewritings[-1].text)]
    for rewriting in reversed(rewritings):
        found = [rewriting.find_origin(*span) for span in found]
    return sorted(found)


def _find_all(needle: str, text: str) -> Iterator[tuple[int, int]]:
    start = text.find(needle)
    while start >= 0:
        yield start, start + len(needle)
        start = text.find(needle, start + len(needle))


class _Escapes(dict[str, str]):
    """The characters of a secret by their spellings, each decoded once.

    The spelling of another character stands for itself, without its backslashes.
    """

    def __init__(self, characters: set[str]) -> None:
        super().__init__()
        self._characters = {*characters, "\\"}

    def __missing__(self, spelling: str) -> str:
        character = _decode(spelling)
        kept = character if character in self._characters else spelling
        self[spelling] = value = kept.replace("\\", "")
        return value


class _Mojibake(dict[str, str]):
    """The characters of a secret by their UTF-8 as Latin-1; any other stands for itself."""

    def __init__(self, characters: set[str]) -> None:
        super().__init__()
        self._characters = characters

    def __missing__(self, sequence: str) -> str:
        character = sequence.encode("latin-1").decode(errors="replace")
        self[sequence] = value = character if character in self._characters else sequence
        return value


class _Rewriting:
    """A text with the parts that match `pattern` replaced, and where they were."""

    def __init__(self, text: str, pattern: re.Pattern[str], replacements: dict[str, str]) -> None:
        # Text and matches alternate.
        self._before = pattern.split(text)
        self._after = self._before.copy()
        self._after[1::2] = map(replacements.__getitem__, self._before[1::2])
        self.text = "".join(self._after)
        self._ends: tuple[list[int], list[int]] | None = None

    def find_origin(self, start: int, end: int) -> tuple[int, int]:
        """The span in the text before the replacements, with each replaced part as a whole."""
        if self._ends is None:
            self._ends = (
                [0, *accumulate(map(len, self._before))],
                [0, *accumulate(map(len, self._after))],
            )
        before, after = self._ends
        first = bisect_right(after, start) - 1
        last = bisect_right(after, end - 1) - 1
        is_kept = self._before[first] == self._after[first]
        new_start = before[first] + (start - after[first] if is_kept else 0)
        is_kept = self._before[last] == self._after[last]
        new_end = before[last] + end - after[last] if is_kept else before[last + 1]
        return new_start, new_end


def _decode(spelling: str) -> str:
    """The character that it stands for, "" if it is not a valid spelling."""
    body = spelling.lstrip("\\")
    kind, is_escaped = body[:1], body != spelling
    try:
        if kind == "&" and len(body) > 1:
            return _ENTITIES.get(body) or _decode_reference(body[2:-1])
        if kind == "%" and len(body) == 3:
            return chr(int(body[1:], 16))
        if is_escaped and kind in ("u", "U", "x", "X") and len(body) > 1:
            if "\\" not in body:
                return chr(int(body[1:], 16))
            # A pair of surrogates (RFC 8259, 7).
            pair = chr(int(body[1:5], 16)) + chr(int(body[-4:], 16))
            return pair.encode("utf-16", "surrogatepass").decode("utf-16")
    except (ValueError, OverflowError):
        return ""
    return _SHORT_ESCAPES.get(body, body) if is_escaped else body


def _decode_reference(digits: str) -> str:
    base = 16 if digits[0] in "xX" else 10
    # Any number of zeros may come first; no character has more than seven digits.
    digits = digits.lstrip("xX").lstrip("0")
    return chr(int(digits or "0", base)) if len(digits) < 8 else ""
