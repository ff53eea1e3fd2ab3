"""How many calls may be in flight, and when the next may start: the slow-down that all share.

No I/O and no clock: times are passed in, in seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from cromicle_sdk import Retry

__all__ = ["Pace"]

# After a pause, the number of calls is not raised above the one that the server has accepted until
# so many times the pause have passed. A raise that turns out to be too much costs another pause,
# so these take a twentieth of the time at most.
_PAUSES_APART = 20

# The same in seconds, where a raise that is too much costs one request and no pause.
_SECONDS_APART = 1.0

# By how much calls may start late, and the calls after them catch up, in seconds: timers are late.
_RATE_SLACK = 0.1


class Pace:
    """Limits the calls of a client to what the server takes.

    At most `limit` calls are in flight, and `rate` start in a second. A status 429 or 503 is a
    rejection: it sets the number of calls to those that the server has accepted at the same time,
    and then each reply raises the number, up to `limit` (as TCP does, RFC 5681: additive increase,
    and a slow start). A 429, which is about the rate of requests, also pauses all calls for the
    `Retry-After`. So does a 503 if no call is accepted; otherwise the next call starts when one of
    those has ended, which is when the server has room.

    The server is given up while it asks for a longer pause than `retry.max_retry_after`, and once
    it has rejected all calls for `patience` seconds.
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
        # How many may be in flight, and above how many it is raised with care.
        self._window = float(limit)
        self._threshold = float(limit)
        self._paused_until = -math.inf
        self._raise_at = -math.inf
        self._given_up_until = -math.inf
        self._next_start = -math.inf
        self._last_reply: float | None = None
        # A round ends with a rejection of a call that started in it; later ones of the same round
        # tell how many calls were too many, and are no reason to slow down once more.
        self.round: int = 0
        self._accepted = 0
        self._before = self._window
        self._retry_after = math.inf
        self._is_rate_limited = False
        self._rejected_rounds = 0

    def admit(self, now: float) -> float:
        """0 if a call may start, which is counted; else for how long to wait.

        Infinity stands for: until another call has ended.
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
        """Whether a call is of no use, because the server has been or will be busy for too long."""
        return now < self._given_up_until

    def leave(self) -> None:
        """A call has ended in a way that tells nothing about the load of the server."""
        self._in_flight -= 1

    def succeed(self, now: float) -> None:
        """A call has got its reply."""
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
        """A call that started in this round was rejected with 429 or 503."""
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
            # The shortest of the round: somebody may come back then, and those who do are no more
            # than the server has accepted.
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
        # At least half of it, because nobody else spreads these calls.
        return min(longest, self._retry.max_delay) * (1 + self._random()) / 2

    def _decide_to_give_up(self, now: float, pause: float) -> None:
        assert self._last_reply is not None, "a call has been admitted"
        is_too_long = pause > self._retry.max_retry_after
        if is_too_long or (not self._accepted and now - self._last_reply >= self._patience):
            self._given_up_until = self._paused_until
        else:
            self._given_up_until = -math.inf
