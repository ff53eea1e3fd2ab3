"""What the command prints: replies on stdout, errors and reports on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any, BinaryIO, Protocol, TextIO

import click

__all__ = [
    "Output",
    "RawOutput",
    "TerminalOutput",
    "abandon_stdout",
    "open_output",
    "remove_controls",
    "report",
    "report_error",
    "write_all",
]

# The controls of ECMA-48, C0, DEL and C1: an escape sequence can retitle the window, write to the
# clipboard or overwrite what is on the screen. U+FFFD shows where one was; carriage returns are
# dropped, because they are half of a line break in too many texts to mark each.
_HARMLESS = {
    **dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}"),
    ord("\r"): "",
    ord("\n"): "\n",
    ord("\t"): "\t",
}


# How long to wait for a terminal or a pipe that is full and does not block.
RETRY_SECONDS = 0.005


class Output(Protocol):
    """Where a reply is printed. `write` returns once the text is passed to the system.

    Both methods raise `OSError`, and `BrokenPipeError` if the reader has closed the pipe.
    """

    def write(self, text: str) -> None: ...

    def end_line(self) -> None:
        """Make the next output of any process begin on a line of its own."""
        ...


class RawOutput:
    """For a file or a pipe: the text as it arrived, in UTF-8, with nothing added.

    The encoding is that of the protocol, not of the locale: a program that reads the reply gets
    the same bytes everywhere, and no character is lost that a code page does not have.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        write_all(self._stream, text.encode())

    def end_line(self) -> None:
        """Nothing: a line break that is not in the reply would be part of the file."""


class TerminalOutput:
    """For people: replaces control characters and characters that the terminal cannot encode."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._at_line_start = True

    def write(self, text: str) -> None:
        shown = remove_controls(text)
        if not shown:
            return
        # Ctrl-C may come as soon as the text is visible, when the cursor is behind it.
        self._at_line_start = False
        data = shown.replace("\n", os.linesep).encode(self._stream.encoding, "replace")
        write_all(self._stream.buffer, data)
        self._at_line_start = shown.endswith("\n")

    def end_line(self) -> None:
        if not self._at_line_start:
            self.write("\n")


def write_all(stream: BinaryIO, data: bytes) -> None:
    """Write all of the data, below the buffer of the stream. Raises `OSError`.

    A terminal or a pipe need not block: another process that shares it may have chosen so. What a
    buffer does not get rid of then is lost.
    """
    stream.flush()
    file: Any = getattr(stream, "raw", stream)
    while data:
        # None if it is full; a part with PYTHONUNBUFFERED, common in containers.
        written: int | None = file.write(data)
        if written is None:
            time.sleep(RETRY_SECONDS)
        else:
            data = data[written:]
    stream.flush()


def open_output() -> Output:
    """The output for this stdout. Raises `ClickException` if it is closed."""
    # Python has no stdout at all if the shell has closed it: `cromicle ask … >&-`.
    if sys.stdout is None:
        raise click.ClickException("There is no standard output to write to.")
    return TerminalOutput(sys.stdout) if sys.stdout.isatty() else RawOutput(sys.stdout.buffer)


def abandon_stdout() -> None:
    """Discard what stdout has not accepted.

    Python writes it once more at exit and reports when that fails; the documentation of the
    `signal` module recommends this for SIGPIPE.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def report(line: str, *, label: str = "", style: str = "bold") -> None:
    """Print a line on stderr, after a label, which has a style of rich on a terminal.

    Line breaks become spaces and control characters are replaced: the line may quote a server.
    """
    line = remove_controls(" ".join(line.split()))
    # If stderr fails, there is no other place to report it.
    with contextlib.suppress(OSError):
        if sys.stderr is not None and sys.stderr.isatty():
            _print_styled(line, label, style)
        else:
            click.echo(label + line, err=True)


def report_error(message: str) -> None:
    """Print `Error: …` on stderr."""
    report(message, label="Error: ", style="bold red")


def _print_styled(line: str, label: str, style: str) -> None:
    # Imported here because only a terminal needs it.
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble((label, style), line), soft_wrap=True)


def remove_controls(text: str) -> str:
    """The text with U+FFFD for control characters, less "\\r"; "\\n" and "\\t" stay."""
    return text.translate(_HARMLESS)
