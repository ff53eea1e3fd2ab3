"""The slots of `max_connections`: first come, first served, and none is lost."""

from __future__ import annotations

import gc

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


def test_nobody_is_woken_where_no_slot_is_free() -> None:
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
