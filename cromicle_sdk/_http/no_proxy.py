"""The variable NO_PROXY: hosts that are connected to without a proxy."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

__all__ = ["is_excepted"]

# A host with optional brackets and an optional port.
_RULE = re.compile(r"(?:\[(?P<literal>[^\[\]]*)\]|(?P<host>[^\[\]:]*))(?::(?P<port>[0-9]+))?\Z")


def is_excepted(no_proxy: str, host: str, port: int) -> bool:
    """Whether `no_proxy` excepts a host.

    There is no standard, so this supports the rules of curl, Go and requests together. Rules are
    separated by commas or white space:

    - `*`: every host
    - `example.com`, `.example.com`: the name and its subdomains
    - `*.example.com`: its subdomains only
    - `10.0.0.1`, `2001:db8::1`, `[2001:db8::1]`: an address
    - `10.0.0.0/8`, `fd00::/8`: the addresses of a network
    - any of these except a network, followed by `:PORT`: only this port
    """
    name = host.lower().removesuffix(".")
    rules = re.split(r"[,\s]+", no_proxy.lower())
    return any(_matches(rule, name, _parse_address(name), port) for rule in rules)


def _matches(rule: str, name: str, address: _Address | None, port: int) -> bool:
    if "/" in rule:
        return address is not None and _is_in_network(address, rule)
    found = _RULE.match(rule)
    # An IPv6 address without brackets does not match: it contains colons itself.
    if found is not None:
        if found["port"] and int(found["port"]) != port:
            return False
        rule = found["literal"] or found["host"] or ""
    rule = rule.removesuffix(".")
    if rule == "*":
        return True
    if address is not None:
        return _parse_address(rule) == address
    if rule.startswith("*."):
        return name.endswith(rule[1:])
    rule = rule.removeprefix(".")
    return bool(rule) and (name == rule or name.endswith(f".{rule}"))


def _is_in_network(address: _Address, rule: str) -> bool:
    try:
        return address in ip_network(rule.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return False


_Address = IPv4Address | IPv6Address


def _parse_address(host: str) -> _Address | None:
    """Return the address, as IPv4 if it is IPv4-mapped; None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
