"""The parts common to all apps of this package: tokens, limits, and middleware."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from cromicle_sdk._core.options import check_count, check_flag

from .buffers import BufferBudget
from .concurrency import ConcurrencyLimit
from .errors import (
    ClosingErrorResponse,
    ErrorForm,
    ErrorResponse,
    RequestRejected,
    build_error,
)
from .guesses import GuessLimit
from .middleware import RequestRecordMiddleware, ResponseHeadersMiddleware
from .observability import AccessLog, Metrics, RequestObserver
from .options import check_concurrency, choose_max_buffered_bytes
from .origins import OriginMiddleware, parse_allow_origins, parse_allowed_hosts
from .routing import ExactRoute
from .tokens import GivenTokens, Tokens, build_tokens

__all__ = ["Protections"]


@dataclass(frozen=True)
class Protections:
    """The tokens of an app, its limits, the accepted hosts and origins, and its metrics."""

    tokens: Tokens
    max_request_bytes: int
    budget: BufferBudget
    guesses: GuessLimit
    concurrency: ConcurrencyLimit
    metrics: Metrics | None
    allowed_hosts: frozenset[str]
    allow_origins: frozenset[str]

    @classmethod
    def build(
        cls,
        given: GivenTokens,
        *,
        max_request_bytes: int,
        max_buffered_bytes: int | None,
        max_concurrent: int | None,
        max_concurrent_per_token: int | None,
        max_waiting: int | None,
        metrics: bool,
        allowed_hosts: Iterable[str],
        allow_origins: Iterable[str],
    ) -> Protections:
        """Build them from the options of `create_app`. Raises `ConfigurationError`."""
        tokens = build_tokens(given)
        check_count("max_request_bytes", max_request_bytes)
        check_concurrency(max_concurrent, max_concurrent_per_token, max_waiting)
        check_flag("metrics", metrics)
        concurrency = ConcurrencyLimit(
            max_concurrent, max_waiting=max_waiting, per_token=max_concurrent_per_token
        )
        return cls(
            tokens=tokens,
            max_request_bytes=max_request_bytes,
            budget=BufferBudget(choose_max_buffered_bytes(max_buffered_bytes, max_request_bytes)),
            guesses=GuessLimit(),
            concurrency=concurrency,
            metrics=Metrics(concurrency) if metrics else None,
            allowed_hosts=parse_allowed_hosts(allowed_hosts),
            allow_origins=parse_allow_origins(allow_origins),
        )

    def build_app(
        self,
        routes: Sequence[BaseRoute],
        *,
        chat_path: str,
        describe_upstream: Callable[[], Mapping[str, Any]] | None = None,
        allow_headers: Sequence[str] = ("content-type", "x-request-id"),
        error_form: ErrorForm = build_error,
    ) -> Starlette:
        """Return an app of these routes, with `/health` and, unless disabled, `/metrics`.

        The error for an unknown path names `chat_path`. Pages of `allow_origins` may send
        `allow_headers`. `error_form` builds every error.
        """
        observers: list[RequestObserver] = [AccessLog()]
        if self.metrics is not None:
            observers.append(self.metrics)
        app = Starlette(
            routes=[*routes, *_build_public_routes(self.metrics, describe_upstream)],
            middleware=[
                Middleware(ResponseHeadersMiddleware),
                Middleware(RequestRecordMiddleware, observers),
                Middleware(
                    OriginMiddleware,
                    allowed_hosts=self.allowed_hosts,
                    allow_origins=self.allow_origins,
                    allow_headers=allow_headers,
                    error_form=error_form,
                ),
            ],
            exception_handlers=_build_exception_handlers(chat_path, error_form),
        )
        # `/chat/` is a 404: a redirect would make clients send their token again.
        app.router.redirect_slashes = False
        app.state.tokens = self.tokens
        return app


def _build_public_routes(
    metrics: Metrics | None, describe_upstream: Callable[[], Mapping[str, Any]] | None
) -> list[ExactRoute]:
    """The routes that need no token."""

    async def get_health(request: Request) -> Response:
        upstream = {} if describe_upstream is None else {"upstream": describe_upstream()}
        return JSONResponse({"status": "ok", **upstream})

    routes = [ExactRoute("/health", get_health)]
    if metrics is not None:

        async def get_metrics(request: Request) -> Response:
            return metrics.build_response()

        routes.append(ExactRoute("/metrics", get_metrics))
    return routes


def _build_exception_handlers(chat_path: str, form: ErrorForm) -> dict[Any, Any]:
    async def handle_http_exception(request: Request, error: Exception) -> Response:
        """Respond to a request that Starlette's router rejects: 404 or 405."""
        assert isinstance(error, HTTPException)  # the only type that it is registered for
        if error.status_code == 405:
            return ErrorResponse(
                405,
                "method_not_allowed",
                "this path does not accept the method",
                headers=error.headers,
                form=form,
            )
        message = f"no such path; the chat endpoint is {chat_path}"
        return ErrorResponse(404, "not_found", message, form=form)

    async def handle_rejection(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestRejected)  # the only type that it is registered for
        kind = ClosingErrorResponse if error.has_unread_body else ErrorResponse
        return kind(
            error.status,
            error.code,
            error.message,
            retry_after=error.retry_after,
            param=error.param,
            form=form,
        )

    return {
        HTTPException: handle_http_exception,
        RequestRejected: handle_rejection,
        ClientDisconnect: _handle_disconnect,
    }


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    """Respond to a client that disconnected during its request. It never receives this."""
    return Response(status_code=400)
