"""The variable NO_PROXY: the hosts that are reached without a proxy."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

__all__ = ["is_excepted"]

# A host, in brackets or not, with or without a port; a network has neither brackets nor a port.
_RULE = re.compile(r"(?:\[(?P<literal>[^\[\]]*)\]|(?P<host>[^\[\]:]*))(?::(?P<port>[0-9]+))?\Z")


def is_excepted(no_proxy: str, host: str, port: int) -> bool:
    """Whether `no_proxy` excepts a host.

    There is no standard. The rules are those of curl, Go and requests together, separated by commas
    or white space:

    - `*`: every host
    - `example.com`, `.example.com`: the name and all names below it
    - `*.example.com`: all names below it
    - `10.0.0.1`, `2001:db8::1`, `[2001:db8::1]`: an address
    - `10.0.0.0/8`, `fd00::/8`: the addresses of a network
    - each but the networks with `:PORT` behind it: at this port alone
    """
    name = host.lower().removesuffix(".")
    rules = re.split(r"[,\s]+", no_proxy.lower())
    return any(_matches(rule, name, _parse_address(name), port) for rule in rules)


def _matches(rule: str, name: str, address: _Address | None, port: int) -> bool:
    if "/" in rule:
        return address is not None and _is_in_network(address, rule)
    found = _RULE.match(rule)
    # Not found is an IPv6 address without brackets, which has more colons.
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
    """The address, the IPv4 one where IPv6 maps it; None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
