"""What httpx and httpx2 hand over becomes ours: errors, proxies, routes, requests, heads."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import sys
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import h11
import httpcore
import httpx
import httpx2
import pytest
import socksio

from cromicle_sdk import Client, CromicleError, Retry, Timeout
from cromicle_sdk._core.deadline import Limits
from cromicle_sdk._core.endpoint import Endpoint
from cromicle_sdk._core.errors import APIConnectionError, APITimeoutError, ConfigurationError
from cromicle_sdk._core.options import ConnectionOptions, Options
from cromicle_sdk._core.request import build_request
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk._http import translate as _httpx
from cromicle_sdk._http.sockets import ClosedByCaller, parse_address
from cromicle_sdk._http.translate import (
    HTTPX_VERSION,
    build_foreign_request,
    build_route,
    check_http_client,
    expect_body,
    foreign_head,
    strip_frames,
    translate_error,
)
from cromicle_sdk.testing import FaultyServer

CANARY = "sk-canary-123456"
URL = "https://server.test/chat"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXY_VARIABLES, "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def build_connection_options(proxy: object = None, verify: object = True) -> ConnectionOptions:
    return ConnectionOptions.build(
        max_connections=None, proxy=proxy, verify=verify, http_client=None
    )


def find_proxy(base_url: str, proxy: object = None) -> httpcore.Proxy | None:
    return build_route(Endpoint.parse("base_url", base_url), build_connection_options(proxy)).proxy


def show(proxy: httpcore.Proxy | None) -> str | None:
    if proxy is None:
        return None
    host = proxy.url.host.decode()
    return f"{proxy.url.scheme.decode()}://{f'[{host}]' if ':' in host else host}:{proxy.url.port}"


# Routes


def test_a_route() -> None:
    endpoint = Endpoint.parse("base_url", "https://h:8443/api")
    route = build_route(endpoint, build_connection_options())
    assert (route.endpoint, route.proxy, route.ssl_context) == (endpoint, None, None)
    assert route.origin == httpcore.Origin(b"https", b"h", 8443)
    assert bytes(route.url) == b"https://h:8443/api/chat"


def test_a_route_with_a_context_of_the_callers() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    endpoint = Endpoint.parse("base_url", "https://h")
    assert build_route(endpoint, build_connection_options(verify=context)).ssl_context is context


@pytest.mark.parametrize("verify", [False, None, 0, 1, "/etc/ca.pem", b"x", object])
def test_a_wrong_verify(verify: object) -> None:
    endpoint = Endpoint.parse("base_url", "https://h")
    with pytest.raises(ConfigurationError, match=r"^verify: expected True or an ssl.SSLContext"):
        build_route(endpoint, build_connection_options(verify=verify))


@pytest.mark.parametrize("host", ["fe80::1%eth0", "fe80::1%25eth0", "fe80::1%3"])
def test_a_link_local_address_can_be_connected_to_or_is_a_name_to_resolve(host: str) -> None:
    for family, address in parse_address(host, 80):
        assert family == socket.AF_INET6
        assert ipaddress.ip_address(address[0])


# Proxies


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ("http://p", "http://p:80"),
        ("http://p:3128", "http://p:3128"),
        ("https://p", "https://p:443"),
        ("https://p:8443/", "https://p:8443"),
        ("socks5://p", "socks5://p:1080"),
        ("socks5h://p:9050", "socks5h://p:9050"),
        ("HTTP://P.Example:1", "http://p.example:1"),
        ("http://[::1]:3128", "http://[::1]:3128"),
        ("http://b\u00fccher.example:1", "http://xn--bcher-kva.example:1"),
        ("http://user:hunter2@p:1", "http://p:1"),
        (httpx.URL("http://p:1"), "http://p:1"),
        (httpx.Proxy("http://p:1"), "http://p:1"),
    ],
)
def test_the_option_proxy(proxy: object, shown: str) -> None:
    assert show(find_proxy("http://h", proxy)) == shown
    assert show(find_proxy("https://127.0.0.1", proxy)) == shown


def test_what_a_proxy_carries() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    proxy = find_proxy(
        "http://h", httpx.Proxy("https://p", headers={"X-Key": "v"}, ssl_context=context)
    )
    assert proxy is not None
    assert proxy.headers == [(b"X-Key", b"v")]
    assert proxy.ssl_context is context
    assert proxy.auth is None
    for given in (
        "http://user:p%40ss@p",
        httpx.URL("http://user:p%40ss@p"),
        httpx.Proxy("http://p", auth=("user", "p@ss")),
    ):
        proxy = find_proxy("http://h", given)
        assert proxy is not None
        assert proxy.auth == (b"user", b"p@ss")


@pytest.mark.parametrize(
    "proxy",
    [
        *("", "p", "p:3128", "//p", "ftp://p", "http://", "http://:80", "socks4://p", "://"),
        *("http://user:hunter2@", "http://user:hunter2@p:x", "http://user:hunter2@[p"),
        *("http://user:hunter2/x@p", "ftp://user:hunter2@p", "http://user:hunter2@p\n"),
        *("http://\ud800", "http://user:hunter2@p\0", "file:///hunter2", "http://p:-1"),
    ],
    ids=ascii,
)
def test_a_wrong_proxy(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_proxy("http://h", proxy)
    assert str(caught.value).startswith("proxy: not a proxy URL; expected http://HOST:PORT")
    assert "hunter2" not in str(caught.value)
    if "://" in proxy and "\0" not in proxy and proxy.isascii():
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(ConfigurationError) as caught:
            find_proxy("http://h")
        assert str(caught.value).startswith("$http_proxy: not a proxy URL")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_proxy_port_that_no_socket_has(port: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^proxy: "):
        find_proxy("http://h", f"http://p:{port}")


@pytest.mark.parametrize("proxy", [5, b"http://p", ["http://p"], {"all://": "http://p"}, True])
def test_a_proxy_of_the_wrong_type(proxy: object) -> None:
    kind = type(proxy).__name__
    with pytest.raises(ConfigurationError, match=rf"^proxy: expected a URL .*, not {kind}$"):
        find_proxy("http://h", proxy)


def test_socks_takes_no_longer_names() -> None:
    assert find_proxy("http://h", f"socks5://{'u' * 255}:p@p") is not None
    for userinfo in ("u" * 256 + ":p", "u:" + "p" * 256):
        with pytest.raises(ConfigurationError, match="255 bytes") as caught:
            find_proxy("http://h", f"socks5://{userinfo}@p")
        assert "uuu" not in str(caught.value)


def test_socks_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_httpx, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"^proxy: .*cromicle-sdk\[socks\]"):
        find_proxy("http://h", "socks5://p")
    assert show(find_proxy("http://h", "http://p:1")) == "http://p:1"


@pytest.mark.parametrize(
    ("variables", "base_url", "shown"),
    [
        ({}, "http://h", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://h", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "http://h", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, "https://h", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://h", "http://p:1"),
        ({"ALL_PROXY": "socks5://p:1"}, "https://h", "socks5://p:1"),
        ({"all_proxy": "http://p:1", "http_proxy": "http://q:1"}, "http://h", "http://q:1"),
        ({"HTTP_PROXY": "p:1"}, "http://h", "http://p:1"),
        ({"HTTP_PROXY": ""}, "http://h", None),
        # curl's guard against a header named Proxy
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://h", None),
        # never for this machine
        *(
            ({"ALL_PROXY": "http://p:1"}, url, None)
            for url in (
                *("http://localhost:8000", "https://localhost", "http://a.localhost"),
                *("http://127.0.0.1:8000", "http://127.8.8.8", "http://[::1]:8000"),
                *("http://[::ffff:127.0.0.1]", "http://localhost.:8000"),
            )
        ),
        ({"ALL_PROXY": "not a proxy"}, "http://127.0.0.1", None),
        # exceptions
        *(
            ({"ALL_PROXY": "http://p:1", "NO_PROXY": rule}, url, shown)
            for rule, url, shown in (
                ("*", "http://h", None),
                ("h", "http://h", None),
                ("h", "http://h:8000/x", None),
                ("h:8000", "http://h:8000", None),
                ("h:8000", "http://h:8001", "http://p:1"),
                ("example.com", "http://a.example.com", None),
                (".example.com", "https://a.example.com", None),
                ("a.com, b.com,,", "http://b.com", None),
                ("b.com", "http://ab.com", "http://p:1"),
                ("10.0.0.1", "http://10.0.0.1:5", None),
                ("[::1]", "http://h", "http://p:1"),
                ("[2001:db8::1]", "http://[2001:db8::1]:80", None),
                ("2001:db8::1", "http://[2001:db8::1]:8000", None),
                ("(", "http://h", "http://p:1"),
                ("://[", "http://h", "http://p:1"),
                (",", "http://h", "http://p:1"),
            )
        ),
    ],
)
def test_the_environments_proxy(
    variables: dict[str, str], base_url: str, shown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert show(find_proxy(base_url)) == shown


def test_an_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "no proxy at all")
    monkeypatch.setenv("NO_PROXY", "*")
    assert show(find_proxy("http://h", "http://p:1")) == "http://p:1"


# Clients of the user's


@pytest.fixture(scope="module", params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_http_client(library: Any) -> None:
    with library.Client(transport=library.MockTransport(lambda request: None)) as client:
        check_http_client(client, "Client")
        with pytest.raises(ConfigurationError) as caught:
            check_http_client(client, "AsyncClient")
    assert str(caught.value) == (
        "http_client: expected an httpx.AsyncClient or an httpx2.AsyncClient, "
        f"not {type(client).__module__}.Client"
    )


@pytest.mark.parametrize("client", ["x", 5, object(), httpx.Client, httpx])
def test_a_wrong_http_client(client: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^http_client: expected an httpx\.Client or"):
        check_http_client(client, "Client")


def test_httpx2_is_looked_for_only_where_it_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "httpx2")
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        check_http_client(client, "Client")
    with (
        httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200))) as client2,
        pytest.raises(ConfigurationError),
    ):
        check_http_client(client2, "Client")
    assert "httpx2" not in sys.modules


def build_limits(**limits: float | None) -> Limits:
    return Limits(Timeout(**{"connect": 1, "first_byte": 2, "stall": 3, "total": 100, **limits}))


def our_request(base_url: str = "http://user:pw@h:8000/api", **headers: str) -> Any:
    options = Options.build(
        base_url=base_url,
        token=Secret(CANARY),
        timeout=None,
        retry=Retry(),
        max_reply_bytes=5,
        strict=True,
        headers=headers,
    )
    return build_request("Hi", options, httpx_version=HTTPX_VERSION)


@pytest.fixture
def client(library: Any) -> Iterator[Any]:
    def answer(request: Any) -> Any:
        return library.Response(201, headers=[("X-One", "1"), ("x-one", "2")], content=b"x")

    with library.Client(
        transport=library.MockTransport(answer),
        headers={"x-default": "d", "user-agent": "theirs"},
        cookies={"session": "s"},
        base_url="http://other/prefix",
    ) as client:
        yield client


def test_a_request_of_their_client(client: Any) -> None:
    ours = our_request(**{"x-own": "o"})
    theirs = build_foreign_request(client, ours, build_limits())
    assert theirs.method == "POST"
    assert str(theirs.url) == "http://h:8000/api/chat"
    assert theirs.read() == ours.body
    for name, value in ours.headers:
        assert theirs.headers.get_list(name.decode()) == [value.decode()]
    assert theirs.headers["x-default"] == "d"
    assert "cookie" not in theirs.headers
    with_cookie = build_foreign_request(client, our_request(cookie="mine=1"), build_limits())
    assert with_cookie.headers.get_list("cookie") == ["mine=1"]


@pytest.mark.parametrize(
    ("limits", "waits", "read_later"),
    [
        ({}, {"connect": 1, "read": 2, "write": 2, "pool": 100}, 3),
        (
            {"total": None},
            {"connect": 1, "read": 2, "write": 2, "pool": None},
            3,
        ),
        (
            {"connect": None, "first_byte": None, "stall": None},
            {"connect": 100, "read": 100, "write": 100, "pool": 100},
            100,
        ),
        (
            {"connect": None, "first_byte": None, "stall": None, "total": None},
            {"connect": None, "read": None, "write": None, "pool": None},
            None,
        ),
        ({"total": 0.0001}, dict.fromkeys(("connect", "read", "write", "pool"), 0.001), 0.001),
    ],
)
def test_its_waits(
    limits: dict[str, float | None],
    waits: dict[str, float | None],
    read_later: float | None,
    client: Any,
) -> None:
    made = build_limits(**limits)
    theirs = build_foreign_request(client, our_request(), made)
    given = theirs.extensions["timeout"]
    assert given == pytest.approx(waits, abs=0.1 if limits.get("total", 1) == 1 else 1e-3)
    expect_body(SimpleNamespace(request=theirs), made)
    later = theirs.extensions["timeout"]["read"]
    assert later == (read_later if read_later is None else pytest.approx(read_later, abs=0.1))


@pytest.mark.parametrize("total", [1e10, 1e300, None])
def test_its_waits_can_be_waited_for(total: float | None, client: Any) -> None:
    limits = build_limits(connect=1e10, first_byte=1e300, stall=1e300, total=total)
    theirs = build_foreign_request(client, our_request(), limits)
    expect_body(SimpleNamespace(request=theirs), limits)
    with socket.socket() as sock:
        for wait in theirs.extensions["timeout"].values():
            sock.settimeout(wait)


def test_the_head_of_their_answer(client: Any) -> None:
    response = client.send(build_foreign_request(client, our_request(), build_limits()))
    head = foreign_head(response)
    assert head.status_code == 201
    assert head.headers[:2] == [(b"X-One", b"1"), (b"x-one", b"2")]
    assert head.http_version == b"HTTP/1.1"
    response.extensions["http_version"] = b"HTTP/2"
    assert foreign_head(response).http_version == b"HTTP/2"


# Errors


def translate(error: Exception, limits: Limits | None = None) -> APIConnectionError | None:
    return translate_error(error, url=URL, limits=limits or build_limits())


def verification_error(text: str | None = "self-signed certificate") -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] failed")
    if text is not None:
        error.verify_message = text
    return error


def caused(error: Exception, cause: Exception, *, by: str = "__cause__") -> Exception:
    setattr(error, by, cause)
    return error


NETWORK_ERRORS: list[Exception] = [
    ConnectionRefusedError(111, "Connection refused"),
    ConnectionResetError(),
    BrokenPipeError("broken"),
    socket.gaierror(-2, "Name or service not known"),
    OSError("the host has no address"),
    ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"),
    ssl.SSLEOFError(8, "EOF occurred"),
    *(
        getattr(module, name)("it broke")
        for module in (httpcore, httpx, httpx2)
        for name in (
            *("ConnectError", "ReadError", "WriteError"),
            *("RemoteProtocolError", "LocalProtocolError", "UnsupportedProtocol"),
        )
    ),
    httpcore.ConnectionNotAvailable("it broke"),
    *(
        getattr(module, name)("it broke")
        for module in (httpx, httpx2)
        for name in ("CloseError", "DecodingError", "TooManyRedirects", "InvalidURL")
    ),
    httpx.StreamConsumed(),
    httpx2.StreamClosed(),
]


@pytest.mark.parametrize("error", NETWORK_ERRORS, ids=lambda e: f"{type(e).__module__}.{e!r}")
def test_errors_of_the_network(error: Exception) -> None:
    made = translate(error)
    assert type(made) is APIConnectionError
    detail = made.detail
    assert detail
    came = "No sound answer" if "ProtocolError" in type(error).__name__ else "No answer"
    assert str(made) == (
        f"{came} came from {URL}: {detail}. Check that the server runs and that base_url is right."
    )
    assert not made.is_final


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (httpx.ReadError("it broke. "), "it broke"),
        (httpx.ReadError(""), "ReadError"),
        (caused(httpx.ReadError(""), ConnectionResetError(104, "Reset by peer")), "Reset by peer"),
        (
            caused(httpx.ReadError(""), KeyError("the caller's"), by="__context__"),
            "ReadError",
        ),
        (caused(httpx.ReadError(""), ConnectionResetError()), "ReadError"),
    ],
)
def test_detail(error: Exception, detail: str) -> None:
    made = translate(error)
    assert made is not None
    assert made.detail == detail


@pytest.mark.parametrize(
    "error",
    [
        verification_error(),
        caused(httpcore.ConnectError("x"), verification_error()),
        caused(httpx.ConnectError(""), caused(httpcore.ConnectError("x"), verification_error())),
        caused(httpx2.ConnectError(""), verification_error()),
    ],
)
def test_a_certificate_that_does_not_verify(error: Exception) -> None:
    made = translate(error)
    assert type(made) is APIConnectionError
    assert str(made) == (
        f"The certificate of {URL} can't be trusted: self-signed certificate. "
        "For a private certificate authority, pass verify=ssl_context."
    )
    assert made.is_final


def test_a_certificate_error_that_python_code_raised() -> None:
    # OpenSSL's has the attribute; one that a subclass of SSLContext raises may not.
    made = translate(verification_error(None))
    assert made is not None
    assert made.is_final


@pytest.mark.parametrize(
    "error",
    [
        UnicodeError("label too long"),
        caused(httpcore.ConnectError("x"), UnicodeError("label too long")),
    ],
)
def test_a_host_that_is_no_name(error: Exception) -> None:
    made = translate(error)
    assert type(made) is APIConnectionError
    assert str(made) == (
        f"The host of {URL} can't be a name in DNS: label too long. Check base_url."
    )
    assert made.is_final


@pytest.mark.parametrize(
    "error",
    [
        *(httpcore.ProxyError("407 no"), httpx.ProxyError("407 no"), httpx2.ProxyError("407 no")),
        socksio.ProtocolError("407 no"),
    ],
    ids=repr,
)
def test_a_proxy_that_failed(error: Exception) -> None:
    made = translate(error)
    assert type(made) is APIConnectionError
    assert str(made) == (
        f"The proxy on the way to {URL} failed: 407 no. "
        "Check the option proxy, or the proxy variables of the environment."
    )
    assert not made.is_final


def test_closed_by_the_caller() -> None:
    made = translate(ClosedByCaller("its client is closed"))
    assert type(made) is APIConnectionError
    assert str(made) == f"The call to {URL} can't go on: its client is closed."
    assert made.detail == "its client is closed"
    assert made.is_final


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError("x"), RuntimeError("x"), AssertionError(), ArithmeticError()],
    ids=repr,
)
def test_a_defect_is_none_of_ours(error: Exception) -> None:
    assert translate(error) is None


def test_without_socksio_there_is_none_of_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "socksio")
    assert translate(ValueError("x")) is None


@pytest.mark.parametrize(
    ("error", "waits_for", "total", "phase"),
    [
        (TimeoutError(), "pool", 100, "pool"),
        (TimeoutError(), "connect", 100, "connect"),
        (TimeoutError(), "first_byte", 100, "first_byte"),
        (TimeoutError(), "stall", 100, "stall"),
        (TimeoutError(), "stall", 1e-9, "total"),
        (TimeoutError(), "pool", 1e-9, "pool"),
        *(
            (getattr(module, name)("x"), "first_byte", 100, phase)
            for module in (httpcore, httpx, httpx2)
            for name, phase in (
                ("ConnectTimeout", "connect"),
                ("ReadTimeout", "first_byte"),
                ("WriteTimeout", "first_byte"),
                ("PoolTimeout", "pool"),
            )
        ),
        (httpx.ConnectTimeout("x"), "first_byte", 1e-9, "total"),
        (httpx.PoolTimeout("x"), "first_byte", 1e-9, "total"),
    ],
)
def test_timeouts(error: Exception, waits_for: Any, total: float, phase: str) -> None:
    limits = build_limits(total=total)
    limits.enter(waits_for)
    made = translate(error, limits)
    assert type(made) is APITimeoutError
    assert made.phase == phase
    assert URL in str(made)
    assert made.option == f"timeout.{phase}"
    assert str(made).count(".") >= 3
    assert "{" not in str(made)


# What the program was doing when it called


def handle(mine: Exception, error: Exception) -> Exception:
    """An error of the network while the caller handles one of its own."""
    try:
        raise mine
    except type(mine):
        try:
            raise error
        except type(error) as raised:
            return raised


@pytest.mark.parametrize(
    "mine",
    [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "mine"), verification_error("mine")],
    ids=["UnicodeError", "certificate"],
)
def test_an_error_that_the_caller_is_handling_is_not_the_cause(mine: Exception) -> None:
    """A call in an `except` block: its errors have the caller's for their context."""
    error: CromicleError | None = None
    try:
        raise mine
    except type(mine):
        with (
            Client(base_url=closed_port(), retry=Retry(attempts=1)) as client,
            pytest.raises(APIConnectionError) as caught,
        ):
            client.chat("x")
        error = caught.value
    assert "mine" not in str(error)
    assert not caught.value.is_final


def test_the_callers_own_error_keeps_its_frames() -> None:
    """An error of the caller's is no business of ours."""
    with Client(base_url=closed_port(), retry=Retry(attempts=1)) as client:
        frames = None
        try:
            raise KeyError("mine")
        except KeyError as mine:
            with pytest.raises(APIConnectionError):
                client.chat("x")
            frames = mine.__traceback__
        assert frames is not None


def closed_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def raise_through(token: str) -> None:
    """A chain of three, each from a frame that holds the token."""
    try:
        try:
            raise OSError("lowest")
        except OSError as lowest:
            raise httpcore.ConnectError("lower") from lowest
    except httpcore.ConnectError as lower:
        request = httpx.Request("POST", URL, content=token.encode())
        raise httpx.ConnectError("upper", request=request) from lower


def test_strip_frames() -> None:
    with pytest.raises(httpx.ConnectError) as caught:
        raise_through(CANARY)
    error = caught.value
    assert strip_frames(error) is error
    assert error.__traceback__ is None
    with pytest.raises(RuntimeError):
        error.request  # noqa: B018
    assert error.__context__ is None
    below = error.__cause__
    assert isinstance(below, httpcore.ConnectError)
    assert below.__traceback__ is None
    assert isinstance(below.__cause__, OSError)
    assert below.__cause__.__traceback__ is None
    assert [str(e) for e in (error, below, below.__cause__)] == ["upper", "lower", "lowest"]


def test_strip_frames_of_a_ring() -> None:
    one, other = OSError("one"), OSError("other")
    one.__cause__, other.__context__ = other, one
    assert strip_frames(one) is one
    made = translate(caused(OSError(""), caused(OSError(""), one)))
    assert made is not None
    assert made.detail == "one"


def h11_error(line: bytes) -> h11.RemoteProtocolError:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(line)
    with pytest.raises(h11.RemoteProtocolError) as caught:
        connection.next_event()
    return caught.value


@pytest.mark.parametrize("filler", [0, 100, *range(135, 160, 4), 1000])
@pytest.mark.parametrize("own", [True, False], ids=["own", "http_client"])
def test_an_echo_in_broken_framing_is_nowhere(filler: int, own: bool, faults: FaultyServer) -> None:
    """What h11 quotes of the answer is in no message and in no cause."""
    line = b"no colon %s%s" % (b"y" * filler, CANARY.encode())
    faults.raw(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % line, end="close")
    with (
        httpx.Client() as http_client,
        Client(
            base_url=faults.base_url,
            token=CANARY,
            retry=Retry(attempts=1),
            http_client=None if own else http_client,
        ) as client,
        pytest.raises(APIConnectionError) as caught,
    ):
        client.chat("x")
    assert CANARY[:8] not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nno colon %s\r\n\r\n", b"no status %s\r\n\r\n"]
)
def test_a_detail_is_short_and_safe_to_print(answer: bytes) -> None:
    """h11 quotes the line that it could not read, however long it is."""
    error = h11_error(answer % (b"y" * 15_000))
    made = translate(httpcore.RemoteProtocolError(error))
    assert made is not None
    assert str(made).isprintable()
    assert len(str(made)) < 1000


def test_the_version() -> None:
    assert httpx.__version__ == HTTPX_VERSION


def test_no_error_of_anyio_is_missed() -> None:
    for kind in (anyio.ClosedResourceError, anyio.BrokenResourceError):
        error: Callable[..., Exception] = kind
        assert translate(caused(httpcore.ReadError(""), error())) is not None
