"""The slots of `max_connections` and the queue for them. No interrupt can lose a slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice, repeat
from typing import Any
from weakref import ref

from cromicle_sdk._core.compat import HAS_GIL, build_ordered_dict

from .sockets import find_first

__all__ = ["Slot", "Slots", "Waiter"]


class Slots:
    """Limits the number of exchanges in progress. Further calls are queued, first in, first out.

    The garbage collector may return a slot at any point and in any thread, and threads may take
    slots concurrently. There is no lock, because a finalizer may interrupt the code that holds it.
    Instead, each operation on the collections is atomic.
    """

    def __init__(self, count: int) -> None:
        # Kept here, because the collector clears weak references that are part of a cycle.
        self._ref: ref[Slots] = ref(self)
        self._unused = _build_permits(count)
        self._free: deque[Slot] = deque()
        # The function that wakes each waiter. Only the first waiter takes a slot.
        self._queue: dict[object, Callable[[], object]] = build_ordered_dict()

    def take(self) -> Slot | None:
        """Return a slot, or None if none is free or other calls are queued."""
        return None if self._queue else self._find()

    def wait(self, wake: Callable[[], object]) -> Waiter:
        """Join the queue. `wake` is called, in any thread, when `Waiter.take` may succeed."""
        return Waiter(self, self._queue, wake)

    def put_back(self, slot: Slot) -> None:
        self._free.append(slot)
        self.wake_first()

    def wake_first(self) -> None:
        """Wake the first waiter if a slot is free."""
        if self._free:
            wake = self._queue.get(find_first(self._queue))
            if wake is not None:
                wake()

    def take_first(self, key: object) -> Slot | None:
        """Return a slot for a waiter, or None if none is free or it is not the first."""
        return self._find() if find_first(self._queue) is key else None

    def _find(self) -> Slot | None:
        try:
            return self._free.popleft()
        except IndexError:
            slot = Slot(self._ref)
            return slot if slot.fill(self._unused) else None


class Waiter:
    """A call in the queue. It leaves the queue by `leave`, or when it is garbage-collected.

    Otherwise, a call that was ended by an interrupt would block the calls behind it.
    """

    __slots__ = ("__weakref__", "_key", "_queue", "_slots")

    def __init__(
        self,
        slots: Slots,
        queue: dict[object, Callable[[], object]],
        wake: Callable[[], object],
    ) -> None:
        self._slots = slots
        self._queue = queue
        self._key = object()
        queue[self._key] = wake

    def wake_by(self, wake: Callable[[], object]) -> None:
        """Replace the function that wakes the waiter, before the next `take`."""
        self._queue[self._key] = wake

    def take(self) -> Slot | None:
        """Return a slot, or None if none is free or this is not the first waiter."""
        return self._slots.take_first(self._key)

    def leave(self) -> None:
        """Leave the queue. Idempotent."""
        self._queue.pop(self._key, None)
        # This waiter may have been woken for a slot that it has not taken.
        self._slots.wake_first()

    def __del__(self) -> None:
        # An interrupt may leave the object half-initialized.
        if hasattr(self, "_key"):
            self.leave()


class Slot:
    """The permit for one exchange. It is returned by `release`, or when it is garbage-collected.

    An interrupt may arrive between any two steps of the interpreter, even while a slot is passed
    from one function to another. The slot is then garbage-collected.
    """

    __slots__ = ("_owner", "_permit")

    def __init__(self, owner: ref[Slots]) -> None:
        # Weak, so that returned slots do not keep their owner alive.
        self._owner = owner
        # Has one item while the slot is valid, and is empty before `fill` and after `release`.
        self._permit: list[None] = []

    def fill(self, permits: Iterator[None]) -> bool:
        """Take one of the permits. Returns False if none is left."""
        # A list without permits raises.
        with suppress(IndexError):
            # A single step of the interpreter, so that no permit can be lost in between.
            self._permit.extend(islice(permits, 1))
        return bool(self._permit)

    def release(self) -> None:
        """Return the slot. Idempotent.

        A new object is returned: the garbage collector finalizes each object of a cycle, so both
        the exchange and its slot may release it, in any order.
        """
        owner = self._owner()
        if owner is not None:
            slot = Slot(self._owner)
            # The list is empty if the slot has been returned before.
            if slot.fill(_pop_all(self._permit)):
                owner.put_back(slot)

    def __del__(self) -> None:
        # An interrupt may leave the object half-initialized.
        if getattr(self, "_permit", None):
            self.release()


def _build_permits(count: int) -> Iterator[None]:
    # Without the GIL, threads that share another iterator may get more than `count`.
    return repeat(None, count) if HAS_GIL else _pop_all([None] * min(count, _MOST_PERMITS))


def _pop_all(permits: list[None]) -> Iterator[None]:
    """Take the permits of a list, in atomic steps. Raises `IndexError` at its end."""
    return iter(permits.pop, _NO_PERMIT)


# The sentinel of the iteration over permits, which is never reached.
_NO_PERMIT: Any = object()

# Linux lets a process have no more file descriptors, unless it is configured to.
_MOST_PERMITS = 1 << 20
