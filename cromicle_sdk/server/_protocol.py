"""One HTTP connection as uvicorn serves it here: quiet, and not kept by requests that never end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from typing import Any, Literal, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from ._answers import format_error
from ._replies import ReplyCut

__all__ = ["Protocol"]

# From a connection's first moment, or a later request's first byte, to the end of a head: a head
# is one packet, so that this is already a client that drips it on purpose or is gone.
HEAD_SECONDS = 10.0

# From a head to the end of its body: the longest one that is read by default, 1 MiB, takes that
# long at 140 kbit/s.
BODY_SECONDS = 60.0


class Protocol(H11Protocol):
    """uvicorn's h11 protocol with time limits for requests, a log of its own and no access log.

    A request whose head or body does not arrive in time is answered with a 408, where it still
    can be, and its connection is closed.

    uvicorn's options for logs change loggers of the whole process, which may well run another
    uvicorn, and its own log shows a traceback for each reply that was cut off on purpose.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False
        self.logger = logging.getLogger("cromicle_sdk.server.http")
        self.logger.addFilter(_is_news)
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        # asyncio does this for sockets that name their protocol, which `listen` has no way to do.
        # Without it the first text waits for the client to acknowledge the head: 40 ms.
        connection: socket.socket = transport.get_extra_info("socket")
        # A client that has left already makes it fail on some systems.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await("head", None, HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            # Of the next request, or of a body that nobody reads any more.
            self._await("head", cycle, HEAD_SECONDS)
        else:
            self._await_body()

    def on_response_complete(self) -> None:
        self._await_nothing()
        super().on_response_complete()
        # A client that sends requests without waiting may have begun the next one already.
        self._await_body()

    def connection_lost(self, exc: Exception | None) -> None:
        self._await_nothing()
        super().connection_lost(exc)

    def _await_body(self) -> None:
        if not self.cycle.response_complete and self.cycle.more_body:
            self._await("body", self.cycle, BODY_SECONDS)
        else:
            self._await_nothing()

    def _await(self, part: Literal["head", "body"], cycle: object, seconds: float) -> None:
        # The first byte starts the clock, and no later one turns it back.
        if self._awaited != (part, cycle):
            self._await_nothing()
            self._awaited = (part, cycle)
            self._timer = self.loop.call_later(seconds, self._give_up, part)

    def _await_nothing(self) -> None:
        self._awaited = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, part: Literal["head", "body"]) -> None:
        if part == "body" and self.cycle.response_started:
            # Whoever answers before the end of a body knows what to do with the rest.
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and self._has_begun():
            self._send_408(f"the {part} of the request did not arrive in time")
        self.transport.close()

    def _has_begun(self) -> bool:
        """Whether there is anything to answer: a part of a head, or a head."""
        return self.conn.our_state is h11.SEND_RESPONSE or bool(self.conn.trailing_data[0])

    def _send_408(self, message: str) -> None:
        body = json.dumps(format_error("request_timeout", message)).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, ReplyCut)
