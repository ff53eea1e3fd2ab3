"""Base URLs: their parts, the errors for invalid ones, and that no error quotes a password."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cromicle_sdk._core.endpoint import Endpoint, is_local_destination, is_loopback
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.secrets import Secret


@pytest.mark.parametrize(
    ("base_url", "url", "netloc"),
    [
        ("https://cromicle.top", "https://cromicle.top/chat", "cromicle.top"),
        ("http://h", "http://h/chat", "h"),
        ("http://h/", "http://h/chat", "h"),
        ("http://h//", "http://h/chat", "h"),
        ("HTTP://Host.Example", "http://host.example/chat", "host.example"),
        # path prefixes
        ("https://h/api", "https://h/api/chat", "h"),
        ("https://h/api/", "https://h/api/chat", "h"),
        ("https://h/a/b//", "https://h/a/b/chat", "h"),
        ("https://h//a", "https://h//a/chat", "h"),
        ("https://h/chat", "https://h/chat/chat", "h"),
        ("https://h/X", "https://h/X/chat", "h"),
        ("https://h/a%2Fb%20c", "https://h/a%2Fb%20c/chat", "h"),
        ("https://h/\u00e9", "https://h/%C3%A9/chat", "h"),
        ("https://h/~a;b=c,d:@!$&'()*+", "https://h/~a;b=c,d:@!$&'()*+/chat", "h"),
        ("https://h/a[1]", "https://h/a%5B1%5D/chat", "h"),
        # ports
        ("http://h:80", "http://h/chat", "h"),
        ("https://h:443/", "https://h/chat", "h"),
        ("http://h:443", "http://h:443/chat", "h:443"),
        ("https://h:80", "https://h:80/chat", "h:80"),
        ("http://h:8000/x", "http://h:8000/x/chat", "h:8000"),
        ("http://h:65535", "http://h:65535/chat", "h:65535"),
        ("http://h:", "http://h/chat", "h"),
        ("http://h:0080", "http://h/chat", "h"),
        # addresses
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/chat", "127.0.0.1:8000"),
        ("http://[::1]", "http://[::1]/chat", "[::1]"),
        ("http://[::1]:8000/a", "http://[::1]:8000/a/chat", "[::1]:8000"),
        # the scope of a link-local address is an interface's name
        ("http://[fe80::1%eth0]", "http://[fe80::1%eth0]/chat", None),
        ("http://[fe80::1%br-lan_0.5]:8", "http://[fe80::1%br-lan_0.5]:8/chat", None),
        ("https://[2001:DB8::1]:443", "https://[2001:db8::1]/chat", "[2001:db8::1]"),
        ("http://[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]/chat", "[::ffff:127.0.0.1]"),
        # names beyond ASCII
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example/chat", None),
        ("https://B\u00dcCHER.example:8", "https://xn--bcher-kva.example:8/chat", None),
        ("https://\u4f8b\u3048.jp", "https://xn--r8jz45g.jp/chat", None),
        ("https://a\u3002b", "https://a.b/chat", "a.b"),
        # userinfo never shows
        ("https://user:hunter2@h/x", "https://h/x/chat", "h"),
        ("https://user@h:8", "https://h:8/chat", "h:8"),
        ("https://u:hunter2@[::1]:8", "https://[::1]:8/chat", "[::1]:8"),
        ("https://u:hun@ter2@h", "https://h/chat", "h"),
    ],
)
def test_endpoint(base_url: str, url: str, netloc: str | None) -> None:
    endpoint = Endpoint.parse("base_url", base_url)
    assert endpoint.url == url
    assert endpoint.base_url == url.removesuffix("/chat")
    assert f"{endpoint.scheme}://{endpoint.netloc}{endpoint.path}" == url
    if netloc is not None:
        assert endpoint.netloc == netloc
    assert "hunter2" not in f"{endpoint!r}{endpoint.url}{endpoint.base_url}{endpoint.netloc}"
    assert Endpoint.parse("base_url", endpoint.base_url).url == url


@pytest.mark.parametrize(
    ("base_url", "authorization"),
    [
        ("https://h", None),
        ("https://user:pass@h", "Basic dXNlcjpwYXNz"),
        ("https://user@h", "Basic dXNlcjo="),
        ("https://:pass@h", "Basic OnBhc3M="),
        ("https://u:p%40%3A%2F@h", "Basic dTpwQDov"),
        ("https://u:p@ss@h", "Basic dTpwQHNz"),
        ("https://u:a:b@h", "Basic dTphOmI="),
        ("https://u:%C3%A9@h", "Basic dTrDqQ=="),
        ("https://u:\u00e9@h", "Basic dTrDqQ=="),
        ("https://u:%FF@h", "Basic dTr/"),
    ],
)
def test_authorization(base_url: str, authorization: str | None) -> None:
    endpoint = Endpoint.parse("base_url", base_url)
    if authorization is None:
        assert endpoint.authorization is None
    else:
        assert endpoint.authorization == Secret(authorization)


def test_empty_userinfo_has_no_authorization() -> None:
    assert Endpoint.parse("base_url", "https://@h").authorization is None


BAD_URLS = [
    # no http URL
    *("", "h", "h:80", "//h", "/chat", "ftp://h", "ws://h", "file:///x", "httpx://h", "http:h"),
    *("javascript:alert(1)", "http+unix://h", "http"),
    # no host
    *("http://", "https://", "http:///x", "http://:80", "http://user:hunter2@", "http://@"),
    *("http:///chat", "http://u:hunter2@:80"),
    # a query or a fragment
    *("http://h?", "http://h#", "http://h/?a=hunter2", "http://h/x#hunter2", "http://h/x?#"),
    # ports
    *("http://h:0", "http://h:65536", "http://h:-1", "http://h:x", "http://h:8x", "http://h:+8"),
    *("http://h:80:80", "http://h:\u0665", "http://h: 80", "http://h:" + "9" * 5000),
    # brackets
    *("http://[::1", "http://::1]", "http://[]", "http://[x]", "http://[::1]x", "http://[1.2.3.4]"),
    *("http://[::1]:x", "http://[[::1]]", "http://[v1.fe]"),
    # what only some resolvers take for an IPv4 address, and for which one
    *(
        "http://127.1",
        "http://2130706433",
        "http://0x7f.1",
        "http://0x7f000001",
        "http://127.0.0.01",
    ),
    *("http://1.2.3.4.5", "http://256.0.0.1", "http://h.1", "http://1.2.3.4:80@0x"),
    # letters that IDNA 2003 takes for others than IDNA 2008
    *("http://stra\u00dfe.example", "http://\u03b2\u03cc\u03bb\u03bf\u03c2.example"),
    *("http://\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.example", "http://a\u200db.example"),
    # longer than a name can be
    *(f"http://{'a.' * 130}example", f"http://{'x' * 300}"),
    # characters
    *(" http://h", "http://h ", "http://h\n", "http://h/a b", "http://h/\t", "http://h\r\n", "\0"),
    *("http://h/\x7f", 'http://h"', "http://<h>", "http://h\\x", "http://h/{x}", "http://h/`"),
    *("http://h/^", "http://a|b"),
    # names that DNS cannot hold
    *("http://\u3002", "http://\u00e9..x", f"http://{chr(0xE9) * 70}", "http://\ud800"),
    *("http://ho\u2100st", "http://h\uff0fx", "http://h\uff1a80", "http://ex\u0085ample"),
    # what a password may hold that a URL may not
    *("http://user:hun/hunter2@h", "http://user:hun#hunter2@h", "http://user:hun?hunter2@h"),
    *("http://us:hunter2[@h", "http://user:hunter2@ho\u2100st"),
]


@pytest.mark.parametrize("base_url", BAD_URLS, ids=ascii)
def test_an_invalid_base_url(base_url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.parse("base_url", base_url)
    assert str(caught.value).startswith("base_url: ")
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


URL_FORM = "expected https://HOST[:PORT][/PATH]"


@pytest.mark.parametrize(
    ("base_url", "detail", "hint"),
    [
        (1, "expected a URL as a str, not int", ""),
        (
            "http://h/a b",
            "it contains a character that is not allowed in a URL (a space, a quote, a control)",
            "",
        ),
        ("http://[::1", "not a URL", URL_FORM),
        ("ftp://h", "it must begin with http:// or https://", ""),
        ("http://h?x", "it must not have a query or a fragment", ""),
        ("http://h:0", "port 0 is not a port to connect to", ""),
        ("http://", "it has no host", URL_FORM),
        ("http://[v1.fe]", "its host or port is not valid", URL_FORM),
        (f"http://{'a.' * 127}", "its host is longer than 253 characters", ""),
        (
            "http://127.1",
            "its host is not a valid IPv4 address",
            "write the address as four numbers, as in 127.0.0.1",
        ),
        (
            "http://stra\u00dfe.example",
            "its host has a letter that IDNA 2003 and IDNA 2008 encode differently",
            "write the host in its encoded form (xn--...)",
        ),
        ("http://\u00e9..x", "its host is not a valid DNS name", ""),
    ],
    ids=ascii,
)
def test_an_error_says_what_is_wrong_with_a_url(base_url: object, detail: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.parse("proxy", base_url)
    assert caught.value.detail == detail
    assert caught.value.option == "proxy"
    assert caught.value.hint == hint


def test_a_host_of_253_characters() -> None:
    host = "a." * 126 + "b"
    assert Endpoint.parse("base_url", f"http://{host}").host == host


# The error of `urllib` quotes the part with the password.
@pytest.mark.parametrize(
    "base_url",
    [
        "http://user:hunter2/x@h",
        "http://user:hunter2#x@h",
        "http://user:hunter2?x@h",
        "http://user:[hunter2]@h",
        "http://hunter2@ho\u2100st",
    ],
    ids=ascii,
)
def test_no_part_of_the_userinfo_is_quoted(base_url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.parse("base_url", base_url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "base_url",
    [
        # Surrogates are what undecodable bytes of an environment variable become.
        "http://h/\ud800",
        "http://u\ud800:p@h",
        "http://u:\udcff@h",
        # IDNA's nameprep makes spaces of them.
        "http://h\u00a0ost",
        "http://h\u3000ost",
    ],
    ids=ascii,
)
def test_an_invalid_base_url_beyond_ascii(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^base_url: "):
        Endpoint.parse("base_url", base_url)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(["http://", "https://", "http://u:p@", ""]),
    st.text(max_size=12) | st.text("ab.:/[]@%?#0189", max_size=12),
)
def test_any_url_is_valid_or_rejected(scheme: str, rest: str) -> None:
    try:
        endpoint = Endpoint.parse("base_url", scheme + rest)
    except ConfigurationError:
        return
    assert endpoint.url.isascii()
    assert endpoint.url.isprintable()
    assert " " not in endpoint.url
    assert endpoint.url.endswith("/chat")
    assert 1 <= endpoint.port <= 65535


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("http://localhost", True),
        ("http://LOCALHOST:8000/x", True),
        ("http://a.localhost", True),
        ("http://localhost.", True),
        ("http://a.localhost.", True),
        ("http://127.0.0.1", True),
        ("http://127.1.2.3", True),
        ("http://127.255.255.255:80", True),
        ("http://\uff11\uff12\uff17.0.0.1", True),
        ("http://[::1]", True),
        ("http://[0:0:0:0:0:0:0:1]:8", True),
        ("http://[::ffff:127.0.0.1]", True),
        ("http://[::ffff:127.9.0.1]", True),
        ("http://user:p@127.0.0.1", True),
        ("http://localhost.example", False),
        ("http://notlocalhost", False),
        ("http://127.0.0.1.example", False),
        ("http://128.0.0.1", False),
        ("http://10.0.0.1", False),
        ("http://[::2]", False),
        ("http://[::ffff:10.0.0.1]", False),
        ("http://[fe80::1]", False),
        ("https://cromicle.top", False),
        ("http://127.0.0.1@example.com", False),
        ("http://127.0.0.1.", True),
        ("http://0.0.0.0:8000", True),
        ("http://[::]", True),
        ("http://[::ffff:0.0.0.0]", True),
        ("http://8.8.8.8.", False),
    ],
)
def test_an_endpoint_on_this_machine(base_url: str, expected: bool) -> None:
    assert Endpoint.parse("base_url", base_url).is_local is expected


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost", "localhost.", "a.localhost", "a.localhost."),
        *("127.0.0.1", "127.9.9.9", "127.0.0.1.", "::1", "::1%lo", "::ffff:127.0.0.1"),
    ],
)
def test_a_loopback_host(host: str) -> None:
    assert is_loopback(host)
    assert is_local_destination(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0", "0.0.0.0."])
def test_all_interfaces_are_a_local_destination_but_not_loopback(host: str) -> None:
    assert not is_loopback(host)
    assert is_local_destination(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "localhost.example", "notlocalhost", "localhost..", "[::1]", "127.1"),
        *("10.0.0.1", "::2", "fe80::1", "::ffff:10.0.0.1", "example.com", "128.0.0.1"),
    ],
)
def test_another_host_is_not_local(host: str) -> None:
    assert not is_loopback(host)
    assert not is_local_destination(host)
