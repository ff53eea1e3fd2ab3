"""One HTTP connection as uvicorn serves it here: quiet, and not kept by requests that never end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from http import HTTPStatus
from typing import Any, Literal, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from cromicle_sdk.server import response as _replies
from cromicle_sdk.server.errors import format_error
from cromicle_sdk.server.middleware import CUT
from cromicle_sdk.server.response import is_of_cut

__all__ = ["Protocol"]

# From a connection's first moment, or a later request's first byte, to the end of a head: a head
# is one packet, so that this is already a client that drips it on purpose or is gone.
HEAD_SECONDS = 10.0

# From a head to the end of its body: the longest one that is read by default, 1 MiB, takes that
# long at 140 kbit/s.
BODY_SECONDS = 60.0

# What a client may send ahead of its turn. It has to be read, for that is how its leaving is
# noticed.
AHEAD_BYTES = 64 * 1024


class Protocol(H11Protocol):
    """uvicorn's h11 protocol with time limits for requests, a log of its own and no access log.

    A request whose head or body does not arrive in time is answered with a 408, where it still
    can be, and its connection is closed. So is that of a client that does not take its answer.

    uvicorn's options for logs change loggers of the whole process, which may well run another
    uvicorn, and its own log shows a traceback for each reply that was cut off on purpose.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False
        self.logger = logging.getLogger("cromicle_sdk.server.http")
        self.logger.addFilter(_is_no_cut)
        self._timer: asyncio.TimerHandle | None = None
        self._timed: object = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        # asyncio does this for sockets that name their protocol, which `listen` has no way to do.
        # Without it the first text waits for the client to acknowledge the head: 40 ms.
        connection: socket.socket = transport.get_extra_info("socket")
        # A client that has left already makes it fail on some systems.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_timer("head", None, HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            # Of the next request, or of a body that nobody reads any more.
            self._start_timer("head", cycle, HEAD_SECONDS)
        else:
            self._time_body()

    def cut_off(self) -> None:
        """End the connection at once, and what is under way on it."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None:
            cast("dict[str, Any]", cycle.scope)["state"][CUT] = True
        # Not `close`, which waits until the client has taken everything.
        self.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        cycle = cast("RequestResponseCycle | None", self.cycle)
        ahead = len(self.conn.trailing_data[0])
        if cycle is None or cycle.more_body or cycle.response_complete or not ahead:
            return
        # uvicorn has stopped to read, and would not see the client leave before its next turn.
        if ahead <= AHEAD_BYTES:
            self.flow.resume_reading()
        else:
            self._drop()

    def send_400_response(self, msg: str) -> None:
        if self._is_unanswered():
            self._send_error(400, "bad_request", "this is no valid HTTP request")
        self._drop()

    def on_response_complete(self) -> None:
        self._stop_timer()
        super().on_response_complete()
        # A client that sends requests without waiting may have begun the next one already.
        self._time_body()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(_replies.SEND_SECONDS, self.cut_off)

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
        # The first byte starts the clock, and no later one turns it back.
        if self._timed != (part, cycle):
            self._stop_timer()
            self._timed = (part, cycle)
            self._timer = self.loop.call_later(seconds, self._give_up, part)

    def _stop_timer(self) -> None:
        self._timed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, part: Literal["head", "body"]) -> None:
        if part == "body" and self.cycle.response_started:
            # Whoever answers before the end of a body knows what to do with the rest.
            return
        if self._is_unanswered() and self._has_begun():
            message = f"the {part} of the request did not arrive in time"
            self._send_error(408, "request_timeout", message)
        self._drop()

    def _is_unanswered(self) -> bool:
        """Whether an answer can be sent still."""
        return self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    def _has_begun(self) -> bool:
        """Whether there is anything to answer: a part of a head, or a head."""
        return self.conn.our_state is h11.SEND_RESPONSE or bool(self.conn.trailing_data[0])

    def _drop(self) -> None:
        """Close the connection, and tell whoever is at work for it that nobody is there."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def _send_error(self, status: int, code: str, message: str) -> None:
        body = json.dumps(format_error(code, message)).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("connection", "close"),
        ]
        reason = HTTPStatus(status).phrase.encode()
        events: list[h11.Event] = [
            h11.Response(status_code=status, headers=headers, reason=reason),
            # To HEAD h11 sends none.
            h11.Data(data=b"" if self._is_head() else body),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")

    def _is_head(self) -> bool:
        return self.conn.our_state is h11.SEND_RESPONSE and self.cycle.scope["method"] == "HEAD"


def _is_no_cut(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not is_of_cut(error)
