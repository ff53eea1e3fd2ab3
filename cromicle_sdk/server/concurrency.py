"""How many replies are in progress at once, and who waits for one of them to end."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

import anyio

from .errors import RequestRejected
from .tokens import AcceptedToken

__all__ = ["ConcurrencyLimit", "Slot"]

# By default so many callers wait for each reply in progress: with replies of ten seconds, the last
# one waits for forty, which is less than the clients' limits.
WAITING_PER_SLOT = 4

# The clients obey a `Retry-After` of a minute at most by default.
MAX_RETRY_AFTER_SECONDS = 60

# The weight of the last reply in the mean duration of replies, which begins at a second.
_WEIGHT = 0.1


class ConcurrencyLimit:
    """Slots for at most `limit` replies at once, `per_token` of each token; None for any number.

    Without a free slot a caller waits in a queue, first come, first served, except that callers
    whose token has no free slot do not keep others waiting. The queue has `max_waiting` places, by
    default four for each slot. A token's share of them is that of the slots.
    """

    def __init__(
        self,
        limit: int | None = None,
        *,
        max_waiting: int | None = None,
        per_token: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = math.inf if limit is None else limit
        self._per_token = math.inf if per_token is None else per_token
        slots = min(self._limit, self._per_token)
        if max_waiting is None:
            max_waiting = 0 if limit is None else WAITING_PER_SLOT * limit
            share = WAITING_PER_SLOT * slots
        else:
            # At least one: a share of none would be another limit than the one that was chosen.
            share = max_waiting if limit is None else math.ceil(max_waiting * slots / limit)
        self._max_waiting = math.inf if limit is None else max_waiting
        self._max_waiting_per_token = share
        self._clock = clock
        self._running = 0
        self._running_by_token: Counter[AcceptedToken | None] = Counter()
        self._queue: dict[Slot, None] = {}
        self._queued_by_token: Counter[AcceptedToken | None] = Counter()
        self._rejected = 0
        self._last_rejection = 0.0
        self._mean_seconds = 1.0

    @property
    def waiting(self) -> int:
        """How many callers are waiting."""
        return len(self._queue)

    def request_slot(self, token: AcceptedToken | None) -> Slot:
        """A slot to wait for and to release. Raises `RequestRejected` 503 if the queue is full."""
        slot = Slot(self, token)
        if self._is_free(token):
            self._start(slot)
        elif len(self._queue) >= self._max_waiting:
            raise self._reject(len(self._queue), self._limit)
        elif self._queued_by_token[token] >= self._max_waiting_per_token:
            raise self._reject(self._queued_by_token[token], min(self._limit, self._per_token))
        else:
            self._queue[slot] = None
            self._queued_by_token[token] += 1
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot to the next caller, or take it out of the queue if it has not started."""
        # Whoever was rejected comes back later, so those count as callers who wait as well.
        self._rejected = max(0, self._rejected - 1)
        if slot in self._queue:
            self._leave_queue(slot)
            return
        assert slot.started is not None
        self._mean_seconds += _WEIGHT * (self._clock() - slot.started - self._mean_seconds)
        self._running -= 1
        _decrement(self._running_by_token, slot.token)
        following = next((each for each in self._queue if self._is_free(each.token)), None)
        if following is not None:
            self._leave_queue(following)
            self._start(following)

    def _is_free(self, token: AcceptedToken | None) -> bool:
        return self._running < self._limit and self._running_by_token[token] < self._per_token

    def _start(self, slot: Slot) -> None:
        self._running += 1
        self._running_by_token[slot.token] += 1
        slot.start(self._clock())

    def _leave_queue(self, slot: Slot) -> None:
        del self._queue[slot]
        _decrement(self._queued_by_token, slot.token)

    def _reject(self, waiting: int, slots: float) -> RequestRejected:
        """The error for one caller too many, which may return once those before it are served."""
        now = self._clock()
        if now >= self._last_rejection + MAX_RETRY_AFTER_SECONDS:
            # They have all come back, or never will.
            self._rejected = 0
        self._last_rejection = now
        seconds = self._mean_seconds * (waiting + self._rejected + 1) / slots
        # A caller that is rejected thousands of times is not so many callers.
        if seconds < MAX_RETRY_AFTER_SECONDS:
            self._rejected += 1
        return RequestRejected(
            503,
            "too_busy",
            f"no slot is free: replies in progress {slots}, callers that wait {waiting}",
            retry_after=min(max(seconds, 1.0), MAX_RETRY_AFTER_SECONDS),
        )


class Slot:
    """A slot for one reply, or a place in the queue for one."""

    def __init__(self, limit: ConcurrencyLimit, token: AcceptedToken | None) -> None:
        self.token = token
        self.started: float | None = None
        self._limit = limit
        self._event: anyio.Event | None = None
        self._is_released = False

    async def wait(self) -> None:
        """Wait until the reply may begin."""
        if self.started is None:
            self._event = anyio.Event()
            await self._event.wait()

    def start(self, now: float) -> None:
        """Let the reply begin."""
        self.started = now
        if self._event is not None:
            self._event.set()

    def release(self) -> None:
        """Give the slot or the place in the queue to others. Idempotent."""
        if not self._is_released:
            self._is_released = True
            self._limit.release(self)


def _decrement(counter: Counter[AcceptedToken | None], token: AcceptedToken | None) -> None:
    counter[token] -= 1
    if not counter[token]:
        del counter[token]
