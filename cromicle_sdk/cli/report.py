"""What the command says on stderr, one line at a time, in colour where that is a terminal."""

from __future__ import annotations

import contextlib
import sys

import click

from .terminal import make_harmless

__all__ = ["report", "report_error"]


def report(line: str, *, label: str = "", style: str = "bold") -> None:
    """Print a line on stderr, with a label in a style of rich's before it.

    Line breaks in it become spaces and control characters are replaced: it may quote a server.
    """
    line = make_harmless(" ".join(line.split()))
    # Where nobody reads it any more, there is nobody to tell either.
    with contextlib.suppress(OSError):
        if sys.stderr is not None and sys.stderr.isatty():
            _print_styled(line, label, style)
        else:
            click.echo(label + line, err=True)


def report_error(message: str) -> None:
    """Print `Error: …` on stderr."""
    report(message, label="Error: ", style="bold red")


def _print_styled(line: str, label: str, style: str) -> None:
    # Nothing but a terminal needs it.
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble((label, style), line), soft_wrap=True)
