"""Redaction: the search for secrets in text that a server wrote, in every usual spelling."""

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

# To locate an echo takes 2 us. A text of 72 KiB with more of them is hardly anything else.
_MOST_ECHOES = 1000

# Of a secret whose other characters were lost in a wrong decoding, the rest in ASCII is searched
# for if it is no shorter: less may be an ordinary word.
_SHORTEST_REST = 8

# What JSON and Python write after a backslash for some characters, and HTML after an ampersand.
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
    """The text with `[redacted]` in place of each secret that it echoes.

    A secret is found as it is, as JSON, Python, URLs and HTML spell it, in several layers of
    quotes, and after a wrong decoding: as UTF-8 that was decoded as Latin-1, or with the characters
    that are not ASCII replaced or left out. It takes linear time for any text and any
    secret: a text that spells one more than a thousand times is redacted as a whole. The
    well-known token is not a secret, and may be part of an ordinary word: it stays.
    """
    for secret in secrets:
        if secret.reveal() != DEFAULT_TOKEN:
            text = _redact(text, secret)
    return text


def _redact(text: str, secret: Secret) -> str:
    text = text.replace(secret.reveal(), _REDACTED)
    # Letters and digits have one spelling.
    if _is_alphanumeric(secret.reveal()):
        return text
    echoes = _find_spelled(text, secret)
    if len(echoes) > _MOST_ECHOES:
        return _REDACTED
    pieces: list[str] = []
    copied = 0
    for start, end in echoes:
        if start >= copied:
            pieces += (text[copied:start], _REDACTED)
            copied = end
    return "".join((*pieces, text[copied:]))


def _is_alphanumeric(text: str) -> bool:
    return text.isascii() and text.isalnum()


def _find_spelled(text: str, secret: Secret) -> list[tuple[int, int]]:
    """Where a spelling of the secret begins and ends, in order; at most one too many of them.

    Text and secret are compared without backslashes: whether one is part of the secret or of its
    spelling cannot be told.
    """
    forms = {secret.reveal(), secret.reveal().encode().decode("latin-1")}
    characters = frozenset(c for form in forms for c in form if not _is_alphanumeric(c))
    found = _search(_Decoded(text, characters), [_Decoded(form, characters) for form in forms])
    rest = _Decoded(secret.reveal(), characters, only_ascii=True)
    if not secret.reveal().isascii() and len(rest.text) >= _SHORTEST_REST:
        characters |= {"?", "\N{REPLACEMENT CHARACTER}"}
        found += _search(_Decoded(text, characters, only_ascii=True), [rest])
    # The longest first, of those that begin at the same place.
    return sorted(found, key=lambda span: (span[0], -span[1]))


def _search(text: _Decoded, forms: Iterable[_Decoded]) -> list[tuple[int, int]]:
    # A secret may itself look like a spelling.
    needles = {needle for form in forms for needle in (form.text, form.undecoded)} - {""}
    spans = (span for needle in needles for span in _find_all(needle, text.text))
    return [text.find_origin(*span) for span in islice(spans, _MOST_ECHOES + 1)]


def _find_all(needle: str, text: str) -> Iterator[tuple[int, int]]:
    start = text.find(needle)
    while start >= 0:
        yield start, start + len(needle)
        start = text.find(needle, start + len(needle))


class _Decoded:
    """A text with the spellings of some characters decoded, and without backslashes.

    Quotes of quotes multiply backslashes; the last one of a run belongs to a spelling. With
    `only_ascii`, it is also without the characters that are not ASCII, and without question marks,
    which may stand for one of them.
    """

    def __init__(self, text: str, characters: frozenset[str], *, only_ascii: bool = False) -> None:
        self._only_ascii = only_ascii
        self.undecoded = "".join(self._split(text))
        if " " in characters:
            text = text.replace("+", " ")
        pattern, by_spelling = _find_spellings(characters)
        pieces = pattern.split(text)
        # A spelling follows each text but the last one.
        self._texts, self._spellings = pieces[::2], pieces[1::2]
        pieces[1::2] = map(_Decoder(by_spelling).__getitem__, self._spellings)
        self._parts = self._split("".join(pieces))
        self.text = "".join(self._parts)

    def _split(self, text: str) -> list[str]:
        """The parts between the characters that are left out, of which each is one character."""
        if self._only_ascii:
            text = text.encode("ascii", "replace").decode().replace("?", "\\")
        return text.split("\\")

    def find_origin(self, start: int, end: int) -> tuple[int, int]:
        """The span in the original text, with each spelling and its backslashes as a whole."""
        parts, decoded, spelled = self._starts
        # One character stands between two parts.
        start += max(bisect_left(parts, start) - 1, 0)
        last = end + bisect_right(parts, end - 1) - 2
        # A character stands for the spelling between two texts.
        index = bisect_right(decoded, start) - 1
        new_start = spelled[index] + start - decoded[index]
        index = bisect_right(decoded, last) - 1
        offset = last - decoded[index]
        is_spelling = offset == len(self._texts[index])
        return new_start, spelled[index + 1] if is_spelling else spelled[index] + offset + 1

    @cached_property
    def _starts(self) -> tuple[list[int], list[int], list[int]]:
        """Where each part begins, and each text after and before decoding."""
        lengths = [*map(len, self._texts)]
        return (
            [0, *accumulate(map(len, self._parts))],
            [0, *accumulate(map(add, lengths, repeat(1)))],
            [0, *accumulate(map(add, lengths, map(len, self._spellings)))],
        )


class _Decoder(dict[str, str]):
    """Characters by their spellings, each normalized once."""

    def __init__(self, by_spelling: dict[str, str]) -> None:
        super().__init__()
        self._by_spelling = by_spelling

    def __missing__(self, spelling: str) -> str:
        self[spelling] = character = self._by_spelling[_normalize(spelling)]
        return character


# The spellings of a character begin with one of these, here as in `_spell` and as a pattern. With
# a literal first, `re` skips ordinary text fast.
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
    """A pattern for the spellings of some characters, and these by normalized spelling.

    It takes half the time of a pattern for the spellings of all characters.
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
    """The spellings of a character, each as a prefix and a rest, which may be in any case."""
    code = ord(character)
    yield "U", f"{code:08x}"
    if code < 0x10000:
        yield "u", f"{code:04x}"
    else:
        # RFC 8259, 7: a pair of surrogates.
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
    """A spelling in lower case, without backslashes and without zeros that may be left out."""
    return re.sub("(&#x?)0+", r"\1", spelling.replace("\\", "").lower())
