"""Redaction of secrets, which a server may echo, in the log records of other packages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Redacted", "redact_logs"]

# httpx logs the reason phrase, and hpack the headers of HTTP/2. All other records are redacted with
# httpcore's extension `trace`.
_LOGGERS = ("httpx", "httpx2", "hpack.hpack")


class Redacted:
    """A value of a log record with a redacted repr and text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


@contextmanager
def redact_logs(redact: Callable[[str], str]) -> Generator[None]:
    """Redact the records that this thread or task logs to these loggers during the block."""
    for name in _LOGGERS:
        # `addFilter` is idempotent.
        logging.getLogger(name).addFilter(_filter)
    token = _redact.set(redact)
    try:
        yield
    finally:
        _redact.reset(token)


_redact: ContextVar[Callable[[str], str] | None] = ContextVar("redact", default=None)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        redact = _redact.get()
        if redact is not None and isinstance(record.args, tuple):
            record.args = tuple(_redact_value(value, redact) for value in record.args)
        return True


_filter = _Filter()


def _redact_value(value: object, redact: Callable[[str], str]) -> object:
    if isinstance(value, (int, float)):
        return value
    text = str(value)
    redacted = redact(text)
    return value if redacted == text else Redacted(redacted)
