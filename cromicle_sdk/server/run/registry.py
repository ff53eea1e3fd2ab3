"""The open connections of a server, their limits, and which of them are idle."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from cromicle_sdk.server.addresses import group_address

__all__ = ["Abortable", "Connections"]

# At most one line a minute, because a client may cause thousands a second.
REPORT_SECONDS = 60.0


class Abortable(Protocol):
    """A connection that can be aborted."""

    def abort(self) -> None: ...


class Connections:
    """Counts connections from their acceptance to their end, and limits their number.

    At the limit, a new connection replaces the one that has been idle for longest, as in nginx:
    otherwise, clients that send nothing would keep out others. A connection is idle while it has
    no complete request in progress. If none is idle, the new one is refused.

    One address may have `per_address` connections, unless `is_exempt` is true for it. None stands
    for no limit. At most one line a minute is logged about either limit.
    """

    def __init__(
        self,
        *,
        limit: int | None = None,
        per_address: int | None = None,
        is_exempt: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._per_address = per_address
        self._is_exempt = is_exempt
        self._clock = clock
        self._open = 0
        self._by_address: Counter[str] = Counter()
        # In the order in which they became idle.
        self._idle: dict[Abortable, None] = {}
        self._refused = 0
        self._replaced = 0
        self._next_report = 0.0

    def admit(self, address: str) -> bool:
        """Count a new connection from `address`. Returns False if it has to be closed instead."""
        group = group_address(address)
        limit = None if self._is_exempt(address) else self._per_address
        if limit is not None and self._by_address[group] >= limit:
            return self._refuse()
        if self._limit is not None and self._open >= self._limit and not self.close_idle():
            return self._refuse()
        self._open += 1
        self._by_address[group] += 1
        return True

    def release(self, connection: Abortable, address: str) -> None:
        """Remove an admitted connection from `address` that has ended."""
        self.mark_busy(connection)
        group = group_address(address)
        self._open -= 1
        self._by_address[group] -= 1
        if not self._by_address[group]:
            del self._by_address[group]

    def mark_idle(self, connection: Abortable) -> None:
        """Record that the connection has no complete request in progress."""
        self._idle[connection] = None

    def mark_busy(self, connection: Abortable) -> None:
        """Record that the connection has a complete request in progress."""
        self._idle.pop(connection, None)

    def close_idle(self) -> bool:
        """Close the connection that has been idle for longest. Returns False if none is idle."""
        connection = next(iter(self._idle), None)
        if connection is None:
            return False
        del self._idle[connection]
        connection.abort()
        self._replaced += 1
        self._report()
        return True

    def _refuse(self) -> bool:
        self._refused += 1
        self._report()
        return False

    def _report(self) -> None:
        now = self._clock()
        if now < self._next_report:
            return
        self._next_report = now + REPORT_SECONDS
        logging.getLogger("cromicle_sdk.server").warning(
            "connections: a limit was reached (closed while idle: %d, refused: %d, "
            "max_connections: %s, max_connections_per_address: %s)",
            self._replaced,
            self._refused,
            self._limit,
            self._per_address,
        )
        self._replaced = self._refused = 0
