"""The client for asyncio and trio: it moves bytes; what they mean, the core decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from cromicle_sdk._core.compat import Self, Unpack
from cromicle_sdk._core.deadline import Limits
from cromicle_sdk._core.errors import CromicleError
from cromicle_sdk._core.messages import Messages
from cromicle_sdk._core.options import (
    DEFAULT_MAX_REPLY_BYTES,
    DEFAULT_RETRY,
    DEFAULT_TIMEOUT,
    CallOptions,
    ConnectionOptions,
    Options,
    Retry,
    Timeout,
    TimeoutLike,
    ViewOptions,
)
from cromicle_sdk._core.request import build_request
from cromicle_sdk._core.response import Headers, Reply, ReplyReceiver
from cromicle_sdk._core.retry import Attempts, RetryBudget
from cromicle_sdk._core.secrets import Secret, hide_token
from cromicle_sdk._http.sockets import ClosedByCaller
from cromicle_sdk._http.translate import (
    HTTPX_VERSION,
    build_route,
    check_http_client,
    redact_error,
    strip_frames,
    translate_error,
)

from . import concurrency as io
from .custom import AsyncForeignConnections, AsyncForeignExchange
from .pool import AsyncConnections, AsyncExchange

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from cromicle_sdk._core.request import Request
    from cromicle_sdk._http.translate import AsyncHTTPClient, ProxyOption

__all__ = ["AsyncClient", "AsyncStream"]

_State = Literal["new", "open", "ended", "closed", "failed"]


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

    - `base_url`: an http or https URL, with a path prefix or none; without it
      `$CROMICLE_BASE_URL`, else `https://cromicle.top`.
    - `token`: sent and hashed; without it `$CROMICLE_TOKEN`, else `abc`.
    - `timeout`: seconds, for every phase but `total` and `pool`; or a `Timeout` or an
      `httpx.Timeout`; None for no limit.
    - `retry`: a `Retry`; `Retry(attempts=1)` disables retries.
    - `max_reply_bytes`: a longer reply ends in `ReplyTooLargeError`; 64 MiB by default.
    - `max_connections`: calls past it wait their turn, within `timeout.total`; 1000 by default.
    - `strict`: refuse what can't be told from a good reply: HTML, JSON, nothing, a body with
      neither length nor chunks, bytes that are not UTF-8. False lets them through, bad bytes as
      U+FFFD.
    - `headers`: sent along; those of the protocol and of the framing are not theirs to set.
    - `proxy`: an http, https or socks5 URL; without it the environment's, which is never used
      for loopback addresses.
    - `verify`: True, or an `ssl.SSLContext`.
    - `http_client`: your own httpx or httpx2 client; it is used as it is, and not closed. Limits
      and URL of a request come from here.

    It may be shared by tasks. After a fork, or on another event loop, it opens connections of
    its own. A pickle of it holds its options, the token included.

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
        self._connections = _connect(options, connection_options)

    async def chat(self, messages: Messages, **options: Unpack[CallOptions]) -> Reply:
        """The whole reply to a text or to messages.

        `options` are the client's `timeout`, `retry`, `headers` (added to the client's),
        `max_reply_bytes` and `strict`, for this call. A reply that broke off is asked for again,
        as `retry` says, since nothing of it has been handed over.

        Raises `InvalidMessageError` and `ConfigurationError` before anything is sent; then
        `APIConnectionError`, `APITimeoutError`, `APIStatusError` or `ReplyError`, with
        `partial_text` where some text had arrived.
        """
        stream = self._start(messages, hide_token(cast("dict[str, Any]", options)), whole=True)
        try:
            return await stream.read()
        finally:
            await stream.aclose()

    def stream(self, messages: Messages, **options: Unpack[CallOptions]) -> AsyncStream:
        """The reply to a text or to messages, piece by piece as it arrives.

        Nothing is sent before the stream is entered or iterated. Options and errors are those of
        `chat`; what is wrong with messages or options is raised here, the rest from the stream,
        which never asks again once it has handed over text.
        """
        return self._start(messages, hide_token(cast("dict[str, Any]", options)), whole=False)

    def with_options(self, **options: Unpack[ViewOptions]) -> Self:
        """A client with some options changed, on the same connections.

        `options` are those of a call, and `token`. Closing such a view closes nothing else;
        closing the client that it came from closes the connections of both.
        Raises `ConfigurationError`.
        """
        self._check_open()
        hidden = hide_token(cast("dict[str, Any]", options))
        changed = self._options.with_view_options(hidden)
        view = type(self).__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._options = changed
        view._is_view = True
        return view

    async def aclose(self) -> None:
        """Close all connections; a call under way ends with an error. Closing twice is fine."""
        self._is_closed = True
        if not self._is_view:
            self._connections.close()

    @property
    def is_closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._is_closed or self._connections.is_closed

    def _start(self, messages: Messages, options: dict[str, Any], *, whole: bool) -> AsyncStream:
        self._check_open()
        call_options = self._options.with_call_options(options)
        return AsyncStream(
            self._connections,
            build_request(messages, call_options, httpx_version=HTTPX_VERSION),
            call_options,
            Attempts(call_options.retry, self._budget, whole=whole),
        )

    def _check_open(self) -> None:
        if self.is_closed:
            raise CromicleError("This client is closed. Make a new one, or close it later.")

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
        if "_connections" not in self.__dict__:
            # A debugger may ask for it while an option is being refused.
            return f"<{type(self).__name__} without options>"
        closed = " closed" if self.is_closed else ""
        return f"<{type(self).__name__} {self._options.endpoint.base_url}{closed}>"


class AsyncStream:
    """A reply while it arrives: an asynchronous iterator of non-empty texts.

    ```python
    async with client.stream("Tell me a story") as stream:
        async for text in stream:
            print(text, end="", flush=True)
    print(stream.reply.elapsed)
    ```

    Each text is handed over as soon as it has arrived, and never splits a character. At its end
    the stream closes itself; `async with` closes it however the block ends. Iterating raises
    what `AsyncClient.chat` raises.
    """

    _limits: Limits

    def __init__(
        self,
        connections: AsyncConnections | AsyncForeignConnections,
        request: Request,
        options: Options,
        attempts: Attempts,
    ) -> None:
        self._connections = connections
        self._request = request
        self._options = options
        self._attempts = attempts
        self._state: _State = "new"
        # Held while one task waits for the next text; a second one must not mix with it.
        self._turn = threading.Lock()
        self._receiver: ReplyReceiver | None = None
        self._exchange: AsyncExchange | AsyncForeignExchange | None = None
        self._pause: io.Pause | None = None
        self._reply: Reply | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "" if self._receiver is None else self._receiver.text

    @property
    def status_code(self) -> int:
        """The answer's status. Raises `CromicleError` before the stream has begun."""
        return self._begun()[0]

    @property
    def headers(self) -> Headers:
        """The answer's headers. Raises `CromicleError` before the stream has begun."""
        return self._begun()[1]

    @property
    def reply(self) -> Reply:
        """The whole reply. Raises `CromicleError` before the stream has ended."""
        if self._reply is None:
            raise CromicleError(
                "This stream has not ended, so there is no reply yet. "
                "Iterate it to its end or call read(); text is what has arrived."
            )
        return self._reply

    async def read(self) -> Reply:
        """Take the rest of the text and return the whole reply."""
        async for _ in self:
            pass
        return self.reply

    async def aclose(self) -> None:
        """Stop reading. Closing twice, or after the end, is fine.

        From elsewhere, while a read is under way, it makes that read end with an error.
        """
        if self._state in ("new", "open"):
            self._state = "closed"
        if self._turn.acquire(blocking=False):
            try:
                await self._drop_exchange()
            finally:
                self._turn.release()
            return
        # Elsewhere it is being read, or waits for its next attempt.
        exchange, pause = self._exchange, self._pause
        if exchange is not None:
            exchange.abort()
        if pause is not None:
            pause.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        self._take_turn()
        try:
            text = await self._advance(to_head=False)
        finally:
            self._turn.release()
        if not text:
            raise StopAsyncIteration
        return text

    async def __aenter__(self) -> Self:
        """Send the request, if it was not sent yet, and wait for the head of the answer."""
        self._check_readable()
        if self._state == "new":
            self._take_turn()
            try:
                await self._advance(to_head=True)
            finally:
                self._turn.release()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        exchange: AsyncExchange | AsyncForeignExchange | None = getattr(self, "_exchange", None)
        if exchange is not None:
            exchange.drop()

    def __repr__(self) -> str:
        if "_options" not in self.__dict__:
            # A debugger may ask for it after an interrupt.
            return f"<{type(self).__name__} that was not made>"
        return f"<{type(self).__name__} from {self._options.endpoint.url}, {self._state}>"

    def _take_turn(self) -> None:
        if not self._turn.acquire(blocking=False):
            raise CromicleError(
                "This stream is being read elsewhere at the same time. "
                "Give each reader a stream of its own."
            )

    async def _advance(self, *, to_head: bool) -> str:
        """Go on to the next text, or to the head alone; "" at the end and for the head."""
        self._check_readable()
        while self._reply is None:
            failure: CromicleError
            cause: BaseException | None = None
            try:
                text = await self._step()
                if text:
                    return text
                if to_head and self._receiver is not None and self._receiver.is_reply:
                    self._limits.hold()
                    return ""
                continue
            except CromicleError as error:
                failure = error.with_traceback(None)
            except Exception as error:
                redact_error(error, self._request.redact)
                translated = self._translate(error)
                if translated is None:
                    await self._fail()
                    raise
                failure, cause = translated, strip_frames(error)
            except BaseException as error:  # noqa: BLE001 - cancelled or interrupted: it goes on
                await self._fail()
                # It is the same error still, without the frames that hold the request.
                raise strip_frames(error)  # noqa: B904
            await self._recover(failure, cause)
        return ""

    async def _step(self) -> str:
        """Take one step: a new attempt up to its head, or the next bytes."""
        if self._exchange is None or self._receiver is None:
            self._receiver = None
            self._receiver = self._begin_attempt()
            self._exchange = self._connections.start(self._limits)
            await self._exchange.send(self._request)
            head = self._exchange.head
            self._receiver.receive_head(
                head.status_code,
                head.headers,
                http_version=head.http_version,
                wall_clock=time.time(),
            )
            return ""
        data = await self._exchange.read()
        now = time.monotonic()
        if data:
            self._limits.check_total(now)
            return self._receiver.receive_data(data, now=now)
        text = self._receiver.receive_eof(now=now)
        await self._exchange.finish()
        self._exchange = None
        self._attempts.succeed()
        self._state = "ended"
        self._reply = self._receiver.build_reply(now=now)
        return text

    def _begin_attempt(self) -> ReplyReceiver:
        if self._state == "closed":
            raise ClosedByCaller("it was closed before it was sent")
        if self._state == "new":
            self._state = "open"
            self._limits = Limits(self._options.timeout)
        self._limits.enter("pool")
        self._attempts.begin()
        return ReplyReceiver(
            self._options,
            redact=self._request.redact,
            started=self._limits.started,
            attempt=self._attempts.count,
        )

    def _translate(self, error: Exception) -> CromicleError | None:
        translated = translate_error(error, url=self._options.endpoint.url, limits=self._limits)
        if translated is None or self._receiver is None:
            return translated
        return self._receiver.receive_failure(translated)

    async def _recover(self, failure: CromicleError, cause: BaseException | None) -> None:
        """Wait for the next attempt, or raise."""
        await self._drop_exchange()
        decision = self._attempts.decide(failure, time_left=self._limits.total_left())
        if decision.wait is None:
            self._state = "failed"
            raise decision.error from cause
        self._pause = io.Pause()
        if self._state == "closed":
            self._pause.end()
        await self._connections.wait(decision.wait, self._pause)

    async def _fail(self) -> None:
        self._state = "failed"
        await self._drop_exchange()

    async def _drop_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            await exchange.aclose()

    def _begun(self) -> tuple[int, Headers]:
        receiver = self._receiver
        if receiver is None or receiver.status_code is None:
            raise CromicleError(
                "This stream has not begun, so there is no status yet. Enter or iterate it first."
            )
        return receiver.status_code, receiver.headers

    def _check_readable(self) -> None:
        if self._state in ("closed", "failed"):
            raise CromicleError(
                f"This stream has {'failed' if self._state == 'failed' else 'been closed'} before "
                "its end, so there is no more text. Start a new one.",
                partial_text=self.text,
                attempts=self._attempts.count,
            )


def _connect(
    options: Options, connection_options: ConnectionOptions
) -> AsyncConnections | AsyncForeignConnections:
    http_client = connection_options.http_client
    if http_client is not None:
        check_http_client(http_client, "AsyncClient")
        return AsyncForeignConnections(http_client)
    return AsyncConnections(
        build_route(options.endpoint, connection_options),
        max_connections=connection_options.max_connections,
    )
