"""Redaction of secrets in the text of a server, in every usual encoding."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import accumulate, islice, repeat
from operator import add

from .secrets import DEFAULT_TOKEN, Secret

__all__ = ["redact"]

_REDACTED = "[redacted]"

# Locating an echo takes 2 us. A text of 72 KiB with more echoes consists of little else.
_MAX_ECHOES = 1000

# If a wrong decoding has lost the non-ASCII characters of a secret, the ASCII rest is searched for
# if it has at least this length. A shorter rest may be an ordinary word.
_MIN_REST_LENGTH = 8

# The escapes of JSON and Python after a backslash, and the entities of HTML after an ampersand.
_SHORT_ESCAPES = {
    "\n": "n",
    "\r": "r",
    "\t": "t",
    "\0": "0",
    "\a": "a",
    "\b": "b",
    "\f": "f",
    "\v": "v",
}
_ENTITIES = {"&": "amp;", "<": "lt;", ">": "gt;", '"': "quot;", "'": "apos;"}


def redact(text: str, secrets: Iterable[Secret]) -> str:
    """Replace each secret that the text echoes with `[redacted]`.

    A secret is found verbatim, as JSON, Python, URLs and HTML encode it, in several layers of
    quotes, and after a wrong decoding: as UTF-8 that was decoded as Latin-1, or with its non-ASCII
    characters replaced or omitted. The time is linear for any text and any secret: a text with more
    than a thousand echoes is redacted completely. The well-known token is kept, because it is not a
    secret and may be part of an ordinary word.
    """
    for secret in secrets:
        if secret.reveal() != DEFAULT_TOKEN:
            text = _redact(text, secret)
    return text


def _redact(text: str, secret: Secret) -> str:
    text = text.replace(secret.reveal(), _REDACTED)
    # Letters and digits have only one spelling.
    if _is_alphanumeric(secret.reveal()):
        return text
    echoes = _find_spelled(text, secret)
    if len(echoes) > _MAX_ECHOES:
        return _REDACTED
    parts: list[str] = []
    copied = 0
    for start, end in echoes:
        if start >= copied:
            parts += (text[copied:start], _REDACTED)
            copied = end
    return "".join((*parts, text[copied:]))


def _is_alphanumeric(text: str) -> bool:
    return text.isascii() and text.isalnum()


def _find_spelled(text: str, secret: Secret) -> list[tuple[int, int]]:
    """Return the spans of the spellings of the secret, in order, and at most one beyond the limit.

    Text and secret are compared without backslashes, because a backslash may be part of the secret
    or of its spelling.
    """
    forms = {secret.reveal(), secret.reveal().encode().decode("latin-1")}
    characters = frozenset(c for form in forms for c in form if not _is_alphanumeric(c))
    found = _search(_Decoded(text, characters), [_Decoded(form, characters) for form in forms])
    rest = _Decoded(secret.reveal(), characters, only_ascii=True)
    if not secret.reveal().isascii() and len(rest.text) >= _MIN_REST_LENGTH:
        characters |= {"?", "\N{REPLACEMENT CHARACTER}"}
        found += _search(_Decoded(text, characters, only_ascii=True), [rest])
    # Of spans with the same start, the longest first.
    return sorted(found, key=lambda span: (span[0], -span[1]))


def _search(text: _Decoded, forms: Iterable[_Decoded]) -> list[tuple[int, int]]:
    # A secret may itself look like a spelling.
    needles = {needle for form in forms for needle in (form.text, form.undecoded)} - {""}
    spans = (span for needle in needles for span in _find_all(needle, text.text))
    return [text.find_origin(*span) for span in islice(spans, _MAX_ECHOES + 1)]


def _find_all(needle: str, text: str) -> Iterator[tuple[int, int]]:
    start = text.find(needle)
    while start >= 0:
        yield start, start + len(needle)
        start = text.find(needle, start + len(needle))


class _Decoded:
    """A text with the spellings of some characters decoded, and without backslashes.

    Nested quotes multiply backslashes; the last one of a run belongs to a spelling. With
    `only_ascii`, non-ASCII characters are removed, too, and question marks, which may replace them.
    """

    def __init__(self, text: str, characters: frozenset[str], *, only_ascii: bool = False) -> None:
        self._only_ascii = only_ascii
        self.undecoded = "".join(self._split(text))
        if " " in characters:
            text = text.replace("+", " ")
        pattern, by_spelling = _find_spellings(characters)
        parts = pattern.split(text)
        # Each text except the last is followed by a spelling.
        self._texts, self._spellings = parts[::2], parts[1::2]
        parts[1::2] = map(_Decoder(by_spelling).__getitem__, self._spellings)
        self._parts = self._split("".join(parts))
        self.text = "".join(self._parts)

    def _split(self, text: str) -> list[str]:
        """Split a text at the removed characters."""
        if self._only_ascii:
            text = text.encode("ascii", "replace").decode().replace("?", "\\")
        return text.split("\\")

    def find_origin(self, start: int, end: int) -> tuple[int, int]:
        """Return the span in the original text, including complete spellings and backslashes."""
        parts, decoded, spelled = self._starts
        # One character was removed between two parts.
        start += max(bisect_left(parts, start) - 1, 0)
        last = end + bisect_right(parts, end - 1) - 2
        # One character replaces the spelling between two texts.
        index = bisect_right(decoded, start) - 1
        new_start = spelled[index] + start - decoded[index]
        index = bisect_right(decoded, last) - 1
        offset = last - decoded[index]
        is_spelling = offset == len(self._texts[index])
        return new_start, spelled[index + 1] if is_spelling else spelled[index] + offset + 1

    @cached_property
    def _starts(self) -> tuple[list[int], list[int], list[int]]:
        """The starts of the parts, and of the texts after and before decoding."""
        lengths = [*map(len, self._texts)]
        return (
            [0, *accumulate(map(len, self._parts))],
            [0, *accumulate(map(add, lengths, repeat(1)))],
            [0, *accumulate(map(add, lengths, map(len, self._spellings)))],
        )


class _Decoder(dict[str, str]):
    """A cache of characters by their spellings."""

    def __init__(self, by_spelling: dict[str, str]) -> None:
        super().__init__()
        self._by_spelling = by_spelling

    def __missing__(self, spelling: str) -> str:
        self[spelling] = character = self._by_spelling[_normalize(spelling)]
        return character


# The prefixes of spellings, as in `_spell`, and their patterns. With a literal prefix, `re` skips
# ordinary text fast.
_PREFIXES = {
    "U": r"\\U",
    "u": r"\\[uU]",
    "x": r"\\[xX]",
    "": r"\\",
    "%": "%",
    "&#": "&#0*",
    "&#x": "&#[xX]0*",
    "&": "&",
}


@lru_cache(maxsize=16)
def _find_spellings(characters: frozenset[str]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Return a pattern for the spellings of some characters, and these by normalized spelling.

    Matching it takes half the time of a pattern for the spellings of all characters.
    """
    by_prefix: dict[str, list[str]] = {prefix: [] for prefix in _PREFIXES}
    by_spelling: dict[str, str] = {}
    for character in sorted(characters):
        for prefix, rest in _spell(character):
            by_prefix[prefix].append(rest.replace("\\", r"\\+"))
            by_spelling[_normalize(prefix + rest)] = character
    pattern = "|".join(
        f"{_PREFIXES[prefix]}(?i:{'|'.join(rests)})" for prefix, rests in by_prefix.items() if rests
    )
    return re.compile(f"({pattern})"), by_spelling


def _spell(character: str) -> Iterator[tuple[str, str]]:
    """Yield the spellings of a character, as a prefix and a case-insensitive rest."""
    code = ord(character)
    yield "U", f"{code:08x}"
    if code < 0x10000:
        yield "u", f"{code:04x}"
    else:
        # RFC 8259, section 7: a pair of surrogates.
        units = character.encode("utf-16-be").hex()
        yield "u", f"{units[:4]}\\u{units[4:]}"
    if code < 0x100:
        yield "x", f"{code:02x}"
        yield "%", f"{code:02x}"
    yield "&#", f"{code};"
    yield "&#x", f"{code:x};"
    if character in _SHORT_ESCAPES:
        yield "", _SHORT_ESCAPES[character]
    if character in _ENTITIES:
        yield "&", _ENTITIES[character]


def _normalize(spelling: str) -> str:
    """Return a spelling in lower case, without backslashes and optional zeros."""
    return re.sub("(&#x?)0+", r"\1", spelling.replace("\\", "").lower())
