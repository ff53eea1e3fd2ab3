"""The ASGI app: routes, middleware and error handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import check_count, check_flag

from .backends import Backend, BackendRequest, echo_backend, takes_request
from .errors import ClosingErrorResponse, ErrorResponse, RequestRejected
from .middleware import RequestRecordMiddleware, ResponseHeadersMiddleware, get_request_id
from .observability import AccessLog, Metrics, RequestObserver
from .openapi import build_openapi
from .options import DEFAULT_MAX_REQUEST_BYTES, check_allow_options, check_callable
from .request import receive_chat_request
from .response import ConcurrencyLimit, StreamedReply
from .tokens import TokenFile, Tokens, build_tokens, hide_tokens

__all__ = ["create_app", "find_tokens", "has_well_known_token", "resolve_app"]


def create_app(
    backend: Backend | None = None,
    *,
    token: str | None = None,
    tokens: Iterable[str] | TokenFile | None = None,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
    max_concurrent: int | None = None,
    allow_options: bool | Iterable[str] = False,
    metrics: bool = True,
) -> Starlette:
    """An ASGI app that serves the Cromicle protocol; it runs on asyncio and trio.

    `POST /chat` streams the reply of `backend` (an echo by default) as chunked UTF-8 text. A finish
    reason that the backend sets follows as the trailer `x-finish-reason`, where the ASGI server has
    the extension `http.response.trailers`, as those of `serve` and `LocalServer` do. A request may
    also have `messages`, which must be those that its prompt is formatted from.

    `GET /health` returns `{"status": "ok"}` and `GET /openapi.json` a description of the API. If
    the backend has a method `describe_health`, the mapping that it returns is the field `upstream`
    of the former. The app may be mounted under any path of another ASGI app and needs no lifespan.

    - `token`: the token that clients must send; defaults to `$CROMICLE_TOKEN`, then to `abc`, as
      in the clients. Alternatively, `tokens` is an iterable of accepted tokens or a `TokenFile`.
    - `max_request_bytes`: the longest accepted request body.
    - `max_concurrent`: the number of replies that may be in progress at once; None for no limit.
    - `allow_options`: the names of the JSON fields that a request may have beside the protocol's,
      as the clients send them by `extra_body`; True for any name. `backend` receives them as
      `request.options`, so it must take a `BackendRequest`. Any other field is a 400 that names it.
      The default is the attribute `allow_options` of the backend, where it has one.
    - `metrics`: add `GET /metrics` in the format of Prometheus, readable without a token: requests
      by path, status and end; requests in progress; seconds to the first text and to the end;
      characters. Metrics contain no text, token or prompt.

    An error is `{"error": {"code": …, "message": …}}`. The first failed check decides: 404 path,
    405 method, 505 HTTP version below 1.1 (it has no chunked encoding, so a truncated reply would
    look complete), 415 content type, 413 size, 400 body, 401 token, 422 hash, 503 (with
    `Retry-After`) too many replies; then 500 if the backend fails before its first chunk, or the
    status of its `BackendError`. A 413 closes the connection unless the whole body was read.
    Every response has an `x-request-id`: that of the request if it is safe to log, else a new one.

    If the backend fails later, or the client reads nothing for 60 seconds, the app raises an
    exception, and the ASGI server closes the connection without completing the body. Most servers
    log a traceback for it; `serve` and `LocalServer` do not.

    Each request is one INFO line of the logger `cromicle_sdk.server.access`: method, path, status,
    bytes, seconds to the first text and to the end, and the kind of end. A failure of the backend
    is one line of the logger `cromicle_sdk.server`: type and location of the exception, not its
    message. Tokens, hashes and prompts are never logged.

    Raises `ConfigurationError`, which names the invalid option.
    """
    given = hide_tokens(token, tokens)
    del token, tokens
    accepted = build_tokens(given)
    backend = echo_backend() if backend is None else backend
    check_callable("backend", backend)
    check_count("max_request_bytes", max_request_bytes)
    if max_concurrent is not None:
        check_count("max_concurrent", max_concurrent)
    if allow_options is False:
        allow_options = getattr(backend, "allow_options", False)
    allowed = check_allow_options(allow_options)
    with_request = takes_request(backend)
    if allowed != frozenset() and not with_request:
        raise ConfigurationError(
            "the backend does not take a BackendRequest, and would ignore them",
            option="allow_options",
            hint="give the backend a second parameter: backend(prompt, request)",
        )
    check_flag("metrics", metrics)
    concurrency = ConcurrencyLimit(max_concurrent)
    registry = Metrics() if metrics else None

    async def chat(request: Request) -> StreamedReply:
        received = await receive_chat_request(
            request,
            tokens=accepted,
            max_request_bytes=max_request_bytes,
            allow_options=allowed,
        )
        backend_request = BackendRequest(
            id=get_request_id(request.scope),
            messages=received.messages,
            options=received.options,
        )
        return StreamedReply(
            backend, received.message, backend_request if with_request else None, concurrency
        )

    observers: list[RequestObserver] = [AccessLog()]
    if registry is not None:
        observers.append(registry)
    app = Starlette(
        routes=[
            Route("/chat", chat, methods=["POST"]),
            *_build_public_routes(registry, allowed, getattr(backend, "describe_health", None)),
        ],
        middleware=[
            Middleware(ResponseHeadersMiddleware),
            Middleware(RequestRecordMiddleware, observers),
        ],
        exception_handlers={
            HTTPException: _handle_http_exception,
            RequestRejected: _handle_rejection,
            ClientDisconnect: _handle_disconnect,
        },
    )
    # A redirect would make clients send their token again; `/chat/` is a 404.
    app.router.redirect_slashes = False
    app.state.tokens = accepted
    return app


def resolve_app(
    backend: Backend | None,
    app: ASGIApp | None,
    *,
    token: str | None,
    max_request_bytes: int,
    allow_options: bool | Iterable[str],
) -> ASGIApp:
    """`app` if it is given, otherwise a new app with the other options.

    Raises `ConfigurationError` for an invalid option, and for options that `app` would ignore.
    """
    if app is None:
        return create_app(
            backend, token=token, max_request_bytes=max_request_bytes, allow_options=allow_options
        )
    check_callable("app", app)
    defaults = (None, None, DEFAULT_MAX_REQUEST_BYTES, False)
    if (backend, token, max_request_bytes, allow_options) != defaults:
        raise ConfigurationError(
            "it has its own backend, token, max_request_bytes and allow_options",
            option="app",
            hint="pass those to create_app()",
        )
    return app


def find_tokens(app: ASGIApp) -> Tokens | None:
    """The accepted tokens of an app that `create_app` built; None for any other app."""
    tokens = getattr(app.state, "tokens", None) if isinstance(app, Starlette) else None
    return tokens if isinstance(tokens, Tokens) else None


def has_well_known_token(app: ASGIApp) -> bool:
    """Whether it is an app of `create_app` that accepts the well-known token."""
    tokens = find_tokens(app)
    return tokens is not None and tokens.has_well_known


def _build_public_routes(
    metrics: Metrics | None,
    allow_options: frozenset[str] | None,
    describe_upstream: Callable[[], Mapping[str, Any]] | None,
) -> list[Route]:
    """The routes that need no token."""
    description = build_openapi(metrics=metrics is not None, allow_options=allow_options)

    async def get_health(request: Request) -> Response:
        upstream = {} if describe_upstream is None else {"upstream": describe_upstream()}
        return JSONResponse({"status": "ok", **upstream})

    async def get_description(request: Request) -> Response:
        # The mount point is known only once a request has been received.
        servers = [{"url": request.scope.get("root_path") or "/"}]
        return JSONResponse({**description, "servers": servers})

    routes = [Route("/health", get_health), Route("/openapi.json", get_description)]
    if metrics is not None:

        async def get_metrics(request: Request) -> Response:
            return metrics.build_response()

        routes.append(Route("/metrics", get_metrics))
    return routes


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    """The response to what Starlette's router rejects: 404 and 405."""
    assert isinstance(error, HTTPException)  # the only type that it is registered for
    if error.status_code == 405:
        return ErrorResponse(
            405,
            "method_not_allowed",
            "this path does not accept the method",
            headers=error.headers,
        )
    return ErrorResponse(404, "not_found", "no such path; the chat endpoint is /chat")


async def _handle_rejection(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRejected)  # the only type that it is registered for
    if error.has_unread_body:
        return ClosingErrorResponse(error.status, error.code, error.message)
    return ErrorResponse(error.status, error.code, error.message, retry_after=error.retry_after)


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    """The response to a client that disconnected during its request; it is never delivered."""
    return Response(status_code=400)
