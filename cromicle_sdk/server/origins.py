"""The browser's part of a request: which host it asks for, and which page has made it ask.

A page may send requests to a server on its visitor's machine. By DNS rebinding it even reads the
replies, as those of its own host. Its requests tell: by `Host`, or by `Origin`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cromicle_sdk._core.endpoint import is_loopback
from cromicle_sdk._core.errors import ConfigurationError

from .errors import ErrorForm, ErrorResponse, build_error
from .extension import find_extension

__all__ = ["OriginMiddleware", "parse_allow_origins", "parse_allowed_hosts"]

ANY = "*"

_HOST = re.compile(r"(\*|\*\.[\w.-]+|[\w.-]+|\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)\Z")
_HOST_HEADER = re.compile(r"(\[[0-9a-f:.]+\]|[^\s\[\]:@/?#,]+)(?::[0-9]*)?\Z")
_ORIGIN = re.compile(r"(\*|[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@]+)\Z")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

# Of a host name (RFC 1035, section 2.3.4), with a final dot.
_LONGEST_NAME = 254

# How long a browser may remember the answer to a preflight request, in seconds; browsers have
# limits of their own from ten minutes on.
_PREFLIGHT_SECONDS = 600

# Private Network Access: Chrome asks this before a page of the internet may use a server on the
# visitor's machine. Starlette rejects the question by default, and older versions ignore it.
_ASK_PRIVATE_NETWORK = b"access-control-request-private-network"
_ALLOW_PRIVATE_NETWORK = "access-control-allow-private-network"

_WRONG_HOST = (
    "this server does not accept requests for the host; its operator may add it by "
    "--allowed-host, or by allowed_hosts of create_app"
)
_WRONG_ORIGIN = (
    "this server does not accept requests of pages of the origin; its operator may add it by "
    "--allow-origin, or by allow_origins of create_app"
)


class OriginMiddleware:
    """Rejects requests of pages with a 403, and lets those of `allow_origins` read the responses.

    A request must be for a loopback name or address, or for one of `allowed_hosts`. Without
    `allowed_hosts` that only applies where a server of ours listens on a loopback address. A
    request with an `Origin` must have the host of that origin, or one of `allow_origins`. Without
    `allow_origins` that only applies under a server of ours. Pages may send `allow_headers`;
    `error_form` builds the errors.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: frozenset[str],
        allow_origins: frozenset[str],
        allow_headers: Sequence[str] = ("content-type", "x-request-id"),
        error_form: ErrorForm = build_error,
    ) -> None:
        self._app = app
        self._error_form = error_form
        self._allowed_hosts = allowed_hosts
        self._allow_origins = allow_origins
        if allow_origins:
            cors = CORSMiddleware(
                app,
                allow_origins=sorted(allow_origins),
                allow_methods=["GET", "POST"],
                allow_headers=allow_headers,
                expose_headers=["retry-after", "x-request-id"],
                max_age=_PREFLIGHT_SECONDS,
            )
            self._app = _PrivateNetworkMiddleware(cors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._find_problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await ErrorResponse(403, *problem, form=self._error_form)(scope, receive, send)

    def _find_problem(self, scope: Scope) -> tuple[str, str] | None:
        """The code and the message of the error, if there is one."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        extension = find_extension(scope)
        must_match = bool(self._allowed_hosts) or (extension is not None and extension.is_loopback)
        # Browsers always send a host; some health checks in HTTP/1.0 do not.
        if must_match and host and not self._allows_host(_split_host(host)):
            return "wrong_host", _WRONG_HOST
        if extension is not None or self._allow_origins:
            for origin in headers.getlist("origin"):
                if not self._allows_origin(_normalize_origin(origin), host):
                    return "wrong_origin", _WRONG_ORIGIN
        return None

    def _allows_host(self, name: str) -> bool:
        if len(name) > _LONGEST_NAME:
            return False
        name = name.removesuffix(".")
        parents = (f"*{name[start:]}" for start, each in enumerate(name) if each == ".")
        return is_loopback(name) or not self._allowed_hosts.isdisjoint({ANY, name, *parents})

    def _allows_origin(self, origin: str, host: str) -> bool:
        scheme, _, own = origin.partition("://")
        own_host = host.removesuffix(_DEFAULT_PORTS.get(scheme, ""))
        return (
            (scheme in _DEFAULT_PORTS and own == own_host)
            or origin in self._allow_origins
            or ANY in self._allow_origins
        )


class _PrivateNetworkMiddleware:
    """Allows pages whose origin is allowed to use a server on a loopback or private address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", [])
        others = [each for each in headers if each[0] != _ASK_PRIVATE_NETWORK]

        async def send_with_permission(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_ALLOW_PRIVATE_NETWORK] = "true"
            await send(message)

        if len(others) == len(headers):
            await self._app(scope, receive, send)
        else:
            await self._app({**scope, "headers": others}, receive, send_with_permission)


def parse_allowed_hosts(hosts: Iterable[str]) -> frozenset[str]:
    """The option `allowed_hosts`. Raises `ConfigurationError`."""
    return frozenset(
        _check_text("allowed_hosts", host, _HOST, "a host without scheme and port, or *.domain")
        .strip("[]")
        .removesuffix(".")
        for host in _check_iterable("allowed_hosts", hosts)
    )


def parse_allow_origins(origins: Iterable[str]) -> frozenset[str]:
    """The option `allow_origins`. Raises `ConfigurationError`."""
    return frozenset(
        _normalize_origin(
            _check_text(
                "allow_origins",
                origin,
                _ORIGIN,
                "scheme://host or scheme://host:port without a path, or * for any",
            )
        )
        for origin in _check_iterable("allow_origins", origins)
    )


def _check_iterable(option: str, value: object) -> Iterable[object]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        kind = type(value).__name__
        raise ConfigurationError(f"expected an iterable of str, not {kind}", option=option)
    return cast("Iterable[object]", value)


def _check_text(option: str, value: object, pattern: re.Pattern[str], expected: str) -> str:
    """The text in lower case."""
    if not isinstance(value, str) or not pattern.match(value):
        shown = repr(value[:100]) if isinstance(value, str) else type(value).__name__
        raise ConfigurationError(f"expected {expected}, not {shown}", option=option)
    return value.lower()


def _split_host(host: str) -> str:
    """The name or address of a `Host` header, without its port; "" if it is not valid."""
    match = _HOST_HEADER.match(host)
    return "" if match is None else match[1].strip("[]")


def _normalize_origin(origin: str) -> str:
    """The origin as browsers send it: in lower case, without the port that its scheme implies."""
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition("://")[0], ""))
