"""Slots of `max_connections`, and the queue for them, which no interrupt loses."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice, repeat
from typing import Any
from weakref import ref

from .sockets import find_first

__all__ = ["Slot", "Slots", "Waiter"]


class Slots:
    """How many exchanges may be under way; further calls are queued, and served in their order.

    A slot may come back from the garbage collector, at any point and from any thread, and threads
    may take them at the same time. There is no lock, which a finalizer could find taken by the
    code that it interrupts: each operation on one of the collections is a single step.
    """

    def __init__(self, count: int) -> None:
        # Kept here: the collector clears a weak reference that only the objects of a cycle have.
        self._ref: ref[Slots] = ref(self)
        self._unused = repeat(None, count)
        self._free: deque[Slot] = deque()
        # By waiter, what wakes it. Only the first one takes a slot.
        self._queue: OrderedDict[object, Callable[[], object]] = OrderedDict()

    def take(self) -> Slot | None:
        """A slot; None where there is none, or other calls are queued for it."""
        return None if self._queue else self._find()

    def wait(self, wake: Callable[[], object]) -> Waiter:
        """Join the queue. `wake` is called, in any thread, when `Waiter.take` may succeed."""
        return Waiter(self, self._queue, wake)

    def put_back(self, slot: Slot) -> None:
        self._free.append(slot)
        self.wake_first()

    def wake_first(self) -> None:
        """Wake the first in the queue where a slot is free for it."""
        if self._free:
            wake = self._queue.get(find_first(self._queue))
            if wake is not None:
                wake()

    def take_first(self, key: object) -> Slot | None:
        """A slot for a waiter; None where there is none, or it is not the first."""
        return self._find() if find_first(self._queue) is key else None

    def _find(self) -> Slot | None:
        try:
            return self._free.popleft()
        except IndexError:
            slot = Slot(self._ref)
            return slot if slot.fill(self._unused) else None


class Waiter:
    """A call in the queue. It leaves the queue when it says so, or is dropped.

    A call that an interrupt has ended, but whose waiter stays, would block those behind it.
    """

    __slots__ = ("__weakref__", "_key", "_queue", "_slots")

    def __init__(
        self,
        slots: Slots,
        queue: OrderedDict[object, Callable[[], object]],
        wake: Callable[[], object],
    ) -> None:
        self._slots = slots
        self._queue = queue
        self._key = object()
        queue[self._key] = wake

    def wake_by(self, wake: Callable[[], object]) -> None:
        """Replace the function that wakes it, before the next `take`."""
        self._queue[self._key] = wake

    def take(self) -> Slot | None:
        """A slot; None where there is none, or it is not the first in the queue."""
        return self._slots.take_first(self._key)

    def leave(self) -> None:
        """Leave the queue. Idempotent."""
        self._queue.pop(self._key, None)
        # It may have been woken for a slot that it has not taken, and there may be two.
        self._slots.wake_first()

    def __del__(self) -> None:
        # An interrupt may leave one half made.
        if hasattr(self, "_key"):
            self.leave()


class Slot:
    """One of the exchanges that may be under way. It goes back when it is released, or dropped.

    An interrupt may come between any two steps of the interpreter, also while a slot is on its way
    from one function to another. It is dropped then.
    """

    __slots__ = ("_owner", "_permit")

    def __init__(self, owner: ref[Slots]) -> None:
        # Weak: an owner that is dropped must not live on through the slots that come back to it.
        self._owner = owner
        # One item; none in a slot that is no slot yet, or not any more.
        self._permit: list[None] = []

    def fill(self, permits: Iterator[None]) -> bool:
        """Take one of these permits, as which the slot counts; False where there are none left."""
        # One step of the interpreter: nothing is taken from the one and not yet in the other.
        self._permit.extend(islice(permits, 1))
        return bool(self._permit)

    def release(self) -> None:
        """Put it back. Idempotent.

        What goes back is another object: the garbage collector finalizes each object of a cycle, so
        that both the exchange and its slot, in any order, may release it.
        """
        owner = self._owner()
        if owner is not None:
            slot = Slot(self._owner)
            # The list is empty where it was put back before.
            with suppress(IndexError):
                slot.fill(iter(self._permit.pop, _NO_PERMIT))
                owner.put_back(slot)

    def __del__(self) -> None:
        # An interrupt may leave one half made.
        if getattr(self, "_permit", None):
            self.release()


# What ends the iteration over permits: nothing.
_NO_PERMIT: Any = object()
