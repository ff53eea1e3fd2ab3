"""The stream of a reply: attempts run until one of them succeeds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from cromicle_sdk._core.compat import Self
from cromicle_sdk._core.errors import CromicleError, describe
from cromicle_sdk._core.observers import OBSERVERS, CallEnd, CallObserver
from cromicle_sdk._core.request import Request
from cromicle_sdk._core.response import Head, Headers, Reply, ResponseDecoder
from cromicle_sdk._core.retry import Attempts
from cromicle_sdk._http.callers import find_callers_error
from cromicle_sdk._http.sockets import LATE_SECONDS, TimeLimitReached
from cromicle_sdk._http.tracebacks import strip_frames, strip_library_frames

if TYPE_CHECKING:
    from types import TracebackType

    from cromicle_sdk._core.options import Options

    from .session import AsyncAttempt, AsyncCall, AsyncSession

__all__ = ["AsyncStream"]

T = TypeVar("T")

_logger = logging.getLogger("cromicle_sdk")
# Marks the last log record of a call, which may precede its last text.
_LAST = {"end_of_call": True}

_State = Literal["new", "open", "ended", "closed", "failed"]


class AsyncStream:
    """A reply as it arrives: an asynchronous iterator of non-empty texts.

    ```python
    async with client.stream("Tell me a story") as stream:
        async for text in stream:
            print(text, end="", flush=True)
    print(stream.reply.elapsed)
    ```

    Yields each chunk as it arrives: the text that has arrived since the previous chunk, up to
    64 KiB at a time, never a part of a character. The stream closes itself at its end; `async with`
    closes it in every case. Iterating raises the same errors as `AsyncClient.chat`.
    """

    def __init__(
        self, session: AsyncSession, request: Request, options: Options, attempts: Attempts
    ) -> None:
        self._session = session
        self._request = request
        self._options = options
        self._attempts = attempts
        self._state: _State = "new"
        # Held while one task waits for the next chunk, so that no other one interferes.
        self._reading = threading.Lock()
        self._call: AsyncCall | None = None
        self._attempt: AsyncAttempt | None = None
        self._decoder: ResponseDecoder | None = None
        self._observer: CallObserver | None = None

    @property
    def text(self) -> str:
        """The text that has arrived so far."""
        return "" if self._decoder is None else self._decoder.text

    @property
    def status_code(self) -> int:
        """The status of the response. Raises `CromicleError` before the stream has started."""
        return self._begun()[0]

    @property
    def headers(self) -> Headers:
        """The headers of the response. Raises `CromicleError` before the stream has started."""
        return self._begun()[1]

    @property
    def reply(self) -> Reply:
        """The whole reply. Raises `CromicleError` before the stream has ended."""
        if self._state != "ended" or self._decoder is None:
            raise CromicleError(
                "This stream has not ended, so there is no reply yet.",
                hint="Iterate over it to its end, or call read(); text has what has arrived.",
            )
        return self._decoder.reply

    async def start(self) -> Self:
        """Send the request, wait for the headers of the response, and return the stream itself.

        For apps that relay the reply: most errors are raised here, where the app can still choose a
        status. Idempotent. Raises the errors that iterating raises up to the headers of a reply;
        `await client.stream(messages).start()` also raises for invalid messages.
        """
        self._check_readable()
        if self._state == "new":
            await self._run(self._start)
        return self

    async def read(self) -> Reply:
        """Read the rest of the text and return the whole reply."""
        async for _ in self:
            pass
        return self.reply

    async def aclose(self) -> None:
        """Stop reading. Idempotent.

        If another task or thread is reading the stream, its read raises an error.
        """
        if self._state in ("new", "open"):
            self._state = "closed"
        if self._reading.acquire(blocking=False):
            try:
                self._stop_observing()
                if self._attempt is not None:
                    self._log_early_end("closed by the caller")
                await self._close_attempt()
            finally:
                self._reading.release()
        elif self._call is not None:
            self._call.cancel_handle.cancel()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[str]:
        return self._run(self._read_chunk)

    async def __aenter__(self) -> Self:
        """Send the request if it has not been sent, and wait for the headers of the response."""
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        attempt: AsyncAttempt | None = getattr(self, "_attempt", None)
        if attempt is not None:
            attempt.abandon()
        if getattr(self, "_observer", None) is not None:
            self._stop_observing()

    def __repr__(self) -> str:
        if "_options" not in self.__dict__:
            # A debugger may call it after an interrupt in `__init__`.
            return f"<{type(self).__name__} that was not made>"
        return f"<{type(self).__name__} from {self._options.endpoint.url}, {self._state}>"

    def _start_reading(self) -> None:
        if not self._reading.acquire(blocking=False):
            raise CromicleError(
                "This stream is being read elsewhere at the same time.",
                hint="Create a stream for each reader.",
            )

    async def _run(self, step: Callable[[], Awaitable[T | None]]) -> T:
        """Run a step, and run it again with a new attempt if it fails and may be retried.

        Raises `StopAsyncIteration` if the step returns None.
        """
        self._start_reading()
        try:
            self._check_readable()
            while True:
                try:
                    result = await step()
                    break
                except Exception as error:  # noqa: BLE001 - `_recover` raises it, if not ours
                    failure = error
                except BaseException as error:  # noqa: BLE001 - cancelled or interrupted
                    await self._fail(error)
                    # Still the same error, but without the frames that hold the request.
                    raise strip_library_frames(error)  # noqa: B904
                # Outside the handler, whose error would become the context of later ones.
                await self._recover(failure)
        finally:
            self._reading.release()
        if result is None:
            raise StopAsyncIteration
        return result

    async def _start(self) -> AsyncCall:
        """Start an attempt, and return control to the caller."""
        call = await self._open()
        call.timeouts.hold(time.monotonic())
        return call

    async def _open(self) -> AsyncCall:
        """Start an attempt: send the request, and wait for the head of a reply."""
        call = self._call or self._start_call()
        self._decoder = None
        self._attempt = attempt = self._session.start_attempt(call)
        self._attempts.begin()
        if _logger.isEnabledFor(logging.DEBUG):
            _logger.debug("attempt %d: POST %s", self._attempts.count, self._options.endpoint.url)
        self._decoder = decoder = ResponseDecoder(
            self._options,
            redact=self._request.redact,
            started=call.timeouts.started,
            attempt=self._attempts.count,
        )
        decoder.receive_head(await self._send(attempt), wall_clock=time.time())
        while not decoder.is_accepted:
            # The body explains the error, which is raised at its end.
            if data := await attempt.read():
                decoder.receive_data(data, now=time.monotonic())
            else:
                decoder.receive_eof(now=time.monotonic())
        return call

    async def _send(self, attempt: AsyncAttempt) -> Head:
        if self._observer is None:
            return await attempt.send(self._request)
        with self._observer.send(self._request) as request:
            return await attempt.send(request)

    def _start_call(self) -> AsyncCall:
        self._call = call = self._session.start_call(self._options.timeout)
        if OBSERVERS.start_call is not None:
            is_streamed = not self._attempts.is_whole
            self._observer = OBSERVERS.start_call(self._request, self._options, is_streamed)
        if self._state == "closed":
            # Closed by another thread, before the call existed.
            call.cancel_handle.cancel()
        else:
            self._state = "open"
        return call

    async def _read_chunk(self) -> str | None:
        """Return the next text, or None at the end of the reply."""
        while self._state != "ended":
            attempt, decoder, call = self._attempt, self._decoder, self._call
            if attempt is None or decoder is None or call is None:
                await self._open()
                continue
            data = await attempt.read()
            now = time.monotonic()
            if data:
                # Data that arrived in time may be read late, but a flood must not exceed the limit.
                timeouts = call.timeouts
                if timeouts.total_left(now) <= 0 and timeouts.late_for(now) > LATE_SECONDS:
                    raise TimeLimitReached
                text = decoder.receive_data(data, now=now)
                if attempt.is_end and decoder.may_end:
                    await self._end(attempt, decoder, now)
            else:
                text = await self._end(attempt, decoder, now)
            if text:
                return text
        return None

    async def _end(self, attempt: AsyncAttempt, decoder: ResponseDecoder, now: float) -> str:
        """End the reply. Return its last text, which is nearly always empty."""
        text = decoder.receive_eof(now=now, trailers=attempt.trailers)
        await self._close_attempt()
        self._attempts.succeed()
        self._state = "ended"
        self._stop_observing()
        if _logger.isEnabledFor(logging.DEBUG):
            _logger.debug(
                "attempt %d succeeded: %s", self._attempts.count, decoder.summary, extra=_LAST
            )
        return text

    def _translate(self, error: Exception) -> CromicleError | None:
        from cromicle_sdk._http.translate import translate_error  # loaded with the session

        assert self._call is not None, "nothing fails before a call has started"
        head = None if self._attempt is None else self._attempt.last_head
        translated = translate_error(
            error,
            url=self._options.endpoint.url,
            timeouts=self._call.timeouts,
            redact=self._request.redact,
            proxy_status=None if head is None else head.status_code,
            uses_proxy=self._session.uses_proxy,
        )
        if translated is None or self._decoder is None:
            return translated
        return self._decoder.receive_failure(translated)

    async def _recover(self, error: Exception) -> None:
        """Wait for the next attempt, or raise."""
        callers = find_callers_error(error)
        if callers is not None:
            await self._fail(callers)
            raise strip_library_frames(callers)
        cause: BaseException | None = None
        failure: CromicleError | None
        if isinstance(error, CromicleError):
            failure = error.with_traceback(None)
        else:
            failure = self._translate(error)
            if failure is None:
                await self._fail(error)
                raise strip_library_frames(error)
            cause = strip_frames(error)
        await self._close_attempt()
        call = self._call
        assert call is not None, "nothing fails before a call has started"
        decision = self._attempts.decide(failure, time_left=call.find_limit())
        if decision.wait is None:
            self._state = "failed"
            self._stop_observing(decision.error)
            _logger.debug(
                "attempt %d failed: %s", self._attempts.count, describe(failure), extra=_LAST
            )
            raise decision.error from cause
        count, attempts = self._attempts.count, self._options.retry.attempts
        _logger.info(
            "retrying in %.2f s, after attempt %d of %d: %s",
            *(decision.wait, count, attempts, describe(failure)),
            extra={
                "retry": {
                    "wait": decision.wait,
                    "attempt": count,
                    "attempts": attempts,
                    "error": failure,
                }
            },
        )
        await call.sleep(decision.wait)

    async def _fail(self, error: BaseException) -> None:
        self._state = "failed"
        self._stop_observing(error)
        self._log_early_end(f"ended by {type(error).__name__}")
        await self._close_attempt()

    def _log_early_end(self, how: str) -> None:
        _logger.debug("attempt %d %s", self._attempts.count, how, extra=_LAST)

    def _stop_observing(self, error: BaseException | None = None) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            decoder = self._decoder
            end = CallEnd(
                attempts=self._attempts.count,
                first_text_after=None if decoder is None else decoder.first_text_after,
                reply=self.reply if self._state == "ended" else None,
                error=error,
            )
            observer.end(end)

    async def _close_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            await attempt.aclose()

    def _begun(self) -> tuple[int, Headers]:
        decoder = self._decoder
        if decoder is None or decoder.status_code is None:
            raise CromicleError(
                "This stream has not begun, so there is no status yet.",
                hint="Enter or iterate it first.",
            )
        return decoder.status_code, decoder.headers

    def _check_readable(self) -> None:
        if self._state in ("closed", "failed"):
            raise CromicleError(
                f"This stream {'failed' if self._state == 'failed' else 'was closed'} before "
                "its end, so there is no more text.",
                partial_text=self.text,
                attempts=self._attempts.count,
                hint="Create a new one.",
            )
