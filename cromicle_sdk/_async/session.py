"""The httpx client below a client and its views, and each attempt of a call through it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any
from weakref import WeakSet

import httpx

from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._core.options import Timeout
from cromicle_sdk._core.request import Request
from cromicle_sdk._core.response import Head
from cromicle_sdk._http.clients import (
    NoCookies,
    build_head,
    build_http_request,
    check_http_client,
    check_process,
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
from cromicle_sdk._http.sockets import ClosedByCaller, TimeLimitReached, snapshot

from . import concurrency
from .pool import AsyncExchange
from .transport import AsyncTransport

__all__ = ["AsyncAttempt", "AsyncCall", "AsyncSession"]


class AsyncHTTPClient(httpx.AsyncClient):
    """The httpx client of our own making: it adds nothing to a request and keeps nothing of it."""

    def __init__(self, transport: AsyncTransport) -> None:
        super().__init__(transport=transport, trust_env=False)

    @property
    def cookies(self) -> httpx.Cookies:
        return _NO_COOKIES

    @cookies.setter
    def cookies(self, cookies: object) -> None:
        raise AttributeError("this client keeps no cookies")

    def build_request(self, method: str, url: Any, **options: Any) -> httpx.Request:
        """A request without default headers, at a tenth of the cost of httpx's own."""
        return httpx.Request(
            method,
            parse_url(url),
            headers=options["headers"],
            stream=httpx.ByteStream(options["content"]),
            extensions=options["extensions"],
        )


_NO_COOKIES = NoCookies()


class AsyncCall:
    """What the attempts of one call share: its timeouts and its cancel handle."""

    def __init__(self, timeout: Timeout) -> None:
        self.timeout = timeout
        self.timeouts: CallTimeouts = CallTimeouts.for_call(timeout, now=time.monotonic())
        self.cancel_handle: concurrency.CancelHandle = concurrency.CancelHandle()

    def find_limit(self) -> float:
        """Seconds that are left of `total`."""
        return self.timeouts.total_left(time.monotonic())

    async def sleep(self, seconds: float) -> None:
        """Wait between two attempts; `cancel_handle` ends it."""
        await self.cancel_handle.sleep(seconds)


class AsyncSession:
    """An httpx client and the calls in flight on it, shared by a client and its views."""

    def __init__(self, http_client: Any, *, is_custom: bool) -> None:
        self._http_client = http_client
        self._is_custom = is_custom
        self._is_closed = False
        # A call is held by its stream: one that is dropped is not kept here.
        self._cancel_handles: WeakSet[concurrency.CancelHandle] = WeakSet()

    @classmethod
    def connect(cls, route: Route, max_connections: int) -> AsyncSession:
        """A session over an httpx client of our own."""
        transport = AsyncTransport.for_route(route, max_connections)
        return cls(AsyncHTTPClient(transport), is_custom=False)

    @classmethod
    def use(cls, http_client: Any) -> AsyncSession:
        """A session over a client of the user's, which stays open. Raises `ConfigurationError`."""
        check_http_client(http_client, "AsyncClient")
        return cls(http_client, is_custom=True)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def start_call(self, timeout: Timeout) -> AsyncCall:
        """A call whose attempts go through this session, and which `aclose` cancels."""
        call = AsyncCall(timeout)
        self._cancel_handles.add(call.cancel_handle)
        return call

    def start_attempt(self, call: AsyncCall) -> AsyncAttempt:
        """An attempt that has yet to be sent.

        Raises `ClosedByCaller` where the call was cancelled, or this session closed.
        """
        if self._is_closed or self._http_client.is_closed:
            raise ClosedByCaller("its client is closed")
        call.cancel_handle.check()
        return AsyncAttempt(self._http_client, call, is_custom=self._is_custom)

    async def aclose(self) -> None:
        """Cancel the calls in flight, and close the httpx client unless it is the user's."""
        self._is_closed = True
        for cancel_handle in snapshot(self._cancel_handles):
            cancel_handle.cancel()
        if not self._is_custom:
            await self._http_client.aclose()


class AsyncAttempt:
    """One attempt of a call: a request through an httpx client, and the bytes of its response.

    Where the response comes from our own pool, its bytes are read from the exchange directly: so
    what has arrived together is read together, and no generator of httpx's is left unfinished.
    """

    def __init__(self, http_client: Any, call: AsyncCall, *, is_custom: bool) -> None:
        self._http_client = http_client
        self._call = call
        self._is_custom = is_custom
        self._exchange: AsyncExchange | None = None
        self._response: Any = None
        self._reads_exchange = False
        # Whether a hook of the user's has read the body, and whether it has been returned.
        self._was_read = False
        self._is_content_taken = False
        self._chunks: AsyncIterator[bytes] | None = None

    async def send(self, request: Request) -> Head:
        """Send the request and wait for the head of its response.

        Raises what httpx raises, `ClosedByCaller`, `TimeLimitReached` and `ConfigurationError`.
        """
        call = self._call
        if self._is_custom:
            check_process(self._http_client)
            call.timeouts.enter("first_byte", time.monotonic())
        exchange = AsyncExchange(call.timeouts, call.cancel_handle, request.redact)
        self._exchange = exchange
        http_request = build_http_request(
            self._http_client, request, call.timeout, call.timeouts, exchange
        )
        redirect: Head | None = None
        try:
            if self._is_custom:
                left = call.timeouts.total_left(time.monotonic())
                send = partial(self._send, http_request)
                with redact_logs(request.redact):
                    await concurrency.time_limit(send, left, call.cancel_handle)
            else:
                await self._send(http_request)
        except Exception as error:
            # A hook that raises for a status has seen the response, which says more.
            self._response = find_response(error, http_request)
            redirect = find_redirect(error, exchange.response)
            if self._response is None and redirect is None:
                raise
        if self._response is None:
            assert redirect is not None
            self._was_read = self._is_content_taken = True
            return redirect
        return self._receive_head()

    async def _send(self, http_request: Any) -> None:
        self._response = await self._http_client.send(
            http_request, stream=True, follow_redirects=False
        )

    def _receive_head(self) -> Head:
        response = self._response
        self._was_read = was_read(response)
        self._reads_exchange = not self._was_read and find_source(response.stream) is self._exchange
        if self._is_custom:
            limit_reads(response, self._call.timeout, self._call.timeouts)
        return build_head(response)

    @property
    def is_end(self) -> bool:
        """Whether the body is known to have been read to its end."""
        return self._reads_exchange and self._exchange is not None and self._exchange.is_end

    @property
    def trailers(self) -> Trailers:
        """The trailers, at the end of the body; none from a transport that is not ours."""
        return () if self._exchange is None else self._exchange.trailers

    def read(self) -> Awaitable[bytes | bytearray]:
        """The next bytes of the body, b"" at its end. Raises as `send` does."""
        if self._reads_exchange and self._exchange is not None:
            return self._exchange.read()
        return self._read_response()

    async def _read_response(self) -> bytes | bytearray:
        if self._was_read:
            return self._take_content()
        if self._chunks is None:
            self._chunks = aiter(self._response.stream)
        call = self._call
        read, limit, cancel_handle = self._chunks.__anext__, call.find_limit, call.cancel_handle
        chunk = b""
        try:
            while not chunk:
                chunk = await concurrency.limit_waits(read, limit, cancel_handle)
                # Without an end to them, empty chunks must not run past `total`.
                if not chunk:
                    await concurrency.checkpoint()
                    if limit() <= 0:
                        raise TimeLimitReached
        except StopAsyncIteration:
            return b""
        if call.timeouts.phase != "stall":
            call.timeouts.enter("stall", time.monotonic())
        return chunk

    def _take_content(self) -> bytes:
        """The whole body, then b"". Raises where a hook of the user's has dropped it."""
        content: bytes = b"" if self._is_content_taken else self._response.content
        self._is_content_taken = True
        return content

    async def aclose(self) -> None:
        """The body is not read any further; a connection that it has left clean is kept."""
        response = self._response
        try:
            if self._is_custom and response is not None:
                with concurrency.shield():
                    await response.aclose()
            elif self._reads_exchange and self._exchange is not None:
                await self._exchange.aclose()
            elif response is not None:
                await response.aclose()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Release the connection at once, without waiting.

        That of a custom client without our transport is for that client to release.
        """
        if self._exchange is not None:
            self._exchange.abandon()
        if self._chunks is not None:
            concurrency.finish_iterator(self._chunks)
            self._chunks = None
        response, self._response = self._response, None
        if response is not None:
            # Break httpx's reference cycle, so that the request is freed without the cyclic GC.
            response.stream = None
