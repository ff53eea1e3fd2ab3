"""On a terminal: streamed text, no control characters, colour."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from screens import Screen
from typing_extensions import Self

from cromicle_sdk.testing import FaultyServer

PATIENCE = 20.0


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        yield running


class Terminal:
    """A pseudo terminal, and a process of the command on it."""

    def __init__(self, *arguments: str, is_blocking: bool = True, **environment: str) -> None:
        self.master, slave = pty.openpty()
        os.set_blocking(slave, is_blocking)
        kept = {name: text for name, text in os.environ.items() if name[:9] != "CROMICLE_"}
        plain = {"TERM": "xterm", "PYTHONUTF8": "1", **environment}
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONUNBUFFERED"):
            kept.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cromicle_sdk", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**kept, **plain},
        )
        os.close(slave)
        self.seen = b""

    def read_until(self, end: bytes) -> None:
        while end not in self.seen:
            assert select.select([self.master], [], [], PATIENCE)[0], self.seen
            self.seen += os.read(self.master, 1024)

    def read_all(self) -> bytes:
        # Linux says EIO where others say that it has ended.
        with contextlib.suppress(OSError):
            while data := os.read(self.master, 1024):
                self.seen += data
        return self.seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self.master)


def test_the_text_streams_and_ends_in_a_line_break(server: FaultyServer) -> None:
    gate = threading.Event()
    server.reply(chunks=["Hello, ", "wörld!"], gate=gate)
    with Terminal("ask", "--raw", "--base-url", server.base_url, "Hi") as terminal:
        terminal.read_until(b"Hello, ")
        gate.set()
        # A terminal makes CR LF of a line feed.
        assert terminal.read_all() == "Hello, wörld!\r\n".encode()
        assert terminal.process.wait(PATIENCE) == 0


def test_control_characters_of_a_reply_do_not_reach_the_terminal(server: FaultyServer) -> None:
    server.reply("a\x1b]0;title\x07\x9b31mb\tc\r\n")
    with Terminal("ask", "--raw", "--base-url", server.base_url, "Hi") as terminal:
        mark = "\N{REPLACEMENT CHARACTER}"
        shown = f"a{mark}]0;title{mark}{mark}31mb\tc\r\n"
        assert terminal.read_all().decode() == shown


def test_characters_that_the_terminal_cannot_encode_are_replaced(server: FaultyServer) -> None:
    server.reply("Grüße 🎉")
    with Terminal(
        "ask", "--raw", "--base-url", server.base_url, "Hi", PYTHONIOENCODING="ascii"
    ) as terminal:
        assert terminal.read_all() == b"Gr??e ?\r\n"
        assert terminal.process.wait(PATIENCE) == 0


def test_an_error_begins_on_a_line_of_its_own_and_in_colour(server: FaultyServer) -> None:
    server.cut(after="Hello, wor")
    with Terminal("ask", "--base-url", server.base_url, "Hi") as terminal:
        text, label, error = terminal.read_all().partition(b"\x1b[1;31mError: \x1b[0m")
        # Before the text, a clock may have been painted.
        screen = Screen()
        screen.feed(text)
        assert (screen.lines, screen.cursor) == (["Hello, wor"], (1, 0))
        assert label
        assert error.count(b"\n") == 1
        assert terminal.process.wait(PATIENCE) == 1


def test_colour_can_be_turned_off(server: FaultyServer) -> None:
    server.fail(404)
    with Terminal(
        "ask", "--raw", "--base-url", server.base_url, "Hi", NO_COLOR="1", TERM="dumb"
    ) as terminal:
        assert terminal.read_all().startswith(b"Error: ")


def test_ctrl_c_leaves_the_cursor_on_a_line_of_its_own(server: FaultyServer) -> None:
    server.reply(chunks=["Hello, ", "world!"], gate=threading.Event())
    with Terminal("ask", "--raw", "--base-url", server.base_url, "Hi") as terminal:
        terminal.read_until(b"Hello, ")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.read_all() == b"Hello, \r\n"
        assert terminal.process.wait(PATIENCE) == 130


def test_without_text_it_does_not_read_the_terminal() -> None:
    with Terminal("ask", "--local") as terminal:
        assert b"There is no text to send" in terminal.read_all()
        assert terminal.process.wait(PATIENCE) == 2


def test_a_terminal_that_does_not_block_loses_nothing(server: FaultyServer) -> None:
    lines = [f"{number:9}" for number in range(20_000)]
    server.reply("\n".join(lines))
    with Terminal(
        "ask", "--raw", "--base-url", server.base_url, "Hi", is_blocking=False
    ) as terminal:
        assert terminal.read_all().decode().splitlines() == lines
        assert terminal.process.wait(PATIENCE) == 0


def test_a_token_is_prompted_for_and_not_shown(config_folder: Path) -> None:
    with Terminal("config", "set", "token") as terminal:
        terminal.read_until(b"Token: ")
        os.write(terminal.master, b"s3cret\n")
        assert terminal.read_all() == b"Token: \r\n"
        assert terminal.process.wait(PATIENCE) == 0
    assert 'token = "s3cret"' in (config_folder / "config.toml").read_text()


def test_a_dash_reads_the_terminal(server: FaultyServer) -> None:
    with Terminal("ask", "--base-url", server.base_url, "-") as terminal:
        # Ctrl-D ends what is typed.
        os.write(terminal.master, b"Typed.\n\x04")
        terminal.read_all()
        assert terminal.process.wait(PATIENCE) == 0
    assert [request.message for request in server.requests] == ["Typed.\n"]


@pytest.mark.parametrize("is_cut", [True, False])
def test_verbose_lines_and_the_reply_are_lines_of_their_own(
    is_cut: bool, server: FaultyServer
) -> None:
    if is_cut:
        server.cut(after="Hello")
    else:
        server.reply(chunks=["Hel", "lo"])
    with Terminal("ask", "--base-url", server.base_url, "--verbose", "Hi") as terminal:
        lines = terminal.read_all().decode().splitlines()
        assert terminal.process.wait(PATIENCE) == int(is_cut)
    end = "failed: IncompleteReplyError" if is_cut else "succeeded: status 200"
    starts = ["attempt 1: POST ", "Hello", f"attempt 1 {end}", "\x1b[1;31mError: "][: 3 + is_cut]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
