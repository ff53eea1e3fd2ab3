"""Terminals for tests: an emulator, and a process on a pseudo terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped]  # not annotated
import pyte
from rich.style import Style
from rich.text import Text
from typing_extensions import Self

__all__ = ["COMMAND", "PATIENCE", "Process", "Screen", "isolate"]

PATIENCE = 30.0

COMMAND = (sys.executable, "-m", "cromicle_sdk")


class Screen:
    """A terminal emulator, including the lines that have scrolled off the screen."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self._screen = pyte.HistoryScreen(columns, lines, history=100_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)

    def feed(self, data: bytes) -> None:
        self._stream.feed(data)

    @property
    def visible(self) -> list[str]:
        """The lines on the screen, without trailing spaces and empty lines at the end."""
        return _trim([line.rstrip() for line in self._screen.display])

    @property
    def lines(self) -> list[str]:
        """All lines, including those that have scrolled off the screen."""
        columns = range(self._screen.columns)
        gone = [
            "".join(line[column].data for column in columns).rstrip()
            for line in self._screen.history.top
        ]
        return _trim([*gone, *(line.rstrip() for line in self._screen.display)])

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def cursor(self) -> tuple[int, int]:
        """The row and the column of the cursor."""
        return self._screen.cursor.y, self._screen.cursor.x

    @property
    def hides_cursor(self) -> bool:
        return bool(self._screen.cursor.hidden)

    def find_styles(self, text: str) -> set[str]:
        """Return the styles of a text at its first occurrence on the screen."""
        for row, line in enumerate(self._screen.display):
            column = line.find(text)
            if column >= 0:
                cell = self._screen.buffer[row][column]
                names = ("bold", "italics", "underscore", "strikethrough", "reverse")
                found = {name for name in names if getattr(cell, name)}
                return found | {name for name in (cell.fg, cell.bg) if name != "default"}
        raise AssertionError(f"{text!r} is not on the screen")

    @property
    def styled(self) -> list[Text]:
        """The visible lines with their styles, as texts of rich."""
        lines = []
        for row in range(len(self.visible)):
            line = Text()
            for column in range(self._screen.columns):
                cell = self._screen.buffer[row][column]
                line.append(cell.data, _build_style(cell))
            lines.append(line)
        return lines


class Process:
    """A process, by default of the command, on a pseudo terminal, seen through an emulator."""

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        program: Sequence[str] = COMMAND,
        columns: int = 80,
        lines: int = 24,
    ) -> None:
        kept = {name: text for name, text in os.environ.items() if name[:9] != "CROMICLE_"}
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONUNBUFFERED"):
            kept.pop(name, None)
        plain = {
            "TERM": "xterm-256color",
            "PYTHONUTF8": "1",
            # The emulator does not report its cursor position.
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        self.screen = Screen(columns, lines)
        self.output = b""
        self._process = pexpect.spawn(
            program[0],
            [*program[1:], *arguments],
            env={**kept, **plain, **environment},
            dimensions=(lines, columns),
            timeout=PATIENCE,
        )
        # By default, pexpect simulates the delay of a person who types.
        self._process.delaybeforesend = None

    def wait_for(self, text: str) -> None:
        """Wait until the terminal shows a text."""
        self.wait_until(lambda screen: text in screen.text, text)

    def wait_until(self, condition: Callable[[Screen], bool], name: object = "") -> None:
        while not condition(self.screen):
            try:
                self._receive()
            except (pexpect.EOF, pexpect.TIMEOUT) as error:
                raise AssertionError(f"{name!r} is not in:\n{self.screen.text}") from error

    def wait_for_prompt(self) -> None:
        """Wait until the terminal shows the prompt."""
        self.wait_until(lambda screen: screen.visible[-1:] == [">"], "prompt")

    def type(self, text: str) -> None:
        self._process.send(text)

    def press_enter(self) -> None:
        self._process.send("\r")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.sendintr()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.kill(signal.SIGTERM)

    def resize(self, columns: int, lines: int) -> None:
        self._process.setwinsize(lines, columns)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(self._process.getecho())

    def wait(self) -> int:
        """Wait until the process ends, and return its exit code, negative for a signal."""
        try:
            while True:
                self._receive()
        except pexpect.EOF:
            self._process.wait()
        number = self._process.signalstatus
        status = self._process.exitstatus if number is None else -number
        assert isinstance(status, int), self.screen.text
        return status

    def _receive(self) -> None:
        data: bytes = self._process.read_nonblocking(65536, timeout=PATIENCE)
        self.output += data
        self.screen.feed(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        # `close(force=True)` fails if the process has not ended 0.1 s after SIGKILL.
        if self._process.isalive():
            self._process.kill(signal.SIGKILL)
            self._process.wait()
        self._process.close()


def isolate(folder: Path) -> dict[str, str]:
    """Return environment variables that make a process keep its files in a folder."""
    return {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CONFIG_HOME": str(folder / "config"),
    }


def _build_style(cell: Any) -> Style:
    return Style(
        color=_name_color(cell.fg),
        bgcolor=_name_color(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        strike=cell.strikethrough,
    )


def _name_color(color: str) -> str | None:
    """Convert a color of the emulator for rich. One of 256 colors is six hexadecimal digits."""
    if color == "default":
        return None
    if len(color) == 6 and set(color) <= set("0123456789abcdef"):
        return f"#{color}"
    return {"brown": "yellow"}.get(color, color.replace("bright", "bright_"))


def _trim(lines: list[str]) -> list[str]:
    while lines and not lines[-1]:
        lines = lines[:-1]
    return lines
