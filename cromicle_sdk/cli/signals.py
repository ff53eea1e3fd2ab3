"""What is done before SIGTERM ends the process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType

__all__ = ["called_before_termination"]


@contextlib.contextmanager
def called_before_termination(action: Callable[[], None]) -> Generator[None]:
    """Call an action before SIGTERM has its former effect, even if the action fails.

    Only the main thread can do so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        try:
            action()
        finally:
            signal.signal(signal.SIGTERM, handler)
            signal.raise_signal(signal.SIGTERM)

    # Known before the signal can arrive.
    handler = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
