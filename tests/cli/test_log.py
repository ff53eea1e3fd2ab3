"""The log on stderr, also while its reader is stopped."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cromicle_sdk.cli import log as _log
from cromicle_sdk.cli.log import LogWriter, log_to_stderr

PATIENCE = 20.0
UNIX = pytest.mark.skipif(sys.platform == "win32", reason="it has other pipes and signals")
COMMAND = [sys.executable, "-W", "error", "-X", "dev", "-m", "cromicle_sdk", "serve", "--port=0"]


class Pipe:
    """A pipe as stderr, which is read when the test says so."""

    def __init__(self, *, blocking: bool = True) -> None:
        self.reader, writer = os.pipe()
        os.set_blocking(writer, blocking)
        self.stderr = io.TextIOWrapper(io.FileIO(writer, "w"), encoding="utf-8", write_through=True)

    def read(self) -> str:
        """Everything until the pipe is closed."""
        with os.fdopen(self.reader, encoding="utf-8") as file:
            return file.read()

    def fill(self) -> int:
        """Write until it takes no more; returns how much that was."""
        descriptor = self.stderr.fileno()
        os.set_blocking(descriptor, False)
        size = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                size += os.write(descriptor, b"." * 1024)
        os.set_blocking(descriptor, True)
        return size


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    with pipe.stderr:
        yield pipe


@pytest.fixture(autouse=True)
def _flush_completely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait at the end until the last line is written, however busy the machine is."""
    monkeypatch.setattr(_log, "FLUSH_SECONDS", PATIENCE)


@UNIX
def test_lines_beyond_the_queue_are_dropped_and_counted(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", pipe.stderr)
    monkeypatch.setattr(_log, "MAX_QUEUED_LINES", 100)
    filled = pipe.fill()
    writer = LogWriter()
    writer.write("first")
    # The thread has taken it, and waits.
    wait_until(lambda: not writer._lines)
    for number in range(1000):
        writer.write(f"line {number}")
    text: list[str] = []
    reading = threading.Thread(target=lambda: text.append(pipe.read()))
    reading.start()
    wait_until(lambda: not writer._lines)
    writer.write("last")
    writer.close()
    pipe.stderr.close()
    reading.join(PATIENCE)
    lines = text[0][filled:].splitlines()
    assert lines[:3] == ["first", "line 0", "line 1"]
    assert lines[100:] == [
        "line 99",
        "900 lines of the log were dropped: stderr was not read",
        "last",
    ]


@UNIX
def test_closing_does_not_wait_for_the_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", pipe.stderr)
    monkeypatch.setattr(_log, "FLUSH_SECONDS", 0.05)
    pipe.fill()
    writer = LogWriter()
    writer.write("line")
    writer.close()
    assert writer._thread.is_alive()
    os.close(pipe.reader)
    writer._thread.join(PATIENCE)
    assert not writer._thread.is_alive()


@UNIX
def test_a_pipe_that_does_not_block_gets_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(blocking=False)
    monkeypatch.setattr(sys, "stderr", pipe.stderr)
    text: list[str] = []
    with pipe.stderr:
        writer = LogWriter()
        for number in range(5000):
            writer.write(f"{number} " + "x" * 100)
        reading = threading.Thread(target=lambda: text.append(pipe.read()))
        reading.start()
        writer._thread.join(0)
        wait_until(lambda: not writer._lines)
        writer.close()
    reading.join(PATIENCE)
    assert [line.split()[0] for line in text[0].splitlines()] == [str(n) for n in range(5000)]


def test_an_object_in_place_of_stderr_gets_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with log_to_stderr(access=True):
        logging.getLogger("cromicle_sdk.server.access").info("end=complete")
        logging.getLogger("cromicle_sdk.server").warning("two\nlines\x1b")
        logging.getLogger("another").warning("of another package")
        logging.getLogger("another").info("not shown")
    lines = stderr.getvalue().splitlines()
    assert [line.partition("Z ")[2] or line for line in lines] == [
        "INFO end=complete",
        "WARNING two",
        "lines\N{REPLACEMENT CHARACTER}",
        "WARNING of another package",
    ]


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_stderr_that_fails_is_ignored(is_closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError

    monkeypatch.setattr(sys, "stderr", None if is_closed else Failing())
    with log_to_stderr(access=False):
        logging.getLogger("cromicle_sdk.server").warning("lost")


def test_the_levels_and_the_handler_of_sigterm_are_restored() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    loggers = [logging.getLogger(name) for name in ("", "cromicle_sdk.server")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    with log_to_stderr(access=False):
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_it_works_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)

    def log() -> None:
        with log_to_stderr(access=True):
            logging.getLogger("cromicle_sdk.server").info("from a thread")

    thread = threading.Thread(target=log)
    thread.start()
    thread.join(PATIENCE)
    assert "from a thread" in stderr.getvalue()


def test_sigterm_is_handled_once_the_last_line_is_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    seen: list[str] = []
    previous = signal.signal(signal.SIGTERM, lambda *_: seen.append(stderr.getvalue()))
    try:
        with log_to_stderr(access=True):
            logging.getLogger("cromicle_sdk.server").info("last")
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert len(seen) == 1
    assert seen[0].endswith("INFO last\n")


@UNIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_full_stderr_does_not_stop_the_server(number: int) -> None:
    with subprocess.Popen(COMMAND, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        base_url = process.stderr.readline().split()[-1].decode()
        with httpx.Client(base_url=base_url) as client:
            # Each is a line of some 150 bytes; a pipe holds 64 KiB.
            for _ in range(1500):
                assert client.get("/health").is_success
        process.send_signal(number)
        assert process.wait(PATIENCE) == (-number if number == signal.SIGTERM else 130)
        process.stderr.close()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
