"""The protocol as an ASGI app: which address answers what."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import check_count, check_flag

from .access_log import AccessLog
from .backends import Backend, echo_backend
from .concurrency import Admission
from .errors import AnswerHeaders, LastAnswer, Refusal, build_error, format_retry_after
from .middleware import Visits
from .observability import Metrics
from .openapi import build_openapi
from .options import DEFAULT_MAX_REQUEST_BYTES, check_callable
from .request import receive_prompt
from .response import StreamedReply
from .tokens import TokenFile, Tokens, build_tokens, hide_tokens

__all__ = ["choose_app", "create_app", "find_tokens", "has_well_known_token"]


def create_app(
    backend: Backend | None = None,
    *,
    token: str | None = None,
    tokens: Iterable[str] | TokenFile | None = None,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
    max_concurrent: int | None = None,
    metrics: bool = True,
) -> Starlette:
    """An ASGI app that speaks the Cromicle protocol; runs on asyncio and trio.

    `POST /chat` streams what `backend` answers, by default an echo, as chunked UTF-8 text;
    `GET /health` says `{"status": "ok"}`, `GET /openapi.json` describes them. It may be mounted
    below any path of another ASGI app, and needs no lifespan.

    - `token` is what clients must send: without it `$CROMICLE_TOKEN`, else `abc`, as for the
      clients; or each must send one of `tokens`, or of a `TokenFile`.
    - `max_request_bytes` is the longest body that is read.
    - `max_concurrent` replies may be under way at once, None for any number.
    - `metrics` adds `GET /metrics`, for Prometheus and whoever else can reach it: requests by
      address, status and end, requests in flight, seconds to the first text and to the end,
      characters. They hold no text, token or prompt.

    An error is `{"error": {"code": …, "message": …}}`, by the first check that fails: 404
    address, 405 method, 505 a version before HTTP/1.1 (which has no chunks, so that a cut would
    look like an end), 415 content type, 413 size, 400 form, 401 token, 422 hash, 503 (with
    `Retry-After`) one too many; 500 where the backend fails before its first piece, or what its
    `BackendError` says. A 413 closes the connection unless the body was read to its end. Every
    answer has `x-request-id`, the request's own where it is a harmless one.

    Where the backend fails later, or the client takes nothing for 60 seconds, the app raises, upon
    which ASGI servers cut the body off without its end; most log a traceback, but `serve` and
    `LocalServer` do not.

    Each request is one line of the logger `cromicle_sdk.server.access`, at level INFO: method,
    path, status, bytes, seconds to the first text and to the end, and how it ended. A failure of
    the backend is one line of the logger `cromicle_sdk.server`: type and place, never its text.
    Neither token, hash nor prompt is logged.

    Raises `ConfigurationError`, which names the option that is wrong.
    """
    given = hide_tokens(token, tokens)
    del token, tokens
    accepted = build_tokens(given)
    answer = echo_backend() if backend is None else backend
    check_callable("backend", answer)
    check_count("max_request_bytes", max_request_bytes)
    if max_concurrent is not None:
        check_count("max_concurrent", max_concurrent)
    check_flag("metrics", metrics)
    admission = Admission(max_concurrent)
    figures = Metrics() if metrics else None

    async def chat(request: Request) -> StreamedReply:
        prompt = await receive_prompt(request, tokens=accepted, max_request_bytes=max_request_bytes)
        return StreamedReply(answer, prompt, admission)

    app = Starlette(
        routes=[Route("/chat", chat, methods=["POST"]), *_build_documents(figures)],
        middleware=[
            Middleware(AnswerHeaders),
            Middleware(Visits, [AccessLog(), *([] if figures is None else [figures])]),
        ],
        exception_handlers={
            HTTPException: _answer_unrouted,
            Refusal: _answer_refusal,
            ClientDisconnect: _answer_nobody,
        },
    )
    # A redirect would make clients send their token once more; `/chat/` is no address.
    app.router.redirect_slashes = False
    app.state.tokens = accepted
    return app


def choose_app(
    backend: Backend | None, app: ASGIApp | None, *, token: str | None, max_request_bytes: int
) -> ASGIApp:
    """`app` if there is one, else one for the other options.

    Raises `ConfigurationError` for a wrong option, and for options that `app` would ignore.
    """
    if app is None:
        return create_app(backend, token=token, max_request_bytes=max_request_bytes)
    check_callable("app", app)
    defaults = (None, None, DEFAULT_MAX_REQUEST_BYTES)
    if (backend, token, max_request_bytes) != defaults:
        raise ConfigurationError(
            "it has its own backend, token and max_request_bytes",
            option="app",
            hint="pass those to create_app()",
        )
    return app


def find_tokens(app: ASGIApp) -> Tokens | None:
    """What an app of `create_app` accepts; None for any other app."""
    tokens = getattr(app.state, "tokens", None) if isinstance(app, Starlette) else None
    return tokens if isinstance(tokens, Tokens) else None


def has_well_known_token(app: ASGIApp) -> bool:
    """Whether it is an app of `create_app` that takes the token everyone knows."""
    tokens = find_tokens(app)
    return tokens is not None and tokens.has_well_known


def _build_documents(figures: Metrics | None) -> list[Route]:
    """What can be read without a token."""
    description = build_openapi(metrics=figures is not None)

    async def report_health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def describe(request: Request) -> Response:
        # Where it is mounted is known only here.
        servers = [{"url": request.scope.get("root_path") or "/"}]
        return JSONResponse({**description, "servers": servers})

    routes = [Route("/health", report_health), Route("/openapi.json", describe)]
    if figures is not None:

        async def report_figures(request: Request) -> Response:
            return figures.answer()

        routes.append(Route("/metrics", report_figures))
    return routes


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
    headers = {} if error.retry_after is None else format_retry_after(error.retry_after)
    return build_error(error.status, error.code, error.message, headers=headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """What to send to a client that left in the middle of its request; it goes nowhere."""
    return Response(status_code=400)
