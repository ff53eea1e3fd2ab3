"""The public transports below plain httpx and httpx2 clients."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import httpx2
import pytest
import trustme
from runtimes import ASYNC_RUNTIMES, Runtime, outcome

from cromicle_sdk import AsyncTransport, ConfigurationError, Transport
from cromicle_sdk.testing import (
    LAST_CHUNK,
    Connection,
    FaultyServer,
    RecordedRequest,
    build_chunk,
    build_head,
)

if TYPE_CHECKING:
    from typing_extensions import Self

LIBRARIES = [httpx, httpx2]
BODY = {"message": "Hi", "token": "abc", "hash": "x"}


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.__name__)
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


def open_client(library: Any, runtime: Runtime, timeout: Any = 20, **options: Any) -> Any:
    """A client of the library over our transport, with the methods of an async one."""
    if runtime.is_blocking:
        return SyncClient(library.Client(transport=Transport(**options), timeout=timeout))
    return library.AsyncClient(transport=AsyncTransport(**options), timeout=timeout)


class SyncClient:
    """A blocking client with coroutine methods that never wait."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def post(self, url: str, **options: Any) -> Any:
        return self.client.post(url, **options)

    async def get(self, url: str, **options: Any) -> Any:
        return self.client.get(url, **options)

    async def aclose(self) -> None:
        self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        self.client.close()


def test_a_response_is_read_and_its_connection_reused(
    library: Any, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.reply(chunks=["one ", "two"])

    async def scenario() -> None:
        async with open_client(library, runtime) as client:
            for _ in range(3):
                response = await client.post(f"{faults.base_url}/chat", json=BODY)
                assert response.text == "one two"
                assert response.extensions["http_version"] == b"HTTP/1.1"
        assert [request.connection for request in faults.requests] == [1, 1, 1]

    runtime.run(scenario)
    faults.wait_until_closed()


def test_a_connection_with_trailing_data_is_not_reused(
    library: Any, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.trailing("mine", second="not mine").reply("mine too")

    async def scenario() -> None:
        async with open_client(library, runtime) as client:
            texts = [(await client.post(f"{faults.base_url}/chat", json=BODY)).text for _ in "12"]
            assert texts == ["mine", "mine too"]

    runtime.run(scenario)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (lambda faults: faults.raw(b"", end="close"), "RemoteProtocolError"),
        (lambda faults: faults.raw(b"no HTTP\r\n\r\n", end="close"), "RemoteProtocolError"),
        (lambda faults: faults.cut(after="Hel"), "RemoteProtocolError"),
        (lambda faults: faults.reset(), "ReadError"),
        (lambda faults: faults.stall(), "ReadTimeout"),
        (lambda faults: faults.stall(after="Hel"), "ReadTimeout"),
    ],
)
def test_faults_raise_the_errors_of_the_library(
    script: Any, kind: str, library: Any, runtime: Runtime, faults: FaultyServer
) -> None:
    script(faults)

    async def scenario() -> None:
        async with open_client(library, runtime, timeout=0.3) as client:
            error = await outcome(client.post(f"{faults.base_url}/chat", json=BODY))
            assert type(error) is getattr(library, kind), repr(error)

    runtime.run(scenario)
    faults.wait_until_closed()


def test_a_refused_connection_raises_the_error_of_the_library(
    library: Any, runtime: Runtime
) -> None:
    async def scenario() -> None:
        async with open_client(library, runtime) as client:
            error = await outcome(client.get("http://127.0.0.1:9/"))
            assert type(error) is library.ConnectError
            assert "refused" in str(error)

    runtime.run(scenario)


def test_a_request_past_max_connections_waits_for_timeout_pool(
    runtime: Runtime, faults: FaultyServer
) -> None:
    gate, begun = threading.Event(), threading.Event()

    def answer(connection: Connection, request: RecordedRequest) -> None:
        begun.set()
        connection.wait(gate)
        connection.send(build_head() + build_chunk("done") + LAST_CHUNK)

    faults.script(answer)
    timeout = httpx.Timeout(20, pool=0.2)

    async def scenario() -> None:
        async with open_client(httpx, runtime, timeout=timeout, max_connections=1) as client:
            url = f"{faults.base_url}/chat"

            async def first() -> None:
                assert (await client.post(url, json=BODY)).text == "done"

            async def second() -> None:
                await runtime.wait(begun)
                assert type(await outcome(client.post(url, json=BODY))) is httpx.PoolTimeout
                gate.set()

            await runtime.together(first, second)
            assert (await client.post(url, json=BODY)).text == "done"

    runtime.run(scenario)


def test_a_body_is_sent_while_it_is_made(runtime: Runtime) -> None:
    """More than a packet is not held back until the body has ended."""
    received = threading.Event()

    def listen(connection: Connection) -> None:
        connection.read_until(b"\r\n\r\n")
        connection.read_exactly(100_000)
        received.set()
        connection.read_until(b"0\r\n\r\n")
        connection.send(build_head() + build_chunk("done") + LAST_CHUNK)

    def parts() -> Iterator[bytes]:
        yield b"x" * 200_000
        assert received.wait(20), "the first part is held back"
        yield b"y"

    async def parts_later() -> AsyncIterator[bytes]:
        yield b"x" * 200_000
        assert await anyio.to_thread.run_sync(received.wait, 20), "the first part is held back"
        yield b"y"

    with RawServer(listen) as url:

        async def scenario() -> None:
            async with open_client(httpx, runtime) as client:
                content = parts() if runtime.is_blocking else parts_later()
                assert (await client.post(url, content=content)).text == "done"

        runtime.run(scenario)


class RawServer:
    """Accepts one connection, and leaves it to a function."""

    def __init__(self, behave: Any) -> None:
        self._behave = behave

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/chat"

    def _serve(self) -> None:
        accepted, _ = self._listener.accept()
        with accepted:
            self._behave(Connection(accepted, 1))

    def __exit__(self, *args: object) -> None:
        self._thread.join(20)
        self._listener.close()


def test_idle_connections_of_many_hosts_are_bounded(runtime: Runtime) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(FaultyServer()) for _ in range(5)]
        for server in servers:
            server.reply("Hello.")

        async def scenario() -> None:
            async with open_client(httpx, runtime, max_connections=2) as client:
                for server in servers:
                    await client.post(f"{server.base_url}/chat", json=BODY)
                for server in servers[:3]:
                    server.wait_until_closed()
                assert [server.open_connections for server in servers] == [0, 0, 0, 1, 1]
                # The most recently used ones are still there.
                await client.post(f"{servers[4].base_url}/chat", json=BODY)
                assert servers[4].connections == 1

        runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_cancelled_requests_lose_no_slot(runtime: Runtime, faults: FaultyServer) -> None:
    faults.stall()

    async def scenario() -> None:
        async with open_client(httpx, runtime, max_connections=2) as client:
            url = f"{faults.base_url}/chat"
            for _ in range(20):
                with anyio.move_on_after(0.01):
                    await client.post(url, json=BODY)
            faults.clear().reply("Hello.")
            assert (await client.post(url, json=BODY)).text == "Hello."

    runtime.run(scenario)
    faults.wait_until_closed()


def test_a_dropped_response_gives_its_connection_back(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(after="Hel")

    async def scenario() -> None:
        async with open_client(httpx, runtime, max_connections=1) as client:
            inner = getattr(client, "client", client)
            request = inner.build_request("POST", f"{faults.base_url}/chat", json=BODY)
            sent = inner.send(request, stream=True)
            response = sent if runtime.is_blocking else await sent
            del request, response, sent
            gc.collect()
            faults.wait_until_closed()
            faults.clear().reply("Hello.")
            assert (await client.post(f"{faults.base_url}/chat", json=BODY)).text == "Hello."

    runtime.run(scenario)


def test_closing_a_client_ends_its_requests(runtime: Runtime, faults: FaultyServer) -> None:
    faults.stall()

    async def scenario() -> None:
        client = open_client(httpx, runtime)

        async def send() -> None:
            error = await outcome(client.post(f"{faults.base_url}/chat", json=BODY))
            assert isinstance(error, httpx.ReadError), repr(error)

        async def close() -> None:
            while not faults.requests:
                time.sleep(0.001) if runtime.is_blocking else await anyio.sleep(0.001)
            await client.aclose()

        await runtime.together(send, close)

    runtime.run(scenario)
    faults.wait_until_closed()


def test_authentication_that_sends_twice(runtime: Runtime, faults: FaultyServer) -> None:
    challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=SHA-256'
    faults.fail(401, headers={"www-authenticate": challenge}).reply("Hello.")

    async def scenario() -> None:
        auth = httpx.DigestAuth("user", "password")
        transport: Any = Transport() if runtime.is_blocking else AsyncTransport()
        kind: Any = httpx.Client if runtime.is_blocking else httpx.AsyncClient
        own = kind(transport=transport, auth=auth)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            reply = await client.chat("Hi")
            assert (reply.text, reply.attempts) == ("Hello.", 1)
        own.close() if runtime.is_blocking else await own.aclose()

    runtime.run(scenario)
    assert "Digest" in faults.requests[1].headers["authorization"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_connections": 0}, "max_connections"),
        ({"max_connections": "5"}, "max_connections"),
        ({"proxy": "no proxy"}, "proxy"),
        ({"verify": False}, "verify"),
    ],
)
@pytest.mark.parametrize("kind", [Transport, AsyncTransport])
def test_an_invalid_option_is_named(options: Any, named: str, kind: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind(**options)
    assert caught.value.option == named


def test_a_closed_transport_sends_nothing(
    runtime: Runtime, library: Any, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        request = library.Request("GET", faults.base_url)
        if runtime.is_blocking:
            transport = Transport()
            transport.close()
            with pytest.raises(library.ReadError, match="closed"):
                transport.handle_request(request)
        else:
            async_transport = AsyncTransport()
            await async_transport.aclose()
            with pytest.raises(library.ReadError, match="closed"):
                await async_transport.handle_async_request(request)

    runtime.run(scenario)
    assert not faults.requests


def test_a_failed_handshake_is_a_connect_error(runtime: Runtime, library: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def scenario(base_url: str) -> None:
        async with open_client(library, runtime) as client:
            with pytest.raises(library.ConnectError, match="certificate verify failed"):
                await client.get(base_url)

    with FaultyServer(ssl_context=context) as server:
        runtime.run(partial(scenario, server.base_url))


def test_an_unknown_scheme_is_said_so(runtime: Runtime, library: Any) -> None:
    async def scenario() -> None:
        async with open_client(library, runtime) as client:
            with pytest.raises(library.UnsupportedProtocol):
                await client.get("ftp://127.0.0.1/")

    runtime.run(scenario)
