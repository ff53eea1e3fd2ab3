"""Calls to the model server: one exchange each, over connections that are used again."""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio
import httpx

from cromicle_sdk._async.session import AsyncSession
from cromicle_sdk._core.endpoint import Endpoint
from cromicle_sdk._core.options import ConnectionOptions, Timeout
from cromicle_sdk._core.request import Request, build_user_agent
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk._http.clients import HTTPX_VERSION
from cromicle_sdk._http.proxies import Route
from cromicle_sdk._http.translate import strip_frames
from cromicle_sdk.server.backends import BackendError

from .errors import build_invalid, build_refused, describe_failure, find_reason

if TYPE_CHECKING:
    from cromicle_sdk._http.proxies import ProxyOption

__all__ = ["Call", "Upstream"]

T = TypeVar("T")

# How long the end of a body may lag behind the end of the answer in it, in seconds, before the
# connection is given up instead of kept: the caller's reply ends only after that.
FINISH_SECONDS = 0.1

# What the reason for a refusal is worth waiting for, in seconds: its status is known.
REASON_SECONDS = 2.0

# More than any error says of itself.
_MAX_ERROR_BYTES = 64 * 1024


class Upstream:
    """A model server: where it is, how to reach it, and the connections to it.

    The connections are those of the SDK's own clients: for any event loop, any number of calls,
    never lost to a cancellation. Its repr shows no key.

    Raises `ConfigurationError`, which names the option.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: Secret | None,
        timeout: Timeout,
        proxy: ProxyOption | None,
        verify: Literal[True] | ssl.SSLContext,
    ) -> None:
        # The path of every endpoint ends in /chat, as that of this API begins below its base.
        chat = Endpoint.parse("base_url", base_url)
        self._endpoint = replace(chat, path=f"{chat.path}/completions")
        self._timeout = timeout
        options = ConnectionOptions.build(
            max_connections=None, proxy=proxy, verify=verify, http_client=None
        )
        self._session = AsyncSession.connect(
            Route.find(self._endpoint, proxy=options.proxy, verify=options.verify),
            options.max_connections,
        )
        self._key = key
        self._headers = _build_headers(self._endpoint, key)

    def start(self, body: bytes) -> Call:
        """A call that has yet to be sent. `drop` it in the end."""
        request = Request(
            endpoint=self._endpoint,
            fixed_headers=self._headers,
            body=body,
            secrets=() if self._key is None else (self._key,),
        )
        return Call(self._session, request, self._timeout)


class Call:
    """One request to the model server, and the bytes of its answer.

    Every method raises `BackendError` for what the network or the server does, without a cause:
    the frames below hold the key.
    """

    def __init__(self, session: AsyncSession, request: Request, timeout: Timeout) -> None:
        self._request = request
        self._call = session.start_call(timeout)
        self._attempt = session.start_attempt(self._call)
        self._has_ended = False
        self.is_stream = False

    async def send(self) -> None:
        """Send it, and wait for the head of an answer that can be read: events, or JSON."""
        head = await self._run(lambda: self._attempt.send(self._request))
        headers = httpx.Headers(list(head.headers))
        if head.status_code != 200:
            reason = await self._read_reason()
            retry_after = headers.get("retry-after")
            raise build_refused(
                self._request, head.status_code, retry_after, reason, now=time.time()
            )
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise build_invalid("its answer is compressed, which was not asked for")
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in ("text/event-stream", "application/json"):
            raise build_invalid("its answer is neither a stream of events nor JSON")
        self.is_stream = media_type == "text/event-stream"

    async def read(self) -> bytes | bytearray:
        """The next bytes of the body, b"" at its end."""
        data = await self._run(self._attempt.read)
        self._has_ended = not data
        return data

    async def read_whole(self, limit: int) -> bytes:
        """The rest of the body, which may be `limit` bytes long."""
        body = bytearray()
        while data := await self.read():
            body += data
            if len(body) > limit:
                raise build_invalid(f"its answer is longer than {limit} bytes, in one piece")
        return bytes(body)

    async def finish(self) -> None:
        """There is no more to read: keep the connection, if the body ends soon. Raises nothing."""
        try:
            with anyio.move_on_after(FINISH_SECONDS):
                while not self._has_ended:
                    await self.read()
        except BackendError:
            return
        if self._has_ended:
            await self._attempt.aclose()

    def drop(self) -> None:
        """Let go of the connection, at once and without waiting; closed unless `finish` kept it."""
        self._attempt.abandon()

    async def _read_reason(self) -> str | None:
        reason = None
        try:
            with anyio.move_on_after(REASON_SECONDS):
                reason = find_reason(await self.read_whole(_MAX_ERROR_BYTES))
                await self.finish()
        except BackendError:
            return None
        return reason

    async def _run(self, step: Callable[[], Awaitable[T]]) -> T:
        try:
            return await step()
        except Exception as error:
            failure = describe_failure(error, self._request, self._call.timeouts)
            if failure is None:
                raise
        except BaseException as error:  # noqa: BLE001 - cancelled or interrupted: it goes on
            # It is the same error still, without the frames that hold the key, and without what
            # it came up in: a socket that was full, whose frames hold it as well.
            raise strip_frames(error)  # noqa: B904
        raise failure


def _build_headers(endpoint: Endpoint, key: Secret | None) -> tuple[tuple[bytes, bytes], ...]:
    headers = {
        "host": endpoint.netloc,
        "accept": "text/event-stream",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": build_user_agent(HTTPX_VERSION),
    }
    authorization = endpoint.authorization if key is None else Secret(f"Bearer {key.reveal()}")
    if authorization is not None:
        headers["authorization"] = authorization.reveal()
    return tuple((name.encode(), value.encode()) for name, value in headers.items())
