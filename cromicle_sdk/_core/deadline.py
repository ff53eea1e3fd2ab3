"""The clock of one call: what it waits for now, and how long it still may."""

from __future__ import annotations

import math
import time

from .errors import TimeoutPhase
from .options import LONGEST_WAIT, Timeout

__all__ = ["Limits"]

# Event loops round their timers, uvloop to a millisecond, and may wake a little early: seconds.
_TIMER_SLACK = 0.005


class Limits:
    """The limits of a `Timeout` while its call runs; seconds of `time.monotonic`.

    A call goes through the phases "pool" (a wait for a free connection, which `total` alone
    limits), "connect", "first_byte" and "stall", once for each attempt.
    """

    __slots__ = ("_deadline", "_held", "_until", "phase", "started", "timeout")

    def __init__(self, timeout: Timeout) -> None:
        self.timeout: Timeout = timeout
        self.started: float = time.monotonic()
        self._deadline = math.inf if timeout.total is None else self.started + timeout.total
        self.enter("pool")

    def enter(self, phase: TimeoutPhase, *, total_only: bool = False) -> None:
        """The call waits for something else from now on.

        `total_only` leaves the phase's own limit to somebody else.
        """
        self.phase: TimeoutPhase = phase
        self._held: float | None = None
        limit = None if total_only or phase == "pool" else getattr(self.timeout, phase)
        self._until = (
            self._deadline if limit is None else min(self._deadline, time.monotonic() + limit)
        )

    def begin_read(self) -> None:
        """A wait for bytes begins: `stall` counts from here, `first_byte` goes on."""
        if self.phase == "stall":
            self.enter("stall")
        elif self._held is not None:
            held, self._held = self._held, None
            self._until = min(self._deadline, time.monotonic() + held)

    def hold(self) -> None:
        """The caller has the call in hand, whose time counts for `total` alone."""
        self._held = self._until - time.monotonic()

    def check_total(self, now: float) -> None:
        """Raise `TimeoutError` where `total` is used up at the time `now`."""
        if now > self._deadline:
            raise TimeoutError

    def see_text(self) -> None:
        """Bytes of the reply have come: `first_byte` is over."""
        if self.phase != "stall":
            self.enter("stall")

    def left(self) -> float | None:
        """Seconds that the next wait may take, None for no limit.

        Raises `TimeoutError` where there are none.
        """
        if self._until == math.inf:
            return None
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, LONGEST_WAIT)

    def total_left(self) -> float:
        """Seconds until `total` is used up; infinite where it is None."""
        return self._deadline - time.monotonic()

    def phase_that_ended(self) -> TimeoutPhase:
        """Which limit it was, once a wait has run out of time."""
        if self.phase != "pool" and self.total_left() <= _TIMER_SLACK:
            return "total"
        return self.phase
