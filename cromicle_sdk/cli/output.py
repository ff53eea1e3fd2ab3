"""What the command prints: replies on stdout, errors and reports on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable
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
    "report_quietly",
    "write_all",
]

_MARK = "\N{REPLACEMENT CHARACTER}"

# What a reply must not do to the terminal, or hide in it. U+FFFD shows where it was.
_REPLACED = (
    # The controls of ECMA-48, C0, DEL and C1: an escape sequence can retitle the window, write to
    # the clipboard or overwrite what is on the screen.
    *range(0x20),
    *range(0x7F, 0xA0),
    # They change the order of what follows, so that a line shows something else than it is.
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    # Line breaks to some programs, and not to others.
    *(0x2028, 0x2029),
    # Letters that nobody can see, for text that only a model reads.
    *range(0xE0000, 0xE0080),
)

# What takes no space, and is in honest texts too, such as emoji, Persian and Hebrew: it is left
# out, so that a text that is copied from the terminal is the text that was seen. Carriage returns
# are half of a line break in too many texts to mark each.
_LEFT_OUT = (
    *(0x0D, 0xAD, 0x034F, 0x061C, 0x180E, 0xFEFF),
    *range(0x180B, 0x180E),
    *range(0x200B, 0x2010),
    *range(0x2060, 0x2066),
    *range(0x206A, 0x2070),
    *range(0xFE00, 0xFE10),
    *range(0xFFF9, 0xFFFC),
    *range(0x1BCA0, 0x1BCA4),
    *range(0x1D173, 0x1D17B),
    *range(0xE0100, 0xE01F0),
)

_HARMLESS = {
    **dict.fromkeys(_REPLACED, _MARK),
    **dict.fromkeys(_LEFT_OUT, ""),
    ord("\n"): "\n",
    ord("\t"): "\t",
}


# How long to wait for a terminal or a pipe that is full and does not block.
RETRY_SECONDS = 0.005


class Output(Protocol):
    """Where a reply is printed.

    The methods raise `OSError`, and `BrokenPipeError` if the reader has closed the pipe.
    """

    def begin(self) -> None:
        """The call begins: show people that something happens. `end_line` comes in any case."""
        ...

    def write(self, text: str) -> None: ...

    def note(self, line: str) -> None:
        """Tell people what happens; programs get the reply alone."""
        ...

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

    def begin(self) -> None:
        """Nothing."""

    def note(self, line: str) -> None:
        """Nothing."""

    def write(self, text: str) -> None:
        write_all(self._stream, text.encode())

    def end_line(self) -> None:
        """Nothing: a line break that is not in the reply would be part of the file."""


class TerminalOutput:
    """For people: replaces control characters and characters that the terminal cannot encode."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._at_line_start = True

    def begin(self) -> None:
        """Nothing: what it prints stays."""

    def note(self, line: str) -> None:
        self.end_line()
        self.write(line + "\n")

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


def open_output(*, raw: bool = False) -> Output:
    """The output for this stdout: a reply as Markdown on a terminal, unless `raw`, else as it is.

    Raises `ClickException` if stdout is closed.
    """
    # Python has no stdout at all if the shell has closed it: `cromicle ask … >&-`.
    if sys.stdout is None:
        raise click.ClickException("There is no standard output to write to.")
    if not sys.stdout.isatty():
        return RawOutput(sys.stdout.buffer)
    if not raw:
        # Imported here because only a terminal needs it.
        from .rendering import open_live

        return open_live(sys.stdout) or TerminalOutput(sys.stdout)
    return TerminalOutput(sys.stdout)


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


def report_quietly(text: str, *, rows: Iterable[tuple[str, str]] = ()) -> None:
    """Print rows of two columns and a text on stderr, dim on a terminal, controls replaced."""
    with contextlib.suppress(OSError):
        if sys.stderr is None:
            return
        # Imported here because only a chat needs it.
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(stderr=True)
        table = Table.grid(padding=(0, 2))
        for name, explanation in rows:
            table.add_row(Text(name, "dim", no_wrap=True), Text(explanation, "dim"))
        if table.row_count:
            console.print(table)
        console.print(Text(remove_controls(text), "dim"))


def _print_styled(line: str, label: str, style: str) -> None:
    # Imported here because only a terminal needs it.
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble((label, style), line), soft_wrap=True)


def remove_controls(text: str) -> str:
    """The text as a terminal may get it: no control, bidi or zero-width character is in it.

    "\\n" and "\\t" stay; U+FFFD shows where a control or a bidi override was.
    """
    return text.translate(_HARMLESS)
