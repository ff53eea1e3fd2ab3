"""How many replies may be under way at once; one more is told to come back."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from .errors import Refusal

__all__ = ["Admission"]

# A reply takes seconds, so that one of many ends soon; clients spread their returns by themselves.
RETRY_AFTER_SECONDS = 1


class Admission:
    """Places for `limit` replies at once, None for any number."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._taken = 0

    @contextlib.contextmanager
    def admit(self) -> Generator[None]:
        """A place for as long as the block runs. Raises `Refusal` 503 where there is none."""
        if self._limit is not None and self._taken >= self._limit:
            raise Refusal(
                503,
                "too_busy",
                f"{self._limit} replies are under way already, which is the limit",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
