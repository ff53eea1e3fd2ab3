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
from cromicle_sdk.server.errors import LastAnswer
from cromicle_sdk.server.run import local as _local

# Far more than anything here takes, even on a busy machine; only a defect waits that long.
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
    lines = ["POST /chat HTTP/1.1", "host: x", "content-type: application/json", *headers, "", ""]
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
    """A backend that says "one", waits until it is let on, and says "two"."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.closed = threading.Event()

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        async def pieces() -> AsyncIterator[str]:
            try:
                yield "one"
                await anyio.to_thread.run_sync(self.opened.wait, abandon_on_cancel=True)
                yield "two"
            finally:
                self.closed.set()

        return pieces()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    # The thread that waits would outlive the test.
    gate.opened.set()


class TestReplies:
    def test_each_piece_is_a_chunk_and_the_last_chunk_is_empty(self) -> None:
        with LocalServer() as server, connect(server) as connection:
            connection.sendall(build_post("Grüße an alle"))
            answer = read_until(connection, b"0\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"transfer-encoding: chunked" in head.lower()
        assert b"\r\ndate: " in head
        assert b"\r\nserver: " not in head.lower()
        assert body == "8\r\nGrüße \r\n3\r\nan \r\n4\r\nalle\r\n0\r\n\r\n".encode()

    def test_a_piece_can_be_read_before_the_next_is_made(self, gate: Gate) -> None:
        with LocalServer(gate) as server, connect(server) as connection:
            connection.sendall(build_post("hi"))
            assert read_until(connection, b"one\r\n").endswith(b"3\r\none\r\n")
            gate.opened.set()
            assert read_until(connection, b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"

    def test_a_failure_in_the_middle_cuts_the_body_off_without_its_last_chunk(
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

    def test_an_early_failure_leaves_the_connection_usable(self) -> None:
        async def backend(prompt: str) -> AsyncIterator[str]:
            if prompt == "fail":
                raise RuntimeError
            yield prompt

        with LocalServer(backend) as server, connect(server) as connection:
            connection.sendall(build_post("fail"))
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 500 ")
            connection.sendall(build_post("fine"))
            assert b"fine" in read_until(connection, b"0\r\n\r\n")

    def test_a_client_that_leaves_ends_the_backend(
        self, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        with LocalServer(gate) as server:
            with connect(server) as connection:
                connection.sendall(build_post("hi"))
                read_until(connection, b"one\r\n")
                assert not gate.closed.is_set()
            assert gate.closed.wait(PATIENCE)
        assert not caplog.records

    def test_a_client_that_stops_reading_stops_the_backend(self) -> None:
        made: list[None] = []

        async def backend(prompt: str) -> AsyncIterator[str]:
            while True:
                made.append(None)
                yield "x" * 100_000

        with LocalServer(backend) as server, connect(server) as connection:
            connection.sendall(build_post("hi"))
            read_until(connection, b"x")
        # Buffers of the system hold some megabytes; a server without brakes has made far more.
        assert len(made) < 1000

    @pytest.mark.anyio
    async def test_clients_of_any_event_loop_in_this_process_can_use_it(self) -> None:
        with LocalServer() as server:
            async with httpx.AsyncClient(base_url=server.base_url) as client:
                answer = await client.post("/chat", json=sign("hello"))
        assert answer.text == "hello"


class TestTooLarge:
    def test_a_long_body_is_refused_unread_and_the_answer_arrives(self) -> None:
        length = 50_000_000
        with LocalServer(max_request_bytes=1000) as server, connect(server) as connection:
            connection.sendall(build_head(f"content-length: {length}"))
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 413 ")
            for _ in range(length // 500_000):
                connection.sendall(b" " * 500_000)
            assert read_all(connection) == b""

    def test_a_chunked_body_is_counted(self) -> None:
        chunk = b"200\r\n" + b" " * 0x200 + b"\r\n"
        with LocalServer(max_request_bytes=1000) as server, connect(server) as connection:
            connection.sendall(build_head("transfer-encoding: chunked") + chunk)
            connection.sendall(chunk)
            answer = read_until(connection, b"}}")
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b"\r\nconnection: close\r\n" in answer
            connection.sendall(chunk + b"0\r\n\r\n")
            assert read_all(connection) == b""

    def test_a_body_that_was_read_whole_leaves_the_connection_usable(self) -> None:
        body = b"200\r\n" + b" " * 0x200 + b"\r\n0\r\n\r\n"
        with LocalServer(max_request_bytes=500) as server, connect(server) as connection:
            connection.sendall(build_head("transfer-encoding: chunked") + body)
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 413 ")
            connection.sendall(build_post("hi"))
            assert read_until(connection, b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")

    def test_a_client_that_goes_on_sending_is_cut_off(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cromicle_sdk.server.errors.LINGER_SECONDS", 0.01)
        with LocalServer(max_request_bytes=1000) as server, connect(server) as connection:
            connection.sendall(build_head("content-length: 5000"))
            assert read_all(connection).startswith(b"HTTP/1.1 413 ")

    def test_a_client_that_asks_first_need_not_send(self) -> None:
        with LocalServer(max_request_bytes=1000) as server, connect(server) as connection:
            connection.sendall(build_head("content-length: 5000", "expect: 100-continue"))
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 413 ")


class TestStartAndStop:
    def test_a_reply_in_flight_is_cut_off(
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

    def test_a_client_that_does_not_read_holds_nothing_up(
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

    def test_an_idle_connection_is_closed(self) -> None:
        with LocalServer() as server, connect(server) as used, connect(server) as unused:
            used.sendall(build_post("hi"))
            read_until(used, b"0\r\n\r\n")
            server.stop()
            assert read_all(used) == b""
            assert read_all(unused) == b""

    def test_a_stopped_server_is_gone(self) -> None:
        threads = threading.active_count()
        with LocalServer() as server:
            assert httpx.get(server.base_url + "/health").json() == {"status": "ok"}
        assert threading.active_count() == threads
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.base_url + "/health")

    def test_it_can_be_started_again(self) -> None:
        server = LocalServer()
        for _ in range(2):
            with server:
                assert httpx.get(server.base_url + "/health").is_success
        assert server.start() is server
        server.stop()
        server.stop()

    def test_it_can_be_started_once_at_a_time(self) -> None:
        with LocalServer() as server:
            with pytest.raises(RuntimeError, match="running already"):
                server.start()
            assert httpx.get(server.base_url + "/health").is_success

    def test_it_has_no_address_before_the_start(self) -> None:
        with pytest.raises(RuntimeError, match="started"):
            _ = LocalServer().base_url

    def test_a_port_that_is_taken_is_an_error_at_once(self) -> None:
        with LocalServer() as server:
            port = httpx.URL(server.base_url).port
            assert port
            other = LocalServer(port=port)
            with pytest.raises(OSError):
                other.start()
        with other:
            assert other.base_url == server.base_url

    def test_a_server_that_does_not_start_says_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_a_server_that_fails_later_says_so_when_it_is_stopped(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def on_tick(server: uvicorn.Server, counter: int) -> bool:
            raise MemoryError

        monkeypatch.setattr(uvicorn.Server, "on_tick", on_tick)
        server = LocalServer()
        with contextlib.suppress(RuntimeError):  # it may fail while it is still being started
            server.start()
            with pytest.raises(RuntimeError, match="failed"):
                server.stop()

    def test_a_backend_that_blocks_its_thread_is_named_as_the_reason(
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
            with pytest.raises(RuntimeError, match="a backend blocks its thread"):
                server.stop()
            blocked.set()
            monkeypatch.undo()
            server.stop()

    def test_a_backend_that_resists_is_cancelled(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cromicle_sdk.server.run.uvicorn.RESIST_SECONDS", 0.05)
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

    def test_it_leaves_signals_and_loggers_alone(self, caplog: pytest.LogCaptureFixture) -> None:
        def look() -> list[Any]:
            names = ("root", "uvicorn", "uvicorn.access", "uvicorn.error", "asyncio")
            loggers = [logging.getLogger(name) for name in names]
            return [
                signal.getsignal(signal.SIGINT),
                *((x.level, x.handlers[:], x.filters[:], x.propagate) for x in loggers),
            ]

        before = look()
        with LocalServer() as server:
            httpx.post(server.base_url + "/chat", json=sign("hi"))
            assert look() == before
        assert look() == before

    def test_a_bad_request_line_is_one_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        with LocalServer() as server, connect(server) as connection:
            connection.sendall(b"private nonsense\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 400 ")
        (record,) = caplog.records
        assert record.name == "cromicle_sdk.server.http"
        assert "private" not in caplog.text

    def test_a_defect_of_an_app_is_logged_with_its_traceback(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise ZeroDivisionError

        with LocalServer(app=app) as server:
            assert httpx.get(server.base_url).status_code == 500
        assert "ZeroDivisionError" in caplog.text

    def test_nothing_of_a_request_is_logged_at_any_level(
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

    def test_a_process_that_never_stops_it_ends_without_a_word(self) -> None:
        code = "from cromicle_sdk.server import LocalServer; print(LocalServer().start().base_url)"
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-X", "dev", "-c", code],
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

    def test_an_app_is_served_as_it_is(self) -> None:
        with LocalServer(app=LastAnswer(418, "teapot", "short and stout")) as server:
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
    def test_a_wrong_one_is_refused_by_name(self, option: str, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=option):
            LocalServer(**{option: value})

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
    @pytest.mark.parametrize("app", [None, create_app()])
    def test_others_do_not_get_in_with_the_well_known_token(
        self, host: str, app: Starlette | None
    ) -> None:
        with pytest.raises(ConfigurationError, match="pass a token"):
            LocalServer(host=host, app=app)

    @pytest.mark.parametrize("app", [create_app(token="t"), Starlette()])
    def test_a_token_of_ones_own_or_an_app_of_ones_own_may_be_exposed(self, app: Starlette) -> None:
        LocalServer(host="0.0.0.0", app=app)

    @pytest.mark.parametrize(
        "options", [{"token": "t"}, {"max_request_bytes": 5}, {"backend": Gate()}]
    )
    def test_an_app_has_its_own_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="create_app"):
            LocalServer(app=create_app(), **options)


def test_a_gate_is_a_backend() -> None:
    backend: Backend = Gate()
    assert callable(backend)


@pytest.mark.parametrize("version", [b"1.0", b"0.9", b"0.0"])
def test_a_reader_that_could_not_see_a_cut_is_refused(version: bytes) -> None:
    """In HTTP/1.0 the end of the connection is that of the reply, whole or not."""
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
    assert b"ask with HTTP/1.1" in answer


def test_without_a_token_it_expects_what_clients_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_TOKEN", "of the environment")
    with LocalServer() as server, Client(base_url=server.base_url) as client:
        assert client.chat("Hi").text == "Hi"
    monkeypatch.setenv("CROMICLE_TOKEN", "\udcff")
    with pytest.raises(ConfigurationError, match=r"\$CROMICLE_TOKEN"):
        LocalServer()
