"""Trailers of the embedded server, byte for byte: when they are sent and when they are not."""

from __future__ import annotations

import gc
import hashlib
import json
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from asgi_servers import SERVERS, Serve
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from cromicle_sdk import Client, IncompleteReplyError, Retry
from cromicle_sdk.server import BackendRequest, LocalServer, create_app

BODY = json.dumps(
    {"message": "hi", "token": "abc", "hash": hashlib.sha256(b"abchi").hexdigest()}
).encode()

# The last chunk and the trailers after it.
_END = re.compile(rb"\r\n0\r\n(?:[^\r\n]+\r\n)*\r\n")


async def cut_short(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    yield "Hello, "
    request.finish_reason = "length"
    yield "wor"


async def unsaid(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    yield "Hello"


async def broken(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    yield "Hello"
    request.finish_reason = "stop"
    raise RuntimeError


async def plain(prompt: str) -> AsyncIterator[str]:
    yield "Hello"


def exchange(
    base_url: str,
    *,
    path: str = "/chat",
    method: str = "POST",
    version: str = "1.1",
    times: int = 1,
) -> bytes:
    """Everything that the server sends for pipelined requests, until their responses end."""
    url = httpx.URL(base_url)
    request = (
        f"{method} {path} HTTP/{version}\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n"
    ).encode()
    with socket.create_connection((url.host, url.port or 0), timeout=20) as connection:
        for index in range(times):
            close = b"connection: close\r\n" if index == times - 1 else b""
            connection.sendall(request + close + b"\r\n" + BODY)
        received = b""
        # Not every server closes the connection at once.
        while len(_END.findall(received)) < times and (data := connection.recv(65536)):
            received += data
        return received


def split(response: bytes) -> tuple[bytes, bytes]:
    """Head and body; the body starts with the size of its first chunk."""
    head, _, body = response.partition(b"\r\n\r\n")
    return head, body


def test_the_finish_reason_follows_the_last_chunk() -> None:
    with LocalServer(cut_short) as server:
        head, body = split(exchange(server.base_url))
    assert b"\r\ntrailer: x-finish-reason\r\n" in head + b"\r\n"
    assert b"\r\ntransfer-encoding: chunked" in head.lower()
    assert body == b"7\r\nHello, \r\n3\r\nwor\r\n0\r\nx-finish-reason: length\r\n\r\n"


def test_the_connection_is_reused_after_trailers() -> None:
    with LocalServer(cut_short) as server:
        received = exchange(server.base_url, times=3)
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.count(b"x-finish-reason: length\r\n\r\n") == 3


def test_a_backend_may_leave_the_finish_reason_unsaid() -> None:
    with LocalServer(unsaid) as server:
        _, body = split(exchange(server.base_url))
    assert body == b"5\r\nHello\r\n0\r\n\r\n"


def test_a_backend_of_one_argument_announces_no_trailers() -> None:
    with LocalServer(plain) as server:
        head, body = split(exchange(server.base_url))
    assert b"trailer" not in head.lower()
    assert body == b"5\r\nHello\r\n0\r\n\r\n"


def test_a_truncated_reply_has_no_trailers(caplog: pytest.LogCaptureFixture) -> None:
    with LocalServer(broken) as server:
        _, body = split(exchange(server.base_url))
        with (
            Client(base_url=server.base_url, retry=Retry(attempts=1)) as client,
            pytest.raises(IncompleteReplyError),
        ):
            client.chat("hi")
    assert body == b"5\r\nHello\r\n"


def test_an_error_has_no_trailers() -> None:
    async def fail(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        request.finish_reason = "stop"
        if prompt:
            raise RuntimeError
        yield prompt

    with LocalServer(fail) as server:
        head, _ = split(exchange(server.base_url))
    assert b" 500 " in head
    assert b"trailer" not in head.lower()


class Trailing:
    """An ASGI app with trailers in two parts, and what it was offered."""

    def __init__(
        self, *, status: int = 200, headers: Any = (), body: bytes = b"Hello", sends: bool = True
    ) -> None:
        self.status = status
        self.body = body
        self.headers = list(headers)
        self.sends = sends
        self.extensions: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.extensions = scope.get("extensions")
        head = {"status": self.status, "headers": self.headers, "trailers": True}
        await send({"type": "http.response.start", **head})
        await send({"type": "http.response.body", "body": self.body[:2], "more_body": True})
        await send({"type": "http.response.body", "body": self.body[2:]})
        if self.sends:
            for name, is_last in ((b"x-one", False), (b"x-two", True)):
                message: Message = {"headers": [(name, b"1")], "more_trailers": not is_last}
                await send({"type": "http.response.trailers", **message})


def test_any_app_may_send_trailers() -> None:
    app = Trailing()
    with LocalServer(app=app) as server:
        _, body = split(exchange(server.base_url))
    assert app.extensions == {"http.response.trailers": {}}
    assert body == b"2\r\nHe\r\n3\r\nllo\r\n0\r\nx-one: 1\r\nx-two: 1\r\n\r\n"


def test_a_response_with_a_length_has_no_trailers(caplog: pytest.LogCaptureFixture) -> None:
    with LocalServer(app=Trailing(headers=[(b"Content-Length", b"5")])) as server:
        _, body = split(exchange(server.base_url))
    assert body == b"Hello"
    assert not caplog.records


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 204), ("POST", 304)])
def test_a_response_without_a_body_has_no_trailers(
    method: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalServer(app=Trailing(status=status, body=b"")) as server:
        _, body = split(exchange(server.base_url, method=method))
    assert body == b""
    assert not caplog.records


def test_trailers_are_those_of_one_response() -> None:
    with LocalServer(cut_short) as server, httpx.Client(base_url=server.base_url) as client:
        for _ in range(2):
            answer = client.post(
                "/chat", content=BODY, headers={"content-type": "application/json"}
            )
            assert answer.text == "Hello, wor"
            assert client.get("/health").json() == {"status": "ok"}


def test_announced_trailers_that_never_come_complete_the_response(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with LocalServer(app=Trailing(sends=False)) as server:
        _, body = split(exchange(server.base_url))
    assert body == b"2\r\nHe\r\n3\r\nllo\r\n0\r\n\r\n"
    assert not caplog.records


def test_http_1_0_has_no_trailers(caplog: pytest.LogCaptureFixture) -> None:
    app = Trailing(sends=False)
    with LocalServer(app=app) as server:
        _, body = split(exchange(server.base_url, version="1.0"))
    assert app.extensions is None
    assert body == b"Hello"


class PassThrough(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


# Starlette's middleware leaves a generator of its own unfinished, about which trio warns.
@pytest.mark.filterwarnings("ignore:Async generator 'starlette:ResourceWarning")
@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
@pytest.mark.parametrize("names", ["", "P", "PP", "G", "GP", "PG"])
def test_the_reply_is_whole_where_trailers_are_lost(
    serve: Serve, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {"P": Middleware(PassThrough), "G": Middleware(GZipMiddleware)}
    routes = [Mount("/llm", create_app(cut_short))]
    outer = Starlette(routes=routes, middleware=[kinds[name] for name in names])
    with serve(outer) as base_url:
        _, body = split(exchange(base_url, path="/llm/chat"))
        with Client(base_url=f"{base_url}/llm", token="abc") as client:
            for _ in range(2):
                assert client.chat("Hi").text == "Hello, wor"
    has_trailers = serve is SERVERS["uvicorn"] and "P" not in names
    assert body.endswith(b"0\r\nx-finish-reason: length\r\n\r\n") == has_trailers
    gc.collect()
    assert not [record for record in caplog.records if record.name.startswith("cromicle_sdk.serv")]
