"""Requests that do not arrive: how long a connection is kept for them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import pytest

from cromicle_sdk.server import LocalServer, _protocol

PATIENCE = 20.0
BODY = json.dumps(
    {"message": "hi", "token": "abc", "hash": hashlib.sha256(b"abchi").hexdigest()}
).encode()
HEAD = b"POST /chat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_protocol, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(_protocol, "BODY_SECONDS", 0.2)


@contextlib.contextmanager
def connect(*args: Any, **options: Any) -> Iterator[socket.socket]:
    with LocalServer(*args, **options) as server:
        url = httpx.URL(server.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            yield connection


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end, which the server makes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def read_reply(connection: socket.socket) -> bytes:
    received = b""
    while b"0\r\n\r\n" not in received:
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def assert_timed_out(answer: bytes, part: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"connection: close" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    error = json.loads(body)["error"]
    assert error["code"] == "request_timeout"
    assert part in error["message"]


def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    with connect() as connection:
        assert read_all(connection) == b""


@pytest.mark.parametrize("sent", [b"P", HEAD, HEAD + b"x-slow: "])
def test_a_head_that_does_not_end_is_a_408(sent: bytes) -> None:
    with connect() as connection:
        connection.sendall(sent)
        assert_timed_out(read_all(connection), "head")


def test_a_dripping_head_has_no_longer() -> None:
    with connect() as connection:
        connection.settimeout(0.02)
        answer = b""
        # For far longer than it is given, if nothing ends it.
        for byte in HEAD + b"x-slow: " + b"x" * 2000:
            with contextlib.suppress(TimeoutError):
                connection.sendall(bytes([byte]))
                answer += connection.recv(65536)
            if answer:
                break
        assert_timed_out(answer, "head")


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"content-length: 100\r\n\r\n",
        HEAD + b"content-length: 100\r\n\r\n" + b"{",
        HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
)
def test_a_body_that_does_not_end_is_a_408(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with connect() as connection:
        connection.sendall(sent)
        assert_timed_out(read_all(connection), "body")
    assert not caplog.records


def test_the_next_request_has_as_long_and_no_longer() -> None:
    with connect() as connection:
        connection.sendall(WHOLE)
        read_reply(connection)
        connection.sendall(HEAD)
        assert_timed_out(read_all(connection), "head")


def test_a_request_that_was_sent_ahead_of_its_turn_has_as_long() -> None:
    with connect() as connection:
        connection.sendall(WHOLE + HEAD + b"content-length: 100\r\n\r\n{")
        assert_timed_out(read_all(connection).partition(b"0\r\n\r\n")[2], "body")


def test_a_connection_at_rest_is_kept() -> None:
    with connect() as connection:
        for _ in range(2):
            connection.sendall(WHOLE)
            read_reply(connection)
            # Longer than a request may take.
            connection.settimeout(0.4)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(PATIENCE)


def test_a_reply_may_take_its_time() -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        yield "one "
        await anyio.sleep(0.5)
        yield "two"

    with connect(backend) as connection:
        connection.sendall(WHOLE)
        assert b"two" in read_reply(connection)


def test_the_rest_of_a_body_that_was_refused_has_an_end() -> None:
    with connect() as connection:
        connection.sendall(
            b"POST /chat HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x"
        )
        connection.sendall(b"x")
        answer = b""
        connection.settimeout(0.02)
        with contextlib.suppress(ConnectionError):
            for _ in range(500):
                with contextlib.suppress(TimeoutError):
                    connection.sendall(b"x")
                    data = connection.recv(65536)
                    answer += data
                    if not data:
                        break
            else:
                pytest.fail("it was never closed")
        assert answer.startswith(b"HTTP/1.1 415 ")
        assert b"408" not in answer


def test_an_app_that_answers_early_is_not_disturbed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await anyio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"done"})

    with connect(app=app) as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        assert b"done" in read_reply(connection)


def test_no_text_waits_for_the_client_to_acknowledge_the_last() -> None:
    with LocalServer() as server:
        url = httpx.URL(server.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            connection.sendall(WHOLE)
            read_reply(connection)
            assert server._server is not None
            (served,) = server._server.server_state.connections
            accepted = served.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
