"""The slots of `max_connections`: first come, first served, and none is lost."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator

import pytest
from runtimes import run_in_threads

from cromicle_sdk._http.slots import Slot, Slots, Waiter


class Woken:
    """What wakes a waiter, and counts how often it did."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def take(slots: Slots) -> Slot:
    slot = slots.take()
    assert slot is not None
    return slot


def test_there_are_as_many_slots_as_were_asked_for() -> None:
    slots = Slots(2)
    first, second = take(slots), take(slots)
    assert slots.take() is None
    first.release()
    assert isinstance(slots.take(), Slot)
    second.release()


def test_a_slot_that_is_released_twice_comes_back_once() -> None:
    slots = Slots(1)
    slot = take(slots)
    slot.release()
    slot.release()
    kept = take(slots)
    assert slots.take() is None
    kept.release()


def test_a_slot_that_is_dropped_comes_back() -> None:
    slots = Slots(1)
    slot = take(slots)
    del slot
    gc.collect()
    assert isinstance(slots.take(), Slot)


def test_a_free_slot_is_for_those_that_wait() -> None:
    slots = Slots(1)
    slot = take(slots)
    first, second = Woken(), Woken()
    waiters = [slots.wait(first), slots.wait(second)]
    slot.release()
    assert (first.times, second.times) == (1, 0)
    assert slots.take() is None
    assert waiters[1].take() is None
    taken = waiters[0].take()
    assert taken is not None
    waiters[0].leave()
    assert second.times == 0
    taken.release()
    assert second.times == 1
    assert waiters[1].take() is not None


def test_no_waiter_is_woken_while_no_slot_is_free() -> None:
    slots = Slots(1)
    slot = take(slots)
    leaving, staying = Woken(), Woken()
    waiters = [slots.wait(leaving), slots.wait(staying)]
    waiters[0].leave()
    waiters[0].leave()
    assert (leaving.times, staying.times) == (0, 0)
    slot.release()
    assert (leaving.times, staying.times) == (0, 1)


def test_a_waiter_that_is_dropped_lets_the_next_one_in() -> None:
    slots = Slots(1)
    slot = take(slots)
    dropped, next_one = Woken(), Woken()
    waiters = [slots.wait(dropped), slots.wait(next_one)]
    slot.release()
    del waiters[0]
    gc.collect()
    assert next_one.times == 1
    assert waiters[0].take() is not None


def test_a_waiter_is_woken_by_the_last_function_that_it_gave() -> None:
    slots = Slots(1)
    slot = take(slots)
    old, new = Woken(), Woken()
    waiter = slots.wait(old)
    waiter.wake_by(new)
    slot.release()
    assert (old.times, new.times) == (0, 1)
    assert waiter.take() is not None


def test_what_an_interrupt_left_half_made_can_be_dropped() -> None:
    # An error in a finalizer is a warning, which fails the test.
    del (half := [Slot.__new__(Slot), Waiter.__new__(Waiter)])[:]
    gc.collect()
    assert half == []


def test_slots_end_with_their_owner() -> None:
    slots = Slots(1)
    slot = take(slots)
    del slots
    gc.collect()
    slot.release()


# Threads at the same time


@pytest.fixture
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


@pytest.mark.usefixtures("_frequent_switches")
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


@pytest.mark.usefixtures("_frequent_switches")
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
