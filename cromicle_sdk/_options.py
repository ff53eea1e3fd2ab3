"""Options: defaults, environment, checks, and the wrapper that hides the token."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from ipaddress import IPv4Address, IPv6Address, ip_address
from json.encoder import encode_basestring
from typing import Any, TypedDict, cast
from urllib.parse import quote, quote_plus, unquote_to_bytes, urlsplit

from ._errors import ConfigurationError

__all__ = [
    "DEFAULT_MAX_REPLY_BYTES",
    "DEFAULT_RETRY",
    "DEFAULT_TIMEOUT",
    "LONGEST_WAIT",
    "CallOptions",
    "ConnectionOptions",
    "Endpoint",
    "Options",
    "Retry",
    "Secret",
    "Timeout",
    "ViewOptions",
    "check_flag",
    "check_timeout",
    "hide_token",
]

DEFAULT_BASE_URL = "https://cromicle.top"
DEFAULT_TOKEN = "abc"  # noqa: S105 - the protocol's well-known token, which protects nothing
DEFAULT_MAX_REPLY_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_CONNECTIONS = 1000

# No single wait is longer, in seconds: sockets and event loops count milliseconds in 32 bits.
LONGEST_WAIT = 2_000_000.0

# RFC 9110, 5.6.2: token.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
# RFC 9110, 5.5: visible ASCII, with spaces and tabs inside only. Bytes past ASCII are allowed
# there as opaque data, but a str does not say which bytes those would be.
_HEADER_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?\Z")
_URL_FORM = "write https://HOST[:PORT][/PATH]"
_HOST_AND_PORT = re.compile(r"(?:\[[0-9A-Za-z:.%_~-]+\]|[^\[\]:%/?#@]+)(?::[0-9]*)?\Z")
# RFC 1035, 2.3.4; a scope of an IPv6 address is the name of an interface, and far shorter.
_LONGEST_HOST = 253
# WHATWG URL, "ends-in-a-number checker": such a host is an IPv4 address or none at all.
_ENDS_IN_NUMBER = re.compile(r"(?:\A|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?\Z")
# IDNA 2003, which Python has, maps these to others; IDNA 2008 keeps them, and so two hosts.
_IDNA_DEVIATIONS = frozenset("\u00df\u03c2\u200c\u200d")
_NOT_IN_URL = re.compile(r"[\x00-\x20\x7f\"<>\\^`{|}]")


def _check_count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{name}: expected a whole number, 1 or more, not {_kind(value)}")
    if value < 1:
        # Python refuses to write out the digits of a very long number.
        shown = value if value > -(10**18) else "this number"
        raise ConfigurationError(f"{name}: {shown} is below 1")
    return value


def _check_number(name: str, value: object, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{name}: expected {expected}, not {_kind(value)}")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:
        is_finite = False
    if not is_finite:
        raise ConfigurationError(f"{name}: expected {expected}, and a finite one")


def _kind(value: object) -> str:
    return type(value).__name__


class Secret:
    """A text that shows itself to nobody but who calls `reveal`."""

    __slots__ = ("_pattern", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._pattern: re.Pattern[str] | None = None

    def reveal(self) -> str:
        return self._text

    def hide_in(self, text: str) -> str:
        """A text of somebody else's without this secret that it may quote.

        It is found as it is and as JSON, Python and URLs write it. The well-known token, which
        is none, may be a part of an innocent word, and is left where it stands.
        """
        if self._text == DEFAULT_TOKEN:
            return text
        if self._text.isalnum() and self._text.isascii():
            # Such a one, each request's hash for one, is written in one way only.
            return text.replace(self._text, "[redacted]")
        if self._pattern is None:
            self._pattern = re.compile("".join(map(_match_quoted, self._text)))
        return self._pattern.sub("[redacted]", text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "<secret>"


def _match_quoted(character: str) -> str:
    """A pattern for a character as JSON, Python, HTML and URLs may write it."""
    if character.isalnum() and character.isascii():
        return character
    data, units = character.encode(), character.encode("utf-16-be").hex()
    escapes = {
        "".join(rf"\u{units[i : i + 4]}" for i in range(0, len(units), 4)),  # JSON
        "".join(f"%{byte:02x}" for byte in data),
        "".join(rf"\x{byte:02x}" for byte in data),  # the repr of bytes
        rf"\U{ord(character):08x}",
        rf"\x{ord(character):02x}",
        f"&#{ord(character)};",
        f"&#x{ord(character):x};",
    }
    forms = {
        character,
        "\\" + character,  # a quote, a backslash, a slash
        repr(character)[1:-1],
        encode_basestring(character)[1:-1],
        escape(character),
        quote_plus(character),
    }
    as_it_is = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    in_any_case = "|".join(map(re.escape, escapes))
    return f"(?:{as_it_is}|(?i:{in_any_case}))"


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """How long a call may wait, in seconds; None is no limit.

    - `connect`: until a connection is ready: DNS, TCP, proxy and TLS together.
    - `first_byte`: from there until the first byte of the reply.
    - `stall`: from one piece of the reply to the next.
    - `total`: the whole call, with all attempts and the waits between them.

    Raises `ConfigurationError` for anything but None and finite numbers above 0.
    """

    connect: float | None = 5
    first_byte: float | None = 60
    stall: float | None = 60
    total: float | None = 600

    def __post_init__(self) -> None:
        for phase in ("connect", "first_byte", "stall", "total"):
            name = f"timeout.{phase}"
            value = getattr(self, phase)
            if value is not None:
                _check_number(name, value, "a number of seconds above 0, or None for no limit")
                if value <= 0:
                    raise ConfigurationError(
                        f"{name}: {value!r} is not above 0; pass None for no limit"
                    )


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often and how soon a failed call is tried again.

    - `attempts`: requests at most, the first one included; 1 is no retry.
    - `first_delay`, `max_delay`: the wait before retry n is drawn from 0 to the smaller of
      `first_delay * 2 ** (n - 1)` and `max_delay` (seconds).
    - `max_retry_after`: a server's `Retry-After` is kept up to this many seconds; one that asks
      for more is raised at once.

    Raises `ConfigurationError` for a value out of range.
    """

    attempts: int = 3
    first_delay: float = 0.5
    max_delay: float = 8
    max_retry_after: float = 60

    def __post_init__(self) -> None:
        _check_count("retry.attempts", self.attempts)
        for name in ("first_delay", "max_delay", "max_retry_after"):
            value = getattr(self, name)
            _check_number(f"retry.{name}", value, "a number of seconds, 0 or more")
            if value < 0:
                raise ConfigurationError(f"retry.{name}: {value!r} is below 0")


DEFAULT_TIMEOUT = Timeout()
DEFAULT_RETRY = Retry()


class CallOptions(TypedDict, total=False):
    """What one call may set for itself: the client's options of the same names."""

    timeout: float | Timeout | None
    retry: Retry
    headers: Mapping[str, str] | None
    max_reply_bytes: int
    strict: bool


class ViewOptions(CallOptions, total=False):
    """What `with_options` may set: a call's options, and the token."""

    token: str


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, taken apart once.

    `url` is for people and never holds userinfo; `authorization` is what the userinfo of
    `base_url` asks for (RFC 7617), or None.
    """

    scheme: str
    host: str
    port: int
    path: str
    authorization: Secret | None = None

    @classmethod
    def parse(cls, name: str, base_url: object) -> Endpoint:
        """The endpoint below a base URL; `name` is the option that errors speak of."""
        if not isinstance(base_url, str):
            raise ConfigurationError(f"{name}: expected a URL as a str, not {_kind(base_url)}")
        if _NOT_IN_URL.search(base_url):
            raise ConfigurationError(
                f"{name}: it holds a character that a URL can't hold (a space, a quote, a control)"
            )
        try:
            base_url.encode()
            parts = urlsplit(base_url)
            port = parts.port
        except ValueError:
            # What urllib says would quote the URL, and so a password in it.
            raise ConfigurationError(f"{name}: not a URL; {_URL_FORM}") from None
        if parts.scheme not in ("http", "https"):
            raise ConfigurationError(f"{name}: it must begin with http:// or https://")
        if not parts.hostname:
            raise ConfigurationError(f"{name}: it names no host; {_URL_FORM}")
        userinfo, _, host_and_port = parts.netloc.rpartition("@")
        # Python 3.10 lets brackets pass that later versions refuse.
        is_sound = _HOST_AND_PORT.match(host_and_port) and not {"[", "]"} & set(userinfo)
        is_literal = host_and_port.startswith("[")
        if not is_sound or is_literal is not isinstance(_parse_ip(parts.hostname), IPv6Address):
            raise ConfigurationError(f"{name}: its host or port is none; {_URL_FORM}")
        if parts.query or parts.fragment or "?" in base_url or "#" in base_url:
            raise ConfigurationError(f"{name}: it can't have a query or a fragment")
        if port == 0:
            raise ConfigurationError(f"{name}: port 0 can't be connected to")
        host = _ascii_host(name, parts.hostname)
        if len(host) > _LONGEST_HOST:
            raise ConfigurationError(f"{name}: its host is longer than a name can be")
        if _ENDS_IN_NUMBER.search(host) and _parse_ip(host.removesuffix(".")) is None:
            # A resolver may well know 127.1 or 0x7f.1, but what it takes them for is its secret.
            raise ConfigurationError(f"{name}: write an IPv4 address as four numbers, as 127.0.0.1")
        return cls(
            scheme=parts.scheme,
            host=host,
            port=port or (443 if parts.scheme == "https" else 80),
            path=quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~") + "/chat",
            authorization=_basic_authorization(parts.netloc),
        )

    @property
    def netloc(self) -> str:
        """Host and port as in a `Host` header: brackets for IPv6, no default port."""
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
    def is_loopback(self) -> bool:
        """Whether it is this machine: `localhost`, names below it (RFC 6761), 127/8 and ::1.

        So are 0.0.0.0 and ::, to which a connection ends up on this machine, too.
        """
        name = self.host.removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        address = _parse_ip(name)
        if address is None:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a call needs to know, checked."""

    endpoint: Endpoint
    token: Secret
    timeout: Timeout
    retry: Retry
    max_reply_bytes: int
    strict: bool
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def build(
        cls,
        *,
        base_url: str | None,
        token: Secret | None,
        timeout: float | Timeout | None,
        retry: Retry,
        max_reply_bytes: int,
        strict: bool,
        headers: Mapping[str, str] | None,
    ) -> Options:
        """A client's options; what is None comes from the environment, else is the default.

        Raises `ConfigurationError`, which names the option or the environment variable.
        """
        variable = "CROMICLE_BASE_URL"
        name = f"${variable}" if base_url is None and os.environ.get(variable) else "base_url"
        url = os.environ.get(variable) or DEFAULT_BASE_URL if base_url is None else base_url
        return cls(
            endpoint=Endpoint.parse(name, url),
            token=_find_token(token),
            timeout=check_timeout(timeout),
            retry=_check_retry(retry),
            max_reply_bytes=_check_count("max_reply_bytes", max_reply_bytes),
            strict=check_flag("strict", strict),
            headers=_check_headers({} if headers is None else headers),
        )

    def with_call_options(self, options: Mapping[str, Any]) -> Options:
        """These options with those that a call or a view sets for itself.

        Headers are added to the ones there are. Raises `ConfigurationError`.
        """
        if not options:
            return self
        changes: dict[str, Any] = {}
        for name, value in options.items():
            if name == "headers":
                changes[name] = {**self.headers, **_check_headers({} if value is None else value)}
            elif name == "timeout":
                changes[name] = check_timeout(value, total=self.timeout.total)
            elif name in _CHECKS:
                changes[name] = _CHECKS[name](value)
            else:
                known = ", ".join(CallOptions.__annotations__)
                raise ConfigurationError(f"{name}: a call has no such option; it has {known}")
        return replace(self, **changes)

    def with_view_options(self, options: Mapping[str, Any]) -> Options:
        """These options with those that `with_options` sets. Raises `ConfigurationError`."""
        for name in options.keys() & _CONNECTION_OPTIONS:
            raise ConfigurationError(
                f"{name}: it belongs to the connections, which with_options() shares; "
                "make a new client for it"
            )
        own = dict(options)
        token = own.pop("token", self.token)
        return replace(self, token=_check_token("token", token)).with_call_options(own)


@dataclass(frozen=True, kw_only=True)
class ConnectionOptions:
    """What a client's connections need to know, checked as far as that goes without httpx."""

    max_connections: int
    proxy: Any = field(repr=False)
    verify: Any = field(repr=False)
    http_client: Any = field(repr=False)

    @classmethod
    def build(
        cls,
        *,
        max_connections: int | None,
        proxy: object,
        verify: object,
        transport: object,
        http_client: object,
        base_url: object = None,
    ) -> ConnectionOptions:
        """Raises `ConfigurationError`, which names the option."""
        if transport is not None:
            raise ConfigurationError(
                f"transport: {transport!r} is not available: no other one closes the connection of "
                "a call that was cancelled; leave it out"
            )
        if http_client is not None:
            given = {"max_connections": max_connections, "proxy": proxy}
            for name in (name for name, value in given.items() if value is not None):
                raise ConfigurationError(f"{name}: set it on your own http_client instead")
            if verify is not True:
                raise ConfigurationError("verify: set it on your own http_client instead")
            if base_url is None and str(getattr(http_client, "base_url", "")):
                # It is not used, and the prompt would go somewhere else.
                raise ConfigurationError("base_url: pass it here, not to your own http_client")
        return cls(
            max_connections=DEFAULT_MAX_CONNECTIONS
            if max_connections is None
            else _check_count("max_connections", max_connections),
            proxy=proxy,
            verify=verify,
            http_client=http_client,
        )

    def check_picklable(self) -> None:
        """Raise `ConfigurationError` where an option only lives in this process."""
        if self.http_client is not None:
            raise ConfigurationError("http_client: a client that was given one can't be pickled")
        if self.verify is not True:
            raise ConfigurationError("verify: a client with an SSLContext can't be pickled")
        if getattr(self.proxy, "ssl_context", None) is not None:
            raise ConfigurationError("proxy: one with an SSLContext can't be pickled")


def hide_token(options: dict[str, Any]) -> dict[str, Any]:
    """The same options with the token wrapped, in place and unchecked.

    The first thing to do with a call's keywords: an error about another option leaves through
    frames whose locals a traceback may print.
    """
    if "token" in options:
        options["token"] = Secret(options["token"])
    return options


def _find_token(token: Secret | None) -> Secret:
    if token is not None:
        return _check_token("token", token)
    # An empty variable is how a shell says "not set".
    if os.environ.get("CROMICLE_TOKEN"):
        return _check_token("$CROMICLE_TOKEN", Secret(os.environ["CROMICLE_TOKEN"]))
    return Secret(DEFAULT_TOKEN)


def _check_token(name: str, token: Secret) -> Secret:
    problem = _token_problem(token)
    if problem is not None:
        raise ConfigurationError(f"{name}: {problem}")
    return token


def _token_problem(token: Secret) -> str | None:
    # Nothing is raised from here: `text` is the token in clear.
    text = cast("object", token.reveal())
    if not isinstance(text, str):
        return f"expected a str, not {_kind(text)}"
    if not text:
        return "it is empty; leave it out for the default"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it has a lone surrogate, which UTF-8 cannot carry"
    return None


def check_timeout(value: object, *, total: float | None = DEFAULT_TIMEOUT.total) -> Timeout:
    """The option `timeout` as a `Timeout`. Raises `ConfigurationError`.

    `total` is the one that stays where `value` is a number, which does not speak of it.
    """
    if isinstance(value, Timeout):
        return value
    if value is None:
        return Timeout(connect=None, first_byte=None, stall=None, total=None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(
            f"timeout: expected a number of seconds, a Timeout or None, not {_kind(value)}"
        )
    return Timeout(connect=value, first_byte=value, stall=value, total=total)


def _check_retry(value: object) -> Retry:
    if not isinstance(value, Retry):
        raise ConfigurationError(
            f"retry: expected a Retry, not {_kind(value)}; Retry(attempts=1) is none"
        )
    return value


def check_flag(name: str, value: object) -> bool:
    """Raise `ConfigurationError` unless it is True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}: expected True or False, not {_kind(value)}")
    return value


def _check_headers(value: object) -> dict[str, str]:
    """Headers by lower-case name. Errors never quote a value: it may be a secret."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"headers: expected a mapping of str to str, not {_kind(value)}")
    checked: dict[str, str] = {}
    for name, text in cast("Mapping[object, object]", value).items():
        if not isinstance(name, str) or not _HEADER_NAME.match(name):
            raise ConfigurationError(f"headers: {name!r} is not a header name")
        lowered = name.lower()
        if lowered.startswith("content-") or lowered in _RESERVED_HEADERS:
            raise ConfigurationError(f"headers: {name} is set by the protocol, not by the caller")
        if lowered in checked:
            raise ConfigurationError(f"headers: {name} is there twice")
        if not isinstance(text, str) or not _HEADER_VALUE.match(text):
            raise ConfigurationError(
                f"headers: the value of {name} must be a str of visible ASCII characters, "
                "with spaces and tabs inside only"
            )
        checked[lowered] = text
    return checked


_CONNECTION_OPTIONS = frozenset(
    {"base_url", "max_connections", "proxy", "verify", "transport", "http_client"}
)

# The framing is ours; `accept-encoding` is the protocol's, since a compressed reply is refused.
_RESERVED_HEADERS = frozenset({"host", "transfer-encoding", "accept-encoding"})

_CHECKS: dict[str, Callable[[object], object]] = {
    "retry": _check_retry,
    "max_reply_bytes": partial(_check_count, "max_reply_bytes"),
    "strict": partial(check_flag, "strict"),
}


def _parse_ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _ascii_host(name: str, host: str) -> str:
    if host.isascii():
        return host
    if not _IDNA_DEVIATIONS.isdisjoint(host):
        raise ConfigurationError(f"{name}: its host has a letter of two readings; write it as xn--")
    try:
        encoded = host.encode("idna").decode("ascii")
    except UnicodeError:
        encoded = ""
    # IDNA folds some characters to what must not stand in a host: a space, a slash.
    if not encoded or _NOT_IN_URL.search(encoded) or not _HOST_AND_PORT.match(encoded):
        raise ConfigurationError(f"{name}: its host is not a name that DNS can hold")
    return encoded


def _basic_authorization(netloc: str) -> Secret | None:
    userinfo = netloc.rpartition("@")[0]
    if not userinfo:
        return None
    user, _, password = userinfo.partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return Secret("Basic " + base64.b64encode(pair).decode("ascii"))
