"""A reply on a terminal while it arrives: what is painted, and how often."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from screens import PATIENCE, Screen

from cromicle_sdk.cli import rendering as _rendering
from cromicle_sdk.cli.rendering import REPAINTS_PER_SECOND, LiveOutput, Painter, build_console


class Terminal(io.TextIOWrapper):
    """What is written to it goes to an emulator."""

    def __init__(self, encoding: str = "utf-8", columns: int = 40, lines: int = 12) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.columns, self.lines = columns, lines

    @property
    def written(self) -> bytes:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()

    @property
    def screen(self) -> Screen:
        screen = Screen(self.columns, self.lines)
        # As a terminal does.
        screen.feed(self.written.replace(b"\n", b"\r\n"))
        return screen

    def wait_until(self, condition: Callable[[Screen], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition(self.screen):
            assert time.monotonic() < end, self.screen.text
            time.sleep(0.01)

    def open(self) -> LiveOutput:
        console = build_console(self.encoding, width=self.columns, height=self.lines, _environ={})
        return LiveOutput(self, console)


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def live(terminal: Terminal) -> Iterator[LiveOutput]:
    output = terminal.open()
    output.begin()
    yield output
    output.end_line()


# Which lines are written


def paint(steps: list[tuple[list[str], list[str]]]) -> Screen:
    terminal = Terminal()
    painter = Painter(terminal)
    for final, lines in steps:
        painter.paint(final, lines, terminal.columns)
    return terminal.screen


LINES = st.lists(st.sampled_from(["", "a", "ab", "abc", "日本"]), max_size=5)


@given(steps=st.lists(st.tuples(LINES, LINES), max_size=8))
@settings(max_examples=200, deadline=None)
def test_the_screen_shows_the_final_lines_and_the_last_others(
    steps: list[tuple[list[str], list[str]]],
) -> None:
    expected = [line for final, _ in steps for line in final] + (steps[-1][1] if steps else [])
    while expected and not expected[-1]:
        expected.pop()
    # pyte has an empty cell behind a wide character.
    assert [line.replace(" ", "") for line in paint(steps).lines] == expected


def test_only_what_has_changed_is_written() -> None:
    terminal = Terminal()
    painter = Painter(terminal)
    painter.paint([], ["One", "Two"], 40)
    before = len(terminal.written)
    painter.paint([], ["One", "Two"], 40)
    assert len(terminal.written) == before
    painter.paint(["One"], ["Two, and more", "Three"], 40)
    assert terminal.written[before:] == b", and more\nThree"
    assert painter.repaints == 2


def test_lines_that_a_narrower_window_has_wrapped_are_replaced() -> None:
    terminal = Terminal(columns=10)
    painter = Painter(terminal)
    # It was 20 columns wide when this was painted: now it takes two rows.
    painter.paint([], ["\x1b[1mabcdefghijklmno\x1b[0m"], 20)
    painter.paint([], ["xyz"], 10)
    assert terminal.screen.lines == ["xyz"]


def test_the_cursor_ends_on_a_line_of_its_own() -> None:
    terminal = Terminal()
    painter = Painter(terminal)
    painter.end_line()
    assert terminal.written == b""
    painter.paint([], ["One"], 40)
    painter.end_line()
    painter.end_line()
    assert terminal.screen.cursor == (1, 0)


# A reply


class FakeTime:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The time of a reply, which stands still until the test changes it."""
    fake = FakeTime()
    monkeypatch.setattr(_rendering, "time", fake)
    return fake


def test_a_clock_runs_until_the_first_text(
    clock: FakeTime, terminal: Terminal, live: LiveOutput
) -> None:
    clock.now = 0.1
    terminal.wait_until(lambda screen: " 0.1 s" in screen.text)
    clock.now = 0.3
    terminal.wait_until(lambda screen: " 0.3 s" in screen.text)
    live.write("Hello")
    terminal.wait_until(lambda screen: screen.lines == ["Hello"])


def test_the_clock_needs_no_unicode(clock: FakeTime) -> None:
    terminal = Terminal(encoding="ascii")
    output = terminal.open()
    output.begin()
    clock.now = 0.2
    terminal.wait_until(lambda screen: " 0.2 s" in screen.text)
    output.end_line()
    assert terminal.screen.lines == []
    assert b"?" not in terminal.written


def test_a_note_stays_above_the_clock_and_the_text(terminal: Terminal, live: LiveOutput) -> None:
    live.note("retrying 2 of 3 in 1.4 s: 503")
    terminal.wait_until(lambda screen: "503" in screen.text and " s" in screen.lines[-1])
    live.write("Hello")
    live.note("\x1b[2Jlate")
    terminal.wait_until(lambda screen: "late" in screen.text)
    live.end_line()
    lines = terminal.screen.lines
    assert lines[0] == "retrying 2 of 3 in 1.4 s: 503"
    assert sorted(lines[1:]) == ["Hello", "\N{REPLACEMENT CHARACTER}[2Jlate"]


def test_text_is_painted_while_it_arrives(terminal: Terminal, live: LiveOutput) -> None:
    live.write("One **two")
    terminal.wait_until(lambda screen: screen.lines == ["One **two"])
    live.write("** three\n\nFour")
    terminal.wait_until(lambda screen: screen.lines == ["One two three", "", "Four"])
    live.end_line()
    live.end_line()
    assert terminal.screen.cursor == (3, 0)


def test_a_burst_of_chunks_is_painted_a_few_times(terminal: Terminal, live: LiveOutput) -> None:
    # The clock has been painted if it is long since `begin`.
    began, repaints = time.monotonic(), live.repaints
    for number in range(2000):
        live.write(f"word {number} ")
        if not number % 100:
            # As a network would, so that the painter has its chance.
            time.sleep(0.01)
    live.end_line()
    elapsed = time.monotonic() - began
    # One at the start, and one at the end.
    assert live.repaints - repaints <= elapsed * REPAINTS_PER_SECOND + 2
    assert "word 1999" in terminal.screen.text


def test_an_output_that_has_not_begun_writes_nothing(terminal: Terminal) -> None:
    terminal.open().end_line()
    assert terminal.written == b""


# Failures


class Closed(io.BytesIO):
    def write(self, data: Any) -> int:
        raise BrokenPipeError


def test_a_terminal_that_is_gone_ends_the_reply() -> None:
    stream = io.TextIOWrapper(Closed(), encoding="utf-8")
    output = LiveOutput(stream, build_console("utf-8", _environ={}))
    output.begin()
    with pytest.raises(BrokenPipeError):
        for _ in range(int(PATIENCE * 100)):
            output.write("Hello")
            time.sleep(0.01)
    with pytest.raises(BrokenPipeError):
        output.end_line()


def test_ctrl_c_waits_for_the_painter() -> None:
    class Thread(threading.Thread):
        joins = 0

        def join(self, timeout: float | None = None) -> None:
            self.joins += 1
            if self.joins == 1:
                raise KeyboardInterrupt
            gate.set()
            super().join(timeout)

    gate = threading.Event()
    thread = Thread(target=gate.wait)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        _rendering._join(thread)
    assert not thread.is_alive()


# The keyboard
