"""Retries: the decision after a failed attempt to retry after a delay, or to raise its error."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

from .errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    CromicleError,
    IncompleteReplyError,
    add_sentence,
)
from .options import LONGEST_WAIT, Retry

__all__ = ["Attempts", "Decision", "RetryBudget"]

# Not Implemented and HTTP Version Not Supported are permanent. Other 5xx statuses are temporary,
# including those of CDNs (520 to 529).
_FINAL_SERVER_ERRORS = frozenset({501, 505})

# Too Many Requests and Service Unavailable, the statuses of `Retry.busy`.
_BUSY = frozenset({429, 503})

# The codes of a gateway whose operator has to act first: its model server does not accept the
# gateway, lacks the model, or has moved.
_FINAL_CODES = frozenset({"upstream_denied", "upstream_redirected", "upstream_refused"})

_OUT_OF_BUDGET = "It was not retried, because the budget of the client is used up (retry.budget)."


class RetryBudget:
    """Limits the retries of all calls of a client, for when the server is down.

    This is the retry quota of the AWS SDKs' standard mode: a retry costs 5 tokens, and a success
    returns 1. `capacity` is the initial and maximum number of tokens; None for no limit. Threads
    share it without a lock: a race loses at most a token.
    """

    __slots__ = ("_capacity", "_tokens")

    _COST = 5

    def __init__(self, capacity: int | None) -> None:
        self._capacity = math.inf if capacity is None else capacity
        self._tokens = self._capacity

    def take(self) -> bool:
        """Pay for one retry; False if too few tokens are left."""
        if self._tokens < self._COST:
            return False
        self._tokens -= self._COST
        return True

    def give_back(self) -> None:
        """Return the token of a successful call."""
        self._tokens = min(self._capacity, self._tokens + 1)


class Decision(NamedTuple):
    """The decision after a failed attempt.

    `wait` is the delay before the next attempt in seconds, or None to raise `error`: the error of
    the attempt, with a note if the budget did not allow a retry.
    """

    wait: float | None
    error: CromicleError


class Attempts:
    """The attempts of one call.

    `whole` is true if no text is yielded before the end of the reply (`chat`), so that a truncated
    reply can be retried. `count` is the number of attempts started.
    """

    __slots__ = ("_budget", "_random", "_retry", "count", "is_whole")

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
        self.is_whole: bool = whole
        self._random = random
        self.count: int = 0

    def begin(self) -> None:
        """Count an attempt."""
        self.count += 1

    def decide(self, error: CromicleError, *, time_left: float) -> Decision:
        """Decide whether to retry after this error.

        `time_left` is the rest of the call's `total` in seconds. If the delay would exceed it, the
        attempt is not retried.
        """
        if self.count >= self._retry.attempts or not self._is_retried(error):
            return Decision(None, error)
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        wait = self._draw_delay() if asked is None else asked
        if wait >= time_left or (asked is not None and asked > self._retry.max_retry_after):
            return Decision(None, error)
        # A retry that the server requests does not overload it.
        if asked is None and self._retry.budget is not None and not self._budget.take():
            return Decision(None, add_sentence(error, _OUT_OF_BUDGET))
        return Decision(wait, error)

    def succeed(self) -> None:
        """Record that the call has succeeded."""
        self._budget.give_back()

    def _is_retried(self, error: CromicleError) -> bool:
        if isinstance(error, APIStatusError):
            code = error.status_code
            if code == 502 and error.code in _FINAL_CODES:
                return False
            if code in _BUSY and not self._retry.busy:
                return False
            is_server_error = 500 <= code < 600 and code not in _FINAL_SERVER_ERRORS
            return is_server_error or code in (408, 429)
        if isinstance(error, APITimeoutError):
            if error.phase == "stall":
                return self.is_whole
            return error.phase in ("connect", "first_byte")
        if isinstance(error, APIConnectionError):
            return not error.is_final
        if isinstance(error, IncompleteReplyError):
            return (self.is_whole or not error.partial_text) and not error.is_final
        return False

    def _draw_delay(self) -> float:
        # At 2 ** 1000, any delay other than 0 has reached its maximum.
        longest = self._retry.first_delay * 2.0 ** min(self.count - 1, 1000)
        return self._random() * min(longest, self._retry.max_delay, LONGEST_WAIT)
