"""What happens, in figures for Prometheus: one registry for each app."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from .middleware import Visit

__all__ = ["Metrics"]

# Seconds. A model begins within tenths of a second to a minute, and ends within ten.
_FIRST_TEXT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REPLY_BUCKETS = (0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts visits. Nothing in it grows with them: the labels have few values."""

    def __init__(self) -> None:
        # Not the library's global one: an app may be made more than once in a process.
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cromicle_requests",
            "Requests answered, by address, status and end: whole, cut, left or failed.",
            ("path", "status", "end"),
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "cromicle_requests_in_flight",
            "Requests to /chat that are under way.",
            registry=self._registry,
        )
        self._first_text = Histogram(
            "cromicle_first_text_seconds",
            "From a request's head to the first text of its reply.",
            buckets=_FIRST_TEXT_BUCKETS,
            registry=self._registry,
        )
        self._reply = Histogram(
            "cromicle_reply_seconds",
            "From a request's head to the end of its reply.",
            buckets=_REPLY_BUCKETS,
            registry=self._registry,
        )
        self._characters = Counter(
            "cromicle_reply_characters",
            "Characters of replies that were sent.",
            registry=self._registry,
        )

    def begin(self, visit: Visit) -> None:
        """A request has come."""
        if visit.is_chat:
            self._in_flight.inc()

    def finish(self, visit: Visit) -> None:
        """It is over, however it ended."""
        status = "none" if visit.status is None else str(visit.status)
        self._requests.labels(visit.path, status, str(visit.end)).inc()
        if not visit.is_chat:
            return
        self._in_flight.dec()
        if visit.first_text is not None:
            self._first_text.observe(visit.first_text)
            self._reply.observe(visit.duration)
            self._characters.inc(visit.characters)

    def answer(self) -> Response:
        """All figures, in Prometheus' text format."""
        return Response(
            generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST}
        )
