"""What the user passes: the text to send, and the values of options."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from cromicle_sdk._core.messages import find_lone_surrogate

__all__ = ["parse_delay", "parse_fields", "parse_headers", "parse_limit", "read_text"]


def read_text(words: Sequence[str]) -> str:
    """The text that the words and stdin, unless that is a terminal, make together.

    Words are joined by spaces. Either alone is sent as it is; of both, stdin comes first, then a
    blank line and the words, since a question is best placed after its document (as in llm and
    ollama). Blank text is ignored.

    Raises `click.UsageError` if there is no text, or if it is not UTF-8.
    """
    typed = _check_typed(" ".join(words))
    piped = _decode(_read_stdin())
    if typed.strip() and piped.strip():
        return piped.rstrip("\r\n") + "\n\n" + typed
    text = typed if typed.strip() else piped
    if not text.strip():
        raise click.UsageError("There is no text to send: pass it as TEXT, or pipe it in.")
    return text


def parse_limit(value: object) -> float:
    """The type of an option that is a limit: seconds, above 0."""
    seconds = _parse_number(value)
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{value!r} is not a number of seconds above 0.")
    return seconds


def parse_delay(value: object) -> float:
    """The type of an option that is a delay: seconds, 0 or more."""
    seconds = _parse_number(value)
    if not 0 <= seconds < math.inf:
        raise click.BadParameter(f"{value!r} is not a number of seconds, 0 or more.")
    return seconds


def parse_headers(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> Mapping[str, str]:
    """The callback of `--header NAME:VALUE`.

    Errors never quote a value, which may be a secret. Raises `click.BadParameter`.
    """
    headers: dict[str, str] = {}
    for number, text in enumerate(values, start=1):
        name, colon, value = text.partition(":")
        name = name.strip()
        if not colon or not name:
            raise click.BadParameter(
                f"number {number} is not of the form NAME:VALUE.", context, parameter
            )
        if name.lower() in (other.lower() for other in headers):
            raise click.BadParameter(f"{name} is given twice.", context, parameter)
        headers[name] = value.strip()
    return headers


def parse_fields(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> Mapping[str, Any]:
    """The callback of `--body NAME=JSON`.

    Errors never quote a value, which may be private. Raises `click.BadParameter`.
    """
    fields: dict[str, Any] = {}
    for number, text in enumerate(values, start=1):
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(
                f"number {number} is not of the form NAME=JSON.", context, parameter
            )
        if name in fields:
            raise click.BadParameter(f"{name} is given twice.", context, parameter)
        try:
            fields[name] = json.loads(value)
        except (ValueError, RecursionError):
            raise click.BadParameter(
                f"the value of {name} is not JSON; a text needs quotes: '{name}=\"...\"'.",
                context,
                parameter,
            ) from None
    return fields


def _check_typed(text: str) -> str:
    # Python decodes arguments that are not UTF-8 to lone surrogates (PEP 383).
    if find_lone_surrogate(text) is not None:
        raise click.UsageError("TEXT holds bytes that are not UTF-8.")
    return text


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    try:
        return sys.stdin.buffer.read()
    except OSError:
        # nohup gives its program a stdin that cannot be read.
        return b""


def _decode(data: bytes) -> str:
    try:
        # Windows tools begin a file with a byte order mark, which is not part of the text.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"Standard input is not UTF-8 (byte {error.start}). "
            "Convert it first, for example with iconv."
        ) from None


def _parse_number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan
