"""The ASGI extension `http.response.trailers`, which uvicorn's h11 protocol does not have."""

from __future__ import annotations

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .framing import StrictConnection

__all__ = ["TrailersApp", "TrailersConnection"]

_EXTENSION = "http.response.trailers"


class TrailersConnection(StrictConnection):
    """A connection that sends the trailers passed to `set_trailers` after the next message."""

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(max_incomplete_event_size)
        self._trailers: list[tuple[bytes, bytes]] = []

    def set_trailers(self, trailers: list[tuple[bytes, bytes]]) -> None:
        """Set the trailers of the response in progress."""
        self._trailers = trailers

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        # `send` of h11 calls this, too.
        if isinstance(event, h11.EndOfMessage) and self._trailers:
            trailers, self._trailers = self._trailers, []
            event = h11.EndOfMessage(headers=trailers)
        return super().send_with_data_passthrough(event)


class TrailersApp:
    """Adds the extension for trailers to the scope of `app`, and implements it.

    Only a chunked response can have trailers (RFC 9112, section 7.1.2). Those of any other response
    are discarded, as a recipient may do, too (RFC 9110, section 6.5.1).
    """

    def __init__(self, app: ASGIApp, connection: TrailersConnection) -> None:
        self._app = app
        self._connection = connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["http_version"] != "1.1":
            await self._app(scope, receive, send)
            return
        response = _Response(self._connection, send, is_head=scope["method"] == "HEAD")
        scope["extensions"] = {_EXTENSION: {}}
        await self._app(scope, receive, response.send)
        await response.finish()


class _Response:
    """One response, which holds back the end of its body until the trailers are known."""

    def __init__(self, connection: TrailersConnection, send: Send, *, is_head: bool) -> None:
        self._connection = connection
        self._send = send
        self._is_head = is_head
        self._has_trailers = False
        self._is_held = False
        self._trailers: list[tuple[bytes, bytes]] = []

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == _EXTENSION:
            self._trailers.extend(message.get("headers", ()))
            if not message.get("more_trailers", False):
                await self.finish()
            return
        if kind == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            has_body = not self._is_head and message["status"] not in (204, 304)
            is_chunked = has_body and b"content-length" not in names
            self._has_trailers = message.get("trailers", False) and is_chunked
        elif self._has_trailers and not message.get("more_body", False):
            self._is_held = True
            message = {**message, "more_body": True}
        await self._send(message)

    async def finish(self) -> None:
        """Send the end of the body that was held back, if any."""
        if not self._is_held:
            return
        self._is_held = self._has_trailers = False
        self._connection.set_trailers(self._trailers)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
