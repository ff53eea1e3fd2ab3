"""The public transports below plain httpx and httpx2 clients."""

from __future__ import annotations

import contextlib
import gc
import pickle
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from certificates import build_authority
from plain_clients import RawServer, close, open_client, send, wait_until_read
from proxies import Proxy
from runtimes import ASYNC_RUNTIMES, Runtime, outcome

from cromicle_sdk import AsyncTransport, ConfigurationError, Transport
from cromicle_sdk._async import concurrency as async_concurrency
from cromicle_sdk._async import network as async_network
from cromicle_sdk._sync import concurrency as sync_concurrency
from cromicle_sdk._sync import network as sync_network
from cromicle_sdk.testing import (
    LAST_CHUNK,
    Connection,
    FaultyServer,
    RecordedRequest,
    build_chunk,
    build_head,
)

BODY = {"message": "Hi", "token": "abc", "hash": "x"}


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
    timeout = library.Timeout(20, read=0.3 if kind == "ReadTimeout" else 20)

    async def scenario() -> None:
        async with open_client(library, runtime, timeout=timeout) as client:
            error = await outcome(client.post(f"{faults.base_url}/chat", json=BODY))
            assert type(error) is getattr(library, kind), repr(error)
            assert kind != "ReadError" or "Connection reset" in str(error)

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


def test_each_part_of_a_body_is_sent_when_it_is_made(library: Any, runtime: Runtime) -> None:
    """However short: the server may have to answer it before the next one is made."""
    received = [threading.Event() for _ in range(4)]

    def listen(connection: Connection) -> None:
        connection.read_until(b"\r\n\r\n")
        received[0].set()
        for number in range(1, 4):
            connection.read_until(b"part %d\r\n" % number)
            received[number].set()
        connection.read_until(b"0\r\n\r\n")
        connection.send(build_head() + build_chunk("done") + LAST_CHUNK)

    def parts() -> Iterator[bytes]:
        for number in range(4):
            assert received[number].wait(20), "what came before is held back"
            if number < 3:
                yield b"part %d" % (number + 1)

    async def parts_later() -> AsyncIterator[bytes]:
        made = parts()
        while (part := await anyio.to_thread.run_sync(next, made, None)) is not None:
            yield part

    with RawServer(listen) as url:

        async def scenario() -> None:
            async with open_client(library, runtime) as client:
                content = parts() if runtime.is_blocking else parts_later()
                assert (await client.post(url, content=content)).text == "done"

        runtime.run(scenario)


@pytest.mark.parametrize("length", [2, 1_000_000])
def test_the_head_and_the_body_of_a_prompt_are_sent_together(
    length: int, runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One packet for a short one: a second would wait for the acknowledgement of some servers."""
    sent: list[bytes] = []
    kind = sync_network.Network if runtime.is_blocking else async_network.AsyncNetwork
    send: Any = kind.send

    def record(network: Any, data: bytes, *limits: Any) -> Any:
        sent.append(data)
        return send(network, data, *limits)

    monkeypatch.setattr(kind, "send", record)
    prompt = "x" * length

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            assert (await client.chat(prompt)).text
        (request,) = sent
        assert request.startswith(b"POST /chat HTTP/1.1\r\n")
        assert prompt.encode() in request

    runtime.run(scenario)
    assert prompt.encode() in faults.requests[0].body


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
            faults.wait_until_closed()
            faults.clear().reply("Hello.")
            assert (await client.post(f"{faults.base_url}/chat", json=BODY)).text == "Hello."

    with without_cyclic_gc():
        runtime.run(scenario)


@contextlib.contextmanager
def without_cyclic_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_a_response_without_its_client_is_dropped_as_well(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """A connection that has delivered a response stays, whatever becomes of the response."""
    faults.reply("Hello.")

    async def scenario() -> None:
        async with open_client(httpx, runtime) as client:
            for _ in range(3):
                response = await client.post(f"{faults.base_url}/chat", json=BODY)
                assert pickle.loads(pickle.dumps(response)).text == response.text
                assert response.elapsed.total_seconds() > 0
            assert faults.connections == 1

    runtime.run(scenario)


def test_a_stream_that_outlives_its_response_can_be_closed(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(after="Hel")

    async def scenario() -> None:
        async with open_client(httpx, runtime) as client:
            response = await send(client, "POST", f"{faults.base_url}/chat", json=BODY)
            stream = response.stream
            del response
            stream.close() if runtime.is_blocking else await stream.aclose()
            faults.wait_until_closed()

    with without_cyclic_gc():
        runtime.run(scenario)


async def read(response: Any, runtime: Runtime) -> Any:
    return response.read() if runtime.is_blocking else await response.aread()


def test_a_host_that_is_no_name(library: Any, runtime: Runtime) -> None:
    async def scenario() -> None:
        async with open_client(library, runtime) as client:
            error = await outcome(client.get(f"http://{'x' * 64}.example"))
        assert type(error) is library.ConnectError
        # Of the codec "idna", in the words of the version of Python.
        assert "label" in str(error)

    runtime.run(scenario)


def hide_h11(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a version of httpcore whose parser cannot be reached."""
    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.connection.find_h11", lambda _: None)
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.is_h11_reachable", lambda: False)


@pytest.mark.parametrize("is_reachable", [True, False], ids=["h11", "httpcore alone"])
def test_a_body_that_has_been_read_to_its_end_is_empty(
    is_reachable: bool,
    library: Any,
    runtime: Runtime,
    faults: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults.reply("Hello.")
    if not is_reachable:
        hide_h11(monkeypatch)

    async def read_stream(response: Any) -> bytes:
        if runtime.is_blocking:
            return b"".join(response.stream)
        return b"".join([part async for part in response.stream])

    async def scenario() -> None:
        async with open_client(library, runtime) as client:
            response = await send(client, "POST", f"{faults.base_url}/chat", json=BODY)
            assert await read_stream(response) == b"Hello."
            assert await read_stream(response) == b""
            await close(response, runtime)

    runtime.run(scenario)


@pytest.mark.parametrize("is_reachable", [True, False], ids=["h11", "httpcore alone"])
def test_a_response_is_closed_while_another_task_or_thread_reads_it(
    is_reachable: bool,
    library: Any,
    runtime: Runtime,
    faults: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults.stall(after="Hel")
    if not is_reachable:
        hide_h11(monkeypatch)

    async def scenario() -> None:
        async with open_client(library, runtime, max_connections=1) as client:
            url = f"{faults.base_url}/chat"
            for _ in range(3):
                response = await send(client, "POST", url, json=BODY)

                async def read_it(response: Any = response) -> None:
                    error = await outcome(read(response, runtime))
                    assert type(error) is library.ReadError
                    assert "closed" in str(error)

                async def close_it(response: Any = response) -> None:
                    await wait_until_read(response, runtime)
                    await close(response, runtime)

                await runtime.together(read_it, close_it)
            faults.clear().reply("Hello.")
            # Their sockets have the numbers of those that were closed.
            for _ in range(3):
                assert (await client.post(url, json=BODY)).text == "Hello."

    runtime.run(scenario)
    faults.wait_until_closed()


def test_a_response_that_is_closed_before_a_read_has_begun_to_wait(
    library: Any, runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another task, at the checkpoint of the first read."""
    faults.raw(build_head(), end="keep")
    module: Any = sync_concurrency if runtime.is_blocking else async_concurrency
    checkpoint = module.checkpoint

    async def scenario() -> None:
        async with open_client(library, runtime) as client:
            response = await send(client, "POST", f"{faults.base_url}/chat", json=BODY)

            async def close_and_wait() -> None:
                await close(response, runtime)
                await checkpoint()

            monkeypatch.setattr(
                module, "checkpoint", response.close if runtime.is_blocking else close_and_wait
            )
            error = await outcome(read(response, runtime))
            assert type(error) is library.ReadError
            assert "closed" in str(error)

    runtime.run(scenario)
    faults.wait_until_closed()


def test_a_response_that_was_closed_between_two_reads(
    library: Any, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.drip("Hello.", forever=True)

    async def scenario() -> None:
        async with open_client(library, runtime) as client:
            response = await send(client, "POST", f"{faults.base_url}/chat", json=BODY)
            if runtime.is_blocking:
                chunks = response.iter_raw()
                next(chunks)
                response.close()
                with pytest.raises(library.ReadError, match=r"^it was closed before its end$"):
                    next(chunks)
            else:
                chunks = response.aiter_raw()
                await anext(chunks)
                await response.aclose()
                with pytest.raises(library.ReadError, match=r"^it was closed before its end$"):
                    await anext(chunks)

    runtime.run(scenario)


def test_closing_a_client_ends_a_read_of_a_body(
    library: Any, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(after="Hel")

    async def scenario() -> None:
        client = open_client(library, runtime)
        response = await send(client, "POST", f"{faults.base_url}/chat", json=BODY)

        async def read_it() -> None:
            error = await outcome(read(response, runtime))
            assert type(error) is library.ReadError, repr(error)

        async def close_it() -> None:
            await wait_until_read(response, runtime)
            await client.aclose()

        await runtime.together(read_it, close_it)

    runtime.run(scenario)
    faults.wait_until_closed()


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
            with pytest.raises(library.ReadError, match=r"^its client is closed$"):
                transport.handle_request(request)
        else:
            async_transport = AsyncTransport()
            await async_transport.aclose()
            with pytest.raises(library.ReadError, match=r"^its client is closed$"):
                await async_transport.handle_async_request(request)

    runtime.run(scenario)
    assert not faults.requests


def test_a_failed_handshake_is_a_connect_error(runtime: Runtime, library: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    build_authority().issue_cert("127.0.0.1").configure_cert(context)

    async def scenario(base_url: str) -> None:
        async with open_client(library, runtime) as client:
            with pytest.raises(library.ConnectError, match="certificate verify failed"):
                await client.get(base_url)

    with FaultyServer(ssl_context=context) as server:
        runtime.run(partial(scenario, server.base_url))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("cut", "ConnectError"), ("reset", "ConnectError"), ("stall", "ConnectTimeout")],
)
def test_a_handshake_that_breaks_off_is_a_connect_error(
    fault: str, kind: str, runtime: Runtime, library: Any
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    build_authority().issue_cert("127.0.0.1").configure_cert(context)

    async def scenario(base_url: str) -> None:
        timeout = library.Timeout(20, connect=0.2 if fault == "stall" else 20)
        async with open_client(library, runtime, timeout=timeout) as client:
            with pytest.raises(getattr(library, kind)):
                await client.get(base_url)

    with FaultyServer(ssl_context=context) as server:
        getattr(server, fault)(when="accept")
        runtime.run(partial(scenario, server.base_url))


def test_a_connection_is_reused_only_for_the_name_in_its_certificate(
    runtime: Runtime, library: Any
) -> None:
    authority = build_authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("host.test").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def scenario(url: str) -> None:
        async with open_client(library, runtime, verify=trusting) as client:
            for name in ("host.test", "other.test", "", "host.test"):
                options: Any = {"extensions": {"sni_hostname": name}, "json": BODY}
                if name == "host.test":
                    assert (await client.post(url, **options)).status_code == 200
                else:
                    with pytest.raises(library.ConnectError, match="certificate is not valid"):
                        await client.post(url, **options)

    with FaultyServer(ssl_context=context) as server:
        runtime.run(partial(scenario, server.base_url))
        assert server.connections == 3


def test_a_certificate_is_checked_for_a_name_of_idna_2008(runtime: Runtime, library: Any) -> None:
    authority = build_authority()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def scenario(url: str, owner: str) -> None:
        async with open_client(library, runtime, verify=trusting) as client:
            options: Any = {"extensions": {"sni_hostname": "straße.test"}, "json": BODY}
            if owner == "straße.test":
                assert (await client.post(url, **options)).status_code == 200
                return
            with pytest.raises(library.ConnectError, match=r"not valid for 'xn--strae-oqa\.test'"):
                await client.post(url, **options)
            with pytest.raises(ValueError, match="Invalid IDNA hostname"):
                await client.post(url, extensions={"sni_hostname": "\u2603.test"})

    # IDNA 2003 has one name for both.
    for owner in ("straße.test", "strasse.test"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(owner).configure_cert(context)
        with FaultyServer(ssl_context=context) as server:
            runtime.run(partial(scenario, server.base_url, owner))


def test_the_certificate_of_a_proxy_is_checked_for_its_own_name(
    runtime: Runtime, library: Any
) -> None:
    authority = build_authority()
    contexts = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2)]
    authority.issue_cert("127.0.0.1").configure_cert(contexts[0])
    authority.issue_cert("host.test").configure_cert(contexts[1])
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    options: Any = {"extensions": {"sni_hostname": "host.test"}, "json": BODY}

    async def scenario(url: str) -> None:
        with Proxy(context=contexts[0]) as right, Proxy(context=contexts[1]) as wrong:
            for proxy in (right, wrong):
                given = httpx.Proxy(f"https://127.0.0.1:{proxy.port}", ssl_context=trusting)
                async with open_client(library, runtime, proxy=given, verify=trusting) as client:
                    if proxy is right:
                        assert (await client.post(url, **options)).status_code == 200
                    else:
                        with pytest.raises(library.ConnectError, match="IP address mismatch"):
                            await client.post(url, **options)
            assert (len(right.seen), wrong.seen) == (1, [])

    with FaultyServer(ssl_context=contexts[0]) as server:
        runtime.run(partial(scenario, server.base_url))


@pytest.mark.parametrize(
    ("url", "target", "seen"),
    [
        ("http://h.test:81/x", b"/y", "GET http://h.test:81/y"),
        ("http://h.test:81/x", b"*", "GET *"),
        ("https://h.test:81/x", b"/y", "CONNECT h.test:81"),
        ("https://h.test:81/x", b"other.test:81", "CONNECT h.test:81"),
    ],
)
def test_a_target_is_not_the_target_of_a_request_to_a_proxy(
    url: str, target: bytes, seen: str, runtime: Runtime, library: Any
) -> None:
    async def scenario() -> None:
        with Proxy(answer=b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n") as proxy:
            address = f"http://127.0.0.1:{proxy.port}"
            async with open_client(library, runtime, proxy=address) as client:
                with contextlib.suppress(library.ProxyError):
                    await client.get(url, extensions={"target": target})
            assert proxy.seen == [seen]

    runtime.run(scenario)


def test_an_unknown_scheme_raises_an_error(runtime: Runtime, library: Any) -> None:
    async def scenario() -> None:
        async with open_client(library, runtime) as client:
            with pytest.raises(library.UnsupportedProtocol) as caught:
                await client.get("ftp://127.0.0.1/")
            assert str(caught.value) == "The URL begins with neither http:// nor https://."

    runtime.run(scenario)
