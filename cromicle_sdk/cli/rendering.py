"""Rendering of a reply as Markdown on a terminal while it arrives.

A complete block is printed once. Only the last block is repainted, and only the lines of it that
have changed. Therefore a reply may be longer than the screen, and nothing flickers.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import threading
import time
from collections import deque
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from .keyboard import without_echo
from .markdown import Block, divide, divide_anywhere, split_blocks
from .output import remove_controls, write_all

__all__ = ["LiveOutput", "Painter", "RenderedText", "build_console", "draw", "open_live"]

REPAINTS_PER_SECOND = 12

# A block that takes long to paint is painted less often, to use at most this share of a core.
MAX_CPU_SHARE = 0.25

# A longer block is printed in parts, because the cost of each paint grows with its length.
MAX_BLOCK_LENGTH = 16_384

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII_FRAMES = "|/-\\"

_STYLE_CODES = re.compile(r"\x1b\[[\d;]*m")


def open_live(stream: TextIO) -> LiveOutput | None:
    """Return an output that renders on this terminal, or None if it cannot move its cursor."""
    console = build_console(stream.encoding)
    is_simple = console.is_dumb_terminal or console.legacy_windows
    return None if is_simple else LiveOutput(stream, console)


def build_console(encoding: str, **options: Any) -> Console:
    """Return a console with the properties of the terminal, which renders but does not write.

    rich flushes the file of a console after each rendering.
    """
    return Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), force_terminal=True, **options
    )


class LiveOutput:
    """An `Output` for one reply on a terminal: a clock until its first text, then its Markdown.

    A thread paints at most `REPAINTS_PER_SECOND` times a second. `write` does not wait for it.
    """

    def __init__(self, stream: TextIO, console: Console) -> None:
        self._console = console
        self._text = RenderedText(console)
        self._painter = Painter(stream)
        self._written: deque[str] = deque()
        self._notes: deque[str] = deque()
        self._changed = threading.Event()
        self._over = threading.Event()
        self._error: OSError | None = None
        self._started = 0.0
        self._keyboard = contextlib.ExitStack()
        # A daemon thread, so that a paused terminal does not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="cromicle-terminal", daemon=True)

    def begin(self) -> None:
        self._started = time.monotonic()
        self._keyboard.enter_context(without_echo())
        self._thread.start()

    @property
    def repaints(self) -> int:
        """The number of times that the screen has been painted."""
        return self._painter.repaints

    def write(self, text: str) -> None:
        if self._error is not None:
            raise self._error
        self._written.append(text)
        self._changed.set()

    def note(self, line: str) -> None:
        self._notes.append(line)
        self._changed.set()

    def end_line(self) -> None:
        """Print the rest, and move the cursor to the beginning of a line. Idempotent."""
        if self._over.is_set():
            return
        self._over.set()
        self._changed.set()
        with self._keyboard:
            _join(self._thread)
            if self._error is not None:
                raise self._error
            self._paint(is_last=True)
            self._painter.end_line()

    def _run(self) -> None:
        try:
            # No clock for a reply that arrives at once.
            self._changed.wait(1 / REPAINTS_PER_SECOND)
            while not self._over.is_set():
                began = time.monotonic()
                self._changed.clear()
                self._paint()
                spent = time.monotonic() - began
                if self._over.wait(max(1 / REPAINTS_PER_SECOND, spent / MAX_CPU_SHARE)):
                    # Do not wait for `_changed`, which may have been cleared after `end_line`.
                    break
                if self._text.has_begun:
                    self._changed.wait()
        except OSError as error:
            self._error = error

    def _paint(self, *, is_last: bool = False) -> None:
        while self._written:
            self._text.append(self._written.popleft())
        # One less than the screen has: terminals differ in the width of some characters, and the
        # cursor stays at the end of the last line.
        width, height = self._console.width - 1, self._console.height - 1
        final: list[str] = []
        while self._notes:
            note = Text(remove_controls(self._notes.popleft()), "dim")
            final += draw(self._console, note, width)
        lines, open_lines = self._text.render(width, height, is_last=is_last)
        if not self._text.has_begun and not is_last:
            open_lines = draw(self._console, self._build_clock(), width)
        self._painter.paint([*final, *lines], open_lines, width + 1)

    def _build_clock(self) -> Text:
        seconds = time.monotonic() - self._started
        frames = _FRAMES if self._console.encoding.startswith("utf") else _ASCII_FRAMES
        frame = frames[int(seconds * REPAINTS_PER_SECOND) % len(frames)]
        return Text(f"{frame} {seconds:.1f} s", "dim")


class RenderedText:
    """A growing text, rendered as lines for a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # The text from the first block that is not final, and the text added since.
        self._open = ""
        self._new: list[str] = []
        # Whether a blank line comes before the next block.
        self._needs_gap = False
        self.has_begun: bool = False

    @property
    def open_length(self) -> int:
        """The length of the text that is not final."""
        return len(self._open)

    def append(self, text: str) -> None:
        self._new.append(remove_controls(text))
        self.has_begun = True

    def render(
        self, width: int, height: int, *, is_last: bool = False
    ) -> tuple[list[str], list[str]]:
        """Return the lines that have become final since the last call, and those that may change.

        The latter are at most the last `height` lines. With `is_last`, all lines are final.
        """
        self._open += "".join(self._new)
        self._new.clear()
        final: list[str] = []
        while True:
            lines = self._open.split("\n")
            blocks = split_blocks(self._open)
            count = len(blocks) if is_last else _count_final(blocks, lines)
            if count:
                final += self._draw(blocks[:count], width)
                self._needs_gap = True
                self._open = "\n".join(lines[blocks[count].start :]) if blocks[count:] else ""
                continue
            drawn = self._draw(blocks, width)
            is_too_long = len(self._open) > MAX_BLOCK_LENGTH
            if len(blocks) != 1 or not (is_too_long or len(drawn) > height):
                return final, drawn[-height:]
            (block,) = blocks
            parts = divide(block, lines)
            if parts is None and is_too_long:
                parts = divide_anywhere(block, self._open)
            if parts is None:
                return final, drawn[-height:]
            final += self._draw(split_blocks(parts[0]), width)
            self._needs_gap = False
            self._open = parts[1]

    def _draw(self, blocks: list[Block], width: int) -> list[str]:
        """Return the lines of blocks, separated by blank lines."""
        drawn: list[str] = []
        for index, block in enumerate(blocks):
            if index or self._needs_gap:
                drawn.append("")
            drawn += draw(self._console, block.drawing, width)
        return drawn


class Painter:
    """The lines at the end of a terminal that may still change."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._width = 0
        self.repaints: int = 0

    def paint(self, final: list[str], lines: list[str], width: int) -> None:
        """Replace the lines of the last call. The `final` lines will not change any more.

        `width` is that of the screen. Raises `OSError`.
        """
        target = [*final, *lines]
        if not final and lines == self._lines:
            return
        changes = self._build_changes(target, width)
        if not lines and target:
            changes += "\n"
        self._write(changes)
        self._lines = lines
        self.repaints += 1

    def end_line(self) -> None:
        """Move the cursor to the next line if it is after text."""
        if self._lines:
            self._write("\n")
            self._lines = []

    def _build_changes(self, target: list[str], width: int) -> str:
        """Return the output that replaces the old lines, at whose end the cursor is."""
        old = self._lines
        if not old:
            return "\n".join(target)
        same = 0
        while same < min(len(old), len(target)) and old[same] == target[same]:
            same += 1
        if same == len(old):
            return "".join(f"\n{line}" for line in target[same:])
        if same == len(old) - 1 and target[same:] and target[same].startswith(old[same]):
            # The most frequent case: the last line has become longer.
            longer = target[same][len(old[same]) :]
            return "\n".join([longer, *target[same + 1 :]])
        # The cursor has to end after a line.
        same = max(0, min(same, len(target) - 1))
        rows = sum(_count_rows(line, width) for line in old[same:]) - 1
        start = "\r" + (f"\x1b[{rows}A" if rows else "")
        # Lines are erased after they are written, which avoids flicker.
        return start + "\n".join(f"{line}\x1b[K" for line in target[same:]) + "\x1b[J"

    def _write(self, text: str) -> None:
        data = text.replace("\n", os.linesep).encode(self._stream.encoding, "replace")
        # In a single write, so that the terminal shows no intermediate state.
        write_all(self._stream.buffer, data)


def draw(console: Console, drawing: RenderableType, width: int) -> list[str]:
    """Render a drawing to lines, including the escape codes of their styles."""
    with console.capture() as capture:
        console.print(drawing, width=max(1, width))
    return [line.rstrip(" ") for line in capture.get().removesuffix("\n").split("\n")]


def _count_final(blocks: list[Block], lines: list[str]) -> int:
    """Return the number of blocks that will not change, whatever follows."""
    # The first line of the last block may still become part of the block before.
    is_open = blocks and blocks[-1].start == len(lines) - 1
    return max(0, len(blocks) - (2 if is_open else 1))


def _count_rows(line: str, width: int) -> int:
    """Return the number of rows of a line, more than one after the window has become narrower."""
    return max(1, math.ceil(cell_len(_STYLE_CODES.sub("", line)) / width))


def _join(thread: threading.Thread) -> None:
    """Wait for the end of the painting thread, and delay `KeyboardInterrupt` until then."""
    interrupt: KeyboardInterrupt | None = None
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
