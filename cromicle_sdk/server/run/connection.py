"""One HTTP connection: uvicorn's h11 protocol with time limits, trailers and its own logger."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from http import HTTPStatus
from typing import Any, Literal, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from cromicle_sdk.server import response as _response
from cromicle_sdk.server.addresses import parse_address
from cromicle_sdk.server.errors import ErrorResponse
from cromicle_sdk.server.middleware import FIXED_HEADERS
from cromicle_sdk.server.observability import TRUNCATED, AccessLog, RequestRecord
from cromicle_sdk.server.response import is_truncation

from .framing import Rejection
from .registry import Connections
from .trailers import TrailersApp, TrailersConnection

__all__ = ["Connection"]

# The headers of browsers and proxies take a few kilobytes. The defaults of h11 and nginx are
# similar.
MAX_HEAD_BYTES = 16 * 1024

# How much is read at once, and therefore parsed without serving other connections: in the worst
# case, chunks of one byte, this takes 9 ms.
READ_BYTES = 16 * 1024

# How much unsent text the kernel buffers. Its default is megabytes, which a slow client takes
# minutes to read, while the server sees no progress.
UNSENT_BYTES = 16 * 1024

# How many times per send timeout the progress of a slow client is checked.
SEND_CHECKS = 4

_NOT_HTTP = Rejection(400, "bad_request", "this is not a valid HTTP request")

# From the start of a connection, or the first byte of a later request, to the end of the headers.
# Headers fit into a few packets: a client that takes longer is gone or slow on purpose.
HEAD_SECONDS = 10.0

# From the headers to the end of the body. The longest body that is accepted by default, 1 MiB,
# takes this long at 140 kbit/s.
BODY_SECONDS = 60.0

# How much a client may send before the current response is complete. The server keeps reading
# during a response, because only a read notices a disconnect.
MAX_PIPELINED_BYTES = 64 * 1024


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """uvicorn's h11 protocol with time limits, trailers and its own logger.

    If the headers or the body of a request are not complete in time, the response is a 408, if it
    can still be sent, and the connection is closed. A connection is also closed if the client reads
    nothing of the response for `SEND_SECONDS`. The connection reports to `connections` whether a
    request is in progress. If none is, `connections` may call `abort`.

    uvicorn's logging options are not used: they change loggers of the whole process, which may run
    another uvicorn, and log a traceback for each reply that is truncated deliberately.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        connections: Connections,
        address: str,
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        self.conn: TrailersConnection = TrailersConnection(MAX_HEAD_BYTES)
        self.app: Any = TrailersApp(cast("ASGIApp", self.app), self.conn)
        self.access_log = False
        self.logger: logging.Logger = logging.getLogger("cromicle_sdk.server.http")
        self.logger.addFilter(_is_unreported)
        self._registry = connections
        self._address = address
        self._is_busy = False
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._timed: object = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._blank = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._socket: socket.socket = transport.get_extra_info("socket")
        # asyncio sets TCP_NODELAY only if the `proto` of the socket is IPPROTO_TCP, and that of
        # an accepted socket is 0. Without it, the first text waits 40 ms for the client to
        # acknowledge the headers.
        options = {"TCP_NODELAY": 1, "TCP_NOTSENT_LOWAT": UNSENT_BYTES}
        for name, value in options.items():
            # Fails on some systems if the client has already disconnected. Some systems have no
            # TCP_NOTSENT_LOWAT.
            with contextlib.suppress(OSError, AttributeError):
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._registry.mark_idle(self)
        self._start_timer("head", None, HEAD_SECONDS)

    def get_buffer(self, sizehint: int) -> bytearray:
        # Allocated for each read, so that idle connections hold no buffer.
        self._buffer = bytearray(READ_BYTES)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data, self._buffer = bytes(self._buffer[:nbytes]), bytearray()
        self.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self._has_been_reset():
            self.transport.abort()
            return
        data = self._strip_blank_lines(data)
        # h11 interprets empty data as the end of the connection.
        if data:
            super().data_received(data)
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            # Part of the next request, or of a body that is no longer read.
            self._start_timer("head", cycle, HEAD_SECONDS)
        else:
            self._time_body()
        self._register()

    def _has_been_reset(self) -> bool:
        """Whether the client has reset the connection after sending the data that was just read.

        Serving its requests would be useless and delay others. asyncio notices a reset only at the
        next read.
        """
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def _register(self) -> None:
        """Report to the registry whether a complete request is in progress, if that has changed."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        is_busy = cycle is not None and not cycle.more_body and not cycle.response_complete
        if is_busy != self._is_busy:
            self._is_busy = is_busy
            (self._registry.mark_busy if is_busy else self._registry.mark_idle)(self)

    def _strip_blank_lines(self, data: bytes) -> bytes:
        """Remove the empty lines before a request, which h11 rejects.

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
        # `Upgrade: h2c`. "A server MAY ignore a received Upgrade header field" (RFC 9110, section
        # 7.8).
        return False

    def abort(self) -> None:
        """Close the connection immediately, and cancel the request in progress."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None:
            cast("dict[str, Any]", cycle.scope)["state"][TRUNCATED] = True
        # Not `close`, which waits until the client has read the buffered data.
        self.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        cycle = cast("RequestResponseCycle | None", self.cycle)
        pipelined = len(self.conn.trailing_data[0])
        if cycle is None or cycle.more_body or cycle.response_complete or not pipelined:
            return
        # uvicorn has paused reading and would not notice a disconnect before the next request.
        if pipelined <= MAX_PIPELINED_BYTES:
            self.flow.resume_reading()
        else:
            self._close()

    def send_400_response(self, msg: str) -> None:
        error = self.conn.rejection or _NOT_HTTP
        if self._can_respond():
            self._send_error(error.status, error.code, error.message)
        self._close()

    def on_response_complete(self) -> None:
        self._stop_timer()
        super().on_response_complete()
        # A pipelined request may already have started.
        self._time_body()
        self._register()
        # uvicorn may have called `close`, which waits until the buffered data is sent.
        self._watch_sending()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_watching()
        self._registry.release(self, self._address)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def _watch_sending(self) -> None:
        """Abort the connection once the client reads nothing for `SEND_SECONDS`."""
        if self._send_timer is None:
            self._check_sending(last_size=sys.maxsize, idle_checks=0)

    def _check_sending(self, last_size: int, idle_checks: int) -> None:
        self._send_timer = None
        size = self.transport.get_write_buffer_size()
        # While the buffer grows, progress is unknown. But then writing is paused soon.
        idle_checks = idle_checks + 1 if size == last_size else 0
        if idle_checks == SEND_CHECKS:
            self.abort()
        elif size:
            self._send_timer = self.loop.call_later(
                _response.SEND_SECONDS / SEND_CHECKS, self._check_sending, size, idle_checks
            )

    def _stop_watching(self) -> None:
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
            # An app that responds before the end of a body handles the rest itself.
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
        """Close the connection; the app receives `http.disconnect`."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()
        self._watch_sending()

    def _send_error(self, status: int, code: str, message: str) -> None:
        self._log_error(status)
        headers = {**FIXED_HEADERS, "connection": "close"}
        response = ErrorResponse(status, code, message, headers=headers)
        # h11 rejects a body in the response to HEAD.
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.conn.method == b"HEAD"
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

    def _log_error(self, status: int) -> None:
        """Write a line to the access log, unless an app handles the request and writes its own."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            return
        address = parse_address(self._address)
        record = RequestRecord("other", "other", "-", client=str(address), status=status)
        record.finish("complete")
        AccessLog().on_end(record)


def _is_unreported(record: logging.LogRecord) -> bool:
    """Whether this package does not log the event itself, as truncations and invalid requests."""
    error = record.exc_info[1] if record.exc_info else None
    return not is_truncation(error) and record.msg != "Invalid HTTP request received."
