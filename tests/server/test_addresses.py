"""Addresses of clients."""

from __future__ import annotations

import pytest

from cromicle_sdk.server.addresses import Proxies, group_address, parse_address


@pytest.mark.parametrize(
    ("host", "parsed"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", "None"),
        ("localhost", "None"),
        ("192.0.2.1:80", "None"),
        ("192.0.2.1\n", "None"),
        ("x" * 100_000, "None"),
    ],
)
def test_an_address_is_parsed(host: str, parsed: str) -> None:
    assert str(parse_address(host)) == parsed


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::1", "::1"),
        ("testclient", ""),
    ],
)
def test_the_addresses_of_one_client_are_one_group(host: str, group: str) -> None:
    assert group_address(host) == group


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("", [], ["127.0.0.1", "::1", "x"]),
        ("*", [], ["127.0.0.1"]),
        ("127.0.0.1,::1", ["127.0.0.1", "::1", "::ffff:127.0.0.1"], ["127.0.0.2", ""]),
        (" 10.0.0.0/8 , 2001:db8::/32 ", ["10.1.2.3", "2001:db8::1"], ["11.0.0.1", "x"]),
    ],
)
def test_proxies_are_addresses_and_networks(
    text: str, inside: list[str], outside: list[str]
) -> None:
    proxies = Proxies("option", text)
    assert all(each in proxies for each in inside)
    assert not any(each in proxies for each in outside)
