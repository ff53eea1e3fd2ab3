"""The options of the clients: defaults, environment variables and checks."""

from __future__ import annotations

import enum
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol, TypedDict, cast

from .endpoint import Endpoint
from .errors import ConfigurationError
from .fields import ExtraBody
from .messages import LONE_SURROGATE, find_lone_surrogate
from .secrets import DEFAULT_TOKEN, Secret

__all__ = [
    "DEFAULT_BASE_URL",
    "DEFAULT_MAX_REPLY_BYTES",
    "DEFAULT_RETRY",
    "DEFAULT_TIMEOUT",
    "LONGEST_WAIT",
    "USE_CLIENT_DEFAULT",
    "CallOptions",
    "ConnectionOptions",
    "Options",
    "Retry",
    "Timeout",
    "TimeoutLike",
    "UseClientDefault",
    "ViewOptions",
    "check_count",
    "check_flag",
    "check_number",
    "check_seconds",
    "check_text",
    "check_timeout",
    "check_token",
    "find_header_problem",
    "find_token",
]

DEFAULT_BASE_URL = "https://cromicle.top"
DEFAULT_MAX_REPLY_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_CONNECTIONS = 1000

# The longest single wait in seconds: sockets and event loops count milliseconds in 32 bits.
LONGEST_WAIT = 2_000_000.0

# RFC 9110, section 5.6.2: token.
_HEADER_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z"
# RFC 9110, section 5.5: visible ASCII, with spaces and tabs only in between. It also allows other
# bytes as opaque data, but a str has no bytes without an encoding.
_HEADER_VALUE = r"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?\Z"


def check_count(name: str, value: object, *, minimum: int = 1, maximum: int | None = None) -> int:
    """Check a whole number in a range. Raises `ConfigurationError`, which names the option."""
    expected = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(
            f"expected a whole number, {expected}, not {_kind(value)}", option=name
        )
    if value < minimum or (maximum is not None and value > maximum):
        # Python does not format the digits of a very long number.
        shown = value if abs(value) < 10**18 else "a number of 19 or more digits"
        raise ConfigurationError(f"expected {expected}, not {shown}", option=name)
    return value


def check_seconds(name: str, value: object, *, above_zero: bool = False, hint: str = "") -> float:
    """Check a finite number of seconds, as `check_number` does."""
    return check_number(name, value, "seconds", above_zero=above_zero, hint=hint)


def check_number(
    name: str, value: object, unit: str, *, above_zero: bool = False, hint: str = ""
) -> float:
    """Check a finite number, 0 or more.

    With `above_zero`, 0 is rejected, too. Raises `ConfigurationError`, which names the option and
    the `unit`, and has the `hint`.
    """
    limit = "above 0" if above_zero else "0 or more"
    expected = f"expected a finite number of {unit}, {limit}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{expected}, not {_kind(value)}", option=name, hint=hint)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0 or (above_zero and number == 0):
        raise ConfigurationError(f"{expected}, not {number:g}", option=name, hint=hint)
    return value


def check_flag(name: str, value: object) -> bool:
    """Check True or False. Raises `ConfigurationError`, which names the option."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"expected True or False, not {_kind(value)}", option=name)
    return value


def check_text(name: str, value: object) -> str:
    """Check a str that is not empty and that UTF-8 can encode.

    Raises `ConfigurationError`, which names the option and never quotes the value.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"expected a str, not {_kind(value)}", option=name)
    if not value:
        raise ConfigurationError("expected a str with at least one character", option=name)
    if find_lone_surrogate(value) is not None:
        raise ConfigurationError(LONE_SURROGATE, option=name)
    return value


def _kind(value: object) -> str:
    return type(value).__name__


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """The timeouts of a call in seconds; None for no limit.

    - `connect`: to establish a connection: DNS, TCP, proxy and TLS together.
    - `first_byte`: from the end of the request to the first byte of the body of the response; also
      each pause while the request is being sent.
    - `stall`: the wait for each further chunk of the reply.
    - `total`: the complete call, with all attempts and the delays between them, but without the
      wait for one of the client's `max_connections`.
    - `pool`: the wait for one of the client's `max_connections`.

    Raises `ConfigurationError` for anything but None and finite numbers above 0.
    """

    connect: float | None = 5
    first_byte: float | None = 300
    stall: float | None = 120
    total: float | None = 600
    pool: float | None = 3600

    def __post_init__(self) -> None:
        for phase in ("connect", "first_byte", "stall", "total", "pool"):
            value = getattr(self, phase)
            if value is not None:
                check_seconds(
                    f"timeout.{phase}", value, above_zero=True, hint="pass None for no limit"
                )


@dataclass(frozen=True, kw_only=True)
class Retry:
    """When a failed call is retried.

    - `attempts`: the maximum number of requests, including the first one; 1 disables retries.
    - `first_delay`, `max_delay`: the delay before retry n, in seconds, is random between 0 and the
      smaller of `first_delay * 2 ** (n - 1)` and `max_delay`.
    - `max_retry_after`: the longest `Retry-After` header, in seconds, that is obeyed. If the server
      sends a longer one, the error is raised at once.
    - `budget`: the number of tokens that the retries of all calls of a client share. A retry costs
      5, one that obeys `Retry-After` costs nothing, and a successful call returns 1. The number is
      that of the client's own `retry`; None is no limit, and can also be set for a single call.
    - `busy`: whether the statuses 429 and 503 of a busy server are retried. If False, they are
      raised at once, for callers that slow down all of their calls together.

    Raises `ConfigurationError` for a value out of range.
    """

    attempts: int = 3
    first_delay: float = 0.5
    max_delay: float = 8
    max_retry_after: float = 60
    budget: int | None = 500
    busy: bool = True

    def __post_init__(self) -> None:
        check_count("retry.attempts", self.attempts)
        check_flag("retry.busy", self.busy)
        if self.budget is not None:
            check_count("retry.budget", self.budget)
        for name in ("first_delay", "max_delay", "max_retry_after"):
            check_seconds(f"retry.{name}", getattr(self, name))


class TimeoutLike(Protocol):
    """An `httpx.Timeout` of any version of httpx: timeouts in seconds; None for no limit."""

    @property
    def connect(self) -> float | None: ...
    @property
    def read(self) -> float | None: ...
    @property
    def write(self) -> float | None: ...
    @property
    def pool(self) -> float | None: ...


DEFAULT_TIMEOUT = Timeout()
DEFAULT_RETRY = Retry()


class UseClientDefault(enum.Enum):
    """The type of `USE_CLIENT_DEFAULT`, the default of the options of a call.

    The default is not None, because None is a valid timeout, and as a token or a `Retry` an error.
    """

    USE_CLIENT_DEFAULT = enum.auto()

    def __repr__(self) -> str:
        # Shown in the signatures of calls.
        return self.name


USE_CLIENT_DEFAULT: Final = UseClientDefault.USE_CLIENT_DEFAULT


class CallOptions(TypedDict, total=False):
    """The options of one call, which override those of the client."""

    timeout: float | Timeout | TimeoutLike | None
    retry: Retry
    headers: Mapping[str, str] | None
    max_reply_bytes: int
    strict: bool
    extra_body: Mapping[str, Any] | None
    send_messages: bool


class ViewOptions(CallOptions, total=False):
    """The options of `with_options`: those of a call, and the token."""

    token: str


class Options(NamedTuple):
    """The checked options of a call. Its repr shows only the endpoint.

    It is a named tuple, like other objects of each call, because a frozen dataclass takes five
    times as long to define, at import, and to create.
    """

    endpoint: Endpoint
    token: Secret
    timeout: Timeout
    retry: Retry
    max_reply_bytes: int
    strict: bool
    headers: Mapping[str, str]
    extra_body: ExtraBody
    send_messages: bool
    # Whether the endpoint is the default one, to which only the well-known token is sent.
    is_public_service: bool = False

    @classmethod
    def build(
        cls,
        *,
        base_url: str | None,
        token: Secret | None,
        timeout: float | Timeout | TimeoutLike | None,
        retry: Retry,
        max_reply_bytes: int,
        strict: bool,
        headers: Mapping[str, str] | None,
        extra_body: Mapping[str, Any] | None = None,
        send_messages: bool = False,
    ) -> Options:
        """Check the options of a client. None is the environment variable, or else the default.

        Raises `ConfigurationError`, which names the option or the environment variable.
        """
        variable = "CROMICLE_BASE_URL"
        name = f"${variable}" if base_url is None and os.environ.get(variable) else "base_url"
        url = os.environ.get(variable) if base_url is None else base_url
        found_token = find_token(token)
        is_public_service = base_url is None and not url
        if is_public_service:
            _check_public_token(found_token, "$CROMICLE_TOKEN" if token is None else "the token")
        return cls(
            endpoint=Endpoint.parse(name, DEFAULT_BASE_URL if is_public_service else url),
            is_public_service=is_public_service,
            token=found_token,
            timeout=check_timeout(timeout),
            retry=_check_retry(retry),
            max_reply_bytes=check_count("max_reply_bytes", max_reply_bytes),
            strict=check_flag("strict", strict),
            headers=_check_headers({} if headers is None else headers),
            extra_body=ExtraBody.build(extra_body),
            send_messages=check_flag("send_messages", send_messages),
        )

    def with_call_options(
        self,
        *,
        timeout: float | Timeout | TimeoutLike | UseClientDefault | None = USE_CLIENT_DEFAULT,
        retry: Retry | UseClientDefault = USE_CLIENT_DEFAULT,
        max_reply_bytes: int | UseClientDefault = USE_CLIENT_DEFAULT,
        strict: bool | UseClientDefault = USE_CLIENT_DEFAULT,
        extra_body: Mapping[str, Any] | None = None,
        send_messages: bool | UseClientDefault = USE_CLIENT_DEFAULT,
        headers: Mapping[str, str] | None = None,
    ) -> Options:
        """Return these options, overridden by those of a call.

        Headers and the fields of `extra_body` are merged. Raises `ConfigurationError`.
        """
        changes: dict[str, Any] = {}
        if timeout is not USE_CLIENT_DEFAULT:
            changes["timeout"] = check_timeout(timeout, base=self.timeout)
        if retry is not USE_CLIENT_DEFAULT:
            changes["retry"] = _check_retry(retry)
        if max_reply_bytes is not USE_CLIENT_DEFAULT:
            changes["max_reply_bytes"] = check_count("max_reply_bytes", max_reply_bytes)
        if strict is not USE_CLIENT_DEFAULT:
            changes["strict"] = check_flag("strict", strict)
        if extra_body is not None:
            changes["extra_body"] = self.extra_body.merge(ExtraBody.build(extra_body))
        if send_messages is not USE_CLIENT_DEFAULT:
            changes["send_messages"] = check_flag("send_messages", send_messages)
        if headers is not None:
            changes["headers"] = {**self.headers, **_check_headers(headers)}
        return self._replace(**changes) if changes else self

    def with_token(self, token: Secret) -> Options:
        """Return these options with another token. Raises `ConfigurationError`."""
        check_token("token", token)
        if self.is_public_service:
            _check_public_token(token, "the token")
        return self._replace(token=token)

    def __repr__(self) -> str:
        return f"<Options of calls to {self.endpoint.url}>"


class ConnectionOptions(NamedTuple):
    """The options of a client's connections, checked as far as possible without httpx."""

    max_connections: int
    proxy: Any
    verify: Any
    http_client: Any

    @classmethod
    def build(
        cls,
        *,
        max_connections: int | None,
        proxy: object,
        verify: object,
        http_client: object,
        base_url: object = None,
    ) -> ConnectionOptions:
        """Check the options of a client. With `http_client`, no other option can be set.

        A base URL of `http_client` is rejected unless `base_url` is given. Raises
        `ConfigurationError`, which names the option.
        """
        if http_client is not None:
            given = {
                "max_connections": max_connections is not None,
                "proxy": proxy is not None,
                "verify": verify is not True,
            }
            for name in (name for name, is_given in given.items() if is_given):
                raise ConfigurationError("set it on your own http_client instead", option=name)
            if base_url is None and str(getattr(http_client, "base_url", "")):
                # The client ignores it, and would send the prompt to another server.
                raise ConfigurationError(
                    "pass it here, not to your own http_client", option="base_url"
                )
        return cls(
            max_connections=DEFAULT_MAX_CONNECTIONS
            if max_connections is None
            else check_count("max_connections", max_connections),
            proxy=proxy,
            verify=verify,
            http_client=http_client,
        )

    def __repr__(self) -> str:
        # A proxy may have a password.
        return f"ConnectionOptions(max_connections={self.max_connections})"

    def check_picklable(self) -> None:
        """Raise `ConfigurationError` for an option that cannot be pickled."""
        if self.http_client is not None:
            raise ConfigurationError(
                "a client with its own http_client cannot be pickled", option="http_client"
            )
        if self.verify is not True:
            raise ConfigurationError(
                "a client with an SSLContext cannot be pickled", option="verify"
            )
        if getattr(self.proxy, "ssl_context", None) is not None:
            raise ConfigurationError("a proxy with an SSLContext cannot be pickled", option="proxy")


def find_token(token: Secret | None) -> Secret:
    """Return the checked token of the option, the environment variable, or the default."""
    if token is not None:
        return check_token("token", token)
    # In shells, an empty variable is the way to unset it for one command.
    if os.environ.get("CROMICLE_TOKEN"):
        return check_token("$CROMICLE_TOKEN", Secret(os.environ["CROMICLE_TOKEN"]))
    return Secret(DEFAULT_TOKEN)


def check_token(name: str, token: Secret) -> Secret:
    """Check that a token can be sent. Raises `ConfigurationError`, which never quotes it."""
    problem = _token_problem(token)
    if problem is not None:
        raise ConfigurationError(problem, option=name)
    return token


def _token_problem(token: Secret) -> str | None:
    # Must not raise, because a traceback with locals would print `text`.
    text = cast("object", token.reveal())
    if not isinstance(text, str):
        return f"expected a str, not {_kind(text)}"
    if not text:
        return "it is empty; leave it out for the default"
    if find_lone_surrogate(text) is not None:
        return LONE_SURROGATE
    # Text from a file usually ends with a line break, and on Windows may begin with a byte order
    # mark. Both would be hashed.
    if not all(c.isprintable() and not c.isspace() for c in (text[0], text[-1])):
        return "it begins or ends with white space or an invisible character"
    return None


def _check_public_token(token: Secret, what: str) -> None:
    """Raise `ConfigurationError` if a private token would be sent to the public service."""
    if token != Secret(DEFAULT_TOKEN):
        raise ConfigurationError(
            f"it is not set, and {what} would go to {DEFAULT_BASE_URL}, a host that is not yours",
            option="base_url",
            hint="pass base_url or set $CROMICLE_BASE_URL, or leave the token out",
        )


def check_timeout(value: object, *, base: Timeout = DEFAULT_TIMEOUT) -> Timeout:
    """Convert the option `timeout` to a `Timeout`. Raises `ConfigurationError`.

    A number sets every timeout except `total` and `pool`, which are those of `base`. The `read` of
    an `httpx.Timeout` is both `first_byte` and `stall`, its `write` is ignored, and `total` is that
    of `base`.
    """
    if isinstance(value, Timeout):
        return value
    if value is None:
        return Timeout(connect=None, first_byte=None, stall=None, total=None, pool=None)
    if all(hasattr(value, name) for name in ("connect", "read", "write", "pool")):
        like = cast("TimeoutLike", value)
        return replace(
            base, connect=like.connect, first_byte=like.read, stall=like.read, pool=like.pool
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(
            f"expected a number of seconds, a Timeout or None, not {_kind(value)}",
            option="timeout",
        )
    return replace(base, connect=value, first_byte=value, stall=value)


def _check_retry(value: object) -> Retry:
    if not isinstance(value, Retry):
        raise ConfigurationError(
            f"expected a Retry, not {_kind(value)}",
            option="retry",
            hint="Retry(attempts=1) disables retries",
        )
    return value


def _check_headers(value: object) -> dict[str, str]:
    """Return the headers by lower-case name. Errors never quote a value, which may be a secret."""
    if not isinstance(value, Mapping):
        raise _invalid_headers(f"expected a mapping of str to str, not {_kind(value)}")
    checked: dict[str, str] = {}
    for name, text in cast("Mapping[str, str]", value).items():
        problem = find_header_problem(name, text)
        if problem is not None:
            raise _invalid_headers(problem)
        if name.lower() in checked:
            raise _invalid_headers(f"{name} is given twice")
        checked[name.lower()] = text
    return checked


def find_header_problem(name: object, value: object) -> str | None:
    """Describe why a request cannot have this header, or return None.

    The description never quotes the value, and no error is raised, because the value may be a
    secret.
    """
    if not isinstance(name, str) or not re.match(_HEADER_NAME, name):
        return f"{name!r} is not a header name"
    lowered = name.lower()
    if lowered.startswith("content-") or lowered in _RESERVED_HEADERS:
        return f"{name} is set by the protocol and cannot be overridden"
    if not isinstance(value, str) or not re.match(_HEADER_VALUE, value):
        return (
            f"the value of {name} must be a str of visible ASCII characters, "
            "with spaces and tabs inside only"
        )
    return None


def _invalid_headers(problem: str) -> ConfigurationError:
    return ConfigurationError(problem, option="headers")


# Headers of the framing, which the client sets, and `accept-encoding`, because the protocol has no
# compressed replies.
_RESERVED_HEADERS = frozenset({"host", "transfer-encoding", "accept-encoding"})
