"""The timeouts of one call: its current phase, and the time left in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from .errors import TimeoutPhase
from .options import LONGEST_WAIT, Timeout

__all__ = ["CallTimeouts", "Phase"]

# The phases of an attempt. To the caller, "send" is part of `first_byte`.
Phase = Literal["pool", "connect", "send", "first_byte", "stall"]

# In seconds. Event loops round their timers, uvloop to a millisecond, and may wake slightly early.
_TIMER_SLACK = 0.005


class CallTimeouts:
    """The limits of a call as it moves through its phases.

    An attempt goes through "pool" (the wait for one of `max_connections`), "connect", "send",
    "first_byte" and "stall". `total` spans all attempts and the waits between them, less the time
    spent in "pool". Every `now` is in seconds of the same monotonic clock.
    """

    __slots__ = (
        "_deadline",
        "_held",
        "_late_since",
        "_limits",
        "_pool_entered",
        "_restarting",
        "_total",
        "_until",
        "phase",
        "started",
    )

    def __init__(
        self,
        limits: Mapping[Phase, float],
        *,
        total: float | None,
        restarting: frozenset[Phase],
        now: float,
    ) -> None:
        self.started: float = now
        self._limits = limits
        self._total = _or_infinite(total)
        self._restarting = restarting
        self._deadline: float | None = None
        self._pool_entered = now
        self._held: float | None = None
        self._late_since: float | None = None
        self.phase: Phase = "pool"
        self._until = now + self._limits["pool"]

    @classmethod
    def for_call(cls, timeout: Timeout, *, now: float) -> CallTimeouts:
        """Return the timeouts of a call of this package."""
        limits = _find_limits(timeout)
        return cls(limits, total=timeout.total, restarting=_RESTARTING_IN_CALL, now=now)

    @classmethod
    def for_request(cls, timeouts: Mapping[str, float | None], *, now: float) -> CallTimeouts:
        """Return the timeouts of a plain httpx request: those of its extension `timeout`."""
        limits: dict[Phase, float] = {
            "pool": _or_infinite(timeouts.get("pool")),
            "connect": _or_infinite(timeouts.get("connect")),
            "send": _or_infinite(timeouts.get("write")),
            "first_byte": _or_infinite(timeouts.get("read")),
            "stall": _or_infinite(timeouts.get("read")),
        }
        return cls(limits, total=None, restarting=_RESTARTING_IN_REQUEST, now=now)

    def enter(self, phase: Phase, now: float) -> None:
        """Enter another phase."""
        if phase == "pool":
            self._pool_entered = now
        elif self.phase == "pool":
            # Waiting for a slot does not count for `total`.
            waited = now - self._pool_entered
            self._deadline = (
                now + self._total if self._deadline is None else self._deadline + waited
            )
        self._held = self._late_since = None
        self.phase = phase
        self._until = now + self._limits[phase]

    def receive_body(self, now: float) -> None:
        """Record that bytes of the body have been received. The first ones begin "stall"."""
        if self.phase != "stall":
            self.enter("stall", now)

    def begin_wait(self, now: float) -> None:
        """Start a wait for bytes. The caller may have had control since the previous one."""
        if self.phase in self._restarting:
            self._until = now + self._limits[self.phase]
        elif self._held is not None:
            self._until = now + self._held
            self._held = None

    def progress(self, now: float) -> None:
        """Record that bytes were sent or received, which restarts the timeout of the phase."""
        if self.phase in self._restarting:
            self._until = now + self._limits[self.phase]

    def hold(self, now: float) -> None:
        """Return control to the caller, whose time counts only for `total`."""
        self._held = self._until - now

    def left(self, now: float) -> float | None:
        """Return the seconds that the next wait may take; None for no limit, <= 0 if expired."""
        until = self._until
        if self._deadline is not None and self.phase != "pool" and self._deadline < until:
            until = self._deadline
        return None if until == math.inf else min(until - now, LONGEST_WAIT)

    def total_left(self, now: float) -> float:
        """Return the seconds until `total` expires; infinity if it is None."""
        if self.phase == "pool":
            now = self._pool_entered
        return self._total if self._deadline is None else self._deadline - now

    def late_for(self, now: float) -> float:
        """Return the seconds since the first call of this method in this phase.

        It measures how long bytes that have already arrived are read after the timeout.
        """
        if self._late_since is None:
            self._late_since = now
        return now - self._late_since

    def limit(self, phase: TimeoutPhase) -> float | None:
        """Return the timeout of a phase, or of the whole call, in seconds; None for no limit."""
        limit = self._total if phase == "total" else self._limits[phase]
        return None if limit == math.inf else limit

    def expired_phase(self, now: float) -> TimeoutPhase:
        """Return the timeout that has expired, after a wait has timed out."""
        if self.phase != "pool" and self.total_left(now) <= _TIMER_SLACK:
            return "total"
        return "first_byte" if self.phase == "send" else self.phase


# Cached, because all calls of a client have the same timeouts.
@lru_cache(maxsize=64)
def _find_limits(timeout: Timeout) -> Mapping[Phase, float]:
    return {
        "pool": _or_infinite(timeout.pool),
        "connect": _or_infinite(timeout.connect),
        "send": _or_infinite(timeout.first_byte),
        "first_byte": _or_infinite(timeout.first_byte),
        "stall": _or_infinite(timeout.stall),
    }


def _or_infinite(limit: float | None) -> float:
    return math.inf if limit is None else limit


# The phases whose timeout restarts whenever bytes move. `first_byte` spans the wait for the head
# and for the first byte of the body.
_RESTARTING_IN_CALL: frozenset[Phase] = frozenset({"send", "stall"})
_RESTARTING_IN_REQUEST: frozenset[Phase] = frozenset({"send", "first_byte", "stall"})
