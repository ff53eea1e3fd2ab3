"""The rules of NO_PROXY, in the spellings that curl, Go and requests take."""

from __future__ import annotations

import pytest

from cromicle_sdk._http.no_proxy import is_excepted


@pytest.mark.parametrize(
    ("rule", "host", "port"),
    [
        ("*", "h", 80),
        ("*", "10.0.0.1", 80),
        ("a, *", "h", 80),
        ("h", "h", 8000),
        ("H", "h", 80),
        ("h", "H", 80),
        ("h.", "h", 80),
        ("h", "h.", 80),
        ("h:8000", "h", 8000),
        ("h:80", "h", 80),
        ("*:8000", "h", 8000),
        ("example.com", "example.com", 80),
        ("example.com", "a.b.example.com", 80),
        (".example.com", "a.example.com", 80),
        (".example.com", "example.com", 80),
        ("*.example.com", "a.example.com", 80),
        ("*.example.com:8000", "a.b.example.com", 8000),
        ("Example.COM:443", "A.example.com", 443),
        ("a.com,b.com", "b.com", 80),
        ("a.com b.com", "b.com", 80),
        (" a.com ,\tb.com ,,", "b.com", 80),
        ("10.0.0.1", "10.0.0.1", 80),
        ("10.0.0.1:8000", "10.0.0.1", 8000),
        ("10.0.0.0/8", "10.1.2.3", 80),
        ("10.1.2.3/8", "10.200.0.1", 80),
        ("10.0.0.1/32", "10.0.0.1", 80),
        ("0.0.0.0/0", "192.0.2.1", 80),
        ("10.0.0.0/8", "::ffff:10.0.0.1", 80),
        ("fd00::/8", "fd12:3456::1", 80),
        ("[fd00::]/8", "fd12:3456::1", 80),
        ("2001:db8::1", "2001:db8::1", 80),
        ("2001:DB8:0::1", "2001:db8::1", 80),
        ("[2001:db8::1]", "2001:db8::1", 80),
        ("[2001:db8::1]:8000", "2001:db8::1", 8000),
    ],
)
def test_a_rule_that_excepts_a_host(rule: str, host: str, port: int) -> None:
    assert is_excepted(rule, host, port)


@pytest.mark.parametrize(
    ("rule", "host", "port"),
    [
        ("", "h", 80),
        (",", "h", 80),
        (".", "h", 80),
        ("h:8000", "h", 8001),
        ("*:8000", "h", 80),
        ("b.com", "ab.com", 80),
        (".b.com", "ab.com", 80),
        ("*.example.com", "example.com", 80),
        ("a.example.com", "example.com", 80),
        ("10.0.0.0/8", "11.0.0.1", 80),
        ("10.0.0.0/8", "a.example", 80),
        ("10.0.0.0/8", "fd00::1", 80),
        ("10.0.0.0/99", "10.0.0.1", 80),
        ("example.com/8", "10.0.0.1", 80),
        ("0.0.1", "10.0.0.1", 80),
        (".0.0.1", "10.0.0.1", 80),
        ("10.0.0.1:8000", "10.0.0.1", 80),
        ("fd00::/8", "2001:db8::1", 80),
        ("[2001:db8::1]:8000", "2001:db8::1", 80),
        ("[::1]", "h", 80),
        ("[h", "h", 80),
        ("h:x", "h", 80),
        ("(", "h", 80),
        ("://[", "h", 80),
    ],
)
def test_a_rule_that_does_not(rule: str, host: str, port: int) -> None:
    assert not is_excepted(rule, host, port)
