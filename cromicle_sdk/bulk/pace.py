"""The flow control of bulk calls: how many may be in flight, and when the next may start.

It does no I/O and has no clock: the current time is passed in, in seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from cromicle_sdk import Retry

__all__ = ["Pace"]

# After a pause, the window is not raised above the accepted number of calls until this many times
# the pause have passed. If raising it causes another pause, pauses take at most a twentieth of the
# time.
_PAUSES_APART = 20

# The minimum of that time, in seconds. It applies if raising the window costs only one request.
_SECONDS_APART = 1.0

# The maximum delay that later calls make up for, in seconds, because timers fire late.
_RATE_SLACK = 0.1


class Pace:
    """Adapts the number of concurrent calls to the capacity of the server.

    At most `limit` calls are in flight, and `rate` start in a second. A status 429 or 503 is a
    rejection. It reduces the window, the number of concurrent calls, to the number that the server
    has accepted; then each reply raises the window, up to `limit` (additive increase and slow
    start, as in TCP, RFC 5681). A 429, which limits the rate of requests, also pauses all calls for
    its `Retry-After`. So does a 503 if no call is accepted; otherwise the next call starts when an
    accepted one ends, since the server then has capacity.

    The pace gives up if `Retry-After` exceeds `retry.max_retry_after`, and if the server has
    rejected all calls for `patience` seconds.
    """

    def __init__(
        self,
        limit: int,
        *,
        rate: float | None = None,
        retry: Retry,
        patience: float,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._limit = limit
        self._interval = 0.0 if rate is None else 1 / rate
        self._retry = retry
        self._patience = patience
        self._random = random
        self._in_flight = 0
        # The number of calls that may be in flight, and the number above which it grows slowly.
        self._window = float(limit)
        self._threshold = float(limit)
        self._paused_until = -math.inf
        self._raise_at = -math.inf
        self._given_up_until = -math.inf
        self._next_start = -math.inf
        self._last_reply: float | None = None
        # A round ends with the first rejection of a call that started in it. Later rejections of
        # calls of the same round show how many calls were too many, but do not count again.
        self.round: int = 0
        self._accepted = 0
        self._before = self._window
        self._retry_after = math.inf
        self._is_rate_limited = False
        self._rejected_rounds = 0

    def admit(self, now: float) -> float:
        """Start a call and return 0, or return the seconds to wait before the next attempt.

        Infinity means to wait until another call has ended.
        """
        if self._in_flight >= int(self._window):
            return math.inf
        start = max(self._paused_until, self._next_start)
        if start > now:
            return start - now
        if self._last_reply is None:
            self._last_reply = self._next_start = now
        if self._interval:
            self._next_start = max(self._next_start, now - _RATE_SLACK) + self._interval
        self._in_flight += 1
        return 0

    def is_given_up(self, now: float) -> bool:
        """Whether calls are pointless, because the server is busy for too long."""
        return now < self._given_up_until

    def leave(self) -> None:
        """Record that a call has ended in a way that does not depend on the server's load."""
        self._in_flight -= 1

    def succeed(self, now: float) -> None:
        """Record that a call has received its reply."""
        self._in_flight -= 1
        self._last_reply = now
        self._rejected_rounds = 0
        if self._window >= self._limit:
            return
        if self._window < self._threshold:
            self._window += 1
        elif now >= self._raise_at:
            self._window += 1 / self._window
        self._window = min(self._window, self._limit)

    def reject(
        self, started_in: int, now: float, status_code: int, retry_after: float | None
    ) -> None:
        """Record that a call that started in the round `started_in` received a 429 or 503."""
        self._in_flight -= 1
        if started_in == self.round:
            self.round += 1
            self._rejected_rounds += 1
            self._accepted = self._in_flight
            self._before = self._window
            self._retry_after = math.inf
            self._is_rate_limited = False
        else:
            self._accepted = max(0, self._accepted - 1)
        self._window = float(max(1, self._accepted))
        self._threshold = self._window if self._accepted else max(1.0, self._before / 2)
        self._is_rate_limited = self._is_rate_limited or status_code == 429
        if retry_after is not None:
            # The shortest of the round: the server accepts a call then, and not more calls start
            # than it has accepted before.
            self._retry_after = min(self._retry_after, retry_after)
        pause = self._find_pause()
        self._paused_until = now + pause
        self._raise_at = self._paused_until + max(_SECONDS_APART, _PAUSES_APART * pause)
        self._decide_to_give_up(now, pause)

    def _find_pause(self) -> float:
        is_asked = self._retry_after < math.inf
        if self._accepted and not (self._is_rate_limited and is_asked):
            return 0.0
        if is_asked:
            return self._retry_after
        longest = self._retry.first_delay * 2.0 ** min(self._rejected_rounds - 1, 1000)
        # Jitter of at most a half, because the calls of this client share one pause.
        return min(longest, self._retry.max_delay) * (1 + self._random()) / 2

    def _decide_to_give_up(self, now: float, pause: float) -> None:
        assert self._last_reply is not None, "a call has been admitted"
        is_too_long = pause > self._retry.max_retry_after
        if is_too_long or (not self._accepted and now - self._last_reply >= self._patience):
            self._given_up_until = self._paused_until
        else:
            self._given_up_until = -math.inf
