"""The text to send: the words of the command line, standard input, or both."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from cromicle_sdk._core.messages import find_lone_surrogate

__all__ = ["read_text"]


def read_text(words: Sequence[str]) -> str:
    """The text that the words and stdin, where that is no terminal, make together.

    Words are joined by spaces. Either alone is sent as it is; of both, what was piped comes
    first, then a blank line and the words, since a question is best put after its document (llm
    and ollama have the same order). Blank counts as not there.

    Raises `click.UsageError` where there is no text, or one that is not UTF-8.
    """
    typed = _check_typed(" ".join(words))
    piped = _decode(_read_stdin())
    if typed.strip() and piped.strip():
        return piped.rstrip("\r\n") + "\n\n" + typed
    text = typed if typed.strip() else piped
    if not text.strip():
        raise click.UsageError("There is no text to send: pass it as TEXT, or pipe it in.")
    return text


def _check_typed(text: str) -> str:
    # The shell passes bytes; Python keeps those that are not UTF-8 as lone surrogates (PEP 383).
    if find_lone_surrogate(text) is not None:
        raise click.UsageError("TEXT holds bytes that are not UTF-8.")
    return text


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    try:
        return sys.stdin.buffer.read()
    except OSError:
        # nohup gives its program a stdin that can't be read, which is none.
        return b""


def _decode(data: bytes) -> str:
    try:
        # Windows tools begin a file with a byte order mark, which is no part of the text.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"Standard input is not UTF-8 (byte {error.start}). "
            "Convert it first, with iconv for one."
        ) from None
