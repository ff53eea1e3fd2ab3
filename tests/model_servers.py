"""Running model servers as processes, with `cromicle serve` in front of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

__all__ = [
    "NEEDS_SIGNALS",
    "Gateway",
    "find_port",
    "run",
    "serve_gateway",
    "wait_for_status",
]

# The time limit for a start, in seconds. A start takes up to ten.
PATIENCE = 300.0

NEEDS_SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="requires POSIX signals")


@dataclass(frozen=True)
class Gateway:
    """`cromicle serve` in front of a model server."""

    base_url: str
    log: Path

    def count_calls(self, status: int) -> int:
        """Return the number of calls with this status in the access log."""
        return self.log.read_text(errors="replace").count(f"path=/chat status={status}")


@contextlib.contextmanager
def run(
    command: list[str], log: Path, *, stop: signal.Signals = signal.SIGTERM, **environment: str
) -> Generator[subprocess.Popen[bytes]]:
    """Run a command in the folder of its log, and stop it at exit with the signal `stop`.

    Its standard input stays open until then.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=log.parent,
        )
    try:
        yield process
    finally:
        process.send_signal(stop)
        process.communicate(timeout=PATIENCE)


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for_status(
    url: str, process: subprocess.Popen[bytes], log: Path, *, status: int = 200
) -> None:
    """Wait until the URL responds with this status. Fail with the log if the process ends."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == status:
                return
        time.sleep(0.02)
    pytest.fail(log.read_text(errors="replace"))


@contextlib.contextmanager
def serve_gateway(upstream: str, folder: Path, *options: str, key: str = "") -> Generator[Gateway]:
    """Run `cromicle serve` with these options, and check that its log does not contain the key."""
    port, log = find_port(), folder / "log"
    command = [sys.executable, "-m", "cromicle_sdk", "serve", "--port", str(port)]
    command += ["--upstream", upstream, *options]
    with run(command, log, CROMICLE_UPSTREAM_KEY=key) as process:
        gateway = Gateway(f"http://127.0.0.1:{port}", log)
        wait_for_status(f"{gateway.base_url}/health", process, log)
        yield gateway
    assert not key or key not in log.read_text()
