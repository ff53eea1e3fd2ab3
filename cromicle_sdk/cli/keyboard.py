"""The keyboard while no prompt reads it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator

from .signals import called_before_termination

__all__ = ["without_echo"]


@contextlib.contextmanager
def without_echo() -> Generator[None]:
    """Disable the echo of typed characters, which stay available to the next program.

    It is enabled again at the end, even if SIGTERM ends the process.
    """
    try:
        import termios
    except ImportError:
        # Windows echoes only while a program reads.
        yield
        return
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (AttributeError, OSError, ValueError, termios.error):
        # Stdin is closed or not a terminal.
        yield
        return
    if _is_in_background(descriptor):
        yield
        return

    def restore() -> None:
        if not _is_in_background(descriptor):
            termios.tcsetattr(descriptor, termios.TCSANOW, before)

    changed = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    with called_before_termination(restore):
        termios.tcsetattr(descriptor, termios.TCSANOW, changed)
        try:
            yield
        finally:
            restore()


def _is_in_background(descriptor: int) -> bool:
    """Return whether a shell runs this process in the background.

    A change of the terminal would then stop the process.
    """
    try:
        return os.tcgetpgrp(descriptor) != os.getpgrp()
    except OSError:
        # Not the controlling terminal: anyone may change it.
        return False
