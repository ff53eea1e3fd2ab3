"""A backend's pieces become a streamed reply whose end can be trusted."""

from __future__ import annotations

import contextlib
import inspect
import logging
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import PurePath

import anyio
import anyio.lowlevel
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from .backends import Backend, BackendError
from .concurrency import Admission
from .errors import build_error, format_retry_after, request_id

__all__ = ["SEND_SECONDS", "CutMark", "ReplyCut", "StreamedReply", "is_of_cut"]

# What a backend that was interrupted may still take to clean up: time to say goodbye to a model
# server, not enough to hold up the server's own end.
CLOSE_SECONDS = 2.0

# How long a client may take for a piece, as it may for a request: 1 MiB at 140 kbit/s. Without an
# end one that reads nothing would keep its place and the backend for good.
SEND_SECONDS = 60.0

# A code for programs, a sentence for people.
_FAILED = ("backend_failed", "the backend failed before its first piece")

# Enough of the way to a failure to lead from the backend into the library that it uses.
_LOGGED_STEPS = 8


class ReplyCut(Exception):  # noqa: N818 - a signal to the ASGI server, reported already
    """Tells the ASGI server to drop the connection: the reply has begun and can't be finished.

    An exception after the head is the one way that ASGI has to leave a body without its end.
    """


class CutMark:
    """A body that nobody can send: whoever passes it on or takes it apart gives up the reply.

    Starlette's `BaseHTTPMiddleware`, FastAPI's `@app.middleware("http")`, ends the body of an
    app that raises and lets the exception through only then, when the cut reply is a whole one.
    So the server above it has to be the one that fails. What is between the two must pass it on,
    as `GZipMiddleware` does for a client that takes no gzip, like those of the protocol.
    """

    # Some pass over what is empty.
    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        raise ReplyCut

    def __bytes__(self) -> bytes:
        raise ReplyCut


def is_of_cut(error: object) -> bool:
    """Whether this is how a reply was cut off: `ReplyCut`, or what came of the mark."""
    # What Python itself says of the mark names its type.
    return isinstance(error, ReplyCut) or CutMark.__name__ in str(error)


class _NotTakenError(Exception):
    """The client has not taken what was sent in time."""


class _BackendFailed(Exception):  # noqa: N818 - carries the answer, is no error itself
    """The backend raised, which is logged; `answer` is for a caller that has no text yet."""

    def __init__(self, answer: JSONResponse) -> None:
        super().__init__()
        self.answer = answer


@dataclass(frozen=True)
class StreamedReply:
    """The ASGI response that streams what `backend` answers to `prompt`.

    The head waits for the first piece, so that an early failure is an answer of its own: a 500,
    or what a `BackendError` says. A later one raises `ReplyCut`, as does a client that takes
    nothing for `SEND_SECONDS`. When the client leaves, the backend is cancelled at once. Raises
    `Refusal`, before anything else, where it isn't admitted.
    """

    backend: Backend
    prompt: str = field(repr=False)
    admission: Admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.ExitStack() as place:
            place.enter_context(self.admission.admit())
            await self._stream(scope, receive, send, place)

    async def _stream(
        self, scope: Scope, receive: Receive, send: Send, place: contextlib.ExitStack
    ) -> None:
        cut = False
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
            cut = await self._answer(scope, receive, _limit(send), place)
            group.cancel_scope.cancel()
        if cut:
            await _send_mark(send)
            raise ReplyCut

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, place: contextlib.ExitStack
    ) -> bool:
        """Send the reply or the error; whether the reply has to be cut off.

        The place is left before the last message: the client may ask again as soon as it has it.
        """
        pieces = _Pieces(self.backend, self.prompt, request_id(scope))
        try:
            try:
                first = await pieces.take()
            except _BackendFailed as failed:
                place.close()
                await failed.answer(scope, receive, send)
                return False
            return await _send_reply(pieces, first, send, place)
        except _NotTakenError:
            return True
        except OSError:
            # ASGI: `send` may raise it once the client is gone, and then nobody is left to tell.
            return False
        finally:
            await pieces.aclose()
            place.close()


class _Pieces:
    """A backend's pieces as bytes, none of them empty; what it raises is logged and wrapped."""

    def __init__(self, backend: Backend, prompt: str, identifier: str) -> None:
        self._backend = backend
        self._prompt = prompt
        self._request_id = identifier
        self._iterator: AsyncIterator[str] | None = None
        self._begun = False

    async def take(self) -> bytes | None:
        """The next piece, None at the end. Raises `_BackendFailed`."""
        try:
            if self._iterator is None:
                self._iterator = await _open(self._backend, self._prompt)
            async for piece in self._iterator:
                if data := _encode(piece):
                    self._begun = True
                    return data
        except BackendError as error:
            _log_refusal(error, self._request_id, begun=self._begun)
            raise _BackendFailed(_build_refusal(error)) from error
        except Exception as error:
            _log_failure(error, self._request_id)
            raise _BackendFailed(_build_failure()) from error
        return None

    async def aclose(self) -> None:
        """Let the backend clean up; a failure in that is logged and changes nothing."""
        close = getattr(self._iterator, "aclose", None)
        if close is None:
            return
        try:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await close()
        except Exception as error:  # noqa: BLE001 - a backend is other people's code
            _log_failure(error, self._request_id)


def _encode(piece: object) -> bytes:
    if not isinstance(piece, str):
        raise BackendError(
            500, *_FAILED, detail=f"the backend gave {type(piece).__name__}, not str"
        )
    return str.encode(piece)


async def _open(backend: Backend, prompt: str) -> AsyncIterator[str]:
    answer = backend(prompt)
    if inspect.isawaitable(answer):
        answer = await answer
    return aiter(answer)


def _limit(send: Send) -> Send:
    """A `send` that raises `_NotTakenError` where it takes too long."""

    async def send_in_time(message: Message) -> None:
        with anyio.move_on_after(SEND_SECONDS) as scope:
            await send(message)
        if scope.cancelled_caught:
            raise _NotTakenError

    return send_in_time


async def _send_reply(
    pieces: _Pieces, first: bytes | None, send: Send, place: contextlib.ExitStack
) -> bool:
    """Send head and pieces; whether the backend failed on the way."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain; charset=utf-8")],
        }
    )
    data = first
    while data is not None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        # A backend that never waits would keep the loop from seeing that the client has left.
        await anyio.lowlevel.checkpoint()
        try:
            data = await pieces.take()
        except _BackendFailed:
            return True
    # uvicorn waits before it takes a message, not after: once this one is taken, so are the texts,
    # and whoever leaves until then has left before the end.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    place.close()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return False


async def _send_mark(send: Send) -> None:
    # Each server has an error of its own for it, and `ReplyCut` follows whatever that is.
    with anyio.move_on_after(SEND_SECONDS), contextlib.suppress(Exception):
        await send({"type": "http.response.body", "body": CutMark(), "more_body": True})


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _build_failure() -> JSONResponse:
    return build_error(500, *_FAILED)


def _build_refusal(error: BackendError) -> JSONResponse:
    headers = {} if error.retry_after is None else format_retry_after(error.retry_after)
    return build_error(error.status, error.code, error.message, headers=headers)


def _log_refusal(error: BackendError, identifier: str, *, begun: bool) -> None:
    # Who is told to slow down is no failure of anybody's.
    level = logging.WARNING if error.status == 429 else logging.ERROR
    detail = " ".join(error.detail.split())
    logging.getLogger("cromicle_sdk.server").log(
        level,
        "%s: %s, %s (request %s)",
        "reply cut off" if begun else "no answer",
        error.code,
        detail,
        identifier,
    )


def _log_failure(error: Exception, identifier: str) -> None:
    # Its type and its way, not its text: that may quote the prompt or a key of the backend's.
    steps = [
        f"{PurePath(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    way = " > ".join(steps[-_LOGGED_STEPS:])
    logging.getLogger("cromicle_sdk.server").error(
        "the backend failed: %s at %s (request %s)", type(error).__name__, way, identifier
    )
