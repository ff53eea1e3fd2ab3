"""httpx and httpx2 clients, ours or a user's: what is sent through them, without waiting."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import httpx

from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import LONGEST_WAIT, Timeout
from cromicle_sdk._core.request import Request
from cromicle_sdk._core.response import Head

from .logs import Redacted

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "EXCHANGE_EXTENSION",
    "HTTPX_VERSION",
    "AsyncHTTPClient",
    "HTTPClient",
    "NoCookies",
    "build_head",
    "build_http_request",
    "check_http_client",
    "check_process",
    "find_redirect",
    "find_response",
    "find_source",
    "httpx_modules",
    "limit_reads",
    "parse_url",
    "redact_trace",
    "was_read",
]

HTTPX_VERSION = httpx.__version__

if TYPE_CHECKING:
    HTTPClient = httpx.Client | httpx2.Client
    AsyncHTTPClient = httpx.AsyncClient | httpx2.AsyncClient

# The key of a request's extensions under which a call passes its exchange to the pool.
EXCHANGE_EXTENSION = "cromicle_sdk.exchange"


@lru_cache(maxsize=64)
def parse_url(url: str) -> httpx.URL:
    """httpx's URL, which takes 20 us to parse."""
    return httpx.URL(url)


class NoCookies(httpx.Cookies):
    """A cookie jar that keeps none: httpx's own costs 45 us a request, and grows for ever."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Ignore the response's cookies."""

    def __bool__(self) -> bool:
        return False


def httpx_modules() -> list[Any]:
    """httpx, and httpx2 where it has been imported: none of its objects can be here otherwise."""
    other = sys.modules.get("httpx2")
    return [httpx] if other is None else [httpx, other]


def check_http_client(client: object, name: str) -> None:
    """Raise `ConfigurationError` unless it is the class `name` of httpx or of httpx2."""
    kinds = [getattr(module, name) for module in httpx_modules()]
    if not isinstance(client, tuple(kinds)):
        raise ConfigurationError(
            f"expected an httpx.{name} or an httpx2.{name}, "
            f"not {type(client).__module__}.{type(client).__qualname__}",
            option="http_client",
        )


def check_process(client: Any) -> None:
    """Raise `ConfigurationError` in another process than the one that first used the client.

    After a fork both would read from the same connections, and get each other's responses.
    """
    if _first_used_in.setdefault(client, os.getpid()) != os.getpid():
        raise ConfigurationError(
            "it was used before this process was forked, and shares its connections with the "
            "parent process",
            option="http_client",
            hint="create a new one after the fork",
        )


# By client of a user's: the process that first used it.
_first_used_in: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def build_http_request(
    client: Any, request: Request, timeout: Timeout, timeouts: CallTimeouts, exchange: Any
) -> Any:
    """The request as one of the client's: with its default headers, without its cookies."""
    total_left = timeouts.total_left(time.monotonic())
    is_logged = any(logger.isEnabledFor(logging.DEBUG) for logger in _HTTPCORE_LOGGERS)
    built = client.build_request(
        request.method,
        request.endpoint.url,
        headers=request.headers,
        content=request.body,
        extensions={
            "timeout": {
                "connect": _at_most(timeout.connect, total_left),
                "read": _at_most(timeout.first_byte, total_left),
                "write": _at_most(timeout.first_byte, total_left),
                "pool": timeout.pool,
            },
            EXCHANGE_EXTENSION: exchange,
            **({"trace": exchange.trace} if is_logged else {}),
        },
    )
    if client.cookies:
        # httpx merges the cookies that its client has kept into the caller's own header.
        built.headers.pop("cookie", None)
        built.headers.update({name: value for name, value in request.headers if name == b"cookie"})
    return built


# Those that log the head of a response.
_HTTPCORE_LOGGERS = [
    logging.getLogger(f"{library}.{version}")
    for library in ("httpcore", "httpcore2")
    for version in ("http11", "http2")
]


def redact_trace(info: dict[str, Any], redact: Callable[[str], str]) -> None:
    """Take the secrets that the server echoed out of what httpcore is about to log at DEBUG.

    It passes the values to its extension `trace`, and logs them from the same dict afterwards.
    """
    for name in ("return_value", "exception"):
        if info.get(name) is not None:
            info[name] = Redacted(redact(repr(info[name])))


def limit_reads(response: Any, timeout: Timeout, timeouts: CallTimeouts) -> None:
    """From the head on, each read of a custom client may take as long as `stall`."""
    # httpcore looks this up when the body is first asked for.
    total_left = timeouts.total_left(time.monotonic())
    read = _at_most(timeout.stall, total_left)
    extensions = response.request.extensions
    # A hook of the user's may have replaced it.
    extensions["timeout"] = {**extensions.get("timeout", {}), "read": read}


def _at_most(wait: float | None, total_left: float) -> float | None:
    limit = min(math.inf if wait is None else wait, total_left)
    return None if limit == math.inf else min(max(limit, 0.001), LONGEST_WAIT)


def build_head(response: Any) -> Head:
    """The head of a response of httpx's."""
    return Head(
        status_code=response.status_code,
        headers=response.headers.raw,
        http_version=response.extensions.get("http_version", b"HTTP/1.1"),
        # A transport that makes up its responses, as mocks do, has none.
        came_over_network=response.extensions.get("network_stream") is not None,
    )


def find_source(stream: Any) -> Any:
    """What a response's stream reads from, below the wrappers that httpx itself puts around it."""
    while type(stream).__module__.partition(".")[0] in ("httpx", "httpx2"):
        inner = getattr(stream, "_stream", None) or getattr(stream, "_httpcore_stream", None)
        if inner is None:
            break
        stream = inner
    return stream


def was_read(response: Any) -> bool:
    """Whether a hook of the user's has read the body, or dropped it.

    Its stream must not be touched then: the connection below may be another call's by now.
    """
    return bool(response.is_closed or response.is_stream_consumed)


def find_redirect(error: Exception, response: Any) -> Head | None:
    """The head of a redirect whose `Location` httpx cannot parse, by httpcore's response.

    httpx raises for it, although it is not to be followed.
    """
    kinds = tuple(module.RemoteProtocolError for module in httpx_modules())
    if response is None or not 300 <= response.status < 400 or not isinstance(error, kinds):
        return None
    version = response.extensions.get("http_version", b"HTTP/1.1")
    return Head(response.status, response.headers, version, came_over_network=True)


def find_response(error: Exception, request: Any) -> Any:
    """The response to a request that an error of the user's own hook is about.

    None for any other error: a hook may have sent a request of its own, for a token.
    """
    kinds = tuple(module.HTTPStatusError for module in httpx_modules())
    response = getattr(error, "response", None) if isinstance(error, kinds) else None
    # A response that somebody has made has no request, and httpx raises where it is asked for.
    return response if getattr(response, "_request", None) is request else None
