"""The log of `cromicle serve` on stderr, which does not wait for whoever reads it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from types import FrameType

from .output import remove_controls

__all__ = ["LogWriter", "log_to_stderr"]

# Some megabytes: what a busy server logs in ten seconds while a reader pauses.
MAX_QUEUED_LINES = 10_000

# How long the last lines may take at the end. A reader that is alive takes them at once.
FLUSH_SECONDS = 0.5

# How long to wait for a pipe that is full and does not block, which is another process's choice.
RETRY_SECONDS = 0.05


@contextlib.contextmanager
def log_to_stderr(*, access: bool) -> Generator[None]:
    """Print the server's log at INFO and above; `access` includes a line for each request.

    Warnings and errors of other packages are printed as well. SIGTERM ends the process only once
    the last lines are printed.
    """
    root = logging.getLogger()
    logger = logging.getLogger("cromicle_sdk.server")
    access_logger = logger.getChild("access")
    levels = logger.level, access_logger.level
    writer = LogWriter()
    handler = _LogHandler(writer)
    # Not only of our logger: what no handler takes is printed by Python itself, which waits.
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    if not access:
        access_logger.setLevel(logging.WARNING)
    try:
        with _flushed_before_termination(writer):
            yield
    finally:
        root.removeHandler(handler)
        writer.close()
        logger.setLevel(levels[0])
        access_logger.setLevel(levels[1])


class LogWriter:
    """Writes lines to stderr in a thread of its own.

    A pipe that nobody reads would otherwise stop the event loop, and with it the server. Lines
    beyond `MAX_QUEUED_LINES` are dropped, and their number is written in their place.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._is_closed = False
        self._changed = threading.Condition()
        # A daemon: the process must be able to end while the thread waits for a reader.
        self._thread = threading.Thread(target=self._run, name="cromicle-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue a line, without its line break, or drop it. Never waits for the reader."""
        with self._changed:
            if len(self._lines) < MAX_QUEUED_LINES:
                self._lines.append(line)
            else:
                self._dropped += 1
            self._changed.notify()

    def close(self) -> None:
        """Write the lines that are queued, in `FLUSH_SECONDS` at most."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(FLUSH_SECONDS)

    def _run(self) -> None:
        while lines := self._take():
            _write_to_stderr("".join(f"{line}\n" for line in lines))

    def _take(self) -> list[str]:
        """All queued lines as soon as there is one; none once the writer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._is_closed)
            lines = list(self._lines)
            self._lines.clear()
            if self._dropped:
                lines.append(f"{self._dropped} lines of the log were dropped: nobody read stderr")
                self._dropped = 0
            return lines


class _LogHandler(logging.Handler):
    """Passes each record to the writer as a line: UTC time, level, message."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer
        formatter = logging.Formatter(
            "%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ"
        )
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.write(remove_controls(self.format(record)))


def _write_to_stderr(text: str) -> None:
    # If stderr fails, there is no other place to report it.
    with contextlib.suppress(OSError):
        if sys.stderr is None:
            return
        try:
            descriptor = sys.stderr.fileno()
        except io.UnsupportedOperation:
            # An object that stands in for it, as in a test.
            sys.stderr.write(text)
            return
        # Not its own `write`, which holds a lock that the interpreter wants at its end.
        data = text.encode(sys.stderr.encoding, "backslashreplace")
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                time.sleep(RETRY_SECONDS)


@contextlib.contextmanager
def _flushed_before_termination(writer: LogWriter) -> Generator[None]:
    """Close the writer before SIGTERM ends the process, which uvicorn lets it do once it stops."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        writer.close()
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)

    handler = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
