"""The streamed response: complete only where the backend ended without an exception."""

from __future__ import annotations

import contextlib
import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import cast

import anyio
import anyio.lowlevel
from starlette.types import Message, Receive, Scope, Send

from cromicle_sdk._core.response import FINISH_REASON_HEADER

from .backends import Backend, BackendError, BackendRequest, Chunks
from .errors import ErrorResponse, RequestRejected
from .middleware import get_request_id
from .observability import TRUNCATED

__all__ = [
    "SEND_SECONDS",
    "ConcurrencyLimit",
    "ResponseTruncated",
    "StreamedReply",
    "UnsendableBody",
    "is_truncation",
]

# How long an interrupted backend may take to clean up: long enough to close a connection to a
# model server, short enough not to delay the shutdown of this one.
CLOSE_SECONDS = 2.0

# How long a client may take to read a chunk: 1 MiB at 140 kbit/s, the same rate as for requests.
# Without a limit a client that stops reading would keep its slot and the backend for ever.
SEND_SECONDS = 60.0

# A reply takes seconds, so one of many ends soon; clients spread their retries by themselves.
RETRY_AFTER_SECONDS = 1

_FAILED = ("backend_failed", "the backend failed before its first chunk")

# Enough frames to show the path from the backend into the library that it uses.
_LOGGED_FRAMES = 8


class ConcurrencyLimit:
    """Slots for at most `limit` replies at once; None for no limit."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._used = 0

    @contextlib.contextmanager
    def slot(self) -> Generator[None]:
        """Hold a slot while the block runs. Raises `RequestRejected` 503 if none is free."""
        if self._limit is not None and self._used >= self._limit:
            raise RequestRejected(
                503,
                "too_busy",
                f"the limit of {self._limit} concurrent replies is reached",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self._used += 1
        try:
            yield
        finally:
            self._used -= 1


class ResponseTruncated(Exception):  # noqa: N818 - a signal to the ASGI server, already logged
    """Makes the ASGI server drop the connection, because the reply cannot be completed.

    Raising after the response has started is the only way in ASGI to leave a body without its end.
    """


class UnsendableBody:
    """A response body that cannot be sent: whatever serializes it fails.

    Starlette's `BaseHTTPMiddleware` (FastAPI's `@app.middleware("http")`) completes the body of
    an app that raises and re-raises the exception afterwards, so that a truncated reply looks
    complete. The server above the middleware therefore has to fail, and this body makes it fail.
    Middleware in between has to forward the body, as `GZipMiddleware` does for clients that do
    not accept gzip, such as those of this protocol.
    """

    # Some servers skip an empty body.
    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        raise ResponseTruncated

    def __bytes__(self) -> bytes:
        raise ResponseTruncated


def is_truncation(error: object) -> bool:
    """Whether an exception results from truncating a reply on purpose."""
    # The TypeError that Python itself raises for an `UnsendableBody` names the type.
    return isinstance(error, ResponseTruncated) or UnsendableBody.__name__ in str(error)


class _SendTimeout(Exception):  # noqa: N818 - handled here; the client is the one that failed
    """The client did not read a chunk in time."""


@dataclass(frozen=True)
class StreamedReply:
    """The ASGI response that streams the reply of `backend` to `prompt`.

    The response starts with the first chunk, so that an earlier failure has a status of its own:
    500, or that of a `BackendError`. A later failure raises `ResponseTruncated`, as does a client
    that reads nothing for `SEND_SECONDS`. When the client disconnects, the backend is cancelled
    immediately. Raises `RequestRejected` if `concurrency` has no free slot.

    `request` is None for a backend that does not take one. Otherwise its finish reason is sent as
    a trailer where the ASGI server has the extension for trailers.
    """

    backend: Backend
    prompt: str = field(repr=False)
    request: BackendRequest | None
    concurrency: ConcurrencyLimit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.ExitStack() as slot:
            slot.enter_context(self.concurrency.slot())
            must_truncate = False
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
                must_truncate = await self._respond(scope, receive, _with_timeout(send), slot)
                group.cancel_scope.cancel()
            if must_truncate:
                scope["state"][TRUNCATED] = True
                await _send_unsendable(send)
                raise ResponseTruncated

    async def _respond(
        self, scope: Scope, receive: Receive, send: Send, slot: contextlib.ExitStack
    ) -> bool:
        """Send the reply or an error; returns True if the reply has to be truncated.

        The slot is released before the last message is sent: the client may send its next request
        as soon as it has received it.
        """
        chunks = _Chunks(self, get_request_id(scope))
        try:
            try:
                first = await chunks.receive()
            except BackendError as error:
                slot.close()
                response = ErrorResponse(
                    error.status, error.code, error.message, retry_after=error.retry_after
                )
                await response(scope, receive, send)
                return False
            trailers = self.request if _has_trailers(scope) else None
            return await _send_reply(chunks, first, send, slot, trailers)
        except _SendTimeout:
            return True
        except OSError:
            # ASGI: `send` may raise OSError once the client has disconnected.
            return False
        finally:
            await chunks.aclose()
            slot.close()


class _Chunks:
    """The chunks of a backend as non-empty bytes. Exceptions are logged and converted."""

    def __init__(self, reply: StreamedReply, request_id: str) -> None:
        self._reply = reply
        self._request_id = request_id
        self._iterator: AsyncIterator[str] | None = None
        self._has_started = False

    async def receive(self) -> bytes | None:
        """The next chunk, None at the end. Raises `BackendError` for any exception."""
        try:
            if self._iterator is None:
                self._iterator = await _open(self._reply)
            async for chunk in self._iterator:
                if data := _encode(chunk):
                    self._has_started = True
                    return data
        except BackendError as error:
            _log_backend_error(error, self._request_id, has_started=self._has_started)
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


def _encode(chunk: object) -> bytes:
    if not isinstance(chunk, str):
        kind = type(chunk).__name__
        raise BackendError(500, *_FAILED, detail=f"the backend yielded {kind}, not str")
    return str.encode(chunk)


def _with_timeout(send: Send) -> Send:
    """A `send` that raises `_SendTimeout` after `SEND_SECONDS`."""

    async def send_with_timeout(message: Message) -> None:
        with anyio.move_on_after(SEND_SECONDS) as scope:
            await send(message)
        if scope.cancelled_caught:
            raise _SendTimeout

    return send_with_timeout


def _has_trailers(scope: Scope) -> bool:
    """Whether the ASGI server has the extension for trailers, and for this request."""
    return "http.response.trailers" in (scope.get("extensions") or {})


async def _send_reply(
    chunks: _Chunks,
    first: bytes | None,
    send: Send,
    slot: contextlib.ExitStack,
    trailers: BackendRequest | None,
) -> bool:
    """Send headers and chunks; returns True if the backend failed after the first chunk.

    `trailers` has the finish reason in the end; None for a response without trailers.
    """
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if trailers is not None:
        # The backend may set its finish reason until its end, so the head only announces it.
        headers.append((b"trailer", FINISH_REASON_HEADER.encode()))
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": headers,
            "trailers": trailers is not None,
        }
    )
    data = first
    while data is not None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        # A backend that never waits would keep the event loop from noticing a disconnect.
        await anyio.lowlevel.checkpoint()
        try:
            data = await chunks.receive()
        except BackendError:
            return True
    # uvicorn waits for its buffer to drain before it accepts a message, not after. An empty chunk
    # therefore waits until all text is written: a client that disconnects until then has left
    # before the end.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    slot.close()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    if trailers is not None:
        reason = trailers.finish_reason
        fields = [] if reason is None else [(FINISH_REASON_HEADER.encode(), reason.encode())]
        await send({"type": "http.response.trailers", "headers": fields, "more_trailers": False})
    return False


async def _send_unsendable(send: Send) -> None:
    # Each server raises its own exception for it; `ResponseTruncated` follows in any case.
    with anyio.move_on_after(SEND_SECONDS), contextlib.suppress(Exception):
        await send({"type": "http.response.body", "body": UnsendableBody(), "more_body": True})


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _log_backend_error(error: BackendError, request_id: str, *, has_started: bool) -> None:
    # Rate limiting is not a failure.
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
    # The type and the frames, not the message, which may quote the prompt or a key.
    frames = [
        f"{PurePath(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    path = " > ".join(frames[-_LOGGED_FRAMES:])
    logging.getLogger("cromicle_sdk.server").error(
        "the backend failed: %s at %s (request %s)", type(error).__name__, path, request_id
    )
