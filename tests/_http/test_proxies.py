"""How a host is reached: the option, the environment, TLS."""

from __future__ import annotations

import errno
import ssl
from pathlib import Path

import httpcore
import httpx
import pytest

from cromicle_sdk._core.endpoint import Endpoint
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._http import proxies
from cromicle_sdk._http.proxies import Route

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXY_VARIABLES, "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def find_route(base_url: str, proxy: object = None, verify: object = True) -> Route:
    return Route.find(Endpoint.parse("base_url", base_url), proxy=proxy, verify=verify)


def find_proxy(base_url: str, proxy: object = None) -> httpcore.Proxy | None:
    return find_route(base_url, proxy).proxy


def show(proxy: httpcore.Proxy | None) -> str | None:
    if proxy is None:
        return None
    host = proxy.url.host.decode()
    return f"{proxy.url.scheme.decode()}://{f'[{host}]' if ':' in host else host}:{proxy.url.port}"


def test_a_route() -> None:
    assert find_route("https://h:8443/api") == Route(proxy=None, ssl_context=None)


def test_a_route_with_a_context_of_the_callers() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert find_route("https://h", verify=context).ssl_context is context
    assert find_route("https://h", "http://p", context).ssl_context is context


def test_a_route_for_any_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://p:1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert Route.build(proxy=None, verify=context) == Route(proxy=None, ssl_context=context)


@pytest.mark.parametrize("verify", [False, None, 0, 1, "/etc/ca.pem", b"x", object])
def test_a_wrong_verify(verify: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_route("https://h", verify=verify)
    assert str(caught.value) == (
        f"verify: expected True or an ssl.SSLContext, not {verify!r}; "
        "for a private certificate authority, pass ssl.create_default_context(cafile=...)"
    )


# Proxies


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ("http://p", "http://p:80"),
        ("http://p:3128", "http://p:3128"),
        ("http://p:65535", "http://p:65535"),
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
        # httpx takes `user` for the host.
        *("http://user:12/hunter2@p", "http://user:12?hunter2@p", "http://user:12#hunter2@p"),
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


@pytest.mark.parametrize("url", ["http://", "ftp://p", "http://p:65536"])
def test_a_wrong_proxy_that_httpx_has_parsed(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^proxy: not a proxy URL"):
        find_proxy("http://h", httpx.URL(url))


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
        with pytest.raises(ConfigurationError) as caught:
            find_proxy("http://h", f"socks5://{userinfo}@p")
        assert str(caught.value) == (
            "proxy: the user and the password of a SOCKS proxy have at most 255 bytes"
        )


def test_socks_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as caught:
        find_proxy("http://h", "socks5://p")
    assert str(caught.value) == (
        'proxy: a SOCKS proxy needs an extra; pip install "cromicle-sdk[socks]"'
    )
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
                ("10.0.0.0/8", "http://10.1.2.3:8000", None),
                ("*.example.com", "https://a.example.com", None),
                ("example.com:443", "https://example.com", None),
                ("example.com:443", "https://example.com:8443", "http://p:1"),
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


@pytest.mark.parametrize("proxy", ["http://p:1", "https://p:1", "socks5://p:1", None])
@pytest.mark.parametrize("host", [b"2001:db8::1", b"[2001:db8::1]", b"h"])
def test_an_http_proxy_receives_an_ipv6_address_with_brackets(
    host: bytes, proxy: str | None
) -> None:
    url = httpcore.URL(scheme=b"http", host=host, port=81, target=b"/chat")
    target = find_route("http://h", proxy).find_target(url)
    is_bare = host == b"2001:db8::1" and proxy is not None and proxy.startswith("http")
    assert target.host == (b"[2001:db8::1]" if is_bare else host)
    assert (target.scheme, target.port, target.target) == (b"http", 81, b"/chat")


@pytest.mark.parametrize(
    ("proxy", "url", "kept"),
    [
        ("http://p", "https://h/chat", {"trace": 1}),
        ("https://p", "http://h/chat", {"trace": 1}),
        ("http://p", "http://h*", {"trace": 1, "target": b"*"}),
        ("http://p", "https://h*", {"trace": 1}),
        ("socks5://p", "https://h/chat", {"trace": 1, "sni_hostname": "x", "target": b"*"}),
        (None, "https://h/chat", {"trace": 1, "sni_hostname": "x", "target": b"*"}),
    ],
)
def test_the_extensions_of_a_request_that_are_not_for_its_proxy(
    proxy: str | None, url: str, kept: dict[str, object]
) -> None:
    scheme, rest = url.encode().split(b"://h")
    parsed = httpcore.URL(scheme=scheme, host=b"h", port=None, target=rest)
    given: dict[str, object] = {"trace": 1, "sni_hostname": "x", "target": b"*"}
    route = find_route("https://h", proxy)
    assert route.find_extensions(parsed, given) == kept
    plain: dict[str, object] = {"trace": 1}
    assert route.find_extensions(parsed, plain) is plain


def test_the_name_in_a_certificate() -> None:
    assert proxies.encode_server_name("straße.test") == "xn--strae-oqa.test"
    for name in ("a_b.test", "127.0.0.1", "::1", ""):
        assert proxies.encode_server_name(name) == name
    with pytest.raises(ValueError, match=r"^Invalid IDNA hostname: '☃\.test'"):
        proxies.encode_server_name("☃.test")


def test_user_and_password_of_a_proxy_are_not_shown() -> None:
    proxy = find_proxy("http://h", "socks5://user:canary@p:1")
    assert proxy is not None
    assert proxy.auth == (b"user", b"canary")
    assert repr(proxy.auth) == "(<secret>, <secret>)"


# Certificates


@pytest.fixture
def _no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_certificates")
def test_the_default_context_is_shared_while_the_environment_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = proxies.default_ssl_context()
    assert proxies.default_ssl_context() is first
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert proxies.default_ssl_context() is not first


@pytest.mark.usefixtures("_no_certificates")
def test_a_tool_that_replaces_the_class_of_a_context_gets_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Replaced:
        pass

    proxies.default_ssl_context()
    monkeypatch.setattr(ssl, "SSLContext", Replaced)
    monkeypatch.setattr(httpx, "create_ssl_context", Replaced)
    assert isinstance(proxies.default_ssl_context(), Replaced)


@pytest.mark.usefixtures("_no_certificates")
@pytest.mark.parametrize(
    ("variable", "name", "problem"),
    [
        ("SSL_CERT_DIR", "none", "it is not a directory"),
        ("SSL_CERT_FILE", "none", "the file cannot be opened: No such file or directory"),
        ("SSL_CERT_FILE", "empty.pem", "it has no certificates in PEM"),
        ("SSLKEYLOGFILE", "none/keys", "the file cannot be opened: No such file or directory"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    variable: str, name: str, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv(variable, str(tmp_path / name))
    with pytest.raises(ConfigurationError) as caught:
        proxies.default_ssl_context()
    assert str(caught.value) == f"${variable}: {problem}"


@pytest.mark.usefixtures("_no_certificates")
def test_certificates_of_certifi_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> ssl.SSLContext:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "cacert.pem")

    # A value of its own, so that no other test has loaded the context.
    monkeypatch.setenv("SSLKEYLOGFILE", "")
    monkeypatch.setattr(httpx, "create_ssl_context", fail)
    with pytest.raises(ConfigurationError) as caught:
        proxies.default_ssl_context()
    assert str(caught.value) == (
        "verify: the certificates of the package certifi cannot be loaded; "
        "set $SSL_CERT_FILE, or pass verify=ssl_context"
    )
