"""The limit of concurrent replies, and the queue of requests that wait for a slot."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

import anyio

from .errors import RequestRejected
from .tokens import AcceptedToken

__all__ = ["ConcurrencyLimit", "Slot"]

# The default length of the queue for each slot. With replies of ten seconds, the last request waits
# for forty seconds, which is less than the clients' timeouts.
WAITING_PER_SLOT = 4

# By default, the clients obey a `Retry-After` of at most a minute.
MAX_RETRY_AFTER_SECONDS = 60

# The weight of the last reply in the moving average of durations, which starts at one second.
_WEIGHT = 0.1


class ConcurrencyLimit:
    """Slots for at most `limit` replies at once, `per_token` of each token; None for no limit.

    Without a free slot, a request waits in a queue: first in, first out, except that requests whose
    token has no free slot do not hold up others. The queue holds `max_waiting` requests, by default
    four for each slot. A token may take the same share of the queue as of the slots.
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
            # Rounded up: a share of zero would disable the queue.
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
        """The number of requests in the queue."""
        return len(self._queue)

    def request_slot(self, token: AcceptedToken | None) -> Slot:
        """Return a slot to wait for and to release.

        Raises `RequestRejected` 503 if the queue is full.
        """
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
        """Pass the slot to the next request, or remove it from the queue if it has not started."""
        # Rejected requests are retried later, so they count as waiting.
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
        """Return the error, whose `Retry-After` is when the requests before it should be served."""
        now = self._clock()
        if now >= self._last_rejection + MAX_RETRY_AFTER_SECONDS:
            # All of them have been retried by now, or never will be.
            self._rejected = 0
        self._last_rejection = now
        seconds = self._mean_seconds * (waiting + self._rejected + 1) / slots
        # A single client may be rejected thousands of times.
        if seconds < MAX_RETRY_AFTER_SECONDS:
            self._rejected += 1
        return RequestRejected(
            503,
            "too_busy",
            f"the server is at its limit: replies in progress {slots}, requests waiting {waiting}",
            retry_after=min(max(seconds, 1.0), MAX_RETRY_AFTER_SECONDS),
        )


class Slot:
    """The slot of one reply, or its position in the queue."""

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
        """Mark the slot as taken, and wake the request that waits for it."""
        self.started = now
        if self._event is not None:
            self._event.set()

    def release(self) -> None:
        """Release the slot, or leave the queue. Idempotent."""
        if not self._is_released:
            self._is_released = True
            self._limit.release(self)


def _decrement(counter: Counter[AcceptedToken | None], token: AcceptedToken | None) -> None:
    counter[token] -= 1
    if not counter[token]:
        del counter[token]
