"""A backend's pieces become a streamed reply whose end can be trusted."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import PurePath

import anyio
import anyio.lowlevel
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ._admission import Admission
from ._answers import build_error, format_retry_after, request_id
from ._backends import Backend, BackendError

__all__ = ["ReplyCut", "StreamedReply"]

# What a backend that was interrupted may still take to clean up: time to say goodbye to a model
# server, not enough to hold up the server's own end.
CLOSE_SECONDS = 2.0

# A code for programs, a sentence for people.
_FAILED = ("backend_failed", "the backend failed before its first piece")

# Enough of the way to a failure to lead from the backend into the library that it uses.
_LOGGED_STEPS = 8


class ReplyCut(Exception):  # noqa: N818 - a signal to the ASGI server, reported already
    """Tells the ASGI server to drop the connection: the reply has begun and can't be finished.

    An exception after the head is the one way that ASGI has to leave a body without its end.
    """


class _BackendFailed(Exception):  # noqa: N818 - carries the answer, is no error itself
    """The backend raised, which is logged; `answer` is for a caller that has no text yet."""

    def __init__(self, answer: JSONResponse) -> None:
        super().__init__()
        self.answer = answer


@dataclass(frozen=True)
class StreamedReply:
    """The ASGI response that streams what `backend` answers to `prompt`.

    The head waits for the first piece, so that an early failure is an answer of its own: a 500,
    or what a `BackendError` says. A later one raises `ReplyCut`. When the client leaves, the
    backend is cancelled at once. Raises `Refusal`, before anything else, where it isn't admitted.
    """

    backend: Backend
    prompt: str = field(repr=False)
    admission: Admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.admission.admit():
            await self._stream(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        cut = False
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
            cut = await self._answer(scope, receive, send)
            group.cancel_scope.cancel()
        if cut:
            raise ReplyCut

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Send the reply or the error; whether the reply has to be cut off."""
        pieces = _Pieces(self.backend, self.prompt, request_id(scope))
        try:
            try:
                first = await pieces.take()
            except _BackendFailed as failed:
                await failed.answer(scope, receive, send)
                return False
            return await _send_reply(pieces, first, send)
        except OSError:
            # ASGI: `send` may raise it once the client is gone, and then nobody is left to tell.
            return False
        finally:
            await pieces.aclose()


class _Pieces:
    """A backend's pieces as bytes, none of them empty; what it raises is logged and wrapped."""

    def __init__(self, backend: Backend, prompt: str, identifier: str) -> None:
        self._backend = backend
        self._prompt = prompt
        self._request_id = identifier
        self._iterator: AsyncIterator[str] | None = None

    async def take(self) -> bytes | None:
        """The next piece, None at the end. Raises `_BackendFailed`."""
        try:
            if self._iterator is None:
                self._iterator = await _open(self._backend, self._prompt)
            async for piece in self._iterator:
                if data := _encode(piece):
                    return data
        except BackendError as error:
            _log_refusal(error, self._request_id)
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


async def _send_reply(pieces: _Pieces, first: bytes | None, send: Send) -> bool:
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
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return False


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _build_failure() -> JSONResponse:
    return build_error(500, *_FAILED)


def _build_refusal(error: BackendError) -> JSONResponse:
    headers = {} if error.retry_after is None else format_retry_after(error.retry_after)
    return build_error(error.status, error.code, error.message, headers=headers)


def _log_refusal(error: BackendError, identifier: str) -> None:
    # Who is told to slow down is no failure of anybody's.
    level = logging.WARNING if error.status == 429 else logging.ERROR
    detail = " ".join(error.detail.split())
    logging.getLogger("cromicle_sdk.server").log(
        level, "no answer: %s, %s (request %s)", error.code, detail, identifier
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
