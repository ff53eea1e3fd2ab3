"""Time limits of a connection, pipelined requests, and invalid HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import pytest

from cromicle_sdk import Client
from cromicle_sdk.server import LocalServer, create_app
from cromicle_sdk.server import response as _response
from cromicle_sdk.server.run import connection as _connection

PATIENCE = 20.0
BODY = json.dumps(
    {"message": "hi", "token": "abc", "hash": hashlib.sha256(b"abchi").hexdigest()}
).encode()
HEAD = b"POST /chat HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture
def _short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that pass to `connect` what they send at first."""
    monkeypatch.setattr(_connection, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(_connection, "BODY_SECONDS", 0.2)


short_timeouts = pytest.mark.usefixtures("_short_timeouts")


@contextlib.contextmanager
def connect(*args: Any, sent: bytes = b"", **options: Any) -> Iterator[socket.socket]:
    """A connection on which `sent` has arrived when its time limits begin."""
    with hold_accepted() as has_arrived, LocalServer(*args, **options) as server:
        url = httpx.URL(server.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            connection.sendall(sent)
            has_arrived.set()
            yield connection


@contextlib.contextmanager
def hold_accepted() -> Iterator[threading.Event]:
    """Hold each connection, accepted and not yet served, until the event is set."""
    released = threading.Event()
    accept = asyncio.SelectorEventLoop.sock_accept

    async def accept_and_hold(loop: Any, listener: socket.socket) -> Any:
        accepted = await accept(loop, listener)
        while not released.is_set():
            await asyncio.sleep(0.001)
        return accepted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.SelectorEventLoop, "sock_accept", accept_and_hold)
        yield released


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
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


@short_timeouts
def test_a_connection_without_a_request_is_closed_without_a_response() -> None:
    with connect() as connection:
        assert read_all(connection) == b""


@short_timeouts
@pytest.mark.parametrize("sent", [b"P", HEAD, HEAD + b"x-slow: "])
def test_incomplete_headers_are_a_408(sent: bytes) -> None:
    with connect(sent=sent) as connection:
        assert_timed_out(read_all(connection), "head")


@short_timeouts
def test_slow_headers_do_not_extend_the_limit() -> None:
    with connect() as connection:
        connection.settimeout(0.02)
        answer = None
        # Enough bytes to go on for far longer than the limit.
        for byte in HEAD + b"x-slow: " + b"x" * 2000:
            try:
                connection.sendall(bytes([byte]))
                answer = connection.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                # The reset for a byte sent after the close has overtaken the response.
                answer = b""
            break
        assert answer is not None, "the connection was never closed"
        if answer:
            # The response may arrive in parts, the later ones of which a reset may overtake.
            connection.settimeout(20)
            with contextlib.suppress(ConnectionError):
                answer += read_all(connection)
            assert answer.startswith(b"HTTP/1.1 408 ")
            if answer.endswith(b"}"):
                assert_timed_out(answer, "head")


@short_timeouts
@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"content-length: 100\r\n\r\n",
        HEAD + b"content-length: 100\r\n\r\n" + b"{",
        HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
)
def test_an_incomplete_body_is_a_408(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with connect(sent=sent) as connection:
        assert_timed_out(read_all(connection), "body")
    assert not caplog.records


@short_timeouts
def test_the_limit_applies_to_a_later_request() -> None:
    with connect(sent=WHOLE) as connection:
        read_reply(connection)
        connection.sendall(HEAD)
        assert_timed_out(read_all(connection), "head")


@short_timeouts
def test_the_limit_applies_to_a_pipelined_request() -> None:
    with connect(sent=WHOLE + HEAD + b"content-length: 100\r\n\r\n{") as connection:
        assert_timed_out(read_all(connection).partition(b"0\r\n\r\n")[2], "body")


class WaitingBackend:
    """A backend that yields one word and then waits to be cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        async def chunks() -> AsyncIterator[str]:
            try:
                yield "one"
                await anyio.sleep_forever()
            finally:
                self.cancelled.set()

        return chunks()


GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@contextlib.contextmanager
def start_reply(backend: WaitingBackend) -> Iterator[socket.socket]:
    """A connection with a reply in progress."""
    with connect(backend) as connection:
        connection.sendall(WHOLE)
        received = b""
        while b"one" not in received:
            received += connection.recv(65536)
        yield connection


@pytest.mark.parametrize("pipelined", [[], [b"\r\n"], [GET], [b"\r\n", GET, GET]])
def test_a_disconnect_is_noticed_despite_pipelined_data(pipelined: list[bytes]) -> None:
    backend = WaitingBackend()
    with start_reply(backend) as connection:
        for data in pipelined:
            connection.sendall(data)
            time.sleep(0.02)
        assert not backend.cancelled.is_set()
        connection.close()
        assert backend.cancelled.wait(PATIENCE)


def test_too_much_pipelined_data_closes_the_connection() -> None:
    backend = WaitingBackend()
    with start_reply(backend) as connection, contextlib.suppress(ConnectionError):
        while not backend.cancelled.is_set():
            connection.sendall(GET * 1000)
    assert backend.cancelled.is_set()


def test_a_client_that_reads_nothing_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_response, "SEND_SECONDS", 0.2)
    closed = threading.Event()

    async def talk(prompt: str) -> AsyncIterator[str]:
        try:
            while prompt == "hi":
                yield "y" * 100_000
            yield prompt
        finally:
            closed.set()

    with LocalServer(app=create_app(talk, max_concurrent=1)) as server:
        url = httpx.URL(server.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            connection.sendall(WHOLE)
            assert closed.wait(PATIENCE)
            # The connection is aborted: a plain close would wait for the client to read everything.
            wait_until_closed(server)
            with Client(base_url=server.base_url, token="abc") as client:
                assert client.chat("you").text == "you"
            assert not read_all(connection).endswith(b"0\r\n\r\n")


def test_a_client_that_reads_late_gets_the_whole_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_response, "SEND_SECONDS", 1.0)

    async def talk(prompt: str) -> AsyncIterator[str]:
        for _ in range(100):
            yield "z" * 100_000

    with connect(talk) as connection:
        for _ in range(2):
            connection.sendall(WHOLE)
            time.sleep(0.1)
            assert read_reply(connection).count(b"z") == 10_000_000
            # The timer of the paused writes has been cancelled.
            time.sleep(1.2)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_empty_lines_before_a_request_are_ignored(count: int, split: bool) -> None:
    with connect() as connection:
        for _ in range(2):
            data = b"\r\n" * count + WHOLE
            for part in [data[:1], data[1:3], data[3:]] if split else [data]:
                connection.sendall(part)
                time.sleep(0.01)
            assert read_reply(connection).startswith(b"HTTP/1.1 200 ")


@short_timeouts
def test_an_endless_number_of_empty_lines_is_limited() -> None:
    with connect() as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(0.02)
        for _ in range(1000):
            connection.sendall(b"\r\n")
            with contextlib.suppress(TimeoutError):
                if connection.recv(65536) == b"":
                    return
        pytest.fail("the connection was never closed")


def test_an_offer_of_http_2_is_ignored_silently(caplog: pytest.LogCaptureFixture) -> None:
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n"
    with connect() as connection:
        connection.sendall(WHOLE.replace(b"host: localhost\r\n", b"host: localhost\r\n" + offer))
        assert read_reply(connection).startswith(b"HTTP/1.1 200 ")
    assert not caplog.records


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://example.com/chat", "/chat", b"example.com"),
        (b"HTTP://example.com:81/a%20b?c=d", "/a b", b"example.com:81"),
        (b"http://example.com", "/", b"example.com"),
        (b"https://[::1/chat", "/chat", b"[::1"),
        (b"/http://example.com/", "/http://example.com/", b"x"),
    ],
)
def test_a_request_target_may_be_an_absolute_url(target: bytes, path: str, host: bytes) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with connect(app=app) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 204 ")
    assert scopes[0]["path"] == path
    assert [value for name, value in scopes[0]["headers"] if name == b"host"] == [host]


CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ([b"invalid\r\n\r\n"], "method=other path=other status=400 "),
        ([GET, b"invalid\r\n\r\n"], "method=other path=other status=400 "),
        ([HEAD + b"a: 1\r\n 2\r\n\r\n"], "method=other path=other status=400 "),
        ([b"GET / HTTP/2.0\r\nhost: localhost\r\n\r\n"], "path=other status=505 "),
        ([HEAD], "method=other path=other status=408 "),
        # The app has this one.
        ([CHUNKED + b"invalid\r\n"], "method=POST path=/chat status=- "),
    ],
)
def test_each_invalid_request_is_one_line_of_the_access_log(
    parts: list[bytes],
    line: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "cromicle_sdk.server")
    if "status=408" in line:
        monkeypatch.setattr(_connection, "HEAD_SECONDS", 0.2)
    first, *others = parts
    with connect(sent=first) as connection:
        for part in others:
            time.sleep(0.02)
            connection.sendall(part)
        read_all(connection)
    *_, last = (record.getMessage() for record in caplog.records)
    assert len(caplog.records) == len(parts)
    assert line in last
    assert " client=127.0.0.1 token=- " in last


@pytest.mark.parametrize(
    "parts",
    [
        [b"invalid\r\n\r\n"],
        [GET, b"invalid\r\n\r\n"],
        [CHUNKED + b"invalid\r\n"],
        [CHUNKED, b"invalid\r\n"],
    ],
)
def test_invalid_http_is_a_400(parts: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    with connect() as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.02)
        answer = read_all(connection)
    head, _, body = answer[answer.index(b"HTTP/1.1 400 Bad Request\r\n") :].partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "bad_request"
    assert not caplog.records


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (CHUNKED.replace(b"application/json", b"text/plain"), b"415"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n", b"200"),
    ],
)
def test_an_invalid_chunk_after_the_response_closes_the_connection(
    head: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with connect() as connection:
        connection.sendall(head)
        answer = connection.recv(65536)
        connection.sendall(b"invalid\r\n")
        answer += read_all(connection)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not any(record.exc_info for record in caplog.records)


@short_timeouts
def test_an_error_in_response_to_head_has_no_body(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep(PATIENCE)

    sent = b"HEAD / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n"
    with connect(app=app, sent=sent) as connection:
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert body == b""


@short_timeouts
def test_an_idle_connection_stays_open() -> None:
    with connect(sent=WHOLE) as connection:
        for number in range(2):
            if number:
                connection.sendall(WHOLE)
            read_reply(connection)
            # Longer than the limit for a request.
            connection.settimeout(0.4)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(PATIENCE)


@short_timeouts
def test_a_reply_may_take_longer_than_a_request() -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        yield "one "
        await anyio.sleep(0.5)
        yield "two"

    with connect(backend, sent=WHOLE) as connection:
        assert b"two" in read_reply(connection)


@short_timeouts
def test_the_rest_of_a_rejected_body_is_limited() -> None:
    head = b"POST /chat HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n"
    with connect(sent=head + b"x") as connection:
        connection.sendall(b"x")
        answer = b""
        connection.settimeout(0.02)
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    connection.sendall(b"x")
                    data = connection.recv(65536)
                    answer += data
                    if not data:
                        break
            else:
                pytest.fail("the connection was never closed")
        assert answer.startswith(b"HTTP/1.1 415 ")
        assert b"408" not in answer


@short_timeouts
def test_a_response_before_the_end_of_the_body_is_not_interrupted() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await anyio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"done"})

    with connect(app=app, sent=HEAD + b"content-length: 100\r\n\r\n{") as connection:
        assert b"done" in read_reply(connection)


def test_nodelay_is_set() -> None:
    with LocalServer() as server:
        url = httpx.URL(server.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            connection.sendall(WHOLE)
            read_reply(connection)
            assert server._server is not None
            (served,) = server._server.server_state.connections
            accepted = served.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def wait_until_closed(server: LocalServer) -> None:
    """Wait until the server has no connection."""
    assert server._server is not None
    deadline = time.monotonic() + PATIENCE
    while server._server.server_state.connections:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def connect_with_small_buffers(app: Any) -> Iterator[tuple[socket.socket, LocalServer]]:
    """A client whose system takes a few kilobytes from the server that it does not read."""
    with LocalServer(app=app) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE)
        url = httpx.URL(server.base_url)
        connection.connect((url.host, url.port))
        yield connection, server


@pytest.mark.parametrize("kind", ["chunks", "one chunk"])
def test_a_slow_client_that_does_read_gets_the_whole_reply(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_response, "SEND_SECONDS", 2.0)

    async def talk(prompt: str) -> AsyncIterator[str]:
        if kind == "chunks":
            for _ in range(1000):
                yield "~" * 20_000
        else:
            yield "~" * 20_000_000

    with connect_with_small_buffers(create_app(talk)) as (connection, _):
        connection.sendall(WHOLE)
        received = bytearray()
        # Twice as long as a client that reads nothing may take, and at 15 kB/s less in that time
        # than the buffers of asyncio and the system shrink by until they accept more.
        deadline = time.monotonic() + 4.0
        while time.monotonic() < deadline:
            received += connection.recv(300)
            time.sleep(0.02)
        assert len(received) < 200_000
        while received[-5:] != b"0\r\n\r\n":
            data = connection.recv(65536)
            assert data, "the reply is truncated"
            received += data
        assert received.count(b"~") == 20_000_000


@pytest.mark.parametrize("count", [1, 20])
def test_unread_responses_do_not_keep_a_closed_connection_open(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_response, "SEND_SECONDS", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b"z" * (60_000 if count == 1 else 2_000)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    with connect_with_small_buffers(app) as (connection, server):
        close = GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        connection.sendall(GET * (count - 1) + close)
        answer = connection.recv(1)
        wait_until_closed(server)
        with contextlib.suppress(ConnectionError):
            answer += read_all(connection)
        assert not answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("token", ["abc", "wrong"])
def test_a_request_of_a_client_that_has_reset_is_not_served(
    token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cromicle_sdk.server")
    blocked, released = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        released.wait(PATIENCE)

    with LocalServer() as server:
        url = httpx.URL(server.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            httpx.get(server.base_url + "/health")
            assert server._server is not None
            connections = server._server.server_state.connections
            while not connections:
                time.sleep(0.01)
            served = next(iter(connections))
            served.loop.call_soon_threadsafe(block)
            assert blocked.wait(PATIENCE)
            connection.sendall(WHOLE.replace(b'"abc"', b'"%s"' % token.encode()))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        released.set()
        httpx.get(server.base_url + "/health")
    assert [r.getMessage().split()[1] for r in caplog.records] == ["path=/health"] * 2


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, ""),
        (HEAD + b"x-folded: 1\r\n 2\r\ncontent-length: 0\r\n\r\n", 400, "bad_request"),
        (b"GET /health HTTP/1.9\r\nhost: localhost\r\n\r\n", 505, "http_version_not_supported"),
        (b"GET /health HTTP/2.0\r\nhost: localhost\r\n\r\n", 505, "http_version_not_supported"),
        (b"HEAD /health HTTP/2.0\r\nhost: localhost\r\n\r\n", 505, None),
        (CHUNKED + b"1\r\nx\r\n" * 2000, 400, "bad_request"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_ambiguous_framing_closes_the_connection(
    sent: bytes, status: int, code: str | None, is_first: bool
) -> None:
    with connect() as connection:
        if not is_first:
            connection.sendall(WHOLE)
            read_reply(connection)
        connection.sendall(sent + GET)
        with contextlib.suppress(ConnectionError):
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert b"connection: close" in head
            assert b"x-content-type-options: nosniff" in head
            if code is None:
                assert body == b""
            else:
                assert code in json.loads(body)["error"]["code"]


def test_a_connection_without_a_request_can_be_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connection, "HEAD_SECONDS", 10 * PATIENCE)
    with LocalServer() as server:
        url = httpx.URL(server.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            # Once a later connection is answered, this one has been accepted.
            httpx.get(server.base_url + "/health")
            assert server._server is not None
            for served in list(server._server.server_state.connections):
                assert isinstance(served, _connection.Connection)
                served.loop.call_soon_threadsafe(served.abort)
            assert read_all(connection) == b""
