# Generated from _async/transport.py by tests/unasync.py; do not edit.
"""The transport of the clients, for any httpx client."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Literal

import httpx

from cromicle_sdk._core.options import DEFAULT_MAX_CONNECTIONS, check_count
from cromicle_sdk._http.clients import release_when_dropped
from cromicle_sdk._http.proxies import Route

if TYPE_CHECKING:
    from cromicle_sdk._http.proxies import ProxyOption

__all__ = ["Transport"]


class Transport(httpx.HTTPTransport):
    """An httpx transport with the connection pool of `Client`.

    ```python
    with httpx.Client(transport=Transport(max_connections=500)) as client:
        ...
    ```

    The cost of a request does not grow with the number of requests in flight. A request that is
    cancelled, or whose response is dropped, releases its slot. A response can be closed while
    another thread reads it. A transport can be shared by threads, and used after a fork. It
    supports HTTP/1.1, and applies the timeouts of each request as httpx does, except that `connect`
    limits DNS, TCP, proxy and TLS together.

    A connection is reused only if no bytes were left over after the last response. HTTP/1.1 sets
    one limit: if a server sends a second response to a request only after the next request was
    sent, that response is taken for the one to the next request (RFC 9112, 9.2).

    A body that is available as a whole is sent together with the head, any other in parts as they
    are produced. After a 101, or a 2xx to CONNECT, `response.extensions["network_stream"]` can read
    and write at the same time, each with its own timeout.

    - `max_connections`: requests in flight; further ones are queued.
    - `proxy`: an http, https or socks5 URL (extra `[socks]`), or an `httpx.Proxy`. As in any httpx
      client with a transport, the proxies of the environment are not used.
    - `verify`: True, or an `ssl.SSLContext`.

    Clients of httpx2 accept it, too. Raises `ConfigurationError`, which names the option.
    """

    def __init__(
        self,
        *,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        proxy: ProxyOption | None = None,
        verify: Literal[True] | ssl.SSLContext = True,
    ) -> None:
        check_count("max_connections", max_connections)
        self._set_up(Route.build(proxy=proxy, verify=verify), max_connections)

    @classmethod
    def for_route(cls, route: Route, max_connections: int) -> Transport:
        """Return the transport of a client whose options have been checked."""
        transport = cls.__new__(cls)
        transport._set_up(route, max_connections)
        return transport

    def _set_up(self, route: Route, max_connections: int) -> None:
        # Imports httpcore with the first transport only: it takes as long to import as httpx.
        from .pool import Pool

        # The only attribute of httpx's transport. Its `__init__` is not called, because its pool
        # would load the certificates immediately.
        self._pool: Any = Pool(route, max_connections=max_connections)
        self._transport_for_httpx2: Any = None

    def handle_request(self, request: Any) -> Any:
        """Send a request through httpx's own method, or httpx2's for a request of httpx2."""
        if isinstance(request, httpx.Request):
            return release_when_dropped(super().handle_request(request))
        if self._transport_for_httpx2 is None:
            self._transport_for_httpx2 = _build_transport_for_httpx2(self._pool)
        return self._transport_for_httpx2.handle_request(request)


def _build_transport_for_httpx2(pool: Any) -> Any:
    # Only httpx2 can have created the request.
    import httpx2

    class TransportForHTTPX2(httpx2.HTTPTransport):
        def __init__(self) -> None:
            self._pool = pool

    return TransportForHTTPX2()
