"""The route to a host: the proxy of an option or of the environment, and the TLS context."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

import httpx

from cromicle_sdk._core.endpoint import Endpoint
from cromicle_sdk._core.errors import ConfigurationError

from .no_proxy import is_excepted

if TYPE_CHECKING:
    import httpcore

__all__ = ["ProxyOption", "Route", "default_ssl_context", "encode_server_name"]

if TYPE_CHECKING:
    ProxyOption = str | httpx.URL | httpx.Proxy

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True)
class Route:
    """The proxy and the SSL context of a transport. None is no proxy and the default context."""

    proxy: httpcore.Proxy | None = None
    ssl_context: ssl.SSLContext | None = None

    @classmethod
    def build(cls, *, proxy: object, verify: object) -> Route:
        """Build the route for the options `proxy` and `verify`. Raises `ConfigurationError`."""
        return cls(
            proxy=None if proxy is None else _build_proxy("proxy", proxy),
            ssl_context=_check_verify(verify),
        )

    @classmethod
    def find(cls, endpoint: Endpoint, *, proxy: object, verify: object) -> Route:
        """Find the route to an endpoint, with the proxy of the environment if `proxy` is None.

        Raises `ConfigurationError`, which names the option or the environment variable.
        """
        if proxy is None:
            return cls(proxy=_find_proxy(endpoint), ssl_context=_check_verify(verify))
        return cls.build(proxy=proxy, verify=verify)

    def find_target(self, url: httpcore.URL) -> httpcore.URL:
        """Return the URL of a request, in which a proxy receives an IPv6 address with brackets.

        RFC 9112, sections 3.2.2 and 3.2.3, require them. httpcore passes the host on unchanged.
        """
        if not self._has_http_proxy or b":" not in url.host or url.host.startswith(b"["):
            return url
        return type(url)(
            scheme=url.scheme, host=b"[%b]" % url.host, port=url.port, target=url.target
        )

    def find_extensions(
        self, url: httpcore.URL, extensions: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Return the extensions of a request, without those that would change its proxy's part.

        httpcore would check the certificate of an https proxy for `sni_hostname`, and send `target`
        to the proxy instead of the host. httpcore2 does not.
        """
        if not self._has_http_proxy:
            return extensions
        left_out = {"sni_hostname"}
        # A target without a path, such as `*`, is complete.
        if url.scheme == b"https" or url.target.startswith(b"/"):
            left_out.add("target")
        if left_out.isdisjoint(extensions):
            return extensions
        return {name: value for name, value in extensions.items() if name not in left_out}

    @property
    def _has_http_proxy(self) -> bool:
        return self.proxy is not None and self.proxy.url.scheme in (b"http", b"https")


def default_ssl_context() -> ssl.SSLContext:
    """Return the context with the certificate authorities of the environment, or of certifi.

    It is shared by the process, because loading takes about 10 ms. Raises `ConfigurationError`,
    which names the environment variable.
    """
    # Tools that replace the class, such as mocket, get their own contexts.
    return _build_ssl_context(ssl.SSLContext, *map(os.environ.get, _TLS_VARIABLES))


def encode_server_name(name: str) -> str:
    """Return a name in ASCII, as in a URL of httpx, to check a certificate for it.

    The standard library would use IDNA 2003, in which `straße.test` and `strasse.test` are the same
    name. Raises `ValueError`.
    """
    if name.isascii():
        return name
    try:
        return httpx.URL(host=name).raw_host.decode("ascii")
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error


# The variables that `httpx.create_ssl_context` and the standard library read.
_TLS_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


@lru_cache(maxsize=4)
def _build_ssl_context(
    kind: type, cert_file: str | None, cert_dir: str | None, key_log: str | None
) -> ssl.SSLContext:
    # OpenSSL treats a missing folder as an empty one.
    if cert_dir and not cert_file and not Path(cert_dir).is_dir():
        raise ConfigurationError("it is not a directory", option="$SSL_CERT_DIR")
    try:
        return httpx.create_ssl_context()
    except ssl.SSLError:
        problem = "it has no certificates in PEM"
    except OSError as error:
        problem = f"the file cannot be opened: {error.strerror or error}"
        if key_log and error.filename == key_log:
            raise ConfigurationError(problem, option="$SSLKEYLOGFILE") from None
    if cert_file:
        raise ConfigurationError(problem, option="$SSL_CERT_FILE")
    raise ConfigurationError(
        "the certificates of the package certifi cannot be loaded",
        option="verify",
        hint="set $SSL_CERT_FILE, or pass verify=ssl_context",
    )


def _check_verify(verify: object) -> ssl.SSLContext | None:
    if verify is True:
        return None
    if isinstance(verify, ssl.SSLContext):
        return verify
    raise ConfigurationError(
        f"expected True or an ssl.SSLContext, not {verify!r}",
        option="verify",
        hint="for a private certificate authority, pass ssl.create_default_context(cafile=...)",
    )


def _find_proxy(endpoint: Endpoint) -> httpcore.Proxy | None:
    """Return the proxy of the environment for an endpoint, or None for this machine itself."""
    if endpoint.is_local:
        return None
    proxies = getproxies()
    # macOS and Windows have exceptions in their system settings.
    if is_excepted(proxies.get("no", ""), endpoint.host, endpoint.port) or proxy_bypass(
        endpoint.netloc
    ):
        return None
    for name in (endpoint.scheme, "all"):
        if proxies.get(name):
            url = proxies[name]
            return _build_proxy(f"${name}_proxy", url if "://" in url else f"http://{url}")
    return None


def _build_proxy(name: str, value: object) -> httpcore.Proxy:
    """Build a proxy. Errors name the option and never quote the URL, which may have a password."""
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
    import httpcore

    return httpcore.Proxy(
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port or _PROXY_PORTS[url.scheme]
        ),
        auth=None if proxy.raw_auth is None else _hide(*proxy.raw_auth),
        headers=proxy.headers.raw,
        ssl_context=proxy.ssl_context,
    )


def _hide(user: bytes, password: bytes) -> tuple[bytes, bytes]:
    """Hide user and password, because httpcore logs those of a SOCKS proxy at DEBUG."""
    return _HiddenBytes(user), _HiddenBytes(password)


class _HiddenBytes(bytes):
    """Bytes whose repr does not show them."""

    def __repr__(self) -> str:
        return "<secret>"


def _check_socks(name: str, proxy: httpx.Proxy) -> None:
    if not _has_socksio():
        raise ConfigurationError(
            "a SOCKS proxy needs an extra",
            option=name,
            hint='pip install "cromicle-sdk[socks]"',
        )
    # RFC 1929, section 2: their lengths are one byte each.
    if proxy.raw_auth is not None and max(map(len, proxy.raw_auth)) > 255:
        raise ConfigurationError(
            "the user and the password of a SOCKS proxy have at most 255 bytes", option=name
        )


def _not_a_proxy(name: str) -> ConfigurationError:
    return ConfigurationError("not a proxy URL", option=name, hint=_PROXY_FORMS)


_PROXY_FORMS = "expected http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT"
_PROXY_URL = re.compile(r"[^:/]+://(?:[^@/?#]*@)?(?:\[[^\[\]@/]+\]|[^\[\]:@/]+)(?::[0-9]*)?/?\Z")
_PROXY_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


def _has_socksio() -> bool:
    return find_spec("socksio") is not None
