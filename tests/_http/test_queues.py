"""Waiting for an item of a queue, so that signal handlers can run."""

from __future__ import annotations

import queue
import threading
from queue import SimpleQueue

import pytest

from cromicle_sdk._http import queues


def test_an_item_that_is_there_is_taken() -> None:
    items: SimpleQueue[str] = SimpleQueue()
    items.put("a")
    assert queues.take(items, wait=False) == ["a"]
    assert queues.take(items, wait=False) == []
    assert queues.get(items, 0) == []
    assert queues.get(items, 0.001) == []


def test_an_empty_queue_is_not_waited_for() -> None:
    class Empty:
        def get_nowait(self) -> object:
            raise queue.Empty

    items: SimpleQueue[object] = Empty()  # type: ignore[assignment]
    assert queues.take(items, wait=False) == []
    assert queues.get(items, 0) == []


def test_an_item_that_is_late_is_waited_for_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "SIGNAL_DELAY_SECONDS", 0.01)
    items: SimpleQueue[str] = SimpleQueue()
    timer = threading.Timer(0.05, items.put, ("late",))
    timer.start()
    assert queues.take(items, wait=True) == ["late"]
    timer.join()


def test_an_exception_of_a_signal_handler_is_raised() -> None:
    class Interrupted:
        def get_nowait(self) -> object:
            raise queue.Empty

        def get(self, timeout: float) -> object:
            raise queue.Empty("mine")

    items: SimpleQueue[object] = Interrupted()  # type: ignore[assignment]
    with pytest.raises(queue.Empty, match="mine"):
        queues.get(items, 1)
