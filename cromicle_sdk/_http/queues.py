"""Waiting for an item of a queue, in code that signal handlers can interrupt."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import TypeVar

from .sockets import SIGNAL_DELAY_SECONDS, is_from_system

__all__ = ["get", "take"]

T = TypeVar("T")


def take(queue: SimpleQueue[T], *, wait: bool) -> list[T]:
    """Return the next item; without `wait`, or none if the queue is empty.

    It waits in steps. Between them the interpreter runs the handlers of signals that did not
    interrupt the wait.
    """
    items = get(queue, 0)
    while wait and not items:
        items = get(queue, SIGNAL_DELAY_SECONDS)
    return items


def get(queue: SimpleQueue[T], timeout: float) -> list[T]:
    """Return the next item, or none after `timeout` seconds.

    In Python 3.10, `SimpleQueue.get` never returns if its timeout has passed when it acquires the
    lock of the queue. A first `get` that does not wait leaves the lock acquired.
    """
    try:
        return [queue.get_nowait()]
    except Empty:
        if timeout <= 0:
            return []
    try:
        return [queue.get(timeout=timeout)]
    except Empty as error:
        if not is_from_system(error):
            raise
        return []
