"""The endpoint: a checked base URL, and the host names of this machine."""

from __future__ import annotations

import base64
import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

from .errors import ConfigurationError
from .secrets import Secret

__all__ = ["Endpoint", "is_local_destination", "is_loopback"]

_URL_FORM = "expected https://HOST[:PORT][/PATH]"

_HOST_AND_PORT = r"(?:\[[0-9A-Za-z:.%_~-]+\]|[^\[\]:%/?#@]+)(?::[0-9]*)?\Z"

# RFC 1035, section 2.3.4.
_MAX_HOST_LENGTH = 253

# WHATWG URL, "ends-in-a-number checker": such a host must be an IPv4 address.
_ENDS_IN_NUMBER = r"(?:\A|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?\Z"

# IDNA 2003, which Python implements, maps these to other letters, and IDNA 2008 does not, so such a
# name refers to two different hosts.
_IDNA_DEVIATIONS = frozenset("\u00df\u03c2\u200c\u200d")

_NOT_IN_URL = r"[\x00-\x20\x7f\"<>\\^`{|}]"


class Endpoint(NamedTuple):
    """The parts of a base URL.

    `url` never contains userinfo; `authorization` is the header for the userinfo of `base_url`
    (RFC 7617), or None.
    """

    scheme: str
    host: str
    port: int
    path: str
    authorization: Secret | None = None

    @classmethod
    def parse(cls, name: str, base_url: object) -> Endpoint:
        """Parse a base URL. Raises `ConfigurationError` for the option `name`."""
        parts, port = _split_url(name, base_url)
        return cls(
            scheme=parts.scheme,
            host=_check_host(name, parts),
            port=port or (443 if parts.scheme == "https" else 80),
            path=quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~") + "/chat",
            authorization=_basic_authorization(parts.netloc),
        )

    @property
    def netloc(self) -> str:
        """Host and port as in the header `Host`: brackets for IPv6, no default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def base_url(self) -> str:
        return self.url.removesuffix("/chat")

    @property
    def is_local(self) -> bool:
        """Whether a connection to the endpoint stays on this machine."""
        return is_local_destination(self.host)


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` is reachable from this machine only.

    True for `localhost` and its subdomains (RFC 6761, section 6.3), 127.0.0.0/8 and ::1, including
    IPv4-mapped IPv6 addresses and a trailing dot. False for 0.0.0.0 and ::, which are all
    interfaces, and for any other name, which may resolve to any address.
    """
    name = _normalize(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _parse_unmapped_ip(name)
    return address is not None and address.is_loopback


def is_local_destination(host: str) -> bool:
    """Whether a connection to `host` stays on this machine.

    True if `is_loopback` is, and for 0.0.0.0 and ::, which systems connect to the loopback address.
    """
    address = _parse_unmapped_ip(_normalize(host))
    return is_loopback(host) or (address is not None and address.is_unspecified)


def _normalize(host: str) -> str:
    return host.lower().removesuffix(".")


def _parse_unmapped_ip(host: str) -> IPv4Address | IPv6Address | None:
    """Return an IP address, as IPv4 if it is mapped (::ffff:127.0.0.1); None for a name."""
    address = _parse_ip(host)
    return getattr(address, "ipv4_mapped", None) or address


def _split_url(name: str, base_url: object) -> tuple[SplitResult, int | None]:
    """Split an http or https URL without a query or fragment into its parts and its port."""
    if not isinstance(base_url, str):
        kind = type(base_url).__name__
        raise ConfigurationError(f"expected a URL as a str, not {kind}", option=name)
    if re.search(_NOT_IN_URL, base_url):
        raise ConfigurationError(
            "it contains a character that is not allowed in a URL (a space, a quote, a control)",
            option=name,
        )
    try:
        base_url.encode()
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        # The error of urllib quotes the URL, which may contain a password.
        raise ConfigurationError("not a URL", option=name, hint=_URL_FORM) from None
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError("it must begin with http:// or https://", option=name)
    if "?" in base_url or "#" in base_url:
        raise ConfigurationError("it must not have a query or a fragment", option=name)
    if port == 0:
        raise ConfigurationError("port 0 is not a port to connect to", option=name)
    return parts, port


def _check_host(name: str, parts: SplitResult) -> str:
    """Return the host in ASCII. An IPv6 address has no brackets."""
    if not parts.hostname:
        raise ConfigurationError("it has no host", option=name, hint=_URL_FORM)
    userinfo, _, host_and_port = parts.netloc.rpartition("@")
    # Python 3.10 accepts brackets that later versions reject.
    is_valid = re.match(_HOST_AND_PORT, host_and_port) and not {"[", "]"} & set(userinfo)
    is_literal = host_and_port.startswith("[")
    if not is_valid or is_literal is not isinstance(_parse_ip(parts.hostname), IPv6Address):
        raise ConfigurationError("its host or port is not valid", option=name, hint=_URL_FORM)
    host = _ascii_host(name, parts.hostname)
    if len(host) > _MAX_HOST_LENGTH:
        raise ConfigurationError(
            f"its host is longer than {_MAX_HOST_LENGTH} characters", option=name
        )
    if re.search(_ENDS_IN_NUMBER, host) and _parse_ip(host.removesuffix(".")) is None:
        # Resolvers that accept 127.1 or 0x7f.1 disagree on the address.
        raise ConfigurationError(
            "its host is not a valid IPv4 address",
            option=name,
            hint="write the address as four numbers, as in 127.0.0.1",
        )
    return host


def _parse_ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _ascii_host(name: str, host: str) -> str:
    if host.isascii():
        return host
    if not _IDNA_DEVIATIONS.isdisjoint(host):
        raise ConfigurationError(
            "its host has a letter that IDNA 2003 and IDNA 2008 encode differently",
            option=name,
            hint="write the host in its encoded form (xn--...)",
        )
    try:
        encoded = host.encode("idna").decode("ascii")
    except UnicodeError:
        encoded = ""
    # IDNA maps some characters to others that are not allowed in a host, such as a space or a
    # slash.
    if not encoded or re.search(_NOT_IN_URL, encoded) or not re.match(_HOST_AND_PORT, encoded):
        raise ConfigurationError("its host is not a valid DNS name", option=name)
    return encoded


def _basic_authorization(netloc: str) -> Secret | None:
    userinfo = netloc.rpartition("@")[0]
    if not userinfo:
        return None
    user, _, password = userinfo.partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return Secret("Basic " + base64.b64encode(pair).decode("ascii"))
