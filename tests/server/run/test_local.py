"""The embedded server over real sockets: framing, timing, disconnects, start and stop."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from cromicle_sdk import Client
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk.server import Backend, LocalServer, create_app
from cromicle_sdk.server.errors import ClosingErrorResponse
from cromicle_sdk.server.run import local as _local

# Seconds; far longer than any step takes on a busy machine, so only a defect reaches it.
PATIENCE = 10.0


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def sign(prompt: str, token: str = "abc") -> dict[str, str]:
    digest = hashlib.sha256((token + prompt).encode()).hexdigest()
    return {"message": prompt, "token": token, "hash": digest}


def connect(server: LocalServer) -> socket.socket:
    url = httpx.URL(server.base_url)
    return socket.create_connection((url.host, url.port or 0), timeout=PATIENCE)


def build_post(prompt: str) -> bytes:
    body = json.dumps(sign(prompt)).encode()
    return build_head(f"content-length: {len(body)}") + body


def build_head(*headers: str) -> bytes:
    lines = [
        "POST /chat HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


class Gate:
    """A backend that yields "one", waits for an event, and yields "two"."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.closed = threading.Event()

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        async def chunks() -> AsyncIterator[str]:
            try:
                yield "one"
                await anyio.to_thread.run_sync(self.opened.wait, abandon_on_cancel=True)
                yield "two"
            finally:
                self.closed.set()

        return chunks()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    # Otherwise the waiting thread would outlive the test.
    gate.opened.set()


class TestReplies:
    def test_each_chunk_of_the_backend_is_an_http_chunk(self) -> None:
        with LocalServer() as server, connect(server) as connection:
            connection.sendall(build_post("Grüße an alle"))
            answer = read_until(connection, b"0\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"transfer-encoding: chunked" in head.lower()
        assert b"\r\ndate: " in head
        assert b"\r\nserver: " not in head.lower()
        assert body == "8\r\nGrüße \r\n3\r\nan \r\n4\r\nalle\r\n0\r\n\r\n".encode()

    def test_a_chunk_arrives_before_the_next_is_generated(self, gate: Gate) -> None:
        with LocalServer(gate) as server, connect(server) as connection:
            connection.sendall(build_post("hi"))
            assert read_until(connection, b"one\r\n").endswith(b"3\r\none\r\n")
            gate.opened.set()
            assert read_until(connection, b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"

    def test_a_failure_after_the_first_chunk_omits_the_last_http_chunk(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def backend(prompt: str) -> AsyncIterator[str]:
            yield "one"
            raise RuntimeError(prompt)

        with LocalServer(backend) as server, connect(server) as connection:
            connection.sendall(build_post("hi"))
            assert read_all(connection).endswith(b"\r\n\r\n3\r\none\r\n")
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                httpx.post(server.base_url + "/chat", json=sign("hi"))
        assert len(caplog.records) == 2
        assert {record.name for record in caplog.records} == {"cromicle_sdk.server"}

    def test_the_connection_is_reusable_after_an_early_failure(self) -> None:
        async def backend(prompt: str) -> AsyncIterator[str]:
            if prompt == "fail":
                raise RuntimeError
            yield prompt

        with LocalServer(backend) as server, connect(server) as connection:
            connection.sendall(build_post("fail"))
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 500 ")
            connection.sendall(build_post("fine"))
            assert b"fine" in read_until(connection, b"0\r\n\r\n")

    def test_a_disconnect_stops_the_backend(
        self, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        with LocalServer(gate) as server:
            with connect(server) as connection:
                connection.sendall(build_post("hi"))
                read_until(connection, b"one\r\n")
                assert not gate.closed.is_set()
            assert gate.closed.wait(PATIENCE)
        assert not caplog.records

    def test_a_client_that_stops_reading_suspends_the_backend(self) -> None:
        made: list[None] = []

        async def backend(prompt: str) -> AsyncIterator[str]:
            while True:
                made.append(None)
                yield "x" * 100_000

        with LocalServer(backend) as server, connect(server) as connection:
            connection.sendall(build_post("hi"))
            read_until(connection, b"x")
        # The buffers of the system hold some megabytes; without backpressure it would be far more.
        assert len(made) < 1000

    @pytest.mark.anyio
    async def test_clients_on_any_event_loop_of_the_process_can_connect(self) -> None:
        with LocalServer() as server:
            async with httpx.AsyncClient(base_url=server.base_url) as client:
                answer = await client.post("/chat", json=sign("hello"))
        assert answer.text == "hello"


class TestTooLarge:
    @pytest.fixture(autouse=True)
    def _slow_clients(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Allow any time for the rest of a request."""
        monkeypatch.setattr("cromicle_sdk.server.errors.LINGER_SECONDS", 10 * PATIENCE)

    def test_the_413_arrives_while_the_body_is_still_being_sent(self) -> None:
        length = 50_000_000
        with LocalServer(max_request_bytes=1000) as server, connect(server) as connection:
            connection.sendall(build_head(f"content-length: {length}"))
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 413 ")
            for _ in range(length // 500_000):
                connection.sendall(b" " * 500_000)
            assert read_all(connection) == b""

    def test_a_chunked_body_is_limited_while_it_is_received(self) -> None:
        chunk = b"200\r\n" + b" " * 0x200 + b"\r\n"
        with LocalServer(max_request_bytes=1000) as server, connect(server) as connection:
            connection.sendall(build_head("transfer-encoding: chunked") + chunk)
            connection.sendall(chunk)
            answer = read_until(connection, b"}}")
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b"\r\nconnection: close\r\n" in answer
            connection.sendall(chunk + b"0\r\n\r\n")
            assert read_all(connection) == b""

    def test_the_connection_is_reusable_after_a_fully_read_body(self) -> None:
        body = b"200\r\n" + b" " * 0x200 + b"\r\n0\r\n\r\n"
        with LocalServer(max_request_bytes=500) as server, connect(server) as connection:
            connection.sendall(build_head("transfer-encoding: chunked") + body)
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 413 ")
            connection.sendall(build_post("hi"))
            assert read_until(connection, b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")

    def test_a_client_that_keeps_sending_is_disconnected(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cromicle_sdk.server.errors.LINGER_SECONDS", 0.01)
        with LocalServer(max_request_bytes=1000) as server, connect(server) as connection:
            connection.sendall(build_head("content-length: 5000"))
            assert read_all(connection).startswith(b"HTTP/1.1 413 ")

    def test_a_client_that_expects_100_continue_does_not_send_the_body(self) -> None:
        with LocalServer(max_request_bytes=1000) as server, connect(server) as connection:
            connection.sendall(build_head("content-length: 5000", "expect: 100-continue"))
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 413 ")


class TestStartAndStop:
    def test_stop_truncates_a_reply_in_progress(
        self, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        with LocalServer(gate) as server, connect(server) as connection:
            connection.sendall(build_post("hi"))
            read_until(connection, b"one\r\n")
            server.stop()
            assert gate.closed.is_set()
            with contextlib.suppress(ConnectionResetError):
                assert read_all(connection) == b""
        assert not caplog.records

    def test_a_client_that_does_not_read_does_not_delay_stop(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        closed = threading.Event()

        async def backend(prompt: str) -> AsyncIterator[str]:
            try:
                while True:
                    yield "x" * 1_000_000
            finally:
                closed.set()

        with LocalServer(backend) as server, connect(server) as connection:
            connection.sendall(build_post("hi"))
            read_until(connection, b"x")
            server.stop()
            assert closed.is_set()
        assert not caplog.records

    def test_stop_closes_idle_connections(self) -> None:
        with LocalServer() as server, connect(server) as used, connect(server) as unused:
            used.sendall(build_post("hi"))
            read_until(used, b"0\r\n\r\n")
            server.stop()
            assert read_all(used) == b""
            assert read_all(unused) == b""

    def test_stop_ends_the_thread_and_closes_the_port(self) -> None:
        # Those of other tests may end meanwhile.
        threads = set(threading.enumerate())
        with LocalServer() as server:
            assert httpx.get(server.base_url + "/health").json() == {"status": "ok"}
        assert set(threading.enumerate()) <= threads
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.base_url + "/health")

    def test_a_stopped_server_can_be_started_again(self) -> None:
        server = LocalServer()
        for _ in range(2):
            with server:
                assert httpx.get(server.base_url + "/health").is_success
        assert server.start() is server
        server.stop()
        server.stop()

    def test_a_running_server_cannot_be_started(self) -> None:
        with LocalServer() as server:
            with pytest.raises(RuntimeError, match="already running"):
                server.start()
            assert httpx.get(server.base_url + "/health").is_success

    def test_base_url_is_not_available_before_start(self) -> None:
        with pytest.raises(RuntimeError, match="started"):
            _ = LocalServer().base_url

    def test_start_raises_if_the_port_is_in_use(self) -> None:
        with LocalServer() as server:
            port = httpx.URL(server.base_url).port
            assert port
            other = LocalServer(port=port)
            with pytest.raises(OSError):
                other.start()
        with other:
            assert other.base_url == server.base_url

    def test_a_failed_start_has_its_cause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def startup(server: uvicorn.Server, sockets: Any = None) -> None:
            sys.exit(3)

        server = LocalServer()
        monkeypatch.setattr(uvicorn.Server, "startup", startup)
        with pytest.raises(RuntimeError, match="failed") as caught:
            server.start()
        assert isinstance(caught.value.__cause__, SystemExit)
        monkeypatch.undo()
        with server:
            assert httpx.get(server.base_url + "/health").is_success

    def test_a_later_failure_is_raised_by_stop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ordinary, others = uvicorn.Server.on_tick, threading.enumerate()

        async def on_tick(server: uvicorn.Server, counter: int) -> bool:
            if threading.current_thread() in others:  # a server that other tests share
                return await ordinary(server, counter)
            raise MemoryError

        monkeypatch.setattr(uvicorn.Server, "on_tick", on_tick)
        server = LocalServer()
        with contextlib.suppress(RuntimeError):  # it may fail while it is still being started
            server.start()
            with pytest.raises(RuntimeError, match="failed"):
                server.stop()

    def test_stop_raises_if_a_backend_blocks_the_thread(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_local, "STOP_SECONDS", 0.05)
        reached, blocked = threading.Event(), threading.Event()

        async def backend(prompt: str) -> AsyncIterator[str]:
            reached.set()
            blocked.wait()
            yield "late"

        server = LocalServer(backend).start()
        with connect(server) as connection:
            connection.sendall(build_post("hi"))
            assert reached.wait(PATIENCE)
            with pytest.raises(RuntimeError, match="a backend blocks its event loop"):
                server.stop()
            blocked.set()
            monkeypatch.undo()
            server.stop()

    def test_a_backend_that_ignores_the_disconnect_is_cancelled(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cromicle_sdk.server.run.uvicorn.CLEANUP_SECONDS", 0.05)
        cancelled = threading.Event()

        async def backend(prompt: str) -> AsyncIterator[str]:
            yield "one"
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep_forever()
            finally:
                cancelled.set()

        with LocalServer(backend) as server, connect(server) as connection:
            connection.sendall(build_post("hi"))
            read_until(connection, b"one\r\n")
        assert cancelled.is_set()

    def test_signals_and_loggers_are_not_changed(self, caplog: pytest.LogCaptureFixture) -> None:
        def get_state() -> list[Any]:
            names = ("root", "uvicorn", "uvicorn.access", "uvicorn.error", "asyncio")
            loggers = [logging.getLogger(name) for name in names]
            return [
                signal.getsignal(signal.SIGINT),
                *((x.level, x.handlers[:], x.filters[:], x.propagate) for x in loggers),
            ]

        before = get_state()
        with LocalServer() as server:
            httpx.post(server.base_url + "/chat", json=sign("hi"))
            assert get_state() == before
        assert get_state() == before

    def test_an_invalid_request_line_is_one_line_of_the_access_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "cromicle_sdk.server")
        with LocalServer() as server, connect(server) as connection:
            connection.sendall(b"private text\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 400 ")
        (record,) = (r for r in caplog.records if r.name.startswith("cromicle_sdk.server"))
        assert record.name == "cromicle_sdk.server.access"
        assert "private" not in caplog.text

    def test_an_exception_of_an_app_is_logged_with_its_traceback(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise ZeroDivisionError

        with LocalServer(app=app) as server:
            assert httpx.get(server.base_url).status_code == 500
        assert "ZeroDivisionError" in caplog.text

    def test_no_part_of_a_request_is_logged_at_any_level(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(1)
        token = "a private token"
        with LocalServer(token=token) as server, httpx.Client() as client:
            for body in (sign("private prompt", token), sign("private prompt", "private guess")):
                client.post(server.base_url + "/chat", json=body)
        logged = [r for r in caplog.records if not r.name.startswith(("http", "hpack"))]
        assert "private" not in "".join(logging.Formatter().format(r) for r in logged)
        assert "POST /chat" not in "".join(r.getMessage() for r in logged)

    def test_a_process_that_never_calls_stop_exits_silently(self) -> None:
        code = "from cromicle_sdk.server import LocalServer; print(LocalServer().start().base_url)"
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ended.stdout.startswith("http://127.0.0.1:")
        assert ended.stderr == ""


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


class TestOptions:
    @pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
    @pytest.mark.parametrize("host", ["::1", "::"])
    def test_ipv6(self, host: str) -> None:
        with LocalServer(host=host, token="t") as server:
            assert server.base_url.startswith("http://[::1]:")
            assert httpx.get(server.base_url + "/health").is_success

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.2"])
    def test_a_loopback_host_may_have_the_well_known_token(self, host: str) -> None:
        LocalServer(host=host)

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
    def test_ipv4(self, host: str) -> None:
        with LocalServer(host=host, token="t") as server:
            assert server.base_url.startswith("http://127.0.0.1:")
            assert httpx.get(server.base_url + "/health").is_success

    def test_any_asgi_app_can_be_served(self) -> None:
        with LocalServer(app=ClosingErrorResponse(418, "teapot", "short and stout")) as server:
            assert httpx.get(server.base_url).status_code == 418

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("backend", 1),
            ("app", 1),
            ("token", ""),
            ("max_request_bytes", 0),
            ("port", -1),
            ("port", 65536),
            ("port", "80"),
            ("port", None),
            ("port", True),
            ("host", ""),
            ("host", None),
        ],
    )
    def test_an_invalid_option_is_rejected_by_name(self, option: str, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=option):
            LocalServer(**{option: value})

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
    @pytest.mark.parametrize("app", [None, create_app()])
    def test_a_public_host_requires_a_token(self, host: str, app: Starlette | None) -> None:
        with pytest.raises(ConfigurationError, match="pass a token"):
            LocalServer(host=host, app=app)

    @pytest.mark.parametrize("app", [create_app(token="t"), Starlette()])
    def test_a_public_host_is_allowed_with_a_token_or_another_app(self, app: Starlette) -> None:
        LocalServer(host="0.0.0.0", app=app)

    @pytest.mark.parametrize(
        "options",
        [
            {"token": "t"},
            {"max_request_bytes": 5},
            {"backend": Gate()},
            {"allow_options": ["seed"]},
        ],
    )
    def test_options_of_create_app_are_rejected_with_an_app(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="create_app"):
            LocalServer(app=create_app(), **options)


def test_an_async_call_method_is_a_backend() -> None:
    backend: Backend = Gate()
    assert callable(backend)


@pytest.mark.parametrize("version", [b"1.0", b"0.9", b"0.0"])
def test_http_1_0_is_rejected(version: bytes) -> None:
    """In HTTP/1.0 the reply ends with the connection, whether it is complete or not."""
    with LocalServer() as server, connect(server) as sock:
        body = json.dumps({"message": "Hi", "token": "abc", "hash": "x"}).encode()
        sock.sendall(
            b"POST /chat HTTP/" + version + b"\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 505 ")
    assert b"use HTTP/1.1" in answer


def test_the_default_token_is_that_of_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_TOKEN", "of the environment")
    with LocalServer() as server, Client(base_url=server.base_url) as client:
        assert client.chat("Hi").text == "Hi"
    monkeypatch.setenv("CROMICLE_TOKEN", "\udcff")
    with pytest.raises(ConfigurationError, match=r"\$CROMICLE_TOKEN"):
        LocalServer()
