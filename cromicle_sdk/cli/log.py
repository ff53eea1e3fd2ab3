"""The server's log on stderr, while the command serves."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator

import click

from .terminal import make_harmless

__all__ = ["log_to_stderr"]


class _StderrHandler(logging.Handler):
    """A line for each record: UTC time, level, message."""

    def __init__(self) -> None:
        super().__init__()
        formatter = logging.Formatter(
            "%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ"
        )
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        # Where nobody reads it any more, there is nobody to tell either.
        with contextlib.suppress(OSError):
            click.echo(make_harmless(self.format(record)), err=True)


@contextlib.contextmanager
def log_to_stderr(*, access: bool) -> Generator[None]:
    """Show what the server logs at INFO and above; `access` is whether to show each request."""
    logger = logging.getLogger("cromicle_sdk.server")
    access_logger = logger.getChild("access")
    levels = logger.level, access_logger.level
    handler = _StderrHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    if not access:
        access_logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(levels[0])
        access_logger.setLevel(levels[1])
