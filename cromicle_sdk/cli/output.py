"""Standard output: the exact text for a program, a harmless one for a terminal."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO, Protocol, TextIO

import click

from .terminal import make_harmless

__all__ = ["Output", "RawOutput", "TerminalOutput", "abandon_stdout", "open_output"]


class Output(Protocol):
    """Where a reply goes, piece by piece; each is on its way when `write` returns.

    Both raise `OSError`, `BrokenPipeError` where nobody reads any more.
    """

    def write(self, text: str) -> None: ...

    def end_line(self) -> None:
        """Make what is printed next, by whomever, begin on a line of its own."""
        ...


class RawOutput:
    """For a file or a pipe: the text as it arrived, in UTF-8, with nothing added.

    The encoding is the protocol's, not the locale's: a program that reads it gets the same bytes
    everywhere, and no character that is missing in a code page is lost.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        data = text.encode()
        # With PYTHONUNBUFFERED, as in many containers, it is a file that may take but a part.
        while data:
            data = data[self._stream.write(data) :]
        self._stream.flush()

    def end_line(self) -> None:
        """Nothing: a line break that the reply does not have would be part of the file."""


class TerminalOutput:
    """For people: control characters are replaced, and so is what the terminal can't encode."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._at_line_start = True

    def write(self, text: str) -> None:
        shown = make_harmless(text)
        if not shown:
            return
        # Ctrl-C may come as soon as the text is seen, and finds the cursor behind it.
        self._at_line_start = False
        encoding = self._stream.encoding
        self._stream.write(shown.encode(encoding, "replace").decode(encoding))
        self._stream.flush()
        self._at_line_start = shown.endswith("\n")

    def end_line(self) -> None:
        if not self._at_line_start:
            self.write("\n")


def open_output() -> Output:
    """The output that fits what stdout is. Raises `ClickException` where it is closed."""
    # Python has no stdout at all where the shell has closed it: `cromicle ask … >&-`.
    if sys.stdout is None:
        raise click.ClickException("There is no standard output to write to.")
    return TerminalOutput(sys.stdout) if sys.stdout.isatty() else RawOutput(sys.stdout.buffer)


def abandon_stdout() -> None:
    """Give up on what stdout has not taken.

    Python tries to write it once more as it exits and complains when that fails; this is the way
    out that its documentation shows for SIGPIPE.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
