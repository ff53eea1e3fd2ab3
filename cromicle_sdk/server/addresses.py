"""Client addresses: parsing, grouping by client, and matching against trusted proxies."""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

from cromicle_sdk._core.errors import ConfigurationError

__all__ = ["Proxies", "group_address", "parse_address"]

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# Providers assign a /64 or more to each customer (RFC 6177), so one client may use all of it.
_IPV6_PREFIX = 64


def parse_address(host: str) -> _Address | None:
    """Return the address without its zone, or None if `host` is not an IP address.

    An IPv4-mapped IPv6 address is returned as IPv4. The `str` of the result is safe to log, unlike
    `host`: a proxy may forward any text as an address.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def group_address(host: str) -> str:
    """Return the key shared by all addresses of a client: the IPv4 address, or the IPv6 /64.

    The key is "" if `host` is not an IP address.
    """
    address = parse_address(host)
    if isinstance(address, ipaddress.IPv6Address) and not address.is_loopback:
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return "" if address is None else str(address)


class Proxies:
    """The proxies whose `X-Forwarded-For` is trusted: addresses and networks, or `*` for all.

    Raises `ConfigurationError`, which names `option`.
    """

    def __init__(self, option: str, text: object) -> None:
        if not isinstance(text, str):
            raise ConfigurationError(f"expected a str, not {type(text).__name__}", option=option)
        self.text = text
        items = [item.strip() for item in text.split(",")] if text.strip() not in ("", "*") else []
        self._networks = [_parse_network(option, item) for item in items]

    def __contains__(self, host: str) -> bool:
        """Whether the address is listed. Under `*` none is, since it may be that of any client."""
        address = parse_address(host)
        return address is not None and any(address in network for network in self._networks)


def _parse_network(option: str, item: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(item)
    except ValueError:
        pass
    raise ConfigurationError(
        f"{item[:100]!r} is neither an IP address nor a network",
        option=option,
        hint="separate addresses with commas, as in 127.0.0.1,10.0.0.0/8, or pass * for any",
    )
