"""Other protocols on a connection, after a 101 or a 2xx to CONNECT."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import httpcore
import httpcore2
import httpx
import pytest
from certificates import build_authority
from plain_clients import (
    RawServer,
    close,
    open_client,
    send,
    wait_until,
    wait_until_all_others_wait,
)
from runtimes import ASYNC_RUNTIMES, Runtime

from cromicle_sdk.testing import Connection


def switch_protocol(connection: Connection, first: bytes = b"") -> socket.socket:
    """The socket, after the response that ends HTTP on it, and some bytes in the same packet."""
    connection.read_until(b"\r\n\r\n")
    connection.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n" + first)
    sock = connection._sock
    sock.settimeout(20)
    return sock


def serve_echo(connection: Connection) -> None:
    sock = switch_protocol(connection, b"first")
    with contextlib.suppress(OSError):
        while data := sock.recv(65536):
            sock.sendall(data)


def serve_nothing(connection: Connection) -> None:
    sock = switch_protocol(connection)
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


UPGRADE = {"connection": "upgrade", "upgrade": "echo"}


async def finish(result: Any) -> Any:
    return await result if hasattr(result, "__await__") else result


def test_what_is_written_after_an_upgrade_is_sent_at_once(library: Any, runtime: Runtime) -> None:
    with RawServer(serve_echo) as url:

        async def scenario() -> None:
            async with open_client(library, runtime, timeout=5) as client:
                response = await send(client, "GET", url, headers=UPGRADE)
                stream = response.extensions["network_stream"]
                assert await finish(stream.read(100)) == b"first"
                for part in (b"one", b"x" * 200_000, b"two"):
                    await finish(stream.write(part, timeout=20))
                    received = b""
                    while len(received) < len(part):
                        received += await finish(stream.read(100_000, timeout=20))
                    assert received == part
                assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
                await close(stream, runtime)
                with pytest.raises(core_of(library).ReadError, match="closed"):
                    await finish(stream.read(100))

        runtime.run(scenario)


def core_of(library: Any) -> Any:
    """The library whose errors a network stream raises."""
    return {"httpx": httpcore, "httpx2": httpcore2}[library.__name__]


def test_a_read_and_a_write_after_an_upgrade_have_timeouts_of_their_own(
    library: Any, runtime: Runtime
) -> None:
    done = threading.Event()

    def serve(connection: Connection) -> None:
        switch_protocol(connection)
        done.wait(20)

    async def scenario(url: str) -> None:
        async with open_client(library, runtime, timeout=0.01) as client:
            response = await send(client, "GET", url, headers=UPGRADE, timeout=20)
            stream = response.extensions["network_stream"]
            for timeout in (0, 0.2):
                started = time.monotonic()
                with pytest.raises(core_of(library).ReadTimeout):
                    await finish(stream.read(100, timeout=timeout))
                assert time.monotonic() - started < 10
            # More than the kernel buffers for a peer that does not read.
            with pytest.raises(core_of(library).WriteTimeout):
                await finish(stream.write(b"x" * 30_000_000, timeout=0.2))
            done.set()
            await close(response, runtime)

    with RawServer(serve) as url:
        runtime.run(partial(scenario, url))


def test_a_write_after_an_upgrade_may_take_longer_than_the_read_before_it(
    library: Any, runtime: Runtime
) -> None:
    go = threading.Event()
    data = b"x" * 20_000_000

    def serve(connection: Connection) -> None:
        sock = switch_protocol(connection)
        go.wait(20)
        left = len(data)
        while left:
            left -= len(sock.recv(1_000_000))
        sock.sendall(b"all")

    async def scenario(url: str) -> None:
        async with open_client(library, runtime) as client:
            response = await send(client, "GET", url, headers=UPGRADE)
            stream = response.extensions["network_stream"]
            with pytest.raises(core_of(library).ReadTimeout):
                await finish(stream.read(100, timeout=0))

            async def write_it() -> None:
                await finish(stream.write(data, timeout=20))

            async def read_it() -> None:
                await wait_until_all_others_wait(runtime)
                go.set()

            await runtime.together(write_it, read_it)
            assert await finish(stream.read(100, timeout=20)) == b"all"
            await close(response, runtime)

    with RawServer(serve) as url:
        runtime.run(partial(scenario, url))


def test_a_write_after_an_upgrade_to_a_server_that_is_gone(library: Any, runtime: Runtime) -> None:
    async def scenario(url: str) -> None:
        async with open_client(library, runtime) as client:
            response = await send(client, "GET", url, headers=UPGRADE)
            stream = response.extensions["network_stream"]
            assert await finish(stream.read(100)) == b""
            with pytest.raises(core_of(library).WriteError, match=r"reset|pipe"):
                for _ in range(1_000):
                    await finish(stream.write(b"x" * 100_000))
            await close(response, runtime)

    with RawServer(switch_protocol) as url:
        runtime.run(partial(scenario, url))


@pytest.mark.parametrize("what", ["response", "stream", "client"])
def test_a_read_after_an_upgrade_ends_when_it_is_closed(
    what: str, library: Any, runtime: Runtime
) -> None:
    async def scenario(url: str) -> None:
        client = open_client(library, runtime)
        response = await send(client, "GET", url, headers=UPGRADE)
        stream = response.extensions["network_stream"]

        async def read_it() -> None:
            started = time.monotonic()
            with pytest.raises(core_of(library).ReadError, match="closed"):
                await finish(stream.read(100))
            assert time.monotonic() - started < 10

        async def close_it() -> None:
            await wait_until_all_others_wait(runtime)
            # A write by another task than the reader, which has to wait as well.
            await finish(stream.write(b"x" * 20_000_000))
            if what == "client":
                await client.aclose()
            else:
                await close(response if what == "response" else stream, runtime)

        await runtime.together(read_it, close_it)
        await close(response, runtime)
        await client.aclose()

    with RawServer(serve_nothing) as url:
        runtime.run(partial(scenario, url))


def test_a_read_after_a_client_was_closed_is_not_at_the_end(library: Any, runtime: Runtime) -> None:
    """Also one that need not wait, because the read before it was full."""

    def serve(connection: Connection) -> None:
        sock = switch_protocol(connection)
        # What comes with the head, httpcore keeps.
        assert sock.recv(2) == b"go"
        sock.sendall(b"full")
        sock.recv(1)

    async def scenario(url: str) -> None:
        client = open_client(library, runtime)
        response = await send(client, "GET", url, headers=UPGRADE)
        stream = response.extensions["network_stream"]
        await finish(stream.write(b"go"))
        assert await finish(stream.read(4)) == b"full"
        await client.aclose()
        with pytest.raises(core_of(library).ReadError, match="closed"):
            await finish(stream.read(4))
        await close(response, runtime)

    with RawServer(serve) as url:
        runtime.run(partial(scenario, url))


def test_closing_a_client_ends_a_read_and_a_write_that_wait_at_the_same_time(
    library: Any, runtime: Runtime
) -> None:
    done = threading.Event()

    def serve(connection: Connection) -> None:
        switch_protocol(connection)
        done.wait(20)

    async def scenario(url: str) -> None:
        client = open_client(library, runtime)
        response = await send(client, "GET", url, headers=UPGRADE)
        stream = response.extensions["network_stream"]

        async def read_it() -> None:
            with pytest.raises(core_of(library).ReadError, match="closed"):
                await finish(stream.read(100))

        async def write_it() -> None:
            with pytest.raises(core_of(library).ReadError, match="closed"):
                await finish(stream.write(b"x" * 30_000_000))

        async def close_it() -> None:
            await wait_until_all_others_wait(runtime)
            await client.aclose()
            done.set()

        await runtime.together(read_it, write_it, close_it)
        await close(response, runtime)

    with RawServer(serve) as url:
        runtime.run(partial(scenario, url))


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_cancelled_read_after_an_upgrade_loses_nothing(runtime: Runtime) -> None:
    sent = b"".join(b"%4d" % number for number in range(700))

    def serve(connection: Connection) -> None:
        sock = switch_protocol(connection)
        # What comes with the head, httpcore keeps.
        assert sock.recv(2) == b"go"
        sock.sendall(sent)
        sock.recv(1)

    async def cancel_later(scope: anyio.CancelScope, turns: int) -> None:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async def scenario(url: str) -> None:
        async with open_client(httpx, runtime) as client:
            response = await send(client, "GET", url, headers=UPGRADE)
            stream = response.extensions["network_stream"]
            await stream.write(b"go")
            received = b""
            count = 0
            with anyio.fail_after(20):
                while len(received) < len(sent):
                    # A full read, after which the next one need not wait.
                    received += await stream.read(7)
                    count += 1
                    async with anyio.create_task_group() as group:
                        group.start_soon(cancel_later, group.cancel_scope, count % 6)
                        received += await stream.read(7)
            assert received == sent
            await response.aclose()

    with RawServer(serve) as url:
        runtime.run(partial(scenario, url))


@contextlib.contextmanager
def serve_tunnel(
    behave: Callable[[ssl.SSLSocket], None],
) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Serve a TLS connection in a tunnel. Yields the URL, and a context that trusts the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode, context.post_handshake_auth = ssl.CERT_OPTIONAL, True
    authority = build_authority()
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    trusting.post_handshake_auth = True
    authority.issue_cert("client.test").configure_cert(trusting)
    for one in (context, trusting):
        authority.configure_trust(one)

    def serve(connection: Connection) -> None:
        connection.read_until(b"\r\n\r\n")
        connection.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        connection.start_tls(context)
        sock = connection._sock
        assert isinstance(sock, ssl.SSLSocket)
        sock.settimeout(20)
        with contextlib.suppress(OSError):
            behave(sock)
        connection.close()

    with RawServer(serve) as url:
        yield url, trusting


async def open_tunnel(client: Any, url: str, trusting: ssl.SSLContext) -> tuple[Any, Any]:
    """The response to CONNECT, and the stream of TLS in the tunnel."""
    response = await send(client, "CONNECT", url)
    stream = response.extensions["network_stream"]
    return response, await finish(stream.start_tls(trusting, "localhost", timeout=20))


def test_a_tunnel_that_the_caller_opens(runtime: Runtime, library: Any) -> None:
    def shout(sock: socket.socket) -> None:
        sock.sendall(sock.recv(5).upper())

    async def scenario(url: str, trusting: ssl.SSLContext) -> None:
        async with open_client(library, runtime) as client:
            response, stream = await open_tunnel(client, url, trusting)
            await finish(stream.write(b"hello"))
            assert await finish(stream.read(100, timeout=20)) == b"HELLO"
            assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
            await close(response, runtime)

    with serve_tunnel(shout) as (url, trusting):
        runtime.run(partial(scenario, url, trusting))


def test_a_stream_cannot_be_used_after_start_tls(runtime: Runtime, library: Any) -> None:
    def echo(sock: socket.socket) -> None:
        while data := sock.recv(65536):
            sock.sendall(data)

    async def scenario(url: str, trusting: ssl.SSLContext) -> None:
        async with open_client(library, runtime) as client:
            response = await send(client, "CONNECT", url)
            plain = response.extensions["network_stream"]
            stream = await finish(plain.start_tls(trusting, "localhost", timeout=20))
            for use in (partial(plain.write, b"secret"), partial(plain.read, 100)):
                with pytest.raises(core_of(library).ReadError, match=r"^start_tls has replaced"):
                    await finish(use(timeout=20))
            # The connection is still in order.
            await finish(stream.write(b"hello", timeout=20))
            assert await finish(stream.read(100, timeout=20)) == b"hello"
            await close(response, runtime)

    with serve_tunnel(echo) as (url, trusting):
        runtime.run(partial(scenario, url, trusting))


def test_a_read_and_a_write_over_tls_at_the_same_time(runtime: Runtime) -> None:
    count, part = 3_000, b"x" * 10_000

    def echo(sock: socket.socket) -> None:
        while data := sock.recv(65536):
            sock.sendall(data)

    async def scenario(url: str, trusting: ssl.SSLContext) -> None:
        async with open_client(httpx, runtime) as client:
            response, stream = await open_tunnel(client, url, trusting)

            async def write() -> None:
                for _ in range(count):
                    await finish(stream.write(part, timeout=20))

            async def read() -> None:
                left = count * len(part)
                while left:
                    data = await finish(stream.read(65536, timeout=20))
                    assert data == b"x" * len(data) != b""
                    left -= len(data)

            await runtime.together(write, read)
            await close(response, runtime)

    with serve_tunnel(echo) as (url, trusting):
        runtime.run(partial(scenario, url, trusting))


def test_a_read_over_tls_that_has_to_answer_leaves_it_to_the_write_in_progress(
    runtime: Runtime,
) -> None:
    is_writing, has_read = threading.Event(), threading.Event()
    data = b"x" * 20_000_000

    def ask_for_a_certificate(sock: ssl.SSLSocket) -> None:
        is_writing.wait(20)
        sock.verify_client_post_handshake()
        sock.sendall(b"now")
        has_read.wait(20)
        left = len(data)
        while left:
            left -= len(sock.recv(1_000_000))
        assert sock.recv(3) == b"end"
        sock.sendall(b"known" if sock.getpeercert() else b"unknown")

    async def scenario(url: str, trusting: ssl.SSLContext) -> None:
        async with open_client(httpx, runtime) as client:
            response, stream = await open_tunnel(client, url, trusting)

            async def write() -> None:
                # More than the kernel buffers for a peer that does not read.
                await finish(stream.write(data, timeout=20))

            async def read() -> None:
                await wait_until_all_others_wait(runtime)
                is_writing.set()
                assert await finish(stream.read(100, timeout=20)) == b"now"
                has_read.set()

            await runtime.together(write, read)
            await finish(stream.write(b"end", timeout=20))
            assert await finish(stream.read(100, timeout=20)) == b"known"
            await close(response, runtime)

    with serve_tunnel(ask_for_a_certificate) as (url, trusting):
        runtime.run(partial(scenario, url, trusting))


def test_two_writes_over_tls_at_the_same_time(runtime: Runtime) -> None:
    count, parts = 100, (b"x" * 100_000, b"y" * 100_000)
    go = threading.Event()

    def receive(sock: socket.socket) -> None:
        go.wait(20)
        received = bytearray()
        while len(received) < count * sum(map(len, parts)):
            data = sock.recv(65536)
            if not data:
                return
            received += data
        # Each write is sent as a whole.
        blocks = {bytes(received[at : at + 100_000]) for at in range(0, len(received), 100_000)}
        sock.sendall(b"all" if blocks == set(parts) else b"mixed")

    async def scenario(url: str, trusting: ssl.SSLContext) -> None:
        async with open_client(httpx, runtime) as client:
            response, stream = await open_tunnel(client, url, trusting)

            async def write(part: bytes) -> None:
                for _ in range(count):
                    await finish(stream.write(part, timeout=20))

            async def start() -> None:
                # The first write waits for the server, and the second for the first.
                await wait_until_all_others_wait(runtime)
                go.set()

            await runtime.together(*(partial(write, part) for part in parts), start)
            assert await finish(stream.read(100, timeout=20)) == b"all"
            await close(response, runtime)

    with serve_tunnel(receive) as (url, trusting):
        runtime.run(partial(scenario, url, trusting))


def test_a_write_over_tls_that_waits_for_another_one_has_its_timeout(runtime: Runtime) -> None:
    is_over = threading.Event()

    async def scenario(url: str, trusting: ssl.SSLContext) -> None:
        async with open_client(httpx, runtime) as client:
            response, stream = await open_tunnel(client, url, trusting)
            layer = stream._stream._layer

            async def first() -> None:
                with pytest.raises(httpcore.ReadError):
                    await finish(stream.write(b"x" * 100_000_000, timeout=50))

            async def second() -> None:
                await wait_until(layer._sending.locked, runtime)
                started = time.monotonic()
                with pytest.raises(httpcore.WriteTimeout):
                    await finish(stream.write(b"y", timeout=1.1))
                assert time.monotonic() - started > 1
                await close(response, runtime)
                is_over.set()

            await runtime.together(first, second)

    def ignore(sock: socket.socket) -> None:
        is_over.wait(20)

    with serve_tunnel(ignore) as (url, trusting):
        runtime.run(partial(scenario, url, trusting))


def test_a_write_over_tls_has_its_timeout(runtime: Runtime) -> None:
    is_over = threading.Event()

    def ignore(sock: socket.socket) -> None:
        is_over.wait(20)

    async def scenario(url: str, trusting: ssl.SSLContext) -> None:
        async with open_client(httpx, runtime) as client:
            response, stream = await open_tunnel(client, url, trusting)
            started = time.monotonic()
            with pytest.raises(httpcore.WriteTimeout):
                await finish(stream.write(b"x" * 30_000_000, timeout=0.2))
            assert time.monotonic() - started < 15
            is_over.set()
            await close(response, runtime)

    with serve_tunnel(ignore) as (url, trusting):
        runtime.run(partial(scenario, url, trusting))


def test_a_write_over_tls_keeps_its_timeout_while_another_one_gives_up(runtime: Runtime) -> None:
    data = b"x" * 30_000_000
    go = threading.Event()

    def read_with_a_pause(sock: socket.socket) -> None:
        assert go.wait(20)
        left = len(data)
        for pause in (0.5, 0):
            until = left // 2 if pause else 0
            while left > until:
                left -= len(sock.recv(min(left - until, 65536)))
            time.sleep(pause)
        sock.sendall(b"all")

    async def scenario(url: str, trusting: ssl.SSLContext) -> None:
        async with open_client(httpx, runtime) as client:
            response, stream = await open_tunnel(client, url, trusting)
            layer = stream._stream._layer

            async def first() -> None:
                await finish(stream.write(data, timeout=20))

            async def second() -> None:
                await wait_until(layer._sending.locked, runtime)
                with pytest.raises(httpcore.WriteTimeout):
                    await finish(stream.write(b"y", timeout=0.1))
                go.set()

            await runtime.together(first, second)
            assert await finish(stream.read(100, timeout=20)) == b"all"
            await close(response, runtime)

    with serve_tunnel(read_with_a_pause) as (url, trusting):
        runtime.run(partial(scenario, url, trusting))


@pytest.mark.parametrize(
    ("hostname", "kind", "message"),
    [
        (None, "ValueError", "^check_hostname requires server_hostname$"),
        ("other.test", "ConnectError", "Hostname mismatch"),
    ],
)
def test_a_tunnel_to_another_host_than_its_certificate_is_for(
    hostname: str | None, kind: str, message: str, runtime: Runtime, library: Any
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = build_authority()
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    received: list[bytes] = []

    def serve(connection: Connection) -> None:
        connection.read_until(b"\r\n\r\n")
        connection.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        sock = connection._sock
        sock.settimeout(20)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                received.append(data)
                incoming.write(data)
                with contextlib.suppress(ssl.SSLError):
                    tls.do_handshake()
                sock.sendall(outgoing.read())

    async def scenario(url: str) -> None:
        core = core_of(library)
        async with open_client(library, runtime) as client:
            response = await send(client, "CONNECT", url)
            stream = response.extensions["network_stream"]
            with pytest.raises(getattr(core, kind, ValueError), match=message):
                await finish(stream.start_tls(trusting, hostname, timeout=20))
            with pytest.raises(core.ReadError, match="closed"):
                await finish(stream.write(b"secret"))
            await close(response, runtime)

    with RawServer(serve) as url:
        runtime.run(partial(scenario, url))
    assert b"secret" not in b"".join(received)


def test_a_handshake_in_a_tunnel_has_a_timeout_of_its_own(runtime: Runtime, library: Any) -> None:
    done = threading.Event()

    def serve(connection: Connection) -> None:
        connection.read_until(b"\r\n\r\n")
        connection.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        done.wait(20)

    async def scenario(url: str) -> None:
        async with open_client(library, runtime, timeout=50) as client:
            response = await send(client, "CONNECT", url)
            stream = response.extensions["network_stream"]
            started = time.monotonic()
            with pytest.raises(core_of(library).ConnectTimeout):
                await finish(stream.start_tls(ssl.create_default_context(), "h", timeout=0.2))
            assert time.monotonic() - started < 20
            with pytest.raises(core_of(library).ReadError, match="closed"):
                await finish(stream.write(b"x"))
            done.set()
            await close(response, runtime)

    with RawServer(serve) as url:
        runtime.run(partial(scenario, url))
