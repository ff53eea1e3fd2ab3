"""TLS, proxies, names, and connections over their life: the same on every runtime."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import httpx2
import pytest
from certificates import build_authority
from plain_clients import RawServer
from proxies import Proxy
from runtimes import ASYNC_RUNTIMES, Runtime, outcome

from cromicle_sdk import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    Client,
    CromicleError,
    IncompleteReplyError,
    Reply,
    Retry,
    Timeout,
)
from cromicle_sdk._async import concurrency as async_concurrency
from cromicle_sdk._async import network as async_network
from cromicle_sdk._http import proxies, sockets
from cromicle_sdk._sync import concurrency as sync_concurrency
from cromicle_sdk._sync import network as sync_network
from cromicle_sdk.testing import Connection, FaultyServer, RecordedRequest, build_head

if TYPE_CHECKING:
    import trustme

QUICK = Retry(attempts=2, first_delay=0)
ONCE = Retry(attempts=1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return build_authority()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "::1", "localhost").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def tls(server_context: ssl.SSLContext) -> Iterator[FaultyServer]:
    with FaultyServer(ssl_context=server_context) as server:
        yield server


@contextlib.contextmanager
def serve_records(context: ssl.SSLContext, answers: list[bytes]) -> Iterator[str]:
    """A server that sends these to each request, a TLS record each, in one segment."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(sock: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)

        def run(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    data = sock.recv(65536)
                    if not data:
                        raise EOFError from None
                    incoming.write(data)

        with sock, contextlib.suppress(OSError, EOFError):
            run(tls.do_handshake)
            sock.sendall(outgoing.read())
            request = b""
            while True:
                request += run(lambda: tls.read(65536))
                if request.endswith(b"}"):
                    request = b""
                    for answer in answers:
                        tls.write(answer)
                    sock.sendall(outgoing.read())

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        # Closing alone does not wake who accepts.
        listener.shutdown(socket.SHUT_RDWR)


def url_of(proxy: Proxy, scheme: str = "http", userinfo: str = "") -> str:
    return f"{scheme}://{userinfo}127.0.0.1:{proxy.port}"


class TestTLS:
    def test_a_trusted_certificate(
        self, runtime: Runtime, tls: FaultyServer, trusting: ssl.SSLContext
    ) -> None:
        long = "wörld " * 50_000

        async def scenario() -> None:
            async with runtime.client(base_url=tls.base_url, verify=trusting) as client:
                tls.reply(chunks=["Hello, ", long])
                assert (await client.chat(long)).text == "Hello, " + long
                assert (await client.chat("again")).text == "Hello, " + long
                assert tls.connections == 1
                tls.clear().cut(after="Hel")
                error = await outcome(client.chat("Hi", retry=ONCE))
                assert isinstance(error, IncompleteReplyError)
                assert error.partial_text == "Hel"
                tls.clear().reset()
                assert isinstance(await outcome(client.chat("Hi", retry=ONCE)), APIConnectionError)
                tls.clear().stall()
                error = await outcome(client.chat("Hi", timeout=Timeout(total=0.3)))
                assert error.phase == "total"

        runtime.run(scenario)

    def test_a_second_response_in_the_same_segment_is_discarded(
        self, runtime: Runtime, server_context: ssl.SSLContext, trusting: ssl.SSLContext
    ) -> None:
        """The first read takes both records from the socket, and returns the first."""
        answers = [build_head(length=len(text)) + text for text in (b"right", b"somebody else's")]

        async def scenario(base_url: str) -> None:
            async with runtime.client(base_url=base_url, verify=trusting, retry=ONCE) as client:
                for _ in range(3):
                    assert (await client.chat("Hi")).text == "right"

        with serve_records(server_context, answers) as base_url:
            runtime.run(lambda: scenario(base_url))

    def test_an_unknown_authority_is_reported_and_not_retried(
        self, runtime: Runtime, tls: FaultyServer
    ) -> None:
        async def scenario() -> None:
            async with runtime.client(base_url=tls.base_url, retry=QUICK) as client:
                error = await outcome(client.chat("Hi"))
            assert isinstance(error, APIConnectionError)
            assert "certificate" in str(error)
            assert "verify=" in str(error)
            assert (error.attempts, error.is_final, tls.connections) == (1, True, 1)

        runtime.run(scenario)

    def test_a_certificate_of_another_host_is_rejected(
        self, runtime: Runtime, authority: trustme.CA, trusting: ssl.SSLContext
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("other.example").configure_cert(context)

        async def scenario() -> None:
            with FaultyServer(ssl_context=context) as server:
                async with runtime.client(
                    base_url=server.base_url, verify=trusting, retry=QUICK
                ) as client:
                    error = await outcome(client.chat("Hi"))
                assert isinstance(error, APIConnectionError)
                assert "certificate is not valid for '127.0.0.1'" in str(error)
                assert (error.attempts, server.requests) == (1, [])

        runtime.run(scenario)

    def test_the_server_is_told_which_host_is_meant(
        self, runtime: Runtime, authority: trustme.CA, trusting: ssl.SSLContext
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        names: list[str | None] = []

        def note(sock: object, name: str | None, context: object) -> None:
            names.append(name)

        context.sni_callback = note

        async def scenario() -> None:
            with FaultyServer(ssl_context=context) as server:
                url = server.base_url.replace("127.0.0.1", "localhost")
                async with runtime.client(base_url=url, verify=trusting) as client:
                    assert (await client.chat("Hi")).text
            assert names == ["localhost"]

        runtime.run(scenario)

    def test_a_server_that_speaks_no_tls(self, runtime: Runtime, faults: FaultyServer) -> None:
        faults.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n", end="close", when="accept")

        async def scenario() -> None:
            url = faults.base_url.replace("http:", "https:")
            async with runtime.client(base_url=url, retry=QUICK) as client:
                error = await outcome(client.chat("Hi", timeout=Timeout(connect=5)))
            assert type(error) is APIConnectionError
            assert "use http://" in str(error)
            assert (error.attempts, error.option, faults.connections) == (1, "base_url", 1)

        runtime.run(scenario)

    @pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
    def test_a_server_that_asks_for_a_client_certificate(
        self, version: str, runtime: Runtime, authority: trustme.CA, trusting: ssl.SSLContext
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = ssl.TLSVersion[version]

        async def scenario() -> None:
            with FaultyServer(ssl_context=context) as server:
                async with runtime.client(
                    base_url=server.base_url, verify=trusting, retry=QUICK
                ) as client:
                    error = await outcome(client.chat("Hi"))
                assert type(error) is APIConnectionError
                assert "client certificate" in str(error)
                assert (error.attempts, error.option, server.connections) == (1, "verify", 1)
                authority.issue_cert("client@example.com").configure_cert(trusting)
                async with runtime.client(base_url=server.base_url, verify=trusting) as client:
                    assert (await client.chat("Hi")).text

        runtime.run(scenario)

    @pytest.mark.parametrize("what", ["version", "cipher"])
    def test_a_server_with_no_version_or_cipher_in_common(
        self, what: str, runtime: Runtime, authority: trustme.CA, trusting: ssl.SSLContext
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        if what == "version":
            trusting.minimum_version = ssl.TLSVersion.TLSv1_3
        else:
            context.set_ciphers("ECDHE+AES256")
            trusting.maximum_version = ssl.TLSVersion.TLSv1_2
            trusting.set_ciphers("ECDHE+CHACHA20")

        async def scenario() -> None:
            with FaultyServer(ssl_context=context) as server:
                async with runtime.client(
                    base_url=server.base_url, verify=trusting, retry=QUICK
                ) as client:
                    error = await outcome(client.chat("Hi"))
                assert type(error) is APIConnectionError
                assert "no protocol version and cipher in common" in str(error)
                assert (error.attempts, error.option, server.connections) == (1, "verify", 1)

        runtime.run(scenario)

    def test_a_handshake_that_stalls(self, runtime: Runtime, tls: FaultyServer) -> None:
        tls.stall(when="accept")

        async def scenario() -> None:
            async with runtime.client(base_url=tls.base_url, retry=ONCE) as client:
                error = await outcome(client.chat("Hi", timeout=Timeout(connect=0.2)))
            assert isinstance(error, APITimeoutError)
            assert error.phase == "connect"

        runtime.run(scenario)

    def test_one_context_serves_all_clients(self) -> None:
        assert proxies.default_ssl_context() is proxies.default_ssl_context()


class TestProxies:
    def test_http_is_forwarded(self, runtime: Runtime, faults: FaultyServer) -> None:
        async def scenario() -> None:
            with Proxy() as proxy:
                url = url_of(proxy, userinfo="user:pass%20word@")
                async with runtime.client(base_url=faults.base_url, proxy=url) as client:
                    for _ in range(2):
                        assert (await client.chat("Hi")).text
                assert proxy.seen[0] == f"POST {faults.base_url}/chat"
                assert "Basic dXNlcjpwYXNzIHdvcmQ=" in proxy.heads[0]

        runtime.run(scenario)

    @pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
    def test_https_is_tunnelled(
        self,
        scheme: str,
        runtime: Runtime,
        tls: FaultyServer,
        trusting: ssl.SSLContext,
        server_context: ssl.SSLContext,
    ) -> None:
        async def scenario() -> None:
            with Proxy(context=server_context if scheme == "https" else None) as proxy:
                given: Any = url_of(proxy, scheme)
                if scheme == "https":
                    given = httpx.Proxy(given, ssl_context=trusting)
                client = runtime.client(base_url=tls.base_url, proxy=given, verify=trusting)
                async with client:
                    for _ in range(2):
                        assert (await client.chat("Hi")).text
                target = tls.base_url.removeprefix("https://")
                assert proxy.seen == [f"{'SOCKS5' if scheme == 'socks5' else 'CONNECT'} {target}"]
                assert tls.connections == 1

        runtime.run(scenario)

    @pytest.mark.parametrize("fault", ["cut", "reset"])
    def test_a_handshake_in_a_tunnel_that_breaks_off_is_not_of_the_proxy(
        self, fault: str, runtime: Runtime, tls: FaultyServer, trusting: ssl.SSLContext
    ) -> None:
        getattr(tls, fault)(when="accept")

        async def scenario() -> None:
            with Proxy() as proxy:
                client = runtime.client(
                    base_url=tls.base_url, proxy=url_of(proxy), verify=trusting, retry=ONCE
                )
                async with client:
                    error = await outcome(client.chat("Hi"))
                assert type(error) is APIConnectionError
                assert error.option == "base_url"

        runtime.run(scenario)

    @pytest.mark.parametrize("scheme", ["http", "socks5"])
    def test_a_certificate_behind_a_proxy_that_cannot_be_verified(
        self, scheme: str, runtime: Runtime, tls: FaultyServer
    ) -> None:
        async def scenario() -> None:
            with Proxy() as proxy:
                client = runtime.client(base_url=tls.base_url, proxy=url_of(proxy, scheme))
                async with client:
                    error = await outcome(client.chat("Hi"))
                assert type(error) is APIConnectionError
                assert f"The certificate of {tls.base_url}/chat cannot be verified" in str(error)
                assert (error.option, error.attempts) == ("verify", 1)

        runtime.run(scenario)

    def test_the_certificate_of_a_proxy_that_cannot_be_verified(
        self, runtime: Runtime, tls: FaultyServer, server_context: ssl.SSLContext
    ) -> None:
        async def scenario() -> None:
            with Proxy(context=server_context) as proxy:
                client = runtime.client(
                    base_url=tls.base_url, proxy=url_of(proxy, "https"), retry=ONCE
                )
                async with client:
                    error = await outcome(client.chat("Hi"))
                assert type(error) is APIConnectionError
                assert "The proxy on the way to" in str(error)
                assert "certificate verify failed" in str(error)
                assert error.option == "proxy"

        runtime.run(scenario)

    def test_no_descriptor_is_left_for_a_proxy(
        self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(address: object) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        for module in (async_network, sync_network):
            monkeypatch.setattr(module, "start_connect", refuse)

        async def scenario() -> None:
            client = runtime.client(base_url="http://h", proxy="http://127.0.0.1:1", retry=ONCE)
            async with client:
                error = await outcome(client.chat("Hi"))
            assert type(error) is APIConnectionError
            assert error.option == "max_connections"

        runtime.run(scenario)

    def test_socks_with_a_password(self, runtime: Runtime, faults: FaultyServer) -> None:
        async def scenario() -> None:
            with Proxy() as proxy:
                url = url_of(proxy, "socks5", "user:secret@")
                async with runtime.client(base_url=faults.base_url, proxy=url) as client:
                    assert (await client.chat("Hi")).text
                assert proxy.heads == ["user:secret"]

        runtime.run(scenario)

    @pytest.mark.parametrize("port", [80, 8080])
    @pytest.mark.parametrize("host", ["h.example", "[2001:db8::1]"])
    def test_the_target_of_a_forwarded_request(
        self, host: str, port: int, runtime: Runtime
    ) -> None:
        async def scenario() -> None:
            with Proxy(answer=b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") as proxy:
                url = f"http://{host}:{port}"
                async with runtime.client(base_url=url, proxy=url_of(proxy)) as client:
                    assert (await client.chat("Hi")).text == "ok"
                # httpx and curl leave the default port out as well.
                assert proxy.seen == [f"POST {url.removesuffix(':80')}/chat"]

        runtime.run(scenario)

    def test_an_ipv6_address_is_tunnelled(
        self, runtime: Runtime, tls: FaultyServer, trusting: ssl.SSLContext
    ) -> None:
        async def scenario() -> None:
            with Proxy(hosts={"[::1]": "127.0.0.1"}) as proxy:
                url = tls.base_url.replace("127.0.0.1", "[::1]")
                async with runtime.client(
                    base_url=url, proxy=url_of(proxy), verify=trusting
                ) as client:
                    for _ in range(2):
                        assert (await client.chat("Hi")).text
                assert proxy.seen == [f"CONNECT {url.removeprefix('https://')}"]
                assert tls.connections == 1

        runtime.run(scenario)

    @pytest.mark.parametrize("status", [403, 407])
    def test_a_rejection_is_not_retried(
        self, status: int, runtime: Runtime, tls: FaultyServer, faults: FaultyServer
    ) -> None:
        async def scenario() -> None:
            answer = b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status
            with Proxy(answer=answer) as proxy:
                for server, kind in ((tls, APIConnectionError), (faults, APIStatusError)):
                    async with runtime.client(
                        base_url=server.base_url, proxy=url_of(proxy), retry=QUICK
                    ) as client:
                        error = await outcome(client.chat("Hi"))
                    assert isinstance(error, kind)
                    assert str(status) in str(error)
                    assert error.attempts == 1
                assert len(proxy.seen) == 2

        runtime.run(scenario)

    # httpcore's own connection does not close its socket where a SOCKS5 proxy refuses.
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("library", [None, httpx, httpx2], ids=["default", "httpx", "httpx2"])
    @pytest.mark.parametrize(
        ("scheme", "answer", "attempts"),
        [
            ("http", b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n", 1),
            ("http", b"HTTP/1.1 403 Ohne\r\ncontent-length: 0\r\n\r\n", 1),
            ("http", b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", 2),
            # RFC 1928: no method in common, a rule of the proxy's, a host that is down.
            ("socks5", b"\x05\xff", 1),
            ("socks5", b"\x05\x00\x05\x02\x00\x01\0\0\0\0\0\0", 1),
            ("socks5", b"\x05\x00\x05\x04\x00\x01\0\0\0\0\0\0", 2),
            # RFC 1929: the password is wrong.
            ("socks5", b"\x05\x02\x01\x01", 1),
        ],
    )
    def test_what_a_proxy_refuses_is_final_over_any_client(
        self,
        scheme: str,
        answer: bytes,
        attempts: int,
        library: Any,
        runtime: Runtime,
        tls: FaultyServer,
    ) -> None:
        """The steps of SOCKS5 are known by their English text alone: this fails where it moves."""

        async def scenario() -> None:
            # The steps of SOCKS5 are one packet each.
            size = 2 if scheme == "socks5" else len(answer)
            with Proxy(answer=answer[:size], then=answer[size:]) as proxy:
                userinfo = "user:secret@" if answer.startswith(b"\x05\x02") else ""
                url = url_of(proxy, scheme, userinfo)
                own: Any = None
                options: dict[str, Any] = {"proxy": url}
                if library is not None:
                    kind = library.Client if runtime.is_blocking else library.AsyncClient
                    own = kind(proxy=url)
                    options = {"http_client": own}
                async with runtime.client(base_url=tls.base_url, retry=QUICK, **options) as client:
                    error = await outcome(client.chat("Hi"))
                assert type(error) is APIConnectionError
                assert "The proxy on the way" in str(error)
                assert (error.attempts, error.is_final) == (attempts, attempts == 1)
                if own is not None:
                    own.close() if runtime.is_blocking else await own.aclose()

        runtime.run(scenario)
        gc.collect()

    def test_a_failure_of_a_proxy_is_retried(self, runtime: Runtime, tls: FaultyServer) -> None:
        async def scenario() -> None:
            with Proxy(answer=b"HTTP/1.1 502 No\r\ncontent-length: 0\r\n\r\n") as proxy:
                async with runtime.client(
                    base_url=tls.base_url, proxy=url_of(proxy), retry=QUICK
                ) as client:
                    error = await outcome(client.chat("Hi"))
                assert type(error) is APIConnectionError
                assert error.attempts == 2

        runtime.run(scenario)

    @pytest.mark.parametrize(
        ("scheme", "answer"),
        [
            ("http", b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"),
            ("socks5", b"\x05\xff"),
            ("socks5", b"\x05\x00\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"),
            ("socks5", b"BANANA"),
        ],
    )
    def test_a_proxy_that_refuses(
        self, scheme: str, answer: bytes, runtime: Runtime, tls: FaultyServer
    ) -> None:
        async def scenario() -> None:
            with Proxy(answer=answer) as proxy:
                url = url_of(proxy, scheme, "user:canary@" if scheme == "http" else "")
                async with runtime.client(base_url=tls.base_url, proxy=url, retry=ONCE) as client:
                    error = await outcome(client.chat("Hi"))
            assert type(error) is APIConnectionError
            assert "proxy" in str(error)
            assert "canary" not in str(error)

        runtime.run(scenario)

    @pytest.mark.parametrize("scheme", ["http", "socks5"])
    def test_a_proxy_that_does_not_run(
        self, scheme: str, runtime: Runtime, faults: FaultyServer, tls: FaultyServer
    ) -> None:
        faults.stop()
        url = faults.base_url.replace("http", scheme)

        async def scenario() -> None:
            async with runtime.client(base_url=tls.base_url, proxy=url, retry=QUICK) as client:
                error = await outcome(client.chat("Hi"))
            assert type(error) is APIConnectionError
            assert str(error).startswith(f"The proxy on the way to {tls.base_url}/chat is unreach")
            assert (error.option, error.attempts) == ("proxy", 2)

        runtime.run(scenario)

    def test_a_proxy_that_stalls(self, runtime: Runtime, tls: FaultyServer) -> None:
        async def scenario() -> None:
            with FaultyServer() as proxy:
                proxy.stall()
                async with runtime.client(
                    base_url=tls.base_url, proxy=proxy.base_url, retry=ONCE
                ) as client:
                    error = await outcome(client.chat("Hi", timeout=Timeout(connect=0.2)))
            assert error.phase == "connect"

        runtime.run(scenario)

    def test_the_environments_proxy_is_used(
        self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scenario() -> None:
            with Proxy(answer=b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n") as proxy:
                monkeypatch.setenv("HTTP_PROXY", url_of(proxy))
                async with runtime.client(base_url="http://example.invalid") as client:
                    error = await outcome(client.chat("Hi"))
            assert error.status_code == 403

        runtime.run(scenario)


class TestNames:
    @pytest.mark.parametrize(
        ("host", "final"),
        [("a..b", True), ("x" * 64 + ".example", True), ("nothing.invalid", False)],
    )
    def test_a_host_that_is_not_there(self, host: str, final: bool, runtime: Runtime) -> None:
        async def scenario() -> None:
            async with runtime.client(base_url=f"http://{host}", retry=QUICK) as client:
                error = await outcome(client.chat("Hi"))
            assert type(error) is APIConnectionError
            assert error.is_final is final

        runtime.run(scenario)

    def test_localhost_is_looked_up(self, runtime: Runtime, faults: FaultyServer) -> None:
        async def scenario() -> None:
            url = faults.base_url.replace("127.0.0.1", "localhost")
            async with runtime.client(base_url=url) as client:
                assert (await client.chat("Hi")).text

        runtime.run(scenario)

    def test_a_resolver_that_hangs(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        hang = threading.Event()

        def getaddrinfo(*args: Any, **options: Any) -> Any:
            hang.wait(20)
            raise socket.gaierror("too late")

        async def never(*args: Any, **options: Any) -> Any:
            await anyio.sleep_forever()

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(anyio, "getaddrinfo", never)

        async def scenario() -> None:
            async with runtime.client(base_url="http://hangs.invalid", retry=ONCE) as client:
                error = await outcome(client.chat("Hi", timeout=Timeout(connect=0.2)))
            hang.set()
            assert error.phase == "connect"

        runtime.run(scenario)

    def test_the_next_address_is_tried(
        self, runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = int(faults.base_url.rpartition(":")[2])

        def getaddrinfo(*args: Any, **options: Any) -> Any:
            dead, live = ("127.0.0.2", port), ("127.0.0.1", port)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", sock) for sock in (dead, live)]

        async def async_getaddrinfo(*args: Any, **options: Any) -> Any:
            return getaddrinfo()

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(anyio, "getaddrinfo", async_getaddrinfo)

        async def scenario() -> None:
            async with runtime.client(base_url=f"http://two.invalid:{port}") as client:
                assert (await client.chat("Hi")).text

        runtime.run(scenario)

    def test_ipv6(self, runtime: Runtime) -> None:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
            port = listener.getsockname()[1]

            def serve() -> None:
                sock, _ = listener.accept()
                with sock:
                    sock.recv(65536)
                    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nv6")

            threading.Thread(target=serve, daemon=True).start()

            async def scenario() -> None:
                async with runtime.client(base_url=f"http://[::1]:{port}") as client:
                    assert (await client.chat("Hi")).text == "v6"

            runtime.run(scenario)


class TestConnecting:
    def test_refused(self, runtime: Runtime, faults: FaultyServer) -> None:
        faults.stop()

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url, retry=QUICK) as client:
                error = await outcome(client.chat("Hi"))
            assert type(error) is APIConnectionError
            assert error.attempts == 2
            assert "refused" in str(error).lower()
            assert type(error.__cause__) is httpx.ConnectError
            # Its frames hold the request.
            assert error.__cause__.__traceback__ is None

        runtime.run(scenario)

    @pytest.mark.parametrize("phase", ["connect", "total"])
    def test_a_black_hole(self, phase: str, runtime: Runtime, faults: FaultyServer) -> None:
        faults.black_hole()
        limits = {"connect": 0.2} if phase == "connect" else {"connect": None, "total": 0.3}

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
                error = await outcome(client.chat("Hi", timeout=Timeout(**limits)))
            assert isinstance(error, APITimeoutError)
            assert error.phase == phase

        runtime.run(scenario)


class TestUploading:
    def test_a_rejection_before_the_body_is_read(
        self, runtime: Runtime, faults: FaultyServer
    ) -> None:
        faults.fail(413, when="head")

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
                error = await outcome(client.chat("x" * 10_000_000))
            assert isinstance(error, CromicleError)
            if not isinstance(error, APIConnectionError):
                assert isinstance(error, APIStatusError)
                assert error.status_code == 413

        runtime.run(scenario)

    def test_a_request_body_that_the_server_does_not_read(
        self, runtime: Runtime, faults: FaultyServer
    ) -> None:
        faults.stall(when="head")

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
                text = "x" * 20_000_000
                error = await outcome(client.chat(text, timeout=Timeout(first_byte=0.3)))
            assert error.phase == "first_byte"

        runtime.run(scenario)


INTERIM = b"HTTP/1.1 100 \r\n\r\n"


class TestInterimResponses:
    """Responses of 1xx before the one that counts (RFC 9110, 15.2)."""

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_other_tasks_run_while_many_arrive(
        self,
        scheme: str,
        runtime: Runtime,
        faults: FaultyServer,
        tls: FaultyServer,
        trusting: ssl.SSLContext,
    ) -> None:
        server = tls if scheme == "https" else faults
        count = 60_000
        server.raw(INTERIM * count + build_head(length=2) + b"ok")
        iterations = 0

        async def count_iterations() -> None:
            nonlocal iterations
            while True:
                await anyio.sleep(0)
                iterations += 1

        async def scenario() -> None:
            async with runtime.client(
                base_url=server.base_url, verify=trusting, retry=ONCE
            ) as client:
                if runtime.is_blocking:
                    assert (await client.chat("Hi")).text == "ok"
                    return
                async with anyio.create_task_group() as group:
                    group.start_soon(count_iterations)
                    assert (await client.chat("Hi")).text == "ok"
                    group.cancel_scope.cancel()
            # Some 250 of them are parsed at a time.
            assert iterations > count / 500

        runtime.run(scenario)

    @pytest.mark.parametrize("phase", ["first_byte", "total"])
    def test_a_limit_ends_a_call_that_gets_nothing_else(
        self, phase: str, runtime: Runtime, faults: FaultyServer
    ) -> None:
        def flood(connection: Connection, request: RecordedRequest) -> None:
            while True:
                connection.send(INTERIM * 4000)

        faults.script(flood)

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
                error = await outcome(client.chat("Hi", timeout=Timeout(**{phase: 0.3})))
            assert isinstance(error, APITimeoutError)
            assert error.phase == phase

        runtime.run(scenario)

    def test_a_second_response_in_the_record_of_the_first_is_discarded(
        self, runtime: Runtime, server_context: ssl.SSLContext, trusting: ssl.SSLContext
    ) -> None:
        """The answer fills the read of a head; the rest of the record stays in the TLS layer."""
        right = b"x" * (sockets.HEAD_BYTES - len(build_head(length=4000)))
        first = build_head(length=len(right)) + right
        assert len(first) == sockets.HEAD_BYTES
        other = build_head(length=5) + b"wrong"

        async def scenario(base_url: str) -> None:
            async with runtime.client(base_url=base_url, verify=trusting, retry=ONCE) as client:
                for _ in range(3):
                    assert (await client.chat("Hi")).text == right.decode()

        with serve_records(server_context, [first + other]) as base_url:
            runtime.run(lambda: scenario(base_url))


class TestIdleConnections:
    def test_one_that_the_server_closed_is_not_used(
        self, runtime: Runtime, faults: FaultyServer
    ) -> None:
        faults.close_idle()

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
                for count in (1, 2, 3):
                    assert (await client.chat("Hi")).attempts == 1
                    faults.wait_until_closed()
                    assert faults.connections == count

        runtime.run(scenario)

    @pytest.mark.parametrize("end", ["close", "reset"])
    def test_one_that_closes_as_the_request_arrives(
        self, end: Any, runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # On a busy machine, it may close later than a race takes.
        monkeypatch.setattr(sockets, "_RACE_SECONDS", 20)
        faults.reply("one").raw(b"", end=end).reply("two")

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
                assert (await client.chat("Hi")).text == "one"
                reply = await client.chat("Hi")
            assert (reply.text, reply.attempts, faults.connections) == ("two", 1, 2)

        runtime.run(scenario)

    def test_one_that_is_reset_in_the_middle_of_the_request_is_a_failed_attempt(
        self, runtime: Runtime
    ) -> None:
        """The server may have processed the part that it has acknowledged."""

        def serve(connection: Connection) -> None:
            connection.read_until(b"}")
            connection.send(build_head(length=2) + b"ok")
            connection.read_until(b"{")
            # Longer than a close and a request take to pass each other on the network. A pause of
            # the connection would read on.
            time.sleep(1)
            connection.reset()

        async def scenario(url: str) -> None:
            base_url = url.removesuffix("/chat")
            async with runtime.client(base_url=base_url, retry=ONCE, timeout=20) as client:
                assert (await client.chat("Hi")).text == "ok"
                # More than the kernel buffers for a peer that does not read.
                error = await outcome(client.chat("x" * 20_000_000))
            assert type(error) is APIConnectionError
            assert error.attempts == 1

        with RawServer(serve) as url:
            runtime.run(lambda: scenario(url))

    def test_one_that_dies_after_a_first_byte_is_a_failed_attempt(
        self, runtime: Runtime, faults: FaultyServer
    ) -> None:
        faults.reply("one").raw(b"H", end="close").reply("two")

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url, retry=QUICK) as client:
                assert (await client.chat("Hi")).text == "one"
                assert (await client.chat("Hi")).attempts == 2

        runtime.run(scenario)

    def test_one_on_which_more_arrived_later_is_not_used(
        self, runtime: Runtime, faults: FaultyServer
    ) -> None:
        gate = threading.Event()
        good = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none"
        faults.raw([good, good.replace(b"one", b"bad")], gate=gate).reply("two")

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url) as client:
                assert (await client.chat("Hi")).text == "one"
                gate.set()
                pool = getattr(client, "inner", client)._session._http_client._transport._pool
                pools = pool._process_pools if runtime.is_blocking else pool._loop_pools
                ((idle,),) = [inner._idle for inner in pools.values()]
                until = time.monotonic() + 20
                while idle.is_reusable:
                    assert time.monotonic() < until, "the second answer has not arrived"
                    time.sleep(0.001)
                assert (await client.chat("Hi")).text == "two"
                assert faults.connections == 2

        runtime.run(scenario)

    def test_the_old_ones_are_swept(
        self, runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url) as client:
                await runtime.together(*[lambda: client.chat("Hi")] * 8)
                monkeypatch.setattr("cromicle_sdk._async.connection.IDLE_SECONDS", -1.0)
                monkeypatch.setattr("cromicle_sdk._sync.connection.IDLE_SECONDS", -1.0)
                await client.chat("Hi")
                faults.wait_until_closed()

        runtime.run(scenario)

    def test_a_client_that_was_not_closed_leaves_none(
        self, runtime: Runtime, faults: FaultyServer
    ) -> None:
        async def scenario() -> None:
            client = runtime.client(base_url=faults.base_url)
            await client.chat("Hi")
            view = client.with_options(timeout=5)
            del client
            await view.chat("Hi")
            assert faults.connections == 1
            del view
            gc.collect()
            faults.wait_until_closed()

        runtime.run(scenario)


class TestClosing:
    @pytest.mark.parametrize("after", [None, "", "Hello"])
    @pytest.mark.parametrize("what", ["client", "stream"])
    def test_close_wakes_a_reader(
        self, what: str, after: str | None, runtime: Runtime, faults: FaultyServer
    ) -> None:
        faults.stall(after=after)
        reading = threading.Event()

        async def scenario() -> None:
            client = runtime.client(base_url=faults.base_url)
            stream = client.stream("Hi")

            async def reader() -> None:
                reading.set()
                error = await outcome(stream.read())
                assert isinstance(error, CromicleError), error
                assert "closed" in str(error)
                assert error.partial_text == (after or "")
                assert error.attempts <= 1

            async def closer() -> None:
                await runtime.wait(reading)
                faults.wait_for_requests(1) if runtime.is_blocking else None
                if not runtime.is_blocking:
                    await anyio.to_thread.run_sync(faults.wait_for_requests, 1)
                    while after and stream.text != after:
                        await anyio.sleep(0.01)
                while after and stream.text != after:
                    time.sleep(0.01)
                await (client if what == "client" else stream).aclose()

            await runtime.together(reader, closer)
            faults.wait_until_closed()
            await client.aclose()

        runtime.run(scenario)

    @pytest.mark.parametrize("what", ["slot", "retry", "connect"])
    def test_close_wakes_every_other_wait(
        self, what: str, runtime: Runtime, faults: FaultyServer
    ) -> None:
        if what == "retry":
            faults.fail(503, retry_after=50)
        elif what == "slot":
            faults.stall()
        else:
            faults.black_hole()
        waiting = threading.Event()

        async def scenario() -> None:
            options = {"timeout": Timeout(connect=50), "max_connections": 1}
            client = runtime.client(base_url=faults.base_url, **options)

            async def reader() -> None:
                waiting.set()
                error = await outcome(client.chat("Hi"))
                assert isinstance(error, CromicleError)
                assert "closed" in str(error)

            async def closer() -> None:
                await runtime.wait(waiting)
                if runtime.is_blocking:
                    time.sleep(0.2)
                else:
                    await anyio.sleep(0.2)
                await client.aclose()

            await runtime.together(*[reader] * (2 if what == "slot" else 1), closer)

        began = time.monotonic()
        runtime.run(scenario)
        assert time.monotonic() - began < 20


class TestElsewhere:
    @pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
    def test_a_second_event_loop_opens_new_connections(
        self, runtime: Runtime, faults: FaultyServer
    ) -> None:
        client = AsyncClient(base_url=faults.base_url)

        async def scenario() -> None:
            for _ in range(2):
                assert (await client.chat("Hi")).text

        for count in (1, 2, 3):
            runtime.run(scenario)
            assert faults.connections == count
        anyio.run(client.aclose)
        faults.wait_until_closed()

    def test_two_event_loops_at_the_same_time(self, faults: FaultyServer) -> None:
        client = AsyncClient(base_url=faults.base_url)

        async def scenario() -> None:
            for _ in range(20):
                assert (await client.chat("Hi")).text == "Hello from the faulty server."

        threads = [threading.Thread(target=anyio.run, args=(scenario,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    def test_after_a_fork_the_child_opens_new_connections(self, faults: FaultyServer) -> None:
        faults.reply("parent").drip("x", forever=True)
        client = Client(base_url=faults.base_url, retry=ONCE)
        assert client.chat("Hi").text == "parent"
        stream = client.stream("stream")
        next(stream)
        faults.clear().reply("fresh")
        # The tests' own threads are alive, which is what newer Pythons warn about.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            code = 1
            try:
                with pytest.raises(IncompleteReplyError, match="forked"):
                    while True:
                        next(stream)
                code = 0 if client.chat("Hi").text == "fresh" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert next(stream).strip("x") == ""
        stream.close()
        assert client.chat("Hi").text == "fresh"
        client.close()

    def test_closing_in_the_child_leaves_the_parents_stream_alone(
        self, faults: FaultyServer
    ) -> None:
        gate = threading.Event()
        faults.reply(chunks=["one ", "two"], gate=gate)
        with Client(base_url=faults.base_url, retry=ONCE) as client:
            stream = client.stream("Hi")
            assert next(stream) == "one "
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                client.close()
                os._exit(0)
            os.waitpid(child, 0)
            gate.set()
            assert stream.read().text == "one two"


class TestClosedWhileItWaits:
    """`close` reaches a call wherever it is; the limits here are far longer than the test."""

    def test_for_a_slot(self, runtime: Runtime, faults: FaultyServer) -> None:
        faults.stall(after="Hello")

        async def scenario() -> None:
            async with runtime.client(base_url=faults.base_url, max_connections=1) as client:
                async with client.stream("first"):
                    await close_while_it_waits(runtime, client.stream("second"))

        runtime.run(scenario)

    def test_for_the_resolver(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        answered = threading.Event()

        def resolve(*args: Any, **options: Any) -> Any:
            # trio first asks in its own thread whether it is an address.
            flags = args[5] if len(args) > 5 else options.get("flags", 0)
            if not flags & socket.AI_NUMERICHOST:
                answered.wait(60)
            raise socket.gaierror(socket.EAI_NONAME, "no such host")

        monkeypatch.setattr(socket, "getaddrinfo", resolve)

        async def scenario() -> None:
            try:
                limits = Timeout(connect=50)
                async with runtime.client(base_url="http://h.invalid", timeout=limits) as client:
                    await close_while_it_waits(runtime, client.stream("Hi"))
            finally:
                answered.set()

        runtime.run(scenario)


async def close_while_it_waits(runtime: Runtime, stream: Any) -> None:
    inner: Any = getattr(stream, "inner", stream)

    async def read() -> None:
        started = time.monotonic()
        error = await outcome(stream.read())
        assert "closed" in str(error)
        assert time.monotonic() - started < 20

    async def close() -> None:
        while inner._attempt is None:
            time.sleep(0.01) if runtime.is_blocking else await anyio.sleep(0.01)
        if not runtime.is_blocking:
            await anyio.wait_all_tasks_blocked()
        await stream.aclose()

    await runtime.together(read, close)


def test_an_address_family_that_the_kernel_lacks_is_skipped(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(faults.base_url.rpartition(":")[2])
    found = [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]
    make = socket.socket

    def make_without_ipv6(family: int = -1, *args: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return make(family, *args, **options)

    async def resolve(*args: Any) -> Any:
        return found

    monkeypatch.setattr(async_concurrency, "resolve", resolve)
    monkeypatch.setattr(sync_concurrency, "resolve", lambda *args: found)

    async def scenario() -> None:
        async with runtime.client(base_url=f"http://h.example:{port}") as client:
            with monkeypatch.context() as patch:
                patch.setattr(socket, "socket", make_without_ipv6)
                assert (await client.chat("Hi")).text

    runtime.run(scenario)


class TestInterrupted:
    def test_ctrl_c_leaves_nothing(
        self, faults: FaultyServer, interrupt: Callable[[], None]
    ) -> None:
        faults.stall(after="Hello")
        client = Client(base_url=faults.base_url)

        def interrupt_reading() -> None:
            faults.wait_for_requests(1)
            interrupt()

        threading.Thread(target=interrupt_reading, daemon=True).start()
        with pytest.raises(KeyboardInterrupt) as caught:
            client.chat("Hi")
        assert not any("httpcore" in str(entry.path) for entry in caught.traceback)
        faults.wait_until_closed()
        faults.clear()
        assert isinstance(client.chat("Hi"), Reply)
        client.close()
