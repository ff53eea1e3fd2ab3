"""The ASGI app: routes, middleware and error handlers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import check_flag

from .backends import Backend, BackendRequest, echo_backend, takes_request
from .forms import PlainText
from .middleware import get_request_id
from .openapi import build_openapi
from .options import DEFAULT_MAX_REQUEST_BYTES, check_allow_options, check_callable
from .page import build_page_route
from .protections import Protections
from .request import receive_chat_request
from .response import StreamedReply
from .routing import ExactRoute
from .tokens import TokenFile, Tokens, hide_tokens

__all__ = ["create_app", "find_tokens", "has_well_known_token", "resolve_app"]

# Far more objects than an app has. An object with a dynamic `__getattr__` may yield any number.
_MAX_OBJECTS = 10_000


def create_app(
    backend: Backend | None = None,
    *,
    token: str | None = None,
    tokens: Iterable[str] | TokenFile | None = None,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
    max_buffered_bytes: int | None = None,
    max_concurrent: int | None = None,
    max_concurrent_per_token: int | None = None,
    max_waiting: int | None = None,
    allow_options: bool | Iterable[str] = False,
    metrics: bool = True,
    allowed_hosts: Iterable[str] = (),
    allow_origins: Iterable[str] = (),
    page: bool = False,
) -> Starlette:
    """Create an ASGI app that serves the Cromicle protocol. It runs on asyncio and trio.

    `POST /chat` streams the reply of `backend`, by default `echo_backend()`, as chunked UTF-8 text.
    A finish reason set by the backend follows the last chunk as the trailer `x-finish-reason` if
    the ASGI server supports `http.response.trailers`, as `serve` and `LocalServer` do. A request
    may also have `messages`, whose `format_prompt` must equal its prompt.

    `GET /health` returns `{"status": "ok"}`. If the backend has a method `describe_health`, the
    mapping that it returns is added as the field `upstream`. `GET /openapi.json` returns a
    description of the API. The app may be mounted under any path of another ASGI app, and needs no
    lifespan.

    - `token`: the token that clients must send. Defaults to `$CROMICLE_TOKEN`, then to `abc`, as
      in the clients.
    - `tokens`: instead of `token`, an iterable of accepted tokens, or a `TokenFile`.
    - `max_request_bytes`: the maximum size of a request body, by default 1 MiB.
    - `max_buffered_bytes`: the maximum size of all request bodies that are being received. Defaults
      to 64 MiB, or to `max_request_bytes` if that is more. If they exceed it, the largest of them
      is rejected with a 503.
    - `max_concurrent`, `max_concurrent_per_token`: the maximum number of replies in progress, in
      total and for one token. None, the default, disables the limit. Further requests are queued.
    - `max_waiting`: the maximum number of queued requests, by default four times `max_concurrent`.
      A token may take the same share of the queue as of the replies. With
      `max_concurrent_per_token` alone, it applies to each token. Further requests are rejected
      with a 503 and `Retry-After`.
    - `allow_options`: the names of the JSON fields that a request may have beside the protocol's
      (`extra_body` of the clients), or True for any name. `backend` receives them as
      `request.options`, so it must take a `BackendRequest`. Any other field is rejected with a 400
      that names it. Defaults to the attribute `allow_options` of the backend if it has one.
    - `metrics`: add `GET /metrics` in the format of Prometheus, readable without a token: requests
      by path, status and end; requests in progress and waiting; seconds to the first text and to
      the end; characters. Metrics contain no text, token or prompt.
    - `allowed_hosts`: the accepted host names and addresses (`Host` header), `*.domain` for all
      subdomains, `*` for any. Loopback names and addresses are always accepted. By default any host
      is accepted, but `serve` and `LocalServer` on a loopback address accept loopback hosts only.
    - `allow_origins`: the origins of the web pages whose requests are accepted and may read the
      responses (CORS), such as `https://app.example`, or `*` for any. By default, `serve` and
      `LocalServer` reject requests from pages of any host but their own.
    - `page`: add `GET /`, a web page to chat with this app. A request that does not accept HTML
      receives JSON with the paths of `/chat` and `/openapi.json`.

    An error is `{"error": {"code": …, "message": …}}`. The first failed check sets the status:

    - 403 host or origin, 404 path, 405 method;
    - 505 HTTP version below 1.1, which has no chunked encoding: a truncated reply would look
      complete;
    - 415 content type, 413 size, 503 `max_buffered_bytes`, 400 body, 401 token, 422 hash;
    - 503 `max_waiting`;
    - 500 if the backend fails before its first chunk, or the status of its `BackendError`.

    A 503 of these checks has `Retry-After`. A 413 or 503 closes the connection unless the whole
    body was read, and a 505 always closes it. After ten wrong tokens in a minute from one address,
    further wrong tokens are a 429 with `Retry-After`; a valid token is always accepted. Every
    response of the app has an `x-request-id`: that of the request if it is safe to log, otherwise a
    generated one.

    If the backend fails after its first chunk, or the client reads nothing for 60 seconds, the app
    raises an exception, and the ASGI server closes the connection without completing the body. Most
    servers log a traceback of that exception; `serve` and `LocalServer` do not.

    Each request is logged as one INFO line of `cromicle_sdk.server.access`: method, path, status,
    bytes, seconds to the first text and to the end, how it ended, the client's address, and the
    comment of its token in a `TokenFile`, or a fingerprint of the token. A failure of the backend
    is logged as one line of `cromicle_sdk.server`: the code and `detail` of a `BackendError`, or
    the type and location of any other exception, not its message. Tokens, hashes and prompts are
    never logged.

    Raises `ConfigurationError`, which names the invalid option.
    """
    given = hide_tokens(token, tokens)
    del token, tokens
    protections = Protections.build(
        given,
        max_request_bytes=max_request_bytes,
        max_buffered_bytes=max_buffered_bytes,
        max_concurrent=max_concurrent,
        max_concurrent_per_token=max_concurrent_per_token,
        max_waiting=max_waiting,
        metrics=metrics,
        allowed_hosts=allowed_hosts,
        allow_origins=allow_origins,
    )
    backend = echo_backend() if backend is None else backend
    check_callable("backend", backend)
    if allow_options is False:
        allow_options = getattr(backend, "allow_options", False)
    allowed = check_allow_options(allow_options)
    with_request = takes_request(backend)
    if allowed != frozenset() and not with_request:
        raise ConfigurationError(
            "the backend does not take a BackendRequest, so it would ignore these fields",
            option="allow_options",
            hint="give the backend a second parameter: backend(prompt, request)",
        )
    check_flag("page", page)
    description = build_openapi(metrics=metrics, page=page, allow_options=allowed)

    async def chat(request: Request) -> StreamedReply:
        received = await receive_chat_request(request, protections, allow_options=allowed)
        backend_request = BackendRequest(
            id=get_request_id(request.scope),
            messages=received.messages,
            options=received.options,
        )
        return StreamedReply(
            backend,
            received.message,
            backend_request if with_request else None,
            protections.concurrency,
            PlainText(),
        )

    return protections.build_app(
        [
            ExactRoute("/chat", chat, methods=["POST"]),
            _build_description_route(description),
            *([build_page_route()] if page else []),
        ],
        chat_path="/chat",
        describe_upstream=getattr(backend, "describe_health", None),
    )


def resolve_app(
    backend: Backend | None,
    app: ASGIApp | None,
    *,
    token: str | None,
    max_request_bytes: int,
    allow_options: bool | Iterable[str],
    page: bool,
    default_page: bool,
) -> ASGIApp:
    """Return `app`, or a new app with the other options if it is None.

    Raises `ConfigurationError` for an invalid option, and for options that `app` would ignore.
    """
    if app is None:
        return create_app(
            backend,
            token=token,
            max_request_bytes=max_request_bytes,
            allow_options=allow_options,
            page=page,
        )
    check_callable("app", app)
    defaults = (None, None, DEFAULT_MAX_REQUEST_BYTES, False, default_page)
    if (backend, token, max_request_bytes, allow_options, page) != defaults:
        raise ConfigurationError(
            "it has its own backend, token, max_request_bytes, allow_options and page",
            option="app",
            hint="pass those to create_app()",
        )
    return app


def find_tokens(app: object) -> list[Tokens]:
    """Return the accepted tokens of every app of `create_app` in `app`: itself, mounted or wrapped.

    An app that is held in any attribute other than `app` or `routes` is not found.
    """
    found: list[Tokens] = []
    seen: dict[int, object] = {}
    waiting = [app]
    while waiting and len(seen) < _MAX_OBJECTS:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen[id(each)] = each
        tokens = getattr(each.state, "tokens", None) if isinstance(each, Starlette) else None
        if isinstance(tokens, Tokens):
            found.append(tokens)
        waiting.append(getattr(each, "app", None))
        routes = getattr(each, "routes", None)
        waiting.extend(cast("list[object]", routes) if isinstance(routes, list) else ())
    return found


def has_well_known_token(app: ASGIApp) -> bool:
    """Whether any app of `create_app` in `app` accepts the well-known token."""
    return any(tokens.has_well_known for tokens in find_tokens(app))


def _build_description_route(description: dict[str, Any]) -> ExactRoute:
    async def get_description(request: Request) -> Response:
        # The mount point is known only once a request has been received.
        servers = [{"url": request.scope.get("root_path") or "/"}]
        return JSONResponse({**description, "servers": servers})

    return ExactRoute("/openapi.json", get_description)
