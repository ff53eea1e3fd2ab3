"""Requests of pages in a browser: hosts, origins and preflights, over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from signatures import build_request, sign
from starlette.applications import Starlette
from starlette.routing import Mount

from cromicle_sdk import ConfigurationError
from cromicle_sdk.server import LocalServer, create_app

PATIENCE = 20.0


@contextlib.contextmanager
def run_on_all_interfaces(**options: Any) -> Iterator[LocalServer]:
    with LocalServer(app=create_app(token="mine", **options), host="0.0.0.0") as server:
        yield server


def ask(
    server: LocalServer, host: str | None, *, origin: str | None = None, token: str = "abc"
) -> int:
    """The status of the answer to a request for this host."""
    headers = b"" if origin is None else b"origin: %s\r\n" % origin.encode()
    request = build_request(sign("hi", token), headers=headers, host=(host or "").encode())
    if host is None:
        request = request.replace(b" HTTP/1.1\r\nhost: \r\n", b" HTTP/1.0\r\n")
    url = httpx.URL(server.base_url)
    with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
        connection.sendall(request)
        return int(connection.recv(65536).split()[1])


class TestHosts:
    @pytest.mark.parametrize(
        "host",
        [
            *("localhost", "LOCALHOST:80", "localhost.:8000", "api.localhost", "127.0.0.1"),
            *("127.0.0.1:8000", "127.9.9.9", "[::1]", "[::1]:8000", "[::ffff:127.0.0.1]", ""),
        ],
    )
    def test_a_loopback_server_accepts_loopback_hosts(self, host: str, echo: LocalServer) -> None:
        assert ask(echo, host) == 200

    @pytest.mark.parametrize(
        "host",
        [
            *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil"),
            *("notlocalhost", "0.0.0.0", "192.0.2.1", "[::]", "[2001:db8::1]:80", "[::1.evil"),
            *(
                "." * 10_000,
                "x" * 10_000,
                ".",
                "::1",
                "[::1",
                "[::1]evil.example",
                "localhost:evil",
            ),
            *("localhost:80@evil.example", "[::1]:80@evil.example", "localhost,evil.example"),
        ],
    )
    def test_a_loopback_server_rejects_any_other_host(self, host: str, echo: LocalServer) -> None:
        assert ask(echo, host) == 403

    def test_a_health_check_without_a_host_is_accepted(self, echo: LocalServer) -> None:
        # A prompt in HTTP/1.0 is rejected for another reason.
        assert ask(echo, None) == 505

    @pytest.mark.parametrize("path", ["/health", "/metrics", "/openapi.json", "/chat", "/nowhere"])
    def test_every_path_is_protected(self, path: str, echo: LocalServer) -> None:
        answer = httpx.get(echo.base_url + path, headers={"host": "evil.example"})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "wrong_host"
        assert "--allowed-host" in answer.json()["error"]["message"]
        assert answer.headers["x-request-id"]
        assert answer.headers["x-content-type-options"] == "nosniff"

    def test_an_absolute_url_has_the_host(self, echo: LocalServer) -> None:
        url = httpx.URL(echo.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            connection.sendall(
                b"GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\n\r\n"
            )
            assert connection.recv(65536).startswith(b"HTTP/1.1 403 ")

    def test_an_absolute_url_without_a_host_is_no_path(self, echo: LocalServer) -> None:
        url = httpx.URL(echo.base_url)
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            connection.sendall(b"GET http:///health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")

    @pytest.mark.parametrize(
        ("allowed", "host", "status"),
        [
            (["chat.example"], "chat.example", 200),
            (["chat.example"], "CHAT.example.:443", 200),
            (["Chat.Example."], "chat.example", 200),
            (["chat.example"], "localhost", 200),
            (["chat.example"], "a.chat.example", 403),
            (["chat.example"], "evil.example", 403),
            (["*.example"], "a.b.example", 200),
            (["*.example"], "example", 403),
            (["*.example"], "notexample", 403),
            (["*"], "evil.example", 200),
            (["192.0.2.1"], "192.0.2.1:80", 200),
            (["[2001:db8::1]"], "[2001:db8::1]:80", 200),
            (["2001:db8::1"], "[2001:db8::1]", 200),
        ],
    )
    def test_allowed_hosts_are_accepted_as_well(
        self, allowed: list[str], host: str, status: int
    ) -> None:
        with LocalServer(app=create_app(allowed_hosts=allowed)) as server:
            assert ask(server, host) == status

    @pytest.mark.parametrize(
        ("options", "host", "status"),
        [
            ({}, "chat.example", 200),
            ({"allowed_hosts": ["chat.example"]}, "chat.example", 200),
            ({"allowed_hosts": ["chat.example"]}, "localhost", 200),
            ({"allowed_hosts": ["chat.example"]}, "evil.example", 403),
        ],
    )
    def test_on_all_interfaces_only_allowed_hosts_are_checked(
        self, options: dict[str, Any], host: str, status: int
    ) -> None:
        with run_on_all_interfaces(**options) as server:
            assert ask(server, host, token="mine") == status

    def test_a_mounted_app_is_protected(self) -> None:
        outer = Starlette(routes=[Mount("/x", create_app())])
        with LocalServer(app=outer) as server:
            answer = httpx.get(server.base_url + "/x/health", headers={"host": "evil.example"})
            assert answer.status_code == 403
            assert httpx.get(server.base_url + "/x/health").is_success


class TestOrigins:
    @pytest.mark.parametrize(
        ("origin", "status"),
        [
            (None, 200),
            ("http://localhost:8000", 200),
            ("https://LOCALHOST:8000", 200),
            ("http://localhost", 403),
            ("http://localhost:3000", 403),
            ("http://evil.example", 403),
            ("http://localhost:8000.evil.example", 403),
            ("ftp://localhost:8000", 403),
            ("null", 403),
            ("", 403),
            ("localhost:8000", 403),
        ],
    )
    def test_a_page_of_another_origin_is_rejected(
        self, origin: str | None, status: int, echo: LocalServer
    ) -> None:
        assert ask(echo, "localhost:8000", origin=origin) == status

    @pytest.mark.parametrize(
        ("host", "origin", "status"),
        [
            ("chat.example", "https://chat.example", 200),
            ("chat.example:443", "https://chat.example", 200),
            ("chat.example", "https://chat.example:443", 200),
            ("chat.example:8443", "https://chat.example:8443", 200),
            ("chat.example", "https://evil.example", 403),
        ],
    )
    def test_on_all_interfaces_as_well(self, host: str, origin: str, status: int) -> None:
        with run_on_all_interfaces() as server:
            assert ask(server, host, origin=origin, token="mine") == status

    def test_every_origin_counts(self, echo: LocalServer) -> None:
        both = "http://localhost\r\norigin: http://evil.example"
        assert ask(echo, "localhost", origin=both) == 403

    def test_a_rejected_page_gets_no_permission_to_read(self, echo: LocalServer) -> None:
        headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        for method in ("OPTIONS", "GET"):
            answer = httpx.request(method, echo.base_url + "/chat", headers=headers)
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "wrong_origin"
            assert not [name for name in answer.headers if name.startswith("access-control")]

    @pytest.mark.parametrize(
        ("allowed", "origin"),
        [
            (["https://app.example"], "https://app.example"),
            (["http://localhost:3000", "https://App.example:443"], "https://app.example"),
            (["chrome-extension://abcdef"], "chrome-extension://abcdef"),
            (["*"], "https://app.example"),
            (["*"], "null"),
        ],
    )
    def test_the_browser_of_an_allowed_page_may_read(self, allowed: list[str], origin: str) -> None:
        with LocalServer(app=create_app(allow_origins=allowed)) as server:
            preflight = httpx.options(
                server.base_url + "/chat",
                headers={
                    "origin": origin,
                    "access-control-request-method": "POST",
                    "access-control-request-headers": "content-type",
                },
            )
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] in (origin, "*")
            assert "POST" in preflight.headers["access-control-allow-methods"]
            assert "content-type" in preflight.headers["access-control-allow-headers"].lower()
            for fields, status in ((sign("hi"), 200), (sign("hi", "wrong"), 401)):
                answer = httpx.post(
                    server.base_url + "/chat", json=fields, headers={"origin": origin}
                )
                assert answer.status_code == status
                assert answer.headers["access-control-allow-origin"] in (origin, "*")
                assert "retry-after" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers

    @pytest.mark.parametrize(("origin", "status"), [("https://app.example", 200), ("null", 403)])
    def test_an_allowed_page_of_the_internet_may_use_a_loopback_server(
        self, origin: str, status: int
    ) -> None:
        headers = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
            "access-control-request-private-network": "true",
        }
        with LocalServer(app=create_app(allow_origins=["https://app.example"])) as server:
            preflight = httpx.options(server.base_url + "/chat", headers=headers)
            assert preflight.status_code == status
            permission = preflight.headers.get("access-control-allow-private-network")
            assert permission == ("true" if status == 200 else None)

    def test_other_pages_and_hosts_stay_rejected(self) -> None:
        with LocalServer(app=create_app(allow_origins=["https://app.example"])) as server:
            assert ask(server, "localhost", origin="https://app.example") == 200
            assert ask(server, "localhost", origin="http://app.example") == 403
            assert ask(server, "localhost", origin="https://evil.example") == 403
            assert ask(server, "evil.example", origin="https://app.example") == 403


class TestOtherServers:
    """Under another ASGI server, only what the options name is checked."""

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name

    @pytest.mark.anyio
    @pytest.mark.parametrize(
        ("options", "headers", "status"),
        [
            ({}, {"host": "evil.example", "origin": "https://other.example"}, 200),
            ({"allowed_hosts": ["chat.example"]}, {"host": "evil.example"}, 403),
            ({"allowed_hosts": ["chat.example"]}, {"origin": "https://other.example"}, 200),
            ({"allow_origins": ["https://a.example"]}, {"origin": "https://b.example"}, 403),
            ({"allow_origins": ["https://a.example"]}, {"host": "evil.example"}, 200),
        ],
    )
    async def test_a_request(
        self, options: dict[str, Any], headers: dict[str, str], status: int
    ) -> None:
        transport = httpx.ASGITransport(create_app(**options))
        async with httpx.AsyncClient(transport=transport, base_url="http://chat.example") as client:
            assert (await client.get("/health", headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("allowed_hosts", "chat.example", "expected an iterable of str, not str"),
        ("allowed_hosts", 5, "expected an iterable of str, not int"),
        ("allowed_hosts", [b"chat.example"], "expected a host .*, not bytes"),
        ("allowed_hosts", ["http://chat.example"], "not 'http://chat.example'"),
        ("allowed_hosts", ["chat.example:80"], "not 'chat.example:80'"),
        ("allowed_hosts", ["chat.example", ""], "not ''"),
        ("allowed_hosts", ["*chat.example"], r"not '\*chat.example'"),
        ("allowed_hosts", ["a b"], "not 'a b'"),
        ("allowed_hosts", ["chat.example\n"], r"not 'chat.example\\n'"),
        ("allow_origins", "https://app.example", "expected an iterable of str, not str"),
        ("allow_origins", ["app.example"], "not 'app.example'"),
        ("allow_origins", ["https://app.example/"], "without a path"),
        ("allow_origins", ["https://user@app.example"], "expected scheme://host"),
        ("allow_origins", ["null"], "not 'null'"),
        ("allow_origins", [None], "not NoneType"),
    ],
)
def test_an_invalid_option_is_rejected_by_name(option: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}: .*{problem}"):
        create_app(**{option: value})


@pytest.mark.parametrize("mount", ["", "/x"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chat%0a"),
        ("POST", "/chat%0A"),
        ("POST", "/chat%0d%0a"),
        ("POST", "/chat%00"),
        ("POST", "/chat%20"),
        ("POST", "//chat"),
        ("POST", "/chat;x"),
        ("GET", "/metrics%0a"),
        ("GET", "/health%0a"),
        ("GET", "/openapi.json%0a"),
    ],
)
def test_a_path_is_exactly_one_of_ours(method: str, path: str, mount: str) -> None:
    app = Starlette(routes=[Mount(mount, create_app())]) if mount else create_app()
    with LocalServer(app=app) as server:
        url = httpx.URL(server.base_url)
        body = json.dumps(sign("hi")).encode()
        with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE) as connection:
            connection.sendall(
                f"{method} {mount}{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
