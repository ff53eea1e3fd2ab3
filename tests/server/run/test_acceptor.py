"""Accepting connections when the system has no free descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from cromicle_sdk.server import LocalServer
from cromicle_sdk.server.run import acceptor as _acceptor

PATIENCE = 20.0

# A server for which the system has 50 file descriptors.
SERVER = """
import resource
from cromicle_sdk.server import LocalServer
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
with LocalServer() as server:
    print(server.base_url, flush=True)
    input()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_idle_connections_beyond_the_file_descriptors_block_no_other_client() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = httpx.URL(process.stdout.readline().strip())
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                address = (url.host, url.port or 0)
                stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
            for _ in range(3):
                assert httpx.get(url.join("/health"), timeout=5).is_success
        _, errors = process.communicate("\n", timeout=PATIENCE)
    # Not one for each attempt.
    assert errors.count("\n") <= 1
    assert process.returncode == 0


class FailingAccept:
    """`sock_accept` of the event loop, which first fails with these errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: int) -> None:
        self.errors = list(errors)
        accept = asyncio.SelectorEventLoop.sock_accept

        async def fail_or_accept(loop: Any, listener: socket.socket) -> Any:
            if self.errors:
                raise OSError(self.errors.pop(0), "no")
            return await accept(loop, listener)

        monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_accept", fail_or_accept)


@pytest.mark.skipif(sys.platform == "win32", reason="it has another event loop")
@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_and_idle_connections_it_waits(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_acceptor, "RETRY_SECONDS", 0.1)
    FailingAccept(monkeypatch, error, error)
    # The first attempt to accept is made before the first connection.
    started = time.monotonic()
    with LocalServer() as server:
        assert httpx.get(server.base_url + "/health").is_success
        assert time.monotonic() - started > 0.1


@pytest.mark.skipif(sys.platform == "win32", reason="it has another event loop")
def test_a_connection_that_has_ended_before_it_is_accepted_is_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FailingAccept(monkeypatch, errno.ECONNABORTED, errno.EPROTO)
    with LocalServer() as server:
        assert httpx.get(server.base_url + "/health").is_success
    assert not caplog.records


def test_many_connections_at_once_are_accepted() -> None:
    with LocalServer() as server, contextlib.ExitStack() as stack:
        url = httpx.URL(server.base_url)
        connections = [
            stack.enter_context(socket.create_connection((url.host, url.port or 0), PATIENCE))
            for _ in range(3 * _acceptor.BATCH)
        ]
        for connection in connections:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        for connection in connections:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
