"""Slots of `max_connections`, which no interrupt loses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol
from weakref import ref

__all__ = ["Slot"]


class _Owner(Protocol):
    def put_back(self, slot: Slot) -> None: ...


class Slot:
    """One of the exchanges that may be under way. It goes back when it is released, or dropped.

    An interrupt may come between any two steps of the interpreter, also while a slot is on its way
    from one function to another. It is dropped then.
    """

    __slots__ = ("_owner", "_permit")

    def __init__(self, owner: ref[_Owner], permit: list[None] | None = None) -> None:
        # Weak: a limiter that is dropped must not live on through the slots that come back to it.
        self._owner = owner
        # One item; none in a slot that is no slot yet.
        self._permit: list[None] = [] if permit is None else permit

    def fill(self, unused: Iterator[None]) -> bool:
        """Make it one of those that have never been used; False where there are none left."""
        # One step of the interpreter: nothing is taken from the one and not yet in the other.
        self._permit.extend(islice(unused, 1))
        return bool(self._permit)

    def release(self) -> None:
        """Put it back. The one who does so drops it: it may belong to another one at once."""
        owner = self._owner()
        if owner is not None:
            owner.put_back(self)

    def __del__(self) -> None:
        # An interrupt may leave one half made.
        if getattr(self, "_permit", None):
            owner = self._owner()
            if owner is not None:
                owner.put_back(Slot(self._owner, self._permit))
