"""The access log and the Prometheus metrics, both built from one record per request."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from .concurrency import ConcurrencyLimit

__all__ = [
    "CHARACTERS",
    "METHODS",
    "PATHS",
    "TRUNCATED",
    "AccessLog",
    "End",
    "Metrics",
    "RequestObserver",
    "RequestRecord",
]

# The paths that return replies.
CHAT_PATHS = ("/chat", "/v1/chat/completions")

# Any other path or method is text from the client, of any length and with any number of values.
PATHS = ("/", *CHAT_PATHS, "/health", "/metrics", "/openapi.json", "/v1/models")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# The key in an ASGI scope's state that is set once the response has been truncated.
TRUNCATED = "cromicle_sdk.truncated"

# The key in an ASGI scope's state for the number of characters of the reply.
CHARACTERS = "cromicle_sdk.characters"

End = Literal["complete", "truncated", "client_disconnected", "failed"]

# Seconds. Models take from 0.1 s to a minute to their first text, and up to ten minutes to the end.
_FIRST_TEXT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REPLY_BUCKETS = (0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


@dataclass
class RequestRecord:
    """One request and its response, as far as they have been received and sent.

    `path` is one of `PATHS` relative to the mount point, otherwise "other"; `method` is one of
    `METHODS`, otherwise "other": no attribute is free text. `client` is an IP address and `token`
    the label of an accepted token; both are None while unknown. `status` is None until the response
    starts. `body_length` is in bytes; `characters` is the length of a reply.
    `first_text` and `duration` are seconds since the request's headers were received.

    `end` is None while the request is in progress, and then one of: "complete"; "truncated", if the
    server truncated the reply; "client_disconnected", if the client left before the end; "failed",
    if the app raised any other exception.
    """

    method: str
    path: str
    request_id: str
    client: str | None = None
    token: str | None = None
    status: int | None = None
    body_length: int = 0
    characters: int = 0
    first_text: float | None = None
    duration: float = 0.0
    end: End | None = None

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    @property
    def is_chat(self) -> bool:
        return self.path in CHAT_PATHS

    def record_start(self, status: int) -> None:
        """Record the status of the response."""
        if self.end is None:
            self.status = status

    def record_body(self, body: bytes, *, more_body: bool) -> None:
        """Record a chunk of the response body, unless the request has ended."""
        if self.end is not None:
            return
        self.body_length += len(body)
        if body and self.is_chat and self.status == 200 and self.first_text is None:
            self.first_text = time.monotonic() - self._started
        # Recorded before it is sent: hypercorn reports a disconnect before its last `send` returns.
        if not more_body:
            self.end = "complete"

    def record_end(self, end: End) -> None:
        """Record how the request ended. Only the first call has an effect."""
        self.end = self.end or end

    def finish(self, end: End) -> None:
        """Record the duration, and `end` unless another end was recorded."""
        self.duration = time.monotonic() - self._started
        self.record_end(end)


class RequestObserver(Protocol):
    """An observer of requests. Neither method may block or raise."""

    def on_start(self, record: RequestRecord) -> None: ...
    def on_end(self, record: RequestRecord) -> None: ...


class AccessLog:
    """Writes one line of `key=value` pairs to `cromicle_sdk.server.access` for each request.

    The level is INFO. Each value is a number, one of a fixed set of words, an IP address, the
    operator's label for a token, the fingerprint of a token, or the request ID; "-" stands for no
    value. Times are in seconds.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("cromicle_sdk.server.access")

    def on_start(self, record: RequestRecord) -> None:
        """Do nothing: the line is written at the end."""

    def on_end(self, record: RequestRecord) -> None:
        """Write the line."""
        first_text = "-" if record.first_text is None else f"{record.first_text:.4f}"
        self._logger.info(
            "method=%s path=%s status=%s bytes=%d first_text=%s duration=%.4f end=%s "
            "client=%s token=%s request=%s",
            record.method,
            record.path,
            record.status or "-",
            record.body_length,
            first_text,
            record.duration,
            record.end,
            record.client or "-",
            record.token or "-",
            record.request_id,
        )


class Metrics:
    """Prometheus metrics of one app. Their size is bounded: every label has a few values."""

    def __init__(self, concurrency: ConcurrencyLimit) -> None:
        # Not the library's global registry: a process may create several apps.
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cromicle_requests",
            "Requests, by path, status and end: complete, truncated, client_disconnected, failed.",
            ("path", "status", "end"),
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "cromicle_requests_in_flight",
            "Requests for a reply that are in progress.",
            registry=self._registry,
        )
        Gauge(
            "cromicle_requests_waiting",
            "Requests for a reply that wait for a slot. They are also in flight.",
            registry=self._registry,
        ).set_function(lambda: concurrency.waiting)
        self._first_text = Histogram(
            "cromicle_first_text_seconds",
            "Time from a request's headers to the first text of its reply.",
            buckets=_FIRST_TEXT_BUCKETS,
            registry=self._registry,
        )
        self._reply = Histogram(
            "cromicle_reply_seconds",
            "Time from a request's headers to the end of its reply.",
            buckets=_REPLY_BUCKETS,
            registry=self._registry,
        )
        self._characters = Counter(
            "cromicle_reply_characters",
            "Characters of replies sent.",
            registry=self._registry,
        )

    def on_start(self, record: RequestRecord) -> None:
        """Count a request in progress."""
        if record.is_chat:
            self._in_flight.inc()

    def on_end(self, record: RequestRecord) -> None:
        """Count a finished request."""
        status = "none" if record.status is None else str(record.status)
        self._requests.labels(record.path, status, str(record.end)).inc()
        if not record.is_chat:
            return
        self._in_flight.dec()
        if record.first_text is not None:
            self._first_text.observe(record.first_text)
            self._reply.observe(record.duration)
            self._characters.inc(record.characters)

    def build_response(self) -> Response:
        """Return the response with all metrics, in the text format of Prometheus."""
        return Response(
            generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST}
        )
