"""What somebody without a token can do to a server: measured on `cromicle serve` as a process.

The limits were measured on a machine with two cores. `GET /health` is requested on a new connection
each time, as a load balancer does. `CROMICLE_STRESS=full` runs the attacks for longer.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from signatures import build_request, sign

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]

FULL = os.environ.get("CROMICLE_STRESS") == "full"
SECONDS = 4.0 if FULL else 1.5
PATIENCE = 30.0
MEGABYTE = 1024 * 1024
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
WRONG = build_request(sign("hi", "wrong"))
HEAD = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


class Server:
    """`cromicle serve` in its own process; its log is in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        wait_until(lambda: b"Try it" in log.read_bytes())
        self.port = int(log.read_text().split()[2].rpartition(":")[2])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def is_healthy(self) -> bool:
        with self.connect() as connection:
            connection.sendall(HEALTH)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        return answer.endswith(b"}")

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines()

    @property
    def memory(self) -> int:
        """The resident set size in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def sockets(self) -> int:
        """The number of open sockets, its listener included."""
        count = 0
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += str(file.readlink()).startswith("socket:")
        return count

    @property
    def cpu(self) -> float:
        """Seconds of CPU so far."""
        # The clock of clock_getcpuclockid(3), to the nanosecond; /proc counts 10 ms.
        return time.clock_gettime((~self.process.pid << 3) | 2)


@contextlib.contextmanager
def run_server(folder: Path, *arguments: str, descriptors: int | None = None) -> Iterator[Server]:
    log = folder / "log"

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    command = [sys.executable, "-m", "cromicle_sdk", "serve", "--port", "0", *arguments]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stderr=file, preexec_fn=limit) as process,
    ):
        try:
            yield Server(process, log)
        finally:
            process.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with run_server(tmp_path) as running:
        yield running


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def health_watched(server: Server) -> Iterator[list[float]]:
    """How long the server takes for each `GET /health` while the block runs, in seconds.

    Up to a second, that is the CPU time which the server uses until it responds: on a busy machine,
    both sides wait for a CPU.
    """
    times: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            started, used = time.monotonic(), server.cpu
            try:
                if not server.is_healthy():
                    times.append(PATIENCE)
            except OSError:
                times.append(PATIENCE)
            took = time.monotonic() - started
            times.append(took if took >= 1 else min(took, server.cpu - used))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join(PATIENCE)


def assert_quick(times: list[float], limit: float) -> None:
    """All but one in fifty."""
    assert times
    assert sorted(times)[-1 - len(times) // 50] < limit


def test_idle_connections_beyond_the_file_descriptors(tmp_path: Path) -> None:
    with run_server(tmp_path, descriptors=1024) as server, contextlib.ExitStack() as stack:
        for _ in range(1200):
            stack.enter_context(server.connect())
        # It is accepted after all of these.
        assert server.is_healthy()
        with health_watched(server) as times:
            before = server.cpu
            time.sleep(3)
            used = server.cpu - before
        assert_quick(times, 0.25)
        # The requests for the health are some fifty a second themselves.
        assert used / 3 < 0.05 + 0.001 * len(times)
        warnings = [line for line in server.log if "connections: " in line]
        assert len(warnings) == 1
        assert len(server.log) < 20 + len(times)


@pytest.mark.parametrize("path", [b"/chat", b"/nowhere"])
@pytest.mark.parametrize("size", [1, 12, 20])
def test_bodies_in_tiny_chunks(path: bytes, size: int, server: Server) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    head = HEAD % path + b"transfer-encoding: chunked\r\n\r\n"
    part = chunk * (6000 // len(chunk))
    rate = 5_000_000 / 8
    started, sent = time.monotonic(), 0
    with health_watched(server) as times:
        while time.monotonic() < started + SECONDS:
            with contextlib.suppress(OSError), server.connect() as connection:
                connection.sendall(head)
                while time.monotonic() < started + SECONDS:
                    connection.sendall(part)
                    sent += len(part)
                    time.sleep(max(0, started + sent / rate - time.monotonic()))
    assert_quick(times, 0.25)


def test_many_bodies_in_tiny_chunks_at_once(server: Server) -> None:
    """5 Mbit/s in all, each of them as much as is not yet refused, with its head."""
    data = HEAD % b"/chat" + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 900
    started, sent = time.monotonic(), 0
    with health_watched(server) as times, contextlib.ExitStack() as stack:
        while time.monotonic() < started + SECONDS:
            for _ in range(10):
                connection = stack.enter_context(server.connect())
                connection.sendall(data)
                sent += len(data)
            time.sleep(max(0, started + sent / (5_000_000 / 8) - time.monotonic()))
    assert_quick(times, 0.25)


def test_bodies_that_never_end(server: Server) -> None:
    count = 1000 if FULL else 200
    head = HEAD % b"/chat" + b"content-length: %d\r\n\r\n{" % MEGABYTE
    server.is_healthy()
    before = server.memory
    most = before
    with contextlib.ExitStack() as stack, health_watched(server) as times:
        connections = [stack.enter_context(server.connect()) for _ in range(count)]
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(head)
        for _ in range(15):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x" * 65536)
            most = max(most, server.memory)
        # A prompt of an honest caller fits all the same.
        with server.connect() as honest:
            honest.sendall(build_request(sign("hi", "abc")))
            assert honest.recv(65536).startswith(b"HTTP/1.1 200 ")
        waiting = set(connections)

        def are_most_refused() -> bool:
            nonlocal most
            most = max(most, server.memory)
            waiting.difference_update([each for each in waiting if is_refused(each)])
            return len(waiting) < count // 2

        # The kernel buffers what the server has not read yet.
        wait_until(are_most_refused)
    assert most - before < 128 * MEGABYTE
    assert times


def is_refused(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        response = connection.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        response = b""
    # A reset may overtake the response.
    return response.startswith(b"HTTP/1.1 503 ") or not response


@pytest.mark.parametrize(
    "piece",
    [b"[" * 900 + b"]" * 900 + b",", b"[],", b"{},", b"[" * 30 + b"]" * 30 + b",", b"["],
    ids=["deep", "lists", "objects", "in between", "open"],
)
def test_a_body_of_nested_lists(piece: bytes, server: Server) -> None:
    body = b'{"message": "hi", "x": [' + piece * ((MEGABYTE - 100) // len(piece)) + b"0]}"
    data = HEAD % b"/chat" + b"content-length: %d\r\n\r\n" % len(body) + body
    statuses = set()
    with health_watched(server) as times:
        for _ in range(10 if FULL else 4):
            with server.connect() as connection:
                connection.sendall(data)
                statuses.add(connection.recv(65536)[:13])
            time.sleep(0.1)
    assert statuses == {b"HTTP/1.1 400 "}
    assert_quick(times, 0.1)


def test_mutated_requests_are_never_a_server_error(server: Server) -> None:
    generator = random.Random(4711)
    whole = [
        build_request(sign("Hello, Grüße", "abc")),
        build_request({**sign("hi"), "messages": [{"role": "user", "content": "hi"}]}),
        HEAD % b"/chat" + b'transfer-encoding: chunked\r\n\r\n5\r\n{"a":\r\n0\r\n\r\n',
        b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nx-request-id: a\r\n\r\n",
    ]
    statuses: Counter[int] = Counter()
    for _ in range(4000 if FULL else 400):
        data = bytearray(generator.choice(whole))
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(data))
            kind = generator.randrange(3)
            if kind == 0:
                data[place] = generator.randrange(256)
            elif kind == 1:
                del data[place : place + generator.randint(1, 8)]
            else:
                data[place:place] = data[generator.randrange(len(data)) :][
                    : generator.randint(1, 40)
                ]
        with server.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            if answer:
                statuses[int(answer.split()[1])] += 1
    assert server.is_healthy()
    assert {status for status in statuses if status >= 500} <= {503, 505}
    assert len(statuses) >= 4
    assert not [line for line in server.log if "Traceback" in line]


def test_requests_that_are_reset(server: Server) -> None:
    count = 3600 if FULL else 1350
    data = build_request(sign("hi", "abc"))
    started = time.monotonic()
    with health_watched(server) as times:
        for number in range(count):
            connection = server.connect()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(data)
            connection.close()
            time.sleep(max(0, started + number * SECONDS / count - time.monotonic()))
    assert_quick(times, 1.0)
