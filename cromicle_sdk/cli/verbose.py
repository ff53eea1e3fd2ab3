"""Printing the records of the logger `cromicle_sdk`: retries, or all of them with `--verbose`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Mapping
from typing import Any

from cromicle_sdk import APIStatusError, APITimeoutError, CromicleError

from .output import Output, report

__all__ = ["calls_on_stderr", "retries_noted"]

_NAME = "cromicle_sdk"


@contextlib.contextmanager
def calls_on_stderr(output: Output) -> Generator[None]:
    """Print each attempt, each retry and the end of a call on stderr.

    None of these lines contains a token, a prompt or a reply.
    """
    handler = _CallHandler(output)
    try:
        with _handled_by(handler, logging.DEBUG):
            yield
    finally:
        handler.report_end()


@contextlib.contextmanager
def retries_noted(output: Output) -> Generator[None]:
    """Show each retry as a status line of the output while the call waits."""
    with _handled_by(_RetryHandler(output), logging.INFO):
        yield


@contextlib.contextmanager
def _handled_by(handler: logging.Handler, level: int) -> Generator[None]:
    logger = logging.getLogger(_NAME)
    level_before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)


class _RetryHandler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        retry: Mapping[str, Any] | None = getattr(record, "retry", None)
        if retry is not None:
            self._output.note(
                f"retrying {retry['attempt'] + 1} of {retry['attempts']}"
                f" in {retry['wait']:.1f} s: {_describe_briefly(retry['error'])}"
            )


def _describe_briefly(error: CromicleError) -> str:
    match error:
        case APIStatusError():
            return str(error.status_code)
        case APITimeoutError():
            return f"timeout ({error.phase})"
        case _:
            return error.problem


class _CallHandler(logging.Handler):
    """Prints each record at once, except for the end of a call, which follows its text."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        self._end: list[str] = []
        # Not child loggers: the embedded server has its own log.
        self.addFilter(lambda record: record.name == _NAME)

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "end_of_call"):
            self._end.append(record.getMessage())
        else:
            report(record.getMessage())

    def report_end(self) -> None:
        """Print the last record of the call."""
        # Stdout and stderr may be the same terminal.
        self._output.end_line()
        for line in self._end:
            report(line)
