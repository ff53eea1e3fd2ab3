"""The access log: one line for each request, without a word of what was said."""

from __future__ import annotations

import logging

from .middleware import Visit

__all__ = ["AccessLog"]


class AccessLog:
    """Writes each visit as one line of `key=value` to the logger `cromicle_sdk.server.access`.

    The level is INFO. Every value is a number, a word of a short list or the request's id, which
    is harmless; "-" stands for none. Times are in seconds. `end` tells whole answers, replies that
    were cut and clients that left apart.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("cromicle_sdk.server.access")

    def begin(self, visit: Visit) -> None:
        """There is nothing to say yet."""

    def finish(self, visit: Visit) -> None:
        """Write the line."""
        first_text = "-" if visit.first_text is None else f"{visit.first_text:.4f}"
        self._logger.info(
            "method=%s path=%s status=%s bytes=%d first_text=%s duration=%.4f end=%s request=%s",
            visit.method,
            visit.path,
            visit.status or "-",
            visit.bytes,
            first_text,
            visit.duration,
            visit.end,
            visit.request_id,
        )
