"""Requests to the model server, over reused connections."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio
import httpx

from cromicle_sdk._async.session import AsyncSession
from cromicle_sdk._core.endpoint import Endpoint
from cromicle_sdk._core.observers import OBSERVERS
from cromicle_sdk._core.options import ConnectionOptions, Timeout
from cromicle_sdk._core.request import Request, add_headers, build_headers
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk._http.proxies import Route
from cromicle_sdk._http.tracebacks import strip_frames
from cromicle_sdk.server.backends import BackendError

from .errors import (
    ErrorReport,
    build_invalid_error,
    build_status_error,
    describe_failure,
    parse_error,
    parse_wait,
)
from .models import parse_models

if TYPE_CHECKING:
    from cromicle_sdk._http.proxies import ProxyOption

__all__ = ["Call", "Upstream"]

T = TypeVar("T")

# How long to wait for the end of the body after the end of the completion, in seconds. Without it
# the connection cannot be reused; but the wait delays the end of the caller's reply.
FINISH_SECONDS = 0.1

# How long to wait for the body of an error, in seconds; its status is already known.
ERROR_SECONDS = 2.0

# Longer than any error in JSON.
_MAX_ERROR_BYTES = 64 * 1024

# The limit for the list of models, in seconds. It is short, because a server waits for the list
# before it listens.
LIST_SECONDS = 5.0

# OpenRouter's list of hundreds of models with their descriptions takes a megabyte.
_MAX_LIST_BYTES = 16 * 1024 * 1024

# A shorter value of a header may be part of an ordinary word, so it is not redacted.
_MIN_SECRET_LENGTH = 6

# A compressed body would delay the text, and is not requested. Other values, such as "none" and
# "utf-8", are mistakes of the server and are ignored.
_COMPRESSIONS = frozenset({"br", "compress", "deflate", "gzip", "x-gzip", "zstd"})


class Upstream:
    """A model server: its endpoint, its headers, and the connections to it.

    The connection pool is that of the SDK's clients: it works on any event loop, and a cancelled
    call loses no connection. The repr shows no key.

    Raises `ConfigurationError`, which names the option.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: Secret | None,
        headers: Mapping[str, Secret],
        timeout: Timeout,
        proxy: ProxyOption | None,
        verify: Literal[True] | ssl.SSLContext,
    ) -> None:
        # `Endpoint` appends /chat to the path of the base URL, as this API does.
        chat = Endpoint.parse("base_url", base_url)
        self._endpoint = chat._replace(path=f"{chat.path}/completions")
        self._timeout = timeout
        options = ConnectionOptions.build(
            max_connections=None, proxy=proxy, verify=verify, http_client=None
        )
        self._session = AsyncSession.connect(
            Route.find(self._endpoint, proxy=options.proxy, verify=options.verify),
            options.max_connections,
        )
        self._headers = _build_headers(self._endpoint, key, headers)
        long = [each for each in headers.values() if len(each.reveal()) >= _MIN_SECRET_LENGTH]
        self._secrets = (*long, *(() if key is None else (key,)))

    @property
    def base_url(self) -> str:
        """The base URL, without userinfo."""
        return self._endpoint.url.removesuffix("/chat/completions")

    def start(self, body: bytes) -> Call:
        """Return a call that is not sent yet. Always call its `abandon` at the end."""
        headers = self._headers
        if OBSERVERS.build_headers is not None:
            headers = add_headers(headers, OBSERVERS.build_headers())
        request = Request(
            endpoint=self._endpoint, fixed_headers=headers, body=body, secrets=self._secrets
        )
        return Call(self._session, request, self._timeout)

    async def list_models(self) -> list[str]:
        """Request the names of the models with `GET {base_url}/models`.

        Raises `BackendError`. The connection is not reused.
        """
        path = self._endpoint.path.removesuffix("/chat/completions")
        request = Request(
            endpoint=self._endpoint._replace(path=f"{path}/models"),
            fixed_headers=tuple(each for each in self._headers if each[0] != b"content-type"),
            body=b"",
            secrets=self._secrets,
            method="GET",
        )
        call = Call(self._session, request, _limit(self._timeout, LIST_SECONDS))
        try:
            await call.send()
            body = bytearray()
            while len(body) < _MAX_LIST_BYTES and (data := await call.read()):
                body += data
        finally:
            call.abandon()
        names = parse_models(body)
        if names is None:
            raise build_invalid_error(f"{request.endpoint.url} did not respond with a list")
        return names


class Call:
    """One request to the model server, and the bytes of its response.

    Errors of the network and of the server are raised as `BackendError` without a cause, because
    the frames of the cause contain the key.
    """

    def __init__(self, session: AsyncSession, request: Request, timeout: Timeout) -> None:
        self._request = request
        self._call = session.start_call(timeout)
        self._attempt = session.start_attempt(self._call)
        self._has_ended = False

    async def send(self) -> None:
        """Send the request and wait for the headers of a successful response."""
        head = await self._run(lambda: self._attempt.send(self._request))
        headers = httpx.Headers(list(head.headers))
        if head.status_code != 200:
            report = await self._read_error()
            raise build_status_error(
                self._request.endpoint.url,
                head.status_code,
                report,
                wait=parse_wait(headers, now=time.time()),
            )
        encodings = headers.get("content-encoding", "").lower().split(",")
        if not _COMPRESSIONS.isdisjoint(each.strip() for each in encodings):
            raise build_invalid_error("its response is compressed, which was not requested")

    async def read(self) -> bytes | bytearray:
        """Return the next bytes of the body, or b"" at its end."""
        data = await self._run(self._attempt.read)
        self._has_ended = not data
        return data

    async def finish(self, *, wait: bool) -> None:
        """Release the connection for reuse if the body has ended, or ends within `FINISH_SECONDS`.

        Only waits if `wait` is true. Raises nothing.
        """
        if wait:
            with contextlib.suppress(BackendError), anyio.move_on_after(FINISH_SECONDS):
                while not self._has_ended:
                    await self.read()
        if self._has_ended:
            await self._attempt.aclose()

    def abandon(self) -> None:
        """Close the connection without waiting, unless `finish` has released it."""
        self._attempt.abandon()

    async def _read_error(self) -> ErrorReport:
        body = bytearray()
        with contextlib.suppress(BackendError), anyio.move_on_after(ERROR_SECONDS):
            while len(body) < _MAX_ERROR_BYTES and (data := await self.read()):
                body += data
        await self.finish(wait=False)
        return parse_error(bytes(body))

    async def _run(self, step: Callable[[], Awaitable[T]]) -> T:
        try:
            return await step()
        except Exception as error:
            failure = describe_failure(error, self._request, self._call.timeouts)
            if failure is None:
                raise
        except BaseException as error:  # noqa: BLE001 - a cancellation or interrupt is re-raised
            # Without the frames, which contain the key, and without its context, the error of a
            # full socket, whose frames contain the key, too.
            raise strip_frames(error)  # noqa: B904
        raise failure


def _limit(timeout: Timeout, seconds: float) -> Timeout:
    """Return the timeout with every limit reduced to at most `seconds`."""
    phases = ("connect", "first_byte", "stall", "total", "pool")
    given = {phase: getattr(timeout, phase) for phase in phases}
    return Timeout(
        **{
            phase: seconds if limit is None else min(limit, seconds)
            for phase, limit in given.items()
        }
    )


def _build_headers(
    endpoint: Endpoint, key: Secret | None, own: Mapping[str, Secret]
) -> tuple[tuple[bytes, bytes], ...]:
    headers = {"accept": "text/event-stream"}
    if key is not None:
        headers["authorization"] = f"Bearer {key.reveal()}"
    headers.update((name, value.reveal()) for name, value in own.items())
    return build_headers(endpoint, headers, httpx_version=httpx.__version__)
