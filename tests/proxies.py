"""A proxy for tests, which supports HTTP, CONNECT and SOCKS5 and records its requests."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Proxy:
    """A proxy on a free port of 127.0.0.1.

    `seen` lists the request line of each HTTP request, and the target of each SOCKS request.
    `heads` lists the heads of HTTP requests, and the user and password of SOCKS requests. With
    `answer`, the proxy only sends that, then `then` after the next packet, and closes. With
    `context`, it uses TLS. `hosts` maps names to addresses, instead of the resolver.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None = None,
        answer: bytes = b"",
        then: bytes = b"",
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        self._hosts = hosts or {}
        self.seen: list[str] = []
        self.heads: list[str] = []
        self._context = context
        self._answer = answer
        self._then = then
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), sock:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._sockets.append(sock)
            first = sock.recv(1)
            if self._answer:
                request = first + sock.recv(65536)
                if first != b"\x05":
                    self.seen.append(request.split(b" HTTP/", 1)[0].decode())
                sock.sendall(self._answer)
                if self._then and sock.recv(65536):
                    sock.sendall(self._then)
            elif first == b"\x05":
                self._serve_socks(sock)
            else:
                self._serve_http(sock, first)

    def _serve_http(self, sock: socket.socket, data: bytes) -> None:
        while b"\r\n\r\n" not in data:
            data += sock.recv(65536)
        head, _, rest = data.partition(b"\r\n\r\n")
        self.heads.append(head.decode())
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        self.seen.append(f"{method} {target}")
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            upstream = self._connect(host, int(port))
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            scheme, _, address = target.partition("://")
            netloc, _, path = address.partition("/")
            host, _, port = netloc.rpartition(":")
            upstream = self._connect(host, int(port))
            assert scheme == "http"
            line = f"{method} /{path} HTTP/1.1".encode()
            upstream.sendall(line + head[head.index(b"\r\n") :] + b"\r\n\r\n" + rest)
        self._pipe_both_ways(sock, upstream)

    def _serve_socks(self, sock: socket.socket) -> None:
        methods = sock.recv(sock.recv(1)[0])
        if 2 in methods:
            sock.sendall(b"\x05\x02")
            sock.recv(1)
            user = sock.recv(sock.recv(1)[0])
            self.heads.append((user + b":" + sock.recv(sock.recv(1)[0])).decode())
            sock.sendall(b"\x01\x00")
        else:
            sock.sendall(b"\x05\x00")
        kind = sock.recv(4)[3]
        host = sock.recv(sock.recv(1)[0]) if kind == 3 else b""
        name = host.decode() or socket.inet_ntoa(sock.recv(4))
        port = int.from_bytes(sock.recv(2), "big")
        self.seen.append(f"SOCKS5 {name}:{port}")
        upstream = self._connect(name, port)
        sock.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
        self._pipe_both_ways(sock, upstream)

    def _connect(self, host: str, port: int) -> socket.socket:
        upstream = socket.create_connection((self._hosts.get(host, host), port))
        self._sockets.append(upstream)
        return upstream

    def _pipe_both_ways(self, one: socket.socket, other: socket.socket) -> None:
        threading.Thread(target=_pipe, args=(other, one), daemon=True).start()
        _pipe(one, other)


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
