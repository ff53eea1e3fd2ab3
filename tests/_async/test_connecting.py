"""Connecting to a host with several addresses (RFC 8305), and what a connection is set up with."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Generator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from runtimes import ASYNC_RUNTIMES, Runtime, outcome

from cromicle_sdk import (
    APIConnectionError,
    APITimeoutError,
    AsyncClient,
    ConfigurationError,
    Retry,
    Timeout,
)
from cromicle_sdk._async import concurrency as async_concurrency
from cromicle_sdk._http import sockets
from cromicle_sdk._sync import concurrency as sync_concurrency
from cromicle_sdk.testing import FaultyServer

ONCE = Retry(attempts=1)


@contextlib.contextmanager
def black_hole() -> Generator[Any]:
    """An address that answers no SYN: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: Any) -> None:
    found = [(socket.AF_INET, address) for address in addresses]

    async def resolve(*args: Any) -> Any:
        return found

    monkeypatch.setattr(async_concurrency, "resolve", resolve)
    monkeypatch.setattr(sync_concurrency, "resolve", lambda *args: found)


def address_of(server: FaultyServer) -> tuple[str, int]:
    return "127.0.0.1", int(server.base_url.rpartition(":")[2])


def test_a_black_hole_before_a_good_address_costs_a_quarter_of_a_second(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.reply("Hello.")

    async def scenario() -> None:
        with black_hole() as hole:
            resolve_to(monkeypatch, hole, address_of(faults))
            async with runtime.client(base_url="http://h.example", retry=ONCE) as client:
                reply = await client.chat("Hi")
            assert reply.text == "Hello."
            assert 0.2 < reply.elapsed < 2.5

    runtime.run(scenario)
    faults.wait_until_closed()


def test_a_refused_connection_is_followed_by_the_next_address_at_once(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.reply("Hello.")
    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.ATTEMPT_DELAY_SECONDS", 20)

    async def scenario() -> None:
        refused = [("127.0.0.1", 9)] * 8
        resolve_to(monkeypatch, *refused, address_of(faults))
        async with runtime.client(base_url="http://h.example", retry=ONCE) as client:
            assert (await client.chat("Hi", timeout=50)).elapsed < 20

    runtime.run(scenario)


def test_an_address_that_is_slower_than_the_delay_is_not_cut_short(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two holes, of which the first one opens after both have begun."""
    faults.reply("Hello.")

    async def scenario() -> None:
        with black_hole() as first, black_hole() as second:
            resolve_to(monkeypatch, first, second)
            limits = Timeout(connect=0.8)
            async with runtime.client(
                base_url="http://h.example", retry=ONCE, timeout=limits
            ) as client:
                started = time.monotonic()
                error = await outcome(client.chat("Hi"))
                assert isinstance(error, APITimeoutError)
                assert error.phase == "connect"
                assert 0.7 < time.monotonic() - started < 5

    runtime.run(scenario)


def test_closing_ends_the_attempts_to_connect(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        with black_hole() as first, black_hole() as second:
            resolve_to(monkeypatch, first, second)
            client = runtime.client(base_url="http://h.example", retry=ONCE)

            async def call() -> None:
                assert "closed" in str(await outcome(client.chat("Hi", timeout=60)))

            async def close() -> None:
                time.sleep(0.5) if runtime.is_blocking else await anyio.sleep(0.5)
                await client.aclose()

            started = time.monotonic()
            await runtime.together(call, close)
            assert time.monotonic() - started < 20

    runtime.run(scenario)


def test_a_host_without_addresses(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        resolve_to(monkeypatch)
        async with runtime.client(base_url="http://h.example", retry=ONCE) as client:
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, APIConnectionError)
            assert ": the host has no address" in str(error)

    runtime.run(scenario)


def test_idle_connections_are_kept_alive(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    start_connect = "cromicle_sdk._{}.network.start_connect"

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            await client.chat("Hi")
            (sock,) = made
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 5

    def notice(address: Any) -> Any:
        sock, is_connected = sockets.start_connect(address)
        made.append(sock)
        return sock, is_connected

    for side in ("async", "sync"):
        monkeypatch.setattr(start_connect.format(side), notice)
    runtime.run(scenario)


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("SSL_CERT_FILE", "/nope", "cannot be opened: No such file or directory"),
        ("SSL_CERT_FILE", "/", "cannot be opened: Is a directory"),
        ("SSL_CERT_FILE", __file__, "no certificates"),
        ("SSL_CERT_DIR", "/nope", "not a directory"),
        ("SSL_CERT_DIR", __file__, "not a directory"),
        ("SSLKEYLOGFILE", "/nope/keys", "cannot be opened: No such file or directory"),
    ],
)
def test_certificates_that_cannot_be_loaded_are_a_configuration_error(
    variable: str, value: str, problem: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)

    async def scenario() -> None:
        async with runtime.client(base_url="https://127.0.0.1:9") as client:
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, ConfigurationError)
            assert error.option == f"${variable}"
            assert problem in str(error)
            # The variable is read again.
            monkeypatch.delenv(variable)
            error = await outcome(client.chat("Hi", retry=ONCE))
            assert isinstance(error, APIConnectionError)
            assert "refused" in str(error)

    runtime.run(scenario)


def test_certifi_without_its_file_is_a_configuration_error(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a program that was packed without it."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    # A value of its own, for which no context is kept.
    monkeypatch.setenv("SSLKEYLOGFILE", os.devnull)
    monkeypatch.setattr("certifi.where", lambda: "/nope")

    async def scenario() -> None:
        async with runtime.client(base_url="https://127.0.0.1:9") as client:
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, ConfigurationError)
            assert error.option == "verify"
            assert "SSL_CERT_FILE" in error.hint

    runtime.run(scenario)


def test_four_loops_keep_their_own_connections(faults: FaultyServer) -> None:
    faults.reply("Hello.")
    client = AsyncClient(base_url=faults.base_url)
    together = threading.Barrier(4)

    async def call() -> None:
        for _ in range(20):
            await client.chat("Hi")
            together.wait(20)

    backends = ["asyncio", "trio", "asyncio", "trio"]
    threads = [
        threading.Thread(target=anyio.run, args=(call,), kwargs={"backend": backend})
        for backend in backends
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults.connections == 4
    assert len(faults.requests) == 80
    # What the ended loops have left is closed by the next one.
    anyio.run(client.chat, "Hi")
    until = time.monotonic() + 20
    while faults.open_connections > 1:
        assert time.monotonic() < until
        time.sleep(0.01)
    anyio.run(client.aclose)
    faults.wait_until_closed()


def test_a_connection_that_is_established_at_once(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some systems connect to their own addresses without a wait."""

    def start_connect(address: Any) -> Any:
        sock = socket.create_connection(address[1])
        sock.setblocking(False)
        return sock, True

    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.start_connect", start_connect)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            assert (await client.chat("Hi")).text

    runtime.run(scenario)


class SlowConnection:
    """A connection that is established by `establish`, to a server that answers one request.

    Until then the send buffer of its socket is full, for which a call waits in the same way.
    """

    def __init__(self) -> None:
        self.client, self._server = socket.socketpair()
        self.client.setblocking(False)
        self._filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._filled += self.client.send(bytes(65536))

    def establish(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()

    def close_server(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        with self._server, contextlib.suppress(OSError):
            while self._filled:
                self._filled -= len(self._server.recv(min(self._filled, 65536)))
            if self._server.recv(65536):
                self._server.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


def test_eight_slow_addresses_are_not_cut_short(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one takes longer than the delay to the next, and is done first."""
    made: list[SlowConnection] = []

    def start_connect(address: Any) -> Any:
        made.append(SlowConnection())
        if len(made) == 2:
            made[0].establish()
        return made[-1].client, False

    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.start_connect", start_connect)

    async def scenario() -> None:
        resolve_to(monkeypatch, *[("192.0.2.1", port) for port in range(1, 9)])
        async with runtime.client(base_url="http://h.example", retry=ONCE) as client:
            assert (await client.chat("Hi", timeout=Timeout(connect=20))).text == "ok"
            assert 2 <= len(made) < 8
            is_open = [connection.client.fileno() >= 0 for connection in made]
            assert is_open == [True] + [False] * (len(made) - 1)
        assert made[0].client.fileno() < 0
        for connection in made[1:]:
            connection.close_server()

    runtime.run(scenario)


def record_sockets(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Return a list to which each socket is added that starts to connect."""
    made: list[socket.socket] = []

    def start_connect(address: Any) -> Any:
        sock, is_connected = sockets.start_connect(address)
        made.append(sock)
        return sock, is_connected

    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.start_connect", start_connect)
    return made


def test_addresses_that_are_left_do_not_prolong_the_timeout(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record_sockets(monkeypatch)

    async def scenario() -> None:
        with black_hole() as hole:
            resolve_to(monkeypatch, *[hole] * 8)
            async with runtime.client(base_url="http://h.example", retry=ONCE) as client:
                error = await outcome(client.chat("Hi", timeout=Timeout(connect=0.4)))
            assert isinstance(error, APITimeoutError)
            assert error.phase == "connect"
            assert len(made) <= 2

    runtime.run(scenario)


@pytest.mark.parametrize("end", ["total", "cancel"])
def test_an_end_in_the_middle_closes_every_socket(
    end: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record_sockets(monkeypatch)
    # So that they begin within the total, also on a busy machine.
    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.ATTEMPT_DELAY_SECONDS", 0.01)

    async def scenario() -> None:
        with black_hole() as hole:
            resolve_to(monkeypatch, hole, hole, hole)
            client = runtime.client(base_url="http://h.example", retry=ONCE)
            if end == "cancel" and not runtime.is_blocking:
                async with anyio.create_task_group() as group:
                    group.start_soon(partial(client.chat, "Hi", timeout=Timeout(connect=60)))
                    while len(made) < 2:
                        await anyio.sleep(0.001)
                    group.cancel_scope.cancel()
            else:
                error = await outcome(client.chat("Hi", timeout=Timeout(connect=60, total=0.8)))
                assert isinstance(error, APITimeoutError)
                assert error.phase == "total"
            assert len(made) >= 2
            assert all(sock.fileno() < 0 for sock in made)
            await client.aclose()

    runtime.run(scenario)


@contextlib.contextmanager
def serve_slow_reads(size: int, seconds: float) -> Generator[str]:
    """A server that reads a request of some size steadily, over so many seconds, and answers."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            received, pause = 0, threading.Event()
            with sock, contextlib.suppress(OSError):
                while received < size:
                    data = sock.recv(size // 50)
                    if not data:
                        return
                    received += len(data)
                    pause.wait(seconds * min(received / size, 1) - (time.monotonic() - started))
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

        started = time.monotonic()
        thread = threading.Thread(target=serve)
        thread.start()
        yield "http://{}:{}".format(*listener.getsockname())
        thread.join(20)


@pytest.mark.parametrize("buffer", [64 * 1024, 8_000_000], ids=["small buffer", "large buffer"])
def test_an_upload_that_makes_progress_does_not_time_out(
    buffer: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system has taken all of it at once, and is still sending it."""

    def start_connect(address: Any) -> Any:
        sock, is_connected = sockets.start_connect(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        return sock, is_connected

    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.start_connect", start_connect)
    size = 4_000_000

    async def scenario() -> None:
        with serve_slow_reads(size, seconds=3) as base_url:
            async with runtime.client(base_url=base_url, retry=ONCE) as client:
                reply = await client.chat("x" * size, timeout=Timeout(first_byte=1.5))
            assert reply.text == "ok"
            assert reply.elapsed > 2

    runtime.run(scenario)


def test_an_upload_that_the_total_ends(runtime: Runtime) -> None:
    async def scenario() -> None:
        with serve_slow_reads(1_000_000, seconds=2) as base_url:
            async with runtime.client(base_url=base_url, retry=ONCE) as client:
                limits = Timeout(first_byte=0.4, total=0.6)
                error = await outcome(client.chat("x" * 1_000_000, timeout=limits))
            assert isinstance(error, APITimeoutError)
            assert error.phase == "total"

    runtime.run(scenario)


def test_a_refused_connection_leaves_the_addresses_that_have_not_answered(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        with black_hole() as hole:
            resolve_to(monkeypatch, hole, ("127.0.0.1", 9))
            limits = Timeout(connect=0.8)
            async with runtime.client(
                base_url="http://h.example", retry=ONCE, timeout=limits
            ) as client:
                error = await outcome(client.chat("Hi"))
                assert isinstance(error, APITimeoutError)
                assert error.phase == "connect"

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_asyncio_on_windows_has_no_more_calls_in_flight_than_it_can_wait_for(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More sockets than `select` takes there end every wait of the process for good."""
    monkeypatch.setattr(async_concurrency, "_IS_WINDOWS", True)
    monkeypatch.setattr(async_concurrency, "_SELECT_CAPACITY", 3)
    gate = threading.Event()
    faults.reply(chunks=["Hel", "lo."], gate=gate)
    # uvloop is a loop of its own; so is trio's.
    most = 3 if runtime.name == "asyncio" else 5

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, max_connections=1000) as client:

            async def release() -> None:
                await anyio.to_thread.run_sync(faults.wait_for_requests, most)
                await anyio.wait_all_tasks_blocked()
                gate.set()

            replies = []

            async def call() -> None:
                replies.append((await client.chat("Hi")).text)

            await runtime.together(*[call] * 5, release)
            assert replies == ["Hello."] * 5
            assert faults.connections == most

    runtime.run(scenario)
