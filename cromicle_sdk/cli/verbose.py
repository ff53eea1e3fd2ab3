"""`--verbose`: the lines of the logger `cromicle_sdk` on stderr, while a call runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator

from .output import Output, report

__all__ = ["calls_on_stderr"]

_NAME = "cromicle_sdk"


@contextlib.contextmanager
def calls_on_stderr(output: Output, *, enabled: bool) -> Generator[None]:
    """Print each attempt, retry and end of a call on stderr, on lines of their own.

    None of them holds a token, a prompt or a reply.
    """
    if not enabled:
        yield
        return
    logger = logging.getLogger(_NAME)
    level = logger.level
    handler = _CallHandler(output)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.report_end()


class _CallHandler(logging.Handler):
    """Prints each record at once, but the last of a call after its text, which it may precede."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        self._end: list[str] = []
        # Not those below it: the embedded server has a log of its own.
        self.addFilter(lambda record: record.name == _NAME)

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "end_of_call"):
            self._end.append(record.getMessage())
        else:
            report(record.getMessage())

    def report_end(self) -> None:
        """Print the last record of the call, on a line of its own."""
        # Both may be the same terminal.
        self._output.end_line()
        for line in self._end:
            report(line)
