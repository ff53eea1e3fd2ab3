"""Printing: replies on stdout, errors and reports on stderr."""

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

# Characters that are dangerous on a terminal. They are replaced by U+FFFD.
_REPLACED = (
    # The controls of ECMA-48, C0, DEL and C1: an escape sequence can change the title of the
    # window, write to the clipboard, or overwrite the screen.
    *range(0x20),
    *range(0x7F, 0xA0),
    # Bidirectional overrides and isolates change the order of the text that follows.
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    # Line breaks to some programs and not to others.
    *(0x2028, 0x2029),
    # Invisible tag characters, which can hide text for a model.
    *range(0xE0000, 0xE0080),
)

# Zero-width characters, which legitimate texts also contain, such as emoji, Persian and Hebrew.
# They are removed, so that a text copied from the terminal is the text that was visible. A carriage
# return is too often part of a line break to be replaced.
_REMOVED = (
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
    **dict.fromkeys(_REMOVED, ""),
    ord("\n"): "\n",
    ord("\t"): "\t",
}


# How long to wait before writing again to a full terminal or pipe that is non-blocking.
RETRY_SECONDS = 0.005


class Output(Protocol):
    """The destination of a reply.

    The methods raise `OSError`, and `BrokenPipeError` if the reader has closed the pipe.
    """

    def begin(self) -> None:
        """Show the start of a call. `end_line` must be called later in any case."""
        ...

    def write(self, text: str) -> None: ...

    def note(self, line: str) -> None:
        """Show a status line if the output is a terminal."""
        ...

    def end_line(self) -> None:
        """Move the cursor of a terminal to the beginning of a line."""
        ...


class RawOutput:
    """A file or a pipe: receives the text unchanged, in UTF-8.

    The encoding is that of the protocol, not of the locale: a program that reads the reply receives
    the same bytes everywhere, and no character is lost because a code page lacks it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def begin(self) -> None:
        """Do nothing."""

    def note(self, line: str) -> None:
        """Do nothing."""

    def write(self, text: str) -> None:
        write_all(self._stream, text.encode())

    def end_line(self) -> None:
        """Do nothing: an additional line break would become part of the file."""


class TerminalOutput:
    """A terminal: control characters and characters that it cannot encode are replaced."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._at_line_start = True

    def begin(self) -> None:
        """Do nothing: this output cannot erase a status line."""

    def note(self, line: str) -> None:
        self.end_line()
        self.write(line + "\n")

    def write(self, text: str) -> None:
        shown = remove_controls(text)
        if not shown:
            return
        # Set before writing, because Ctrl-C may interrupt it.
        self._at_line_start = False
        data = shown.replace("\n", os.linesep).encode(self._stream.encoding, "replace")
        write_all(self._stream.buffer, data)
        self._at_line_start = shown.endswith("\n")

    def end_line(self) -> None:
        if not self._at_line_start:
            self.write("\n")


def write_all(stream: BinaryIO, data: bytes) -> None:
    """Write all of the data, bypassing the buffer of the stream. Raises `OSError`.

    Another process that shares a terminal or a pipe may have made it non-blocking. Buffered data
    that cannot be written then is lost.
    """
    stream.flush()
    file: Any = getattr(stream, "raw", stream)
    while data:
        # None if it is full. With PYTHONUNBUFFERED, common in containers, it may be a part.
        written: int | None = file.write(data)
        if written is None:
            time.sleep(RETRY_SECONDS)
        else:
            data = data[written:]
    stream.flush()


def open_output(*, raw: bool = False) -> Output:
    """Return the output for stdout, which renders Markdown on a terminal unless `raw` is true.

    Raises `ClickException` if stdout is closed.
    """
    # None if the shell has closed it: `cromicle ask … >&-`.
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
    """Discard the data in the buffer of stdout.

    Otherwise Python would try to write it at exit and report the failure. The documentation of the
    `signal` module recommends this for SIGPIPE.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def report(line: str, *, label: str = "", style: str = "bold") -> None:
    """Print a label and a line on stderr. On a terminal, the label has a style of rich.

    Line breaks become spaces, and control characters are replaced, because the line may quote a
    server.
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
    """Print rows of two columns and a text on stderr, dimmed on a terminal.

    Control characters are replaced.
    """
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
    """Return the text without control, bidirectional and zero-width characters.

    "\\n" and "\\t" are kept. Controls and bidirectional overrides become U+FFFD.
    """
    return text.translate(_HARMLESS)
