"""Protection against requests of web pages: checks of `Host` and `Origin`, and CORS.

Any web page can send requests to a server on its visitor's machine and, by DNS rebinding, even read
the responses. Such a request has the `Host` of the page, or its `Origin`.
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

# The maximum length of a host name with a final dot (RFC 1035, section 2.3.4).
_MAX_NAME_LENGTH = 254

# How long a browser may cache the response to a preflight request. Browsers limit it themselves,
# to ten minutes or more.
_PREFLIGHT_SECONDS = 600

# Private Network Access: Chrome sends this header in the preflight request before a page of the
# internet may use a server on the visitor's machine. By default, Starlette rejects such a request;
# its older versions ignore the header.
_REQUEST_PRIVATE_NETWORK = b"access-control-request-private-network"
_ALLOW_PRIVATE_NETWORK = "access-control-allow-private-network"

_WRONG_HOST = (
    "this server does not accept requests for this host; its operator can allow it with "
    "--allowed-host, or with allowed_hosts of create_app"
)
_WRONG_ORIGIN = (
    "this server does not accept requests from pages of this origin; its operator can allow it "
    "with --allow-origin, or with allow_origins of create_app"
)


class OriginMiddleware:
    """Rejects requests of other hosts and origins with a 403, and adds CORS for `allow_origins`.

    The `Host` must be a loopback name or address, or one of `allowed_hosts`. Without
    `allowed_hosts`, this is checked only if a server of this package listens on a loopback address.
    An `Origin` must have the same host as the request, or be one of `allow_origins`. Without
    `allow_origins`, this is checked only under a server of this package. Pages may send
    `allow_headers`. `error_form` builds the errors.
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
        """Return the code and message of the error, or None."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        extension = find_extension(scope)
        must_match = bool(self._allowed_hosts) or (extension is not None and extension.is_loopback)
        # Browsers always send a host; some health checks over HTTP/1.0 do not.
        if must_match and host and not self._allows_host(_split_host(host)):
            return "wrong_host", _WRONG_HOST
        if extension is not None or self._allow_origins:
            for origin in headers.getlist("origin"):
                if not self._allows_origin(_normalize_origin(origin), host):
                    return "wrong_origin", _WRONG_ORIGIN
        return None

    def _allows_host(self, name: str) -> bool:
        if len(name) > _MAX_NAME_LENGTH:
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
    """Grants Private Network Access to the pages whose origin is allowed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", [])
        others = [each for each in headers if each[0] != _REQUEST_PRIVATE_NETWORK]

        async def send_with_permission(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_ALLOW_PRIVATE_NETWORK] = "true"
            await send(message)

        if len(others) == len(headers):
            await self._app(scope, receive, send)
        else:
            await self._app({**scope, "headers": others}, receive, send_with_permission)


def parse_allowed_hosts(hosts: Iterable[str]) -> frozenset[str]:
    """Parse the option `allowed_hosts`. Raises `ConfigurationError`."""
    return frozenset(
        _check_text("allowed_hosts", host, _HOST, "a host without scheme and port, or *.domain")
        .strip("[]")
        .removesuffix(".")
        for host in _check_iterable("allowed_hosts", hosts)
    )


def parse_allow_origins(origins: Iterable[str]) -> frozenset[str]:
    """Parse the option `allow_origins`. Raises `ConfigurationError`."""
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
    """Return the text in lower case, or raise `ConfigurationError`."""
    if not isinstance(value, str) or not pattern.match(value):
        shown = repr(value[:100]) if isinstance(value, str) else type(value).__name__
        raise ConfigurationError(f"expected {expected}, not {shown}", option=option)
    return value.lower()


def _split_host(host: str) -> str:
    """Return the name or address in a `Host` header, without the port; "" if it is invalid."""
    match = _HOST_HEADER.match(host)
    return "" if match is None else match[1].strip("[]")


def _normalize_origin(origin: str) -> str:
    """Return the origin as browsers send it: in lower case, without the default port."""
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition("://")[0], ""))
