"""The protocol as an ASGI app: which address answers what."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cromicle_sdk._errors import ConfigurationError

from ._answers import AnswerHeaders, LastAnswer, Refusal, build_error
from ._backends import Backend, echo_backend
from ._checks import (
    DEFAULT_MAX_REQUEST_BYTES,
    WELL_KNOWN_TOKEN,
    check_callable,
    check_max_request_bytes,
    check_token,
)
from ._replies import StreamedReply
from ._requests import receive_prompt

__all__ = ["choose_app", "create_app", "has_well_known_token"]


def create_app(
    backend: Backend | None = None,
    *,
    token: str = WELL_KNOWN_TOKEN,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
) -> Starlette:
    """An ASGI app that speaks the Cromicle protocol; runs on asyncio and trio.

    `POST /chat` streams what `backend` answers, by default an echo, as chunked UTF-8 text;
    `GET /health` says `{"status": "ok"}`. `token` is what clients must send;
    `max_request_bytes` is the longest body that is read.

    An error is `{"error": {"code": …, "message": …}}`, by the first check that fails: 404
    address, 405 method, 415 content type, 413 size, 400 form, 401 token, 422 hash; 500 where
    the backend fails before its first piece. A 413 closes the connection unless the body was
    read to its end. Where the backend fails later the app raises, upon which ASGI servers cut
    the body off without its end. Every answer has `x-request-id`, the request's own where it
    is a harmless one.

    Neither token, hash nor prompt is logged. A failure of the backend is one line of the
    logger `cromicle_sdk.server`: type and place, never its text.

    Raises `ConfigurationError`, which names the option that is wrong.
    """
    answer = echo_backend() if backend is None else backend
    check_callable("backend", answer)
    check_token(token)
    check_max_request_bytes(max_request_bytes)

    async def chat(request: Request) -> StreamedReply:
        prompt = await receive_prompt(request, token=token, max_request_bytes=max_request_bytes)
        return StreamedReply(answer, prompt)

    app = Starlette(
        routes=[Route("/chat", chat, methods=["POST"]), Route("/health", _report_health)],
        middleware=[Middleware(AnswerHeaders)],
        exception_handlers={
            HTTPException: _answer_unrouted,
            Refusal: _answer_refusal,
            ClientDisconnect: _answer_nobody,
        },
    )
    # A redirect would make clients send their token once more; `/chat/` is no address.
    app.router.redirect_slashes = False
    app.state.well_known_token = token == WELL_KNOWN_TOKEN
    return app


def choose_app(
    backend: Backend | None, app: ASGIApp | None, *, token: str, max_request_bytes: int
) -> ASGIApp:
    """`app` if there is one, else one for the other options.

    Raises `ConfigurationError` for a wrong option, and for options that `app` would ignore.
    """
    if app is None:
        return create_app(backend, token=token, max_request_bytes=max_request_bytes)
    check_callable("app", app)
    defaults = (None, WELL_KNOWN_TOKEN, DEFAULT_MAX_REQUEST_BYTES)
    if (backend, token, max_request_bytes) != defaults:
        raise ConfigurationError(
            "app brings its own backend, token and max_request_bytes; pass those to create_app()"
        )
    return app


def has_well_known_token(app: ASGIApp) -> bool:
    """Whether it is an app of `create_app` that takes the token everyone knows."""
    return isinstance(app, Starlette) and getattr(app.state, "well_known_token", False)


async def _report_health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def _answer_unrouted(request: Request, error: Exception) -> Response:
    """The answer to what the router itself turns down: 404 and 405."""
    assert isinstance(error, HTTPException)  # it is registered for that alone
    if error.status_code == 405:
        return build_error(
            405, "method_not_allowed", "this address takes another method", headers=error.headers
        )
    return build_error(404, "not_found", "there is nothing here; the address of chat is /chat")


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # it is registered for that alone
    if error.unread:
        return LastAnswer(error.status, error.code, error.message)
    return build_error(error.status, error.code, error.message)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """What to send to a client that left in the middle of its request; it goes nowhere."""
    return Response(status_code=400)
