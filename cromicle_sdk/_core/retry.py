"""An attempt failed: how long to wait before the next one, or stop."""

from __future__ import annotations

import random
from collections.abc import Callable

from .errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    CromicleError,
    IncompleteReplyError,
)
from .options import LONGEST_WAIT, Retry

__all__ = ["Attempts", "RetryBudget"]

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


class RetryBudget:
    """What keeps many calls from hammering a server that is down.

    Source: the retry quota of the AWS SDKs' standard mode: 500 tokens, a retry takes 5, a
    success gives 1 back. Shared by a client's threads without a lock: an update that is lost
    to a race is one token.
    """

    __slots__ = ("_tokens",)

    _CAPACITY = 500
    _COST = 5

    def __init__(self) -> None:
        self._tokens = self._CAPACITY

    def take(self) -> bool:
        """Pay for one retry; False where there is not enough left."""
        if self._tokens < self._COST:
            return False
        self._tokens -= self._COST
        return True

    def give_back(self) -> None:
        """A call has succeeded."""
        self._tokens = min(self._CAPACITY, self._tokens + 1)


class Attempts:
    """The attempts of one call.

    `whole` says that nothing is handed over before the end (`chat`), so that a reply that broke
    off can be asked for again. `count` is how many requests were begun.
    """

    __slots__ = ("_budget", "_random", "_retry", "_whole", "count")

    def __init__(
        self,
        retry: Retry,
        budget: RetryBudget,
        *,
        whole: bool,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._retry = retry
        self._budget = budget
        self._whole = whole
        self._random = random
        self.count: int = 0

    def begin(self) -> None:
        self.count += 1

    def wait_after(self, error: CromicleError, *, time_left: float) -> float | None:
        """Seconds to wait before the next attempt, or None: raise the error.

        `time_left` is what is left of the call's total, in seconds; a wait that would use it
        up is not begun.
        """
        if self.count >= self._retry.attempts or not self._may_retry(error):
            return None
        wait = self._wait(error)
        if wait is None or wait >= time_left or not self._budget.take():
            return None
        return wait

    def succeed(self) -> None:
        self._budget.give_back()

    def _may_retry(self, error: CromicleError) -> bool:
        if isinstance(error, APIStatusError):
            return error.status_code in _RETRIED_STATUSES
        if isinstance(error, APITimeoutError):
            if error.phase == "stall":
                return self._whole
            return error.phase in ("connect", "first_byte")
        if isinstance(error, APIConnectionError):
            return not error.is_final
        if isinstance(error, IncompleteReplyError):
            return (self._whole or not error.partial_text) and not error.is_final
        return False

    def _wait(self, error: CromicleError) -> float | None:
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if asked is not None:
            return asked if asked <= self._retry.max_retry_after else None
        # Past 2 ** 1000 any delay has reached its maximum, but for one of 0, which stays.
        longest = self._retry.first_delay * 2.0 ** min(self.count - 1, 1000)
        return self._random() * min(longest, self._retry.max_delay, LONGEST_WAIT)
