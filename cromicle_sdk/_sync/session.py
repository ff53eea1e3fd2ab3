# Generated from _async/session.py by tests/unasync.py; do not edit.
"""The httpx client that a client and its views share, and the attempts of a call through it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any, Protocol
from weakref import WeakSet

import httpx

from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._core.options import Timeout
from cromicle_sdk._core.request import Request
from cromicle_sdk._core.response import Head
from cromicle_sdk._http.clients import (
    NoCookies,
    adapt_extensions,
    build_extensions,
    build_head,
    build_http_request,
    check_http_client,
    check_process,
    find_body,
    find_redirect,
    find_response,
    find_source,
    limit_reads,
    parse_url,
    was_read,
)
from cromicle_sdk._http.framing import Trailers
from cromicle_sdk._http.logs import redact_logs
from cromicle_sdk._http.proxies import Route
from cromicle_sdk._http.sockets import (
    LAST_CLEANUP_SECONDS,
    ClosedByCaller,
    TimeLimitReached,
    snapshot,
)

from . import concurrency, iterators
from .pool import Exchange, Trace
from .transport import Transport

__all__ = ["Attempt", "Call", "Session"]

# The seconds that a custom client may take to close a response, if the call has time left. httpx
# takes less than a millisecond.
_CLEANUP_SECONDS = 1.0


class HTTPClient(httpx.Client):
    """The default httpx client. It adds nothing to a request and keeps no cookies."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport=transport, trust_env=False)

    @property
    def cookies(self) -> httpx.Cookies:
        return _NO_COOKIES

    @cookies.setter
    def cookies(self, cookies: object) -> None:
        raise AttributeError("this client keeps no cookies")

    def build_request(self, method: str, url: Any, **options: Any) -> httpx.Request:
        """Build a request without default headers, at a tenth of the cost of httpx's method."""
        return httpx.Request(
            method,
            parse_url(url),
            headers=options["headers"],
            stream=httpx.ByteStream(options["content"]),
            extensions=options["extensions"],
        )


_NO_COOKIES = NoCookies()


class Call:
    """What the attempts of one call share: its timeouts and its cancel handle."""

    def __init__(self, timeout: Timeout) -> None:
        self.timeout = timeout
        self.timeouts: CallTimeouts = CallTimeouts.for_call(timeout, now=time.monotonic())
        self.cancel_handle: concurrency.CancelHandle = concurrency.CancelHandle()

    def find_limit(self) -> float:
        """Return the seconds that are left of `total`."""
        return self.timeouts.total_left(time.monotonic())

    def find_cleanup_limit(self) -> float:
        """Return the seconds that a custom client may take to close a response."""
        left = 0 if self.cancel_handle.is_cancelled else self.find_limit()
        return max(min(_CLEANUP_SECONDS, left), LAST_CLEANUP_SECONDS)

    def sleep(self, seconds: float) -> None:
        """Wait between two attempts, or until `cancel_handle` is cancelled."""
        self.cancel_handle.sleep(seconds)


class Session:
    """An httpx client and the calls in flight on it, shared by a client and its views."""

    def __init__(self, http_client: Any, *, is_custom: bool, uses_proxy: bool = False) -> None:
        self._http_client = http_client
        self.uses_proxy = uses_proxy
        self._is_custom = is_custom
        self._is_closed = False
        # Weak: the stream holds its call, and a dropped call does not stay here.
        self._cancel_handles: WeakSet[concurrency.CancelHandle] = WeakSet()

    @classmethod
    def connect(cls, route: Route, max_connections: int) -> Session:
        """Create a session with the default httpx client."""
        transport = Transport.for_route(route, max_connections)
        uses_proxy = route.proxy is not None
        return cls(HTTPClient(transport), is_custom=False, uses_proxy=uses_proxy)

    @classmethod
    def use(cls, http_client: Any) -> Session:
        """Create a session with a custom client. Raises `ConfigurationError`."""
        check_http_client(http_client, "Client")
        return cls(http_client, is_custom=True)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def start_call(self, timeout: Timeout) -> Call:
        """Start a call through this session. `close` cancels it."""
        call = Call(timeout)
        self._cancel_handles.add(call.cancel_handle)
        return call

    def start_attempt(self, call: Call) -> Attempt:
        """Create an attempt, which is not sent yet.

        Raises `ClosedByCaller` if the call was cancelled or this session is closed.
        """
        if self._is_closed or self._http_client.is_closed:
            raise ClosedByCaller("its client is closed")
        call.cancel_handle.check()
        return Attempt(self._http_client, call, is_custom=self._is_custom)

    def close(self) -> None:
        """Cancel the calls in flight, and close the httpx client unless it is a custom one."""
        self._is_closed = True
        for cancel_handle in snapshot(self._cancel_handles):
            cancel_handle.cancel()
        if not self._is_custom:
            self._http_client.close()


class Attempt:
    """One attempt of a call: a request through an httpx client, and the bytes of its response."""

    def __init__(self, http_client: Any, call: Call, *, is_custom: bool) -> None:
        self._http_client = http_client
        self._call = call
        self._is_custom = is_custom
        self._exchange: Exchange | None = None
        self._response: Any = None
        self._body: _Body | None = None

    def send(self, request: Request) -> Head:
        """Send the request and wait for the head of its response.

        Raises httpx's errors, `ClosedByCaller`, `TimeLimitReached` and `ConfigurationError`.
        """
        call = self._call
        if self._is_custom:
            check_process(self._http_client)
            call.timeouts.enter("first_byte", time.monotonic())
        exchange = Exchange(call.timeouts, call.cancel_handle, request.redact)
        self._exchange = exchange
        trace = Trace(exchange.observer)
        extensions = build_extensions(exchange, trace, call.timeout)
        if self._is_custom:
            adapt_extensions(extensions, trace, call.timeouts)
        http_request = build_http_request(self._http_client, request, extensions)
        redirect: Head | None = None
        try:
            if self._is_custom:
                exchange.bind(http_request.stream)
                left = call.timeouts.total_left(time.monotonic())
                send = partial(self._send, http_request)
                with redact_logs(request.redact):
                    concurrency.time_limit(send, left, call.cancel_handle)
            else:
                self._send(http_request)
        except Exception as error:
            if self._response is not None:
                raise  # it came too late, and is for `close` to close
            # A hook that raises for a status has seen the response, which has more details.
            self._response = find_response(error, http_request)
            redirect = find_redirect(error, exchange.observer.head)
            if self._response is None and redirect is None:
                if isinstance(error, RuntimeError) and self._http_client.is_closed:
                    # It was closed immediately before the call of `send`.
                    raise ClosedByCaller("its client is closed") from error
                raise
        if self._response is None:
            assert redirect is not None
            self._body = _Content(None)
            return redirect
        if self._is_custom:
            limit_reads(self._response, call.timeout, call.timeouts)
        self._body = _open_body(self._response, exchange, call)
        return build_head(self._response)

    def _send(self, http_request: Any) -> None:
        self._response = self._http_client.send(http_request, stream=True, follow_redirects=False)

    @property
    def last_head(self) -> Head | None:
        """The last head that has arrived, if known, which may be that of a proxy's response."""
        return None if self._exchange is None else self._exchange.observer.head

    @property
    def is_end(self) -> bool:
        """Whether the body is known to have been read to its end."""
        return self._body is not None and self._body.is_end

    @property
    def trailers(self) -> Trailers:
        """The trailers, after the end of the body; none from a custom client's own transport."""
        return () if self._exchange is None else self._exchange.trailers

    def read(self) -> bytes | bytearray:
        """Return the next bytes of the body, b"" at its end. Raises the same errors as `send`."""
        assert self._body is not None, "read() comes after send()"
        return self._body.read()

    def close(self) -> None:
        """Stop reading. A connection that is clean after the response is kept."""
        response, body = self._response, self._body
        is_direct = body is self._exchange and not self._is_custom
        try:
            if response is not None and not is_direct:
                with concurrency.shield(self._call.find_cleanup_limit()):
                    response.close()
        finally:
            try:
                # Outside the shield: an async iterator may exit a scope that it has entered before.
                if body is not None:
                    body.close()
            finally:
                self.abandon()

    def abandon(self) -> None:
        """Release the connection at once, without waiting.

        A custom client without the transport of this package releases its own connections.
        """
        if self._exchange is not None:
            self._exchange.abandon()
        # Python closes an iterator that is dropped unfinished.
        self._body = None
        response, self._response = self._response, None
        if response is not None:
            # Break httpx's reference cycle, so that the request is freed without the cyclic GC.
            response.stream = None


class _Body(Protocol):
    """The source of the bytes of a response. Call `close` after that of the response."""

    @property
    def is_end(self) -> bool: ...
    def read(self) -> bytes | bytearray: ...
    def close(self) -> None: ...


def _open_body(response: Any, exchange: Exchange, call: Call) -> _Body:
    if was_read(response):
        return _Content(response)
    is_of_exchange: bool = find_source(response.stream) is exchange
    # The exchange itself, so that data that has arrived together is read together, and no generator
    # of httpx's is left unfinished.
    return exchange if is_of_exchange else _Chunks(response, call)


class _Content:
    """A body that a hook has read or dropped; empty if there is no response."""

    is_end = False

    def __init__(self, response: Any) -> None:
        self._response = response

    def read(self) -> bytes:
        """Return the whole body, then b"". Raises if a hook has dropped it."""
        response, self._response = self._response, None
        content: bytes = b"" if response is None else response.content
        return content

    def close(self) -> None:
        self._response = None


class _Chunks:
    """A body that is read from the stream of a response of a mock or a custom transport."""

    is_end = False

    def __init__(self, response: Any, call: Call) -> None:
        self._call = call
        self._stream, self._is_nested = find_body(response)
        self._chunks: Iterator[bytes] | None = None
        self._steps: iterators.LimitedSteps[bytes] | None = None

    def read(self) -> bytes:
        call = self._call
        if self._steps is None:
            self._chunks = iter(self._stream)
            self._steps = iterators.LimitedSteps(
                self._chunks.__next__, call.find_limit, call.cancel_handle
            )
        chunk = b""
        try:
            while not chunk:
                chunk = self._steps.run()
                # A response may consist of endless empty chunks, which must not exceed `total`.
                if not chunk:
                    concurrency.checkpoint()
                    if call.find_limit() <= 0:
                        raise TimeLimitReached
        except StopIteration:
            return b""
        call.timeouts.receive_body(time.monotonic())
        return chunk

    def close(self) -> None:
        chunks, self._chunks, self._steps = self._chunks, None, None
        # A stream that is its own iterator was closed with the response.
        is_closed = chunks is self._stream and not isinstance(self._stream, Generator)
        if chunks is not None and not is_closed:
            limit = self._call.find_cleanup_limit()
            iterators.close_iterator(chunks, limit, is_nested=self._is_nested)
