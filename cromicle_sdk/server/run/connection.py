"""One HTTP connection: uvicorn's h11 protocol with time limits and trailers, without loggers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from http import HTTPStatus
from typing import Any, Literal, cast

import h11
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from cromicle_sdk.server import response as _response
from cromicle_sdk.server.errors import ErrorResponse
from cromicle_sdk.server.observability import TRUNCATED
from cromicle_sdk.server.response import is_truncation

from .trailers import TrailersApp, TrailersConnection

__all__ = ["Connection"]

# From a connection's start, or the first byte of a later request, to the end of the headers. The
# headers are one packet, so a client that takes longer is gone or sends them slowly on purpose.
HEAD_SECONDS = 10.0

# From the headers to the end of the body: the longest one that is accepted by default, 1 MiB,
# takes this long at 140 kbit/s.
BODY_SECONDS = 60.0

# How much a client may send before the current response is complete. It has to be read, because a
# disconnect is noticed only by reading.
MAX_PIPELINED_BYTES = 64 * 1024


class Connection(H11Protocol):
    """uvicorn's h11 protocol with time limits for requests, trailers and its own logger.

    A request whose headers or body are not complete in time is answered with a 408 if a response
    can still be sent, and the connection is closed. A connection is also closed if the client
    does not read the response.

    uvicorn's logging options change loggers of the whole process, which may run another uvicorn,
    and its own log has a traceback for each reply that is truncated on purpose.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        connection = TrailersConnection()
        self.conn: h11.Connection = connection
        self.app: Any = TrailersApp(cast("ASGIApp", self.app), connection)
        self.access_log = False
        self.logger: logging.Logger = logging.getLogger("cromicle_sdk.server.http")
        self.logger.addFilter(_is_not_truncation)
        self._timer: asyncio.TimerHandle | None = None
        self._timed: object = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._blank = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        # asyncio sets TCP_NODELAY only on sockets whose `proto` is IPPROTO_TCP, which that of a
        # socket from `listen` is not. Without it the first text waits 40 ms for the client to
        # acknowledge the headers.
        connection: socket.socket = transport.get_extra_info("socket")
        # It fails on some systems if the client has already disconnected.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_timer("head", None, HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        data = self._strip_blank_lines(data)
        # To h11 no data is the end of the connection.
        if data:
            super().data_received(data)
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            # Part of the next request, or of a body that is no longer read.
            self._start_timer("head", cycle, HEAD_SECONDS)
        else:
            self._time_body()

    def _strip_blank_lines(self, data: bytes) -> bytes:
        """The data without the empty lines before a request, which h11 rejects.

        A server "SHOULD ignore at least one empty line (CRLF) received prior to the request-line"
        (RFC 9112, section 2.2).
        """
        is_between = self.conn.their_state in (h11.IDLE, h11.DONE)
        if not is_between or self.conn.trailing_data[0]:
            return data
        data = self._blank + data
        while data.startswith(b"\r\n"):
            data = data[2:]
        # The two characters may arrive separately.
        self._blank = data if data == b"\r" else b""
        return data.removeprefix(self._blank)

    def _should_upgrade(self) -> bool:
        # uvicorn logs two warnings for each request of a client that offers HTTP/2 by
        # `Upgrade: h2c`. "A server MAY ignore a received Upgrade header field" (RFC 9110, 7.8).
        return False

    def abort(self) -> None:
        """Close the connection immediately, and cancel the request in progress."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None:
            cast("dict[str, Any]", cycle.scope)["state"][TRUNCATED] = True
        # Not `close`, which waits until the client has read everything that is buffered.
        self.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        cycle = cast("RequestResponseCycle | None", self.cycle)
        pipelined = len(self.conn.trailing_data[0])
        if cycle is None or cycle.more_body or cycle.response_complete or not pipelined:
            return
        # uvicorn has paused reading, and would not notice a disconnect before the next request.
        if pipelined <= MAX_PIPELINED_BYTES:
            self.flow.resume_reading()
        else:
            self._close()

    def send_400_response(self, msg: str) -> None:
        if self._can_respond():
            self._send_error(400, "bad_request", "this is not a valid HTTP request")
        self._close()

    def on_response_complete(self) -> None:
        self._stop_timer()
        super().on_response_complete()
        # A pipelined request may already have started.
        self._time_body()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(_response.SEND_SECONDS, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _time_body(self) -> None:
        if not self.cycle.response_complete and self.cycle.more_body:
            self._start_timer("body", self.cycle, BODY_SECONDS)
        else:
            self._stop_timer()

    def _start_timer(self, part: Literal["head", "body"], cycle: object, seconds: float) -> None:
        # The first byte starts the timer; later bytes do not restart it.
        if self._timed != (part, cycle):
            self._stop_timer()
            self._timed = (part, cycle)
            self._timer = self.loop.call_later(seconds, self._time_out, part)

    def _stop_timer(self) -> None:
        self._timed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self, part: Literal["head", "body"]) -> None:
        if part == "body" and self.cycle.response_started:
            # An app that responds before the end of a body decides what happens to the rest.
            return
        if self._can_respond() and self._has_request():
            message = f"the {part} of the request was not complete in time"
            self._send_error(408, "request_timeout", message)
        self._close()

    def _can_respond(self) -> bool:
        """Whether no response has started."""
        return self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    def _has_request(self) -> bool:
        """Whether any part of a request has been received."""
        return self.conn.our_state is h11.SEND_RESPONSE or bool(self.conn.trailing_data[0])

    def _close(self) -> None:
        """Close the connection, and tell the app that the client has disconnected."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def _send_error(self, status: int, code: str, message: str) -> None:
        headers = {"cache-control": "no-store", "connection": "close"}
        response = ErrorResponse(status, code, message, headers=headers)
        # h11 rejects a body in the response to HEAD.
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.cycle.scope["method"] == "HEAD"
        events: list[h11.Event] = [
            h11.Response(
                status_code=status,
                headers=response.raw_headers,
                reason=HTTPStatus(status).phrase.encode(),
            ),
            h11.Data(data=b"" if is_head else bytes(response.body)),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")


def _is_not_truncation(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not is_truncation(error)
