"""Requests and responses of httpx and httpx2 clients, including custom ones; no I/O."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import httpx

from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import LONGEST_WAIT, Timeout
from cromicle_sdk._core.request import Request
from cromicle_sdk._core.response import Head

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "AsyncHTTPClient",
    "HTTPClient",
    "NoCookies",
    "Response",
    "ResponseObserver",
    "adapt_extensions",
    "build_extensions",
    "build_head",
    "build_http_request",
    "check_http_client",
    "check_process",
    "find_body",
    "find_exchange",
    "find_redirect",
    "find_response",
    "find_source",
    "httpx_modules",
    "is_byte_stream",
    "limit_reads",
    "parse_url",
    "release_when_dropped",
    "was_read",
]

if TYPE_CHECKING:
    HTTPClient = httpx.Client | httpx2.Client
    AsyncHTTPClient = httpx.AsyncClient | httpx2.AsyncClient


class Response(httpx.Response):
    """A response that releases its connection as soon as it has no references, read or not.

    A response of httpx and its stream refer to each other, so only the cyclic GC frees them.
    """

    @property
    def stream(self) -> httpx.SyncByteStream | httpx.AsyncByteStream:
        found: httpx.SyncByteStream | httpx.AsyncByteStream = self.__dict__["stream"]
        return found

    @stream.setter
    def stream(self, stream: Any) -> None:
        # A private attribute. If httpx renames it, the response waits for the cyclic GC again.
        if getattr(stream, "_response", None) is self:
            stream._response = _ElapsedTime(self)
        self.__dict__["stream"] = stream


class _ElapsedTime:
    """Passes `elapsed`, which httpx's streams set, to the response if it still exists."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = ref(response)

    @property
    def elapsed(self) -> timedelta:
        raise AttributeError("elapsed is write-only")

    @elapsed.setter
    def elapsed(self, elapsed: timedelta) -> None:
        response = self._response()
        if response is not None:
            response.elapsed = elapsed


def release_when_dropped(response: httpx.Response) -> httpx.Response:
    """Make a response a `Response`, unless a tool has replaced it by its own class."""
    if type(response) is httpx.Response:
        response.__class__ = Response
    return response


@lru_cache(maxsize=64)
def parse_url(url: str) -> httpx.URL:
    """Parse a URL. Cached, because it takes 20 us."""
    return httpx.URL(url)


class NoCookies(httpx.Cookies):
    """A cookie jar that stays empty: httpx's own costs 45 us per request, and grows for ever."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Ignore the response's cookies."""

    def __bool__(self) -> bool:
        return False


def httpx_modules() -> list[Any]:
    """Return httpx, and httpx2 if it has been imported; otherwise none of its objects exist."""
    other = sys.modules.get("httpx2")
    return [httpx] if other is None else [httpx, other]


def check_http_client(client: object, name: str) -> None:
    """Raise `ConfigurationError` unless `client` is an instance of the class `name` of httpx(2)."""
    kinds = [getattr(module, name) for module in httpx_modules()]
    if not isinstance(client, tuple(kinds)):
        raise ConfigurationError(
            f"expected an httpx.{name} or an httpx2.{name}, "
            f"not {type(client).__module__}.{type(client).__qualname__}",
            option="http_client",
        )


def check_process(client: Any) -> None:
    """Raise `ConfigurationError` if another process was the first to use the client.

    After a fork, both processes would read from the same connections, and receive each other's
    responses.
    """
    if _first_used_in.setdefault(client, os.getpid()) != os.getpid():
        raise ConfigurationError(
            "it was used before this process was forked, and shares its connections with the "
            "parent process",
            option="http_client",
            hint="create a new one after the fork",
        )


# The process that first used each custom client.
_first_used_in: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def build_http_request(
    client: Any,
    request: Request,
    extensions: Mapping[str, Any],
) -> Any:
    """Build the request for a client, with its default headers and without its cookies."""
    built = client.build_request(
        request.method,
        request.endpoint.url,
        headers=request.headers,
        content=request.body,
        extensions=extensions,
    )
    if client.cookies:
        # httpx merges the client's stored cookies into the caller's own header.
        built.headers.pop("cookie", None)
        built.headers.update({name: value for name, value in request.headers if name == b"cookie"})
    return built


_EXCHANGE_KEY = "cromicle_sdk.exchange"


def build_extensions(exchange: object, trace: object, timeout: Timeout) -> dict[str, Any]:
    """Build the extensions of a request: its timeouts, the exchange and the trace.

    The pool uses the exchange, which has its own timeouts, and httpcore the trace.
    """
    extensions: dict[str, Any] = {
        "timeout": {
            "connect": timeout.connect,
            "read": timeout.first_byte,
            "write": timeout.first_byte,
            "pool": timeout.pool,
        },
        # Weak, because the exchange refers to the request.
        _EXCHANGE_KEY: ref(exchange),
    }
    # If httpcore does not log, the pool reports everything that the trace would, at less cost.
    if _OWN_LOGGER.isEnabledFor(logging.DEBUG):
        extensions["trace"] = trace
    return extensions


def adapt_extensions(extensions: dict[str, Any], trace: object, timeouts: CallTimeouts) -> None:
    """Adapt the extensions to a custom client: no wait exceeds `total`, and heads are traced."""
    total_left = timeouts.total_left(time.monotonic())
    waits = extensions["timeout"]
    for name in ("connect", "read", "write"):
        waits[name] = _at_most(waits[name], total_left)
    extensions["trace"] = trace


def find_exchange(extensions: Mapping[str, Any]) -> object:
    """Return the exchange of a call of this package, or None for a plain request."""
    found = extensions.get(_EXCHANGE_KEY)
    return None if found is None else found()


class ResponseObserver:
    """Records the head of each response, even if httpx raises an error for it.

    With httpcore's extension `trace`, this includes a proxy's response to CONNECT.
    """

    def __init__(self, redact: Callable[[str], str] | None) -> None:
        self._redact = redact
        self._status = 0
        self._headers: Sequence[tuple[bytes, bytes]] = ()
        self._http_version: bytes = b""

    @property
    def head(self) -> Head | None:
        """The last head; None before the first one."""
        if not self._status:
            return None
        return Head(self._status, self._headers, self._http_version, came_over_network=True)

    def receive_head(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], extensions: Mapping[str, Any]
    ) -> None:
        """Receive a head from the pool of this package."""
        self._status = status
        self._headers = headers
        self._http_version = extensions.get("http_version", b"HTTP/1.1")

    def observe(self, name: str, info: dict[str, Any]) -> None:
        """Receive an event of httpcore, which then logs the same dict at DEBUG."""
        value: Any = info.get("return_value") or ()
        if name == "http11.receive_response_headers.complete" and len(value) == 4:
            self._http_version, self._status, _, self._headers = value
        elif name == "http2.receive_response_headers.complete" and len(value) == 2:
            self._http_version = b"HTTP/2"
            self._status, self._headers = value
        if self._redact is not None and _is_logged():
            _redact_trace(info, self._redact)


# The logger of the connections of this package's own clients.
_OWN_LOGGER = logging.getLogger("httpcore.http11")
# The loggers that log the head of a response.
_HTTPCORE_LOGGERS = [
    logging.getLogger(f"{library}.{version}")
    for library in ("httpcore", "httpcore2")
    for version in ("http11", "http2")
]


def _is_logged() -> bool:
    return any(logger.isEnabledFor(logging.DEBUG) for logger in _HTTPCORE_LOGGERS)


def _redact_trace(info: dict[str, Any], redact: Callable[[str], str]) -> None:
    """Redact the secrets that the server echoed in the values that httpcore logs at DEBUG."""
    from .logs import Redacted  # already loaded with the session

    for name in ("return_value", "exception"):
        if info.get(name) is not None:
            info[name] = Redacted(redact(repr(info[name])))


def limit_reads(response: Any, timeout: Timeout, timeouts: CallTimeouts) -> None:
    """After the head, limit each read of a custom client to `stall` and the rest of `total`."""
    # httpcore reads this extension when the iteration over the body starts.
    total_left = timeouts.total_left(time.monotonic())
    read = _at_most(timeout.stall, total_left)
    extensions = response.request.extensions
    # A hook of the user may have replaced it.
    extensions["timeout"] = {**extensions.get("timeout", {}), "read": read}


def _at_most(wait: float | None, total_left: float) -> float | None:
    limit = min(math.inf if wait is None else wait, total_left)
    return None if limit == math.inf else min(max(limit, 0.001), LONGEST_WAIT)


def build_head(response: Any) -> Head:
    """Build the head of a response of httpx or httpx2."""
    return Head(
        status_code=response.status_code,
        headers=response.headers.raw,
        http_version=response.extensions.get("http_version", b"HTTP/1.1"),
        # A transport that creates its responses itself, as mocks do, has no network stream.
        came_over_network=response.extensions.get("network_stream") is not None,
    )


def find_source(stream: Any) -> Any:
    """Return the stream below httpx's own wrappers."""
    while _library_of(stream) in ("httpx", "httpx2"):
        inner = getattr(stream, "_stream", None) or getattr(stream, "_httpcore_stream", None)
        if inner is None:
            break
        stream = inner
    return stream


def find_body(response: Any) -> tuple[Any, bool]:
    """Return the stream of the body to iterate over, and whether httpcore or this package made it.

    A custom stream or generator is returned without httpx's wrappers, which would not close it.
    """
    stream = response.stream
    if _library_of(find_source(stream)) in ("httpcore", "httpcore2", "cromicle_sdk"):
        return stream, True
    kinds: list[Any] = [Generator, AsyncGenerator]
    for module in httpx_modules():
        kinds += [module.SyncByteStream, module.AsyncByteStream]
    while _library_of(stream) in ("httpx", "httpx2"):
        inner = getattr(stream, "_stream", None)
        if not isinstance(inner, tuple(kinds)):
            break
        stream = inner
    return stream, False


def _library_of(instance: object) -> str:
    return type(instance).__module__.partition(".")[0]


def was_read(response: Any) -> bool:
    """Whether a hook of the user has read or closed the body.

    Its stream must not be used then, because another call may already use the connection.
    """
    return bool(response.is_closed or response.is_stream_consumed)


def find_redirect(error: Exception, head: Head | None) -> Head | None:
    """Return the head of a redirect with a `Location` that httpx cannot parse, or None.

    httpx raises an error for it even if redirects are not followed.
    """
    kinds = tuple(module.RemoteProtocolError for module in httpx_modules())
    is_redirect = head is not None and 300 <= head.status_code < 400
    return head if is_redirect and isinstance(error, kinds) else None


def is_byte_stream(stream: object) -> bool:
    """Whether the body of a request is in memory, not generated while it is sent."""
    if isinstance(stream, httpx.ByteStream):
        return True
    return isinstance(stream, tuple(module.ByteStream for module in httpx_modules()))


def find_response(error: Exception, request: Any) -> Any:
    """Return the response to `request` if a user's hook raised `HTTPStatusError` for it.

    None for any other error, because a hook may send its own requests, for example for a token.
    """
    kinds = tuple(module.HTTPStatusError for module in httpx_modules())
    response = getattr(error, "response", None) if isinstance(error, kinds) else None
    # A response without a request raises on access to `request`.
    return response if getattr(response, "_request", None) is request else None
