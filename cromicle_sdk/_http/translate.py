"""The only room that knows httpx and httpx2: what users hand over, and what goes wrong in them."""

from __future__ import annotations

import math
import re
import ssl
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from cromicle_sdk._core.deadline import Limits
from cromicle_sdk._core.endpoint import Endpoint
from cromicle_sdk._core.errors import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    TimeoutPhase,
    shorten,
)
from cromicle_sdk._core.options import LONGEST_WAIT, ConnectionOptions
from cromicle_sdk._core.request import Request

from .sockets import ClosedByCaller, Head, Route

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "HTTPX_VERSION",
    "AsyncHTTPClient",
    "HTTPClient",
    "ProxyOption",
    "build_foreign_request",
    "build_route",
    "check_http_client",
    "expect_body",
    "find_response",
    "foreign_head",
    "redact_error",
    "strip_frames",
    "translate_error",
    "was_read",
]

HTTPX_VERSION = httpx.__version__

if TYPE_CHECKING:
    HTTPClient = httpx.Client | httpx2.Client
    AsyncHTTPClient = httpx.AsyncClient | httpx2.AsyncClient
    ProxyOption = str | httpx.URL | httpx.Proxy

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def build_route(endpoint: Endpoint, options: ConnectionOptions) -> Route:
    """How to reach the endpoint, by the options `proxy` and `verify` and the environment.

    Raises `ConfigurationError`, which names the option or the environment variable.
    """
    verify = options.verify
    if verify is not True and not isinstance(verify, ssl.SSLContext):
        raise ConfigurationError(
            f"expected True or an ssl.SSLContext, not {verify!r}",
            option="verify",
            hint="for a private certificate authority, pass ssl.create_default_context(cafile=...)",
        )
    given = options.proxy
    proxy = _find_proxy(endpoint) if given is None else _build_proxy("proxy", given)
    return Route(endpoint, proxy, None if verify is True else verify)


def check_http_client(client: object, name: str) -> None:
    """Raise `ConfigurationError` unless it is the class `name` of httpx or of httpx2."""
    kinds = [getattr(module, name) for module in _modules()]
    if not isinstance(client, tuple(kinds)):
        raise ConfigurationError(
            f"expected an httpx.{name} or an httpx2.{name}, "
            f"not {type(client).__module__}.{type(client).__qualname__}",
            option="http_client",
        )


def build_foreign_request(client: Any, request: Request, limits: Limits) -> Any:
    """The request as one of the user's client: with its default headers, without its cookies.

    What the caller's `headers` say of a cookie stays.
    """
    timeout = limits.timeout
    waits = {
        "connect": timeout.connect,
        "read": timeout.first_byte,
        "write": timeout.first_byte,
        "pool": None,
    }
    built = client.build_request(
        "POST",
        request.endpoint.url,
        headers=list(request.headers),
        content=request.body,
        extensions={"timeout": {name: _at_most(wait, limits) for name, wait in waits.items()}},
    )
    # httpx merges the cookies that its client has kept into the caller's own header.
    built.headers.pop("cookie", None)
    built.headers.update({name: value for name, value in request.headers if name == b"cookie"})
    return built


def expect_body(response: Any, limits: Limits) -> None:
    """From the head on, each read of the user's client may take as long as `stall`."""
    # httpcore looks this up when the body is first asked for.
    response.request.extensions["timeout"]["read"] = _at_most(limits.timeout.stall, limits)


def _at_most(wait: float | None, limits: Limits) -> float | None:
    limit = min(math.inf if wait is None else wait, limits.total_left())
    return None if limit == math.inf else min(max(limit, 0.001), LONGEST_WAIT)


def foreign_head(response: Any) -> Head:
    """The head of an answer that the user's client received."""
    version = response.extensions.get("http_version", b"HTTP/1.1")
    return Head(response.status_code, response.headers.raw, version)


def was_read(response: Any) -> bool:
    """Whether a hook of the user's has read the body, or dropped it.

    Its stream must not be touched then: the connection below may be another call's by now.
    """
    return bool(response.is_closed or response.is_stream_consumed)


def find_response(error: Exception, request: Any) -> Any:
    """The answer to a request that an error of the user's own hook is about.

    None for any other error: a hook may have had a request of its own, for a token.
    """
    response = (
        getattr(error, "response", None) if isinstance(error, _kinds("HTTPStatusError")) else None
    )
    # An answer that somebody has made has no request, and httpx raises where it is asked for.
    return response if getattr(response, "_request", None) is request else None


def translate_error(error: Exception, *, url: str, limits: Limits) -> APIConnectionError | None:
    """This package's error for one of the network; None for what is a defect instead."""
    if isinstance(error, ClosedByCaller):
        return _failed(f"The call to {url} can't go on", str(error), is_final=True)
    if isinstance(error, (TimeoutError, *_kinds("TimeoutException"))) and not _errno(error):
        return _timed_out(error, url, limits)
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            what, advice = f"The certificate of {url} can't be trusted", _CERTIFICATE_ADVICE
            said = getattr(cause, "verify_message", "") or str(cause)
            return _failed(what, said, advice, option="verify", is_final=True)
        if isinstance(cause, UnicodeError):
            what = f"The host of {url} can't be a name in DNS"
            return _failed(what, str(cause), "Check base_url.", option="base_url", is_final=True)
    if isinstance(error, (*_kinds("ProxyError"), *_socksio())):
        return _failed(
            f"The proxy on the way to {url} failed", _detail(error), _PROXY_ADVICE, option="proxy"
        )
    if isinstance(error, (OSError, *_kinds(*_NETWORK_ERRORS))):
        came = "No sound answer" if isinstance(error, _kinds("ProtocolError")) else "No answer"
        return _failed(f"{came} came from {url}", _detail(error), _ADVICE, option="base_url")
    return None


_CERTIFICATE_ADVICE = "For a private certificate authority, pass verify=ssl_context."
_PROXY_ADVICE = "Check the option proxy, or the proxy variables of the environment."
_ADVICE = "Check that the server runs and that base_url is right."
# httpcore's, then the bases of httpx's.
_NETWORK_ERRORS = (
    "ConnectionNotAvailable",
    "NetworkError",
    "ProtocolError",
    "UnsupportedProtocol",
    "HTTPError",
    "InvalidURL",
    "StreamError",
)


def redact_error(error: BaseException, redact: Callable[[str], str]) -> None:
    """Blank the secrets that the server echoed: h11 quotes a line that it can't read."""
    for cause in _chain(error):
        if not isinstance(cause, OSError):
            for inner in cause.args:
                # httpcore's errors are made of the errors below, which it does not chain.
                if isinstance(inner, Exception):
                    redact_error(inner, redact)
            cause.args = tuple(redact(a) if isinstance(a, str) else a for a in cause.args)


def strip_frames(error: BaseException) -> BaseException:
    """The error without its frames, whose locals hold the request, and so the token."""
    for cause in _chain(error):
        cause.__traceback__ = None
        # What it came up in may be an error that the caller is handling: not ours to touch.
        cause.__context__ = None
        if getattr(cause, "_request", None) is not None:
            cause._request = None  # type: ignore[attr-defined]  # httpx's errors carry theirs
    return error


def _modules() -> list[Any]:
    """httpx, and httpx2 where somebody has imported it: an object of it can't be here else."""
    other = sys.modules.get("httpx2")
    return [httpx] if other is None else [httpx, other]


def _kinds(*names: str) -> tuple[type[Exception], ...]:
    """The exception classes of these names in httpcore, httpx and httpx2."""
    modules = [httpcore, *_modules()]
    return tuple(getattr(m, name) for m in modules for name in names if hasattr(m, name))


def _socksio() -> tuple[type[Exception], ...]:
    # It is imported by httpcore when a SOCKS proxy is first used; then its error may come.
    module = sys.modules.get("socksio")
    return () if module is None else (module.SOCKSError,)


def _errno(error: Exception) -> int:
    """The system's number where it was the system that gave up, as TCP does after minutes."""
    return (isinstance(error, OSError) and error.errno) or 0


def _timed_out(error: Exception, url: str, limits: Limits) -> APITimeoutError:
    phase = limits.phase_that_ended()
    if phase != "total" and isinstance(error, _kinds("ConnectTimeout")):
        phase = "connect"
    elif phase != "total" and isinstance(error, _kinds("PoolTimeout")):
        phase = "pool"
    seconds: float | None = getattr(limits.timeout, phase, None)
    within = "in time" if seconds is None else f"within {seconds:g} s"
    problem = _WAITED[phase].format(url=url, within=within)
    return APITimeoutError(problem, hint=_RAISE[phase], phase=phase)


_WAITED: dict[TimeoutPhase, str] = {
    "connect": "No connection to {url} was established {within}.",
    "first_byte": "{url} did not respond {within}.",
    "stall": "{url} sent nothing more {within}.",
    "total": "The call to {url} did not finish {within}.",
    "pool": "No connection to {url} became free {within}.",
}
_RAISE: dict[TimeoutPhase, str] = {
    "connect": _ADVICE,
    "first_byte": "Raise timeout.first_byte if the server is known to be slow.",
    "stall": "Raise timeout.stall if the server is known to be slow.",
    "total": "Raise timeout.total if the reply is long.",
    "pool": "Close streams that are no longer needed, or raise max_connections.",
}


def _failed(
    what: str,
    detail: str,
    advice: str = "",
    *,
    option: str | None = None,
    is_final: bool = False,
) -> APIConnectionError:
    return APIConnectionError(
        f"{what}: {detail}.", hint=advice, option=option, detail=detail, is_final=is_final
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _detail(error: BaseException) -> str:
    """What happened, in words: some errors come without any."""
    for cause in _chain(error):
        text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        if text:
            return shorten(text).rstrip(".")
    return type(error).__name__


def _find_proxy(endpoint: Endpoint) -> httpcore.Proxy | None:
    """The environment's proxy for this endpoint; never one for this machine itself."""
    if endpoint.is_local:
        return None
    # An IPv6 address may stand in `no_proxy` with brackets or without.
    if any(map(proxy_bypass, (endpoint.netloc, endpoint.host, f"[{endpoint.host}]"))):
        return None
    proxies = getproxies()
    for name in (endpoint.scheme, "all"):
        if proxies.get(name):
            url = proxies[name]
            return _build_proxy(f"${name}_proxy", url if "://" in url else f"http://{url}")
    return None


def _build_proxy(name: str, value: object) -> httpcore.Proxy:
    """Errors name the option and never quote the URL: it may hold a password."""
    if not isinstance(value, (str, httpx.URL, httpx.Proxy)):
        raise ConfigurationError(
            f"expected a URL or an httpx.Proxy, not {type(value).__name__}", option=name
        )
    if isinstance(value, str) and not _PROXY_URL.match(value):
        raise _not_a_proxy(name)
    try:
        proxy = value if isinstance(value, httpx.Proxy) else httpx.Proxy(value)
    except (ValueError, httpx.InvalidURL, UnicodeError):
        raise _not_a_proxy(name) from None
    url = proxy.url
    if (
        url.scheme not in _PROXY_SCHEMES
        or not url.host
        or (url.port is not None and not 1 <= url.port <= 65535)
    ):
        raise _not_a_proxy(name)
    if url.scheme.startswith("socks"):
        _check_socks(name, proxy)
    return httpcore.Proxy(
        url=httpcore.URL(
            scheme=url.raw_scheme,
            host=url.raw_host,
            port=url.port or _PROXY_PORTS[url.scheme],
            target=url.raw_path,
        ),
        auth=proxy.raw_auth,
        headers=proxy.headers.raw,
        ssl_context=proxy.ssl_context,
    )


def _check_socks(name: str, proxy: httpx.Proxy) -> None:
    if not _has_socksio():
        raise ConfigurationError(
            "a SOCKS proxy needs an extra",
            option=name,
            hint='pip install "cromicle-sdk[socks]"',
        )
    # RFC 1929, 2: each has a length of one byte.
    if proxy.raw_auth is not None and max(map(len, proxy.raw_auth)) > 255:
        raise ConfigurationError(
            "the user and the password of a SOCKS proxy have at most 255 bytes", option=name
        )


def _not_a_proxy(name: str) -> ConfigurationError:
    return ConfigurationError("not a proxy URL", option=name, hint=_PROXY_FORMS)


_PROXY_FORMS = "expected http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT"
_PROXY_URL = re.compile(r"[^:/]+://(?:[^@]*@)?(?:\[[^\[\]@/]+\]|[^\[\]:@/]+)(?::[0-9]*)?/?\Z")
_PROXY_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


def _has_socksio() -> bool:
    return find_spec("socksio") is not None
