"""The log of `cromicle serve` on stderr, written without blocking the event loop."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Generator

from .output import remove_controls
from .signals import called_before_termination

__all__ = ["LogWriter", "log_to_stderr"]

# A few megabytes: the log of a busy server while the reader of a pipe pauses for ten seconds.
MAX_QUEUED_LINES = 10_000

# How long to wait at the end until the last lines are written. An active reader takes no time.
FLUSH_SECONDS = 0.5

# How long to wait before writing again to a full pipe that another process made non-blocking.
RETRY_SECONDS = 0.05


@contextlib.contextmanager
def log_to_stderr(*, access: bool) -> Generator[None]:
    """Print the server's log at INFO and above. If `access` is true, include the access log.

    Warnings and errors of other packages are printed, too. SIGTERM ends the process only after the
    last lines have been printed.
    """
    root = logging.getLogger()
    logger = logging.getLogger("cromicle_sdk.server")
    access_logger = logger.getChild("access")
    levels = logger.level, access_logger.level
    writer = LogWriter()
    handler = _LogHandler(writer)
    # The root logger: Python's handler of last resort would block on a full pipe.
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    if not access:
        access_logger.setLevel(logging.WARNING)
    try:
        # uvicorn raises SIGTERM again after its stop.
        with called_before_termination(writer.close):
            yield
    finally:
        root.removeHandler(handler)
        writer.close()
        logger.setLevel(levels[0])
        access_logger.setLevel(levels[1])


class LogWriter:
    """Writes lines to stderr in a separate thread.

    Otherwise a pipe that is not read would block the event loop of the server. Lines beyond
    `MAX_QUEUED_LINES` are dropped, and their number is written instead.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._is_closed = False
        self._changed = threading.Condition()
        # A daemon thread, so that the process can exit while the thread waits for a reader.
        self._thread = threading.Thread(target=self._run, name="cromicle-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue a line, which has no line break, or drop it. Never blocks."""
        with self._changed:
            if len(self._lines) < MAX_QUEUED_LINES:
                self._lines.append(line)
            else:
                self._dropped += 1
            self._changed.notify()

    def close(self) -> None:
        """Write the queued lines, within `FLUSH_SECONDS`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(FLUSH_SECONDS)

    def _run(self) -> None:
        while lines := self._take():
            _write_to_stderr("".join(f"{line}\n" for line in lines))

    def _take(self) -> list[str]:
        """Wait for lines and return them, or an empty list once the writer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._is_closed)
            lines = list(self._lines)
            self._lines.clear()
            if self._dropped:
                lines.append(f"{self._dropped} lines of the log were dropped: stderr was not read")
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
            # Replaced by another object, as in tests.
            sys.stderr.write(text)
            return
        # Not `sys.stderr.write`, which holds a lock that the interpreter acquires at exit.
        data = text.encode(sys.stderr.encoding, "backslashreplace")
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                time.sleep(RETRY_SECONDS)
