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


class _CallHandler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        # Not those below it: the embedded server has a log of its own.
        self.addFilter(lambda record: record.name == _NAME)

    def emit(self, record: logging.LogRecord) -> None:
        # Both may be the same terminal.
        self._output.end_line()
        report(record.getMessage())
