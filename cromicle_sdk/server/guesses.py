"""The limit of wrong tokens per client address."""

from __future__ import annotations

import time
from collections.abc import Callable

from .addresses import group_address

__all__ = ["GuessLimit"]

# A client whose token has been revoked sends it a few times a minute.
MAX_GUESSES = 10
PERIOD_SECONDS = 60.0

# About a megabyte. A client with more addresses than this is limited less.
MAX_ADDRESSES = 10_000


class GuessLimit:
    """Counts the wrong tokens of each address, `MAX_GUESSES` of which are allowed per period.

    Valid tokens do not count, because many clients may share the address of a proxy.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The start of each address's period and its number of guesses, oldest period first.
        self._periods: dict[str, tuple[float, int]] = {}

    def record(self, address: str) -> float | None:
        """Count a wrong token. Return the seconds to wait if it exceeds the limit, else None."""
        group = group_address(address)
        now = self._clock()
        start, count = self._periods.get(group, (now, 0))
        if now >= start + PERIOD_SECONDS:
            del self._periods[group]
            start, count = now, 0
        if count >= MAX_GUESSES:
            return start + PERIOD_SECONDS - now
        self._periods[group] = (start, count + 1)
        if len(self._periods) > MAX_ADDRESSES:
            del self._periods[next(iter(self._periods))]
        return None
