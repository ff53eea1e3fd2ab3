"""The streamed response, which is completed only if the backend raises no exception."""

from __future__ import annotations

import contextlib
import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import cast

import anyio
import anyio.lowlevel
from starlette.types import Message, Receive, Scope, Send

from cromicle_sdk._core.response import FINISH_REASON_HEADER

from .backends import Backend, BackendError, BackendRequest, Chunks
from .concurrency import ConcurrencyLimit, Slot
from .errors import ErrorResponse
from .extension import find_extension
from .forms import ReplyForm
from .middleware import get_request_id
from .observability import CHARACTERS, TRUNCATED
from .tokens import find_token_of

__all__ = [
    "SEND_SECONDS",
    "ResponseTruncated",
    "StreamedReply",
    "UnsendableBody",
    "is_truncation",
]

# How long an interrupted backend may take to clean up: long enough to close a connection to a
# model server, short enough not to delay the shutdown of this one.
CLOSE_SECONDS = 2.0

# How long a client may read nothing before its connection is closed: otherwise it would hold its
# slot and the backend for ever. The servers of this package measure how much a client reads. Under
# any other, this is the time limit for each part of a chunk (2 kbit/s).
SEND_SECONDS = 60.0
PART_BYTES = 16 * 1024

_FAILED = ("backend_failed", "the backend failed before its first chunk")

# Enough frames to show the path from the backend into the library that it uses.
_LOGGED_FRAMES = 8


class ResponseTruncated(Exception):  # noqa: N818 - a signal to the ASGI server, already logged
    """Makes the ASGI server close the connection, because the reply cannot be completed.

    Raising after the response has started is the only way in ASGI to leave a body incomplete.
    """


class UnsendableBody:
    """A response body that cannot be serialized, so that the ASGI server fails to send it.

    Starlette's `BaseHTTPMiddleware` (FastAPI's `@app.middleware("http")`) completes the body of
    an app that raises, and re-raises the exception only afterwards, so a truncated reply would look
    complete. This body therefore makes the server itself fail. Middleware in between must pass the
    body on, as `GZipMiddleware` does for clients that do not accept gzip, such as those of this
    protocol.
    """

    # Some servers skip an empty body.
    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        raise ResponseTruncated

    def __bytes__(self) -> bytes:
        raise ResponseTruncated


def is_truncation(error: object) -> bool:
    """Whether an exception is the result of truncating a reply deliberately."""
    # The TypeError that Python itself raises for an `UnsendableBody` names the type.
    return isinstance(error, ResponseTruncated) or UnsendableBody.__name__ in str(error)


class _SendTimeout(Exception):  # noqa: N818 - handled here; the client is the one that failed
    """The client did not read a chunk in time."""


@dataclass(frozen=True)
class StreamedReply:
    """The ASGI response that streams the reply of `backend` to `prompt`.

    The response starts with the first chunk, so an earlier failure has its own status: 500, or that
    of a `BackendError`. After a later failure, or if the client reads nothing for `SEND_SECONDS`,
    it raises `ResponseTruncated`. A long chunk is sent in parts. When the client disconnects, the
    backend is cancelled immediately. Raises `RequestRejected` if too many requests wait for a slot
    of `concurrency`.

    `request` is None for a backend that does not take one. Otherwise its finish reason is sent; if
    `form` has a trailer, only if the ASGI server has the extension for trailers.
    """

    backend: Backend
    prompt: str = field(repr=False)
    request: BackendRequest | None
    concurrency: ConcurrencyLimit
    form: ReplyForm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        slot = self.concurrency.request_slot(find_token_of(scope))
        must_truncate = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
                await slot.wait()
                must_truncate = await self._respond(scope, receive, _limit(send, scope), slot)
                group.cancel_scope.cancel()
        finally:
            slot.release()
        if must_truncate:
            scope["state"][TRUNCATED] = True
            await _send_unsendable(send)
            raise ResponseTruncated

    async def _respond(self, scope: Scope, receive: Receive, send: Send, slot: Slot) -> bool:
        """Send the reply or an error. Returns True if the reply has to be truncated.

        The slot is released before the last message is sent, because the client may send its next
        request as soon as it has received that message.
        """
        chunks = _Chunks(self, get_request_id(scope))
        try:
            try:
                first = await chunks.receive()
            except BackendError as error:
                slot.release()
                response = ErrorResponse(
                    error.status,
                    error.code,
                    error.message,
                    retry_after=error.retry_after,
                    form=self.form.build_error,
                )
                await response(scope, receive, send)
                return False
            has_trailers = self.form.has_trailer and _has_trailers(scope)
            return await self._send_reply(chunks, first, send, slot, has_trailers=has_trailers)
        except _SendTimeout:
            return True
        except OSError:
            # ASGI: `send` may raise OSError once the client has disconnected.
            return False
        finally:
            scope["state"][CHARACTERS] = chunks.characters
            await chunks.aclose()
            slot.release()

    async def _send_reply(
        self, chunks: _Chunks, first: str | None, send: Send, slot: Slot, *, has_trailers: bool
    ) -> bool:
        """Send headers and chunks. Returns True if the backend failed after the first chunk."""
        request, form = self.request, self.form
        has_trailers = has_trailers and request is not None
        headers = [(b"content-type", form.media_type.encode())]
        if has_trailers:
            # Only announced here: the backend may set the finish reason until its end.
            headers.append((b"trailer", FINISH_REASON_HEADER.encode()))
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": headers,
                "trailers": has_trailers,
            }
        )
        text = first
        while text is not None:
            await _send_parts(send, form.encode(text))
            try:
                text = await chunks.receive()
            except BackendError as error:
                await _send_parts(send, form.encode_failure(error))
                return True
        reason = None if request is None else request.finish_reason
        await _send_parts(send, form.encode_end(reason))
        # uvicorn waits for its buffer to drain before it accepts a message, not afterwards. Sending
        # an empty chunk therefore waits until all text is written. A client that disconnects before
        # that is recorded as such.
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        slot.release()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if has_trailers:
            fields = [] if reason is None else [(FINISH_REASON_HEADER.encode(), reason.encode())]
            await send(
                {"type": "http.response.trailers", "headers": fields, "more_trailers": False}
            )
        return False


class _Chunks:
    """The non-empty chunks of a backend. Its exceptions are logged and converted."""

    def __init__(self, reply: StreamedReply, request_id: str) -> None:
        self._reply = reply
        self._request_id = request_id
        self._iterator: AsyncIterator[str] | None = None
        self.characters = 0

    async def receive(self) -> str | None:
        """Return the next chunk, or None at the end. Raises `BackendError` for any exception."""
        try:
            if self._iterator is None:
                self._iterator = await _open(self._reply)
            async for chunk in self._iterator:
                if text := _check(chunk):
                    self.characters += len(text)
                    return text
        except BackendError as error:
            _log_backend_error(error, self._request_id, has_started=self.characters > 0)
            raise
        except Exception as error:
            _log_exception(error, self._request_id)
            raise BackendError(500, *_FAILED) from error
        return None

    async def aclose(self) -> None:
        """Close the backend's iterator; an exception is logged and otherwise ignored."""
        close = getattr(self._iterator, "aclose", None)
        if close is None:
            return
        try:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await close()
        except Exception as error:  # noqa: BLE001 - a backend is third-party code
            _log_exception(error, self._request_id)


async def _open(reply: StreamedReply) -> AsyncIterator[str]:
    iterator: Chunks
    if reply.request is None:
        iterator = cast("Callable[[str], Chunks]", reply.backend)(reply.prompt)
    else:
        backend = cast("Callable[[str, BackendRequest], Chunks]", reply.backend)
        iterator = backend(reply.prompt, reply.request)
    if inspect.isawaitable(iterator):
        iterator = await iterator
    return aiter(iterator)


def _check(chunk: object) -> str:
    if not isinstance(chunk, str):
        kind = type(chunk).__name__
        raise BackendError(500, *_FAILED, detail=f"the backend yielded {kind}, not str")
    # A subclass of str may override methods.
    text = str.__str__(chunk)
    # Raises for a lone surrogate, which no form can send.
    text.encode()
    return text


def _limit(send: Send, scope: Scope) -> Send:
    """Return a `send` that raises `_SendTimeout` after `SEND_SECONDS`.

    The servers of this package have such a limit themselves.
    """
    if find_extension(scope) is not None:
        return send

    async def send_with_timeout(message: Message) -> None:
        with anyio.move_on_after(SEND_SECONDS) as scope:
            await send(message)
        if scope.cancelled_caught:
            raise _SendTimeout

    return send_with_timeout


def _has_trailers(scope: Scope) -> bool:
    """Whether the ASGI server supports trailers for this request."""
    return "http.response.trailers" in (scope.get("extensions") or {})


async def _send_parts(send: Send, data: bytes) -> None:
    for start in range(0, len(data), PART_BYTES):
        part = data[start : start + PART_BYTES]
        await send({"type": "http.response.body", "body": part, "more_body": True})
        # Lets the event loop notice a disconnect even if the backend never waits. After one, `send`
        # does not wait, either.
        await anyio.lowlevel.checkpoint()


async def _send_unsendable(send: Send) -> None:
    # Each server raises its own exception. `ResponseTruncated` follows in any case.
    with anyio.move_on_after(SEND_SECONDS), contextlib.suppress(Exception):
        await send({"type": "http.response.body", "body": UnsendableBody(), "more_body": True})


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _log_backend_error(error: BackendError, request_id: str, *, has_started: bool) -> None:
    # A rate limit is not a failure.
    level = logging.WARNING if error.status == 429 else logging.ERROR
    detail = " ".join(error.detail.split())
    logging.getLogger("cromicle_sdk.server").log(
        level,
        "%s: %s, %s (request %s)",
        "reply truncated" if has_started else "no reply",
        error.code,
        detail,
        request_id,
    )


def _log_exception(error: Exception, request_id: str) -> None:
    # Not the message, which may quote the prompt or a key.
    frames = [
        f"{PurePath(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    path = " > ".join(frames[-_LOGGED_FRAMES:])
    logging.getLogger("cromicle_sdk.server").error(
        "the backend failed: %s at %s (request %s)", type(error).__name__, path, request_id
    )
