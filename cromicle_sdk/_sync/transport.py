# Generated from _async/transport.py by tests/unasync.py; do not edit.
"""The transport of our clients, for any httpx client."""

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
    """httpx's transport over the connection pool of `Client`.

    ```python
    with httpx.Client(transport=Transport(max_connections=500)) as client:
        ...
    ```

    The pool costs the same for each request, however many are in flight; neither a request that is
    cancelled nor a response that is dropped unread loses its slot; a response may be
    closed while another thread reads it. It speaks HTTP/1.1.
    One transport may be shared by threads, and used after a fork.
    The timeouts of a request are those of httpx.

    A connection is used again only where its last response has left it clean: whatever has arrived
    after that response closes it. A second response that arrives later, once the next request is on
    its way, cannot be told from the response to that one: HTTP/1.1 knows no more of a response than
    its order (RFC 9112, 9.2).

    A body that is there as a whole is sent with the head; any other, part by part as it is made.
    After a 101, or a 2xx to CONNECT, `response.extensions["network_stream"]` reads and writes at
    once, each within the timeout that it is given.

    - `max_connections`: requests in flight; further ones are queued.
    - `proxy`: an http, https or socks5 URL (extra `[socks]`), or an `httpx.Proxy`. The environment
      is not read: an httpx client with a transport reads none either.
    - `verify`: True, or an `ssl.SSLContext`.

    httpx2's clients take it as well. Raises `ConfigurationError`, which names the option.
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
        """The transport of a client whose options have been checked."""
        transport = cls.__new__(cls)
        transport._set_up(route, max_connections)
        return transport

    def _set_up(self, route: Route, max_connections: int) -> None:
        # httpcore is loaded with the first transport: it takes as long to import as httpx.
        from .pool import Pool

        # The one attribute of httpx's transport, whose own `__init__` is not called: its pool would
        # load the certificates at once.
        self._pool: Any = Pool(route, max_connections=max_connections)
        self._transport_for_httpx2: Any = None

    def handle_request(self, request: Any) -> Any:
        """Send a request by httpx's own method, or by that of httpx2 for a request of httpx2's."""
        if isinstance(request, httpx.Request):
            return release_when_dropped(super().handle_request(request))
        if self._transport_for_httpx2 is None:
            self._transport_for_httpx2 = _build_transport_for_httpx2(self._pool)
        return self._transport_for_httpx2.handle_request(request)


def _build_transport_for_httpx2(pool: Any) -> Any:
    # Its requests come from nowhere else.
    import httpx2

    class TransportForHTTPX2(httpx2.HTTPTransport):
        def __init__(self) -> None:
            self._pool = pool

    return TransportForHTTPX2()
