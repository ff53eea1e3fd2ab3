"""Slots that threads take, wait for and put back at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
from runtimes import run_in_threads

from cromicle_sdk._http.slots import Slot, Slots


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    """Let the interpreter change between threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def acquire(slots: Slots) -> Slot:
    slot = slots.take()
    if slot is None:
        woken = threading.Semaphore(0)
        waiter = slots.wait(woken.release)
        slot = waiter.take()
        while slot is None:
            assert woken.acquire(timeout=20)
            slot = waiter.take()
        waiter.leave()
    return slot


def test_threads_never_have_more_slots_than_there_are_and_none_is_lost() -> None:
    slots = Slots(3)
    taken: list[None] = []

    def work() -> None:
        for _ in range(2000):
            slot = acquire(slots)
            taken.append(None)
            assert len(taken) <= 3
            taken.pop()
            slot.release()

    run_in_threads(*[work] * 16)
    again = [slots.take() for _ in range(4)]
    assert [slot is not None for slot in again] == [True, True, True, False]


@pytest.mark.parametrize("count", [1, 100])
def test_threads_take_the_last_slots_once(count: int) -> None:
    for _ in range(20):
        slots = Slots(count)
        taken: list[Slot] = []
        start = threading.Barrier(8, timeout=20)

        def work(slots: Slots = slots, taken: list[Slot] = taken, start: object = start) -> None:
            assert isinstance(start, threading.Barrier)
            start.wait()
            while (slot := slots.take()) is not None:
                taken.append(slot)

        run_in_threads(*[work] * 8)
        assert len(taken) == count
