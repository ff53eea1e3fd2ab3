"""Reading the text to send, and parsing the values of options."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cromicle_sdk._core.messages import find_lone_surrogate

__all__ = [
    "STDIN",
    "check_stdin_once",
    "fence",
    "parse_delay",
    "parse_fields",
    "parse_headers",
    "parse_limit",
    "read_file",
    "read_text",
]

# The name of standard input, in place of a file or among the words.
STDIN = "-"


def read_text(words: Sequence[str], files: Sequence[str] = ()) -> str:
    """Return the text of the files, stdin and the words, in this order.

    Words are joined by spaces. Stdin is read unless it is a terminal; a `-` among the words inserts
    it there. A single part is sent unchanged. Several parts are separated by blank lines, so that a
    question follows its documents (as in llm and ollama). Blank parts are ignored.

    Raises `click.UsageError` if there is no text, or if it is not UTF-8.
    """
    parts = [fence(_name_file(path), read_file(path, "--file")) for path in files]
    if STDIN in words:
        place = words.index(STDIN)
        parts += [
            _check_typed(" ".join(words[:place])),
            read_file(STDIN, "-"),
            _check_typed(" ".join(words[place + 1 :])),
        ]
    else:
        typed = _check_typed(" ".join(words))
        parts += [_decode(_read_stdin(), "Standard input"), typed]
    parts = [part for part in parts if part.strip()]
    if not parts:
        raise click.UsageError("There is no text to send: pass it as TEXT, or pipe it in.")
    return "\n\n".join([*(part.rstrip("\r\n") for part in parts[:-1]), parts[-1]])


def read_file(path: str, flag: str) -> str:
    """Return the text of a file, or of stdin for `-`. Raises `click.UsageError`."""
    if path == STDIN:
        try:
            data = b"" if sys.stdin is None else sys.stdin.buffer.read()
        except OSError as error:
            problem = error.strerror or type(error).__name__
            raise click.UsageError(f"Standard input cannot be read: {problem}.") from None
        return _decode(data, "Standard input")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise click.UsageError(f"{flag}: {path} cannot be read: {problem}.") from None
    return _decode(data, f"{flag}: {path}")


def fence(name: str, text: str) -> str:
    """Return a name and a fenced code block, whose fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    end = "" if not text or text.endswith("\n") else "\n"
    return f"{name}\n{marks}\n{text}{end}{marks}"


def check_stdin_once(*paths: str) -> None:
    """Raise `click.UsageError` if more than one of the paths is `-`."""
    if paths.count(STDIN) > 1:
        raise click.UsageError("Standard input can be read only once: use only one -.")


def parse_limit(value: object) -> float:
    """Parse an option that is a limit: seconds, more than 0."""
    seconds = _parse_number(value)
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{value!r} is not a number of seconds greater than 0.")
    return seconds


def parse_delay(value: object) -> float:
    """Parse an option that is a delay: seconds, 0 or more."""
    seconds = _parse_number(value)
    if not 0 <= seconds < math.inf:
        raise click.BadParameter(f"{value!r} is not a number of seconds, 0 or more.")
    return seconds


def parse_headers(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> Mapping[str, str]:
    """Parse the values of `--header NAME:VALUE`. This is a callback of click.

    Errors never quote a value, which may be a secret. Raises `click.BadParameter`.
    """
    headers: dict[str, str] = {}
    for number, text in enumerate(values, start=1):
        name, colon, value = text.partition(":")
        name = name.strip()
        if not colon or not name:
            raise click.BadParameter(
                f"value {number} is not of the form NAME:VALUE.", context, parameter
            )
        if name.lower() in (other.lower() for other in headers):
            raise click.BadParameter(f"{name} is given twice.", context, parameter)
        headers[name] = value.strip()
    return headers


def parse_fields(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> Mapping[str, Any]:
    """Parse the values of `--body NAME=JSON`. This is a callback of click.

    Errors never quote a value, which may be private. Raises `click.BadParameter`.
    """
    fields: dict[str, Any] = {}
    for number, text in enumerate(values, start=1):
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(
                f"value {number} is not of the form NAME=JSON.", context, parameter
            )
        if name in fields:
            raise click.BadParameter(f"{name} is given twice.", context, parameter)
        try:
            fields[name] = json.loads(value)
        except (ValueError, RecursionError):
            raise click.BadParameter(
                f"the value of {name} is not JSON; put a string in quotes: '{name}=\"...\"'.",
                context,
                parameter,
            ) from None
    return fields


def _check_typed(text: str) -> str:
    # Python decodes arguments that are not UTF-8 to lone surrogates (PEP 383).
    if find_lone_surrogate(text) is not None:
        raise click.UsageError("TEXT contains bytes that are not UTF-8.")
    return text


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    try:
        return sys.stdin.buffer.read()
    except OSError:
        # nohup opens stdin for writing only.
        return b""


def _decode(data: bytes, what: str) -> str:
    try:
        # Windows tools begin a file with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"{what} is not UTF-8 (byte {error.start}). Convert it first, for example with iconv."
        ) from None


def _name_file(path: str) -> str:
    # The name must be one line of the prompt, but the name of a file may contain line breaks.
    name = "standard input" if path == STDIN else path
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _parse_number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan
