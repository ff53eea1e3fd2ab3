"""The client for asyncio and trio: a thin wrapper that drives an httpx client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import httpx

from cromicle_sdk._core.compat import Self
from cromicle_sdk._core.errors import CromicleError
from cromicle_sdk._core.messages import Messages
from cromicle_sdk._core.options import (
    DEFAULT_MAX_REPLY_BYTES,
    DEFAULT_RETRY,
    DEFAULT_TIMEOUT,
    USE_CLIENT_DEFAULT,
    ConnectionOptions,
    Options,
    Retry,
    Timeout,
    TimeoutLike,
    UseClientDefault,
)
from cromicle_sdk._core.request import build_request
from cromicle_sdk._core.response import Reply
from cromicle_sdk._core.retry import Attempts, RetryBudget
from cromicle_sdk._core.secrets import Secret

from .stream import AsyncStream

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from cromicle_sdk._http.clients import AsyncHTTPClient
    from cromicle_sdk._http.proxies import ProxyOption

    from .session import AsyncSession

__all__ = ["AsyncClient"]


class AsyncClient:
    """A client for one chat endpoint, for asyncio (uvloop included) and trio.

    ```python
    async with AsyncClient() as client:
        reply = await client.chat("Hello, how are you?")
        async with client.stream("Tell me a story") as stream:
            async for text in stream:
                print(text, end="", flush=True)
    ```

    Options, all by keyword:

    - `base_url`: an http or https URL, with or without a path prefix. Defaults to
      `$CROMICLE_BASE_URL`, else `https://cromicle.top`.
    - `token`: sent and hashed. Defaults to `$CROMICLE_TOKEN`, else `abc`. Any other token requires
      a `base_url`, so that it is not sent to the default host.
    - `timeout`: seconds for every limit except `total` and `pool`; or a `Timeout` or an
      `httpx.Timeout`; None for no limit. Defaults to `Timeout(connect=5, first_byte=300,
      stall=120, total=600, pool=3600)`.
    - `retry`: a `Retry`; `Retry(attempts=1)` disables retries. Defaults to `Retry()`, three
      attempts.
    - `max_reply_bytes`: a longer reply raises `ReplyTooLargeError`. Defaults to 64 MiB.
    - `max_connections`: calls in flight; further ones are queued, within `timeout.pool`. Defaults
      to 1000.
    - `strict`: reject any response that is not verifiably a complete plain-text reply: HTML, JSON
      and other media types, an empty body, a body with neither length nor chunks, bytes that are
      not UTF-8. False accepts them, with U+FFFD for invalid bytes. Defaults to True.
    - `extra_body`: JSON fields by name, sent beside `message`, `token` and `hash` to a server that
      accepts them, such as `{"temperature": 0.5}`.
    - `send_messages`: also send the messages with their roles, for a server that passes them on to
      its model. Defaults to False.
    - `headers`: sent with each request. `Host`, the content headers and the encodings cannot be
      overridden.
    - `proxy`: an http, https or socks5 URL. Defaults to that of the environment, which is never
      used for loopback addresses.
    - `verify`: True, or an `ssl.SSLContext`.
    - `http_client`: an httpx or httpx2 client of your own, which is used as it is and never closed.
      The timeouts and the URL of a request are those given here.

    Tasks can share a client. After a fork, or on another event loop, it opens new connections.
    A pickled client contains its options, including the token.

    Raises `ConfigurationError`, which names the option. Close it, or use it in `async with`.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        token: str | None = None,
        timeout: float | Timeout | TimeoutLike | None = DEFAULT_TIMEOUT,
        retry: Retry = DEFAULT_RETRY,
        max_reply_bytes: int = DEFAULT_MAX_REPLY_BYTES,
        max_connections: int | None = None,
        strict: bool = True,
        extra_body: Mapping[str, Any] | None = None,
        send_messages: bool = False,
        headers: Mapping[str, str] | None = None,
        proxy: ProxyOption | None = None,
        verify: Literal[True] | ssl.SSLContext = True,
        http_client: AsyncHTTPClient | None = None,
    ) -> None:
        secret = None if token is None else Secret(token)
        # An error about another option leaves through this frame, whose locals may be printed.
        del token
        options = Options.build(
            base_url=base_url,
            token=secret,
            timeout=timeout,
            retry=retry,
            max_reply_bytes=max_reply_bytes,
            strict=strict,
            headers=headers,
            extra_body=extra_body,
            send_messages=send_messages,
        )
        connection_options = ConnectionOptions.build(
            max_connections=max_connections,
            proxy=proxy,
            verify=verify,
            http_client=http_client,
            base_url=base_url,
        )
        self._set_up(options, connection_options)

    def _set_up(self, options: Options, connection_options: ConnectionOptions) -> None:
        self._options = options
        self._connection_options = connection_options
        self._budget = RetryBudget(options.retry.budget)
        self._is_view = False
        self._is_closed = False
        self._session = _connect(options, connection_options)

    async def chat(
        self,
        messages: Messages,
        *,
        timeout: float | Timeout | TimeoutLike | UseClientDefault | None = USE_CLIENT_DEFAULT,
        retry: Retry | UseClientDefault = USE_CLIENT_DEFAULT,
        max_reply_bytes: int | UseClientDefault = USE_CLIENT_DEFAULT,
        strict: bool | UseClientDefault = USE_CLIENT_DEFAULT,
        extra_body: Mapping[str, Any] | None = None,
        send_messages: bool | UseClientDefault = USE_CLIENT_DEFAULT,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a text or messages, and return the whole reply.

        `messages` is a str, or an iterable of mappings or objects with `role` and `content`.

        The options are those of the client, for this call:

        - `timeout`: seconds for every limit except `total` and `pool`, which keep the client's
          values; or a `Timeout` or an `httpx.Timeout`; None for no limit. Defaults to the client's.
        - `retry`: a `Retry`. A truncated reply is also retried, because no part of it has been
          returned. Defaults to the client's.
        - `max_reply_bytes`: in bytes; a longer reply raises `ReplyTooLargeError`. Defaults to the
          client's.
        - `strict`: True to reject any response that is not verifiably a complete plain-text reply,
          False to accept those that `AsyncClient` lists. Defaults to the client's.
        - `extra_body`: JSON fields by name, added to the client's. Defaults to None.
        - `send_messages`: True to also send the messages with their roles. Defaults to the
          client's.
        - `headers`: values by name, added to the client's. Defaults to None.

        Raises `InvalidMessageError` and `ConfigurationError` before anything is sent; then
        `APIConnectionError`, `APITimeoutError`, `APIStatusError` or `ReplyError`, with the text so
        far in `partial_text`.
        """
        options = self._options.with_call_options(
            timeout=timeout,
            retry=retry,
            max_reply_bytes=max_reply_bytes,
            strict=strict,
            extra_body=extra_body,
            send_messages=send_messages,
            headers=headers,
        )
        stream = self._start(messages, options, whole=True)
        try:
            return await stream.read()
        finally:
            await stream.aclose()

    def stream(
        self,
        messages: Messages,
        *,
        timeout: float | Timeout | TimeoutLike | UseClientDefault | None = USE_CLIENT_DEFAULT,
        retry: Retry | UseClientDefault = USE_CLIENT_DEFAULT,
        max_reply_bytes: int | UseClientDefault = USE_CLIENT_DEFAULT,
        strict: bool | UseClientDefault = USE_CLIENT_DEFAULT,
        extra_body: Mapping[str, Any] | None = None,
        send_messages: bool | UseClientDefault = USE_CLIENT_DEFAULT,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncStream:
        """Send a text or messages, and return the reply as a stream.

        Nothing is sent before the stream is started, entered or iterated. Options and errors are
        those of `chat`: invalid messages and options and a closed client raise here, everything
        else raises from the stream, which never retries after it has yielded text.
        """
        options = self._options.with_call_options(
            timeout=timeout,
            retry=retry,
            max_reply_bytes=max_reply_bytes,
            strict=strict,
            extra_body=extra_body,
            send_messages=send_messages,
            headers=headers,
        )
        return self._start(messages, options, whole=False)

    def with_options(
        self,
        *,
        token: str | UseClientDefault = USE_CLIENT_DEFAULT,
        timeout: float | Timeout | TimeoutLike | UseClientDefault | None = USE_CLIENT_DEFAULT,
        retry: Retry | UseClientDefault = USE_CLIENT_DEFAULT,
        max_reply_bytes: int | UseClientDefault = USE_CLIENT_DEFAULT,
        strict: bool | UseClientDefault = USE_CLIENT_DEFAULT,
        extra_body: Mapping[str, Any] | None = None,
        send_messages: bool | UseClientDefault = USE_CLIENT_DEFAULT,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Return a client with other options that shares the connections of this one.

        Accepts the options of `chat`, and `token`; all others belong to the connections. An option
        that is not given keeps its value. Closing the new client leaves the connections open;
        closing the original client closes them for both. Raises `ConfigurationError`.
        """
        secret = None if token is USE_CLIENT_DEFAULT else Secret(token)
        # An error about another option leaves through this frame, whose locals may be printed.
        del token
        self._check_open()
        options = self._options if secret is None else self._options.with_token(secret)
        view = type(self).__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._options = options.with_call_options(
            timeout=timeout,
            retry=retry,
            max_reply_bytes=max_reply_bytes,
            strict=strict,
            extra_body=extra_body,
            send_messages=send_messages,
            headers=headers,
        )
        view._is_view = True
        return view

    async def aclose(self) -> None:
        """Close all connections except those of an `http_client`; calls in flight raise an error.

        Idempotent. On a client of `with_options`, it closes no connections.
        """
        self._is_closed = True
        if not self._is_view:
            await self._session.aclose()

    @property
    def is_closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._is_closed or self._session.is_closed

    def _start(self, messages: Messages, options: Options, *, whole: bool) -> AsyncStream:
        self._check_open()
        return AsyncStream(
            self._session,
            build_request(messages, options, httpx_version=httpx.__version__),
            options,
            Attempts(options.retry, self._budget, whole=whole),
        )

    def _check_open(self) -> None:
        if self.is_closed:
            raise CromicleError("This client is closed.", hint="Create a new one.")

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __getstate__(self) -> tuple[Options, ConnectionOptions]:
        self._connection_options.check_picklable()
        return self._options, self._connection_options

    def __setstate__(self, state: tuple[Options, ConnectionOptions]) -> None:
        self._set_up(*state)

    def __repr__(self) -> str:
        if "_session" not in self.__dict__:
            # A debugger may call it while an option is being rejected.
            return f"<{type(self).__name__} without options>"
        closed = " closed" if self.is_closed else ""
        return f"<{type(self).__name__} {self._options.endpoint.base_url}{closed}>"


def _connect(options: Options, connection_options: ConnectionOptions) -> AsyncSession:
    # Imported with the first client only: httpcore takes as long to import as httpx.
    from cromicle_sdk._http.proxies import Route

    from .session import AsyncSession

    if connection_options.http_client is not None:
        return AsyncSession.use(connection_options.http_client)
    route = Route.find(
        options.endpoint, proxy=connection_options.proxy, verify=connection_options.verify
    )
    return AsyncSession.connect(route, connection_options.max_connections)
