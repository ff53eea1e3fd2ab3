"""Addresses, and what is known of a socket without waiting for it."""

from __future__ import annotations

import errno
import select
import socket
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cromicle_sdk._http import sockets
from cromicle_sdk._http.sockets import (
    READ,
    WRITE,
    ClosedByCaller,
    find_first,
    interleave_families,
    is_request_unread,
    is_reusable,
    parse_address,
    poll,
    receive_now,
    snapshot,
    start_connect,
    system_error,
)


@pytest.mark.parametrize("host", ["fe80::1%eth0", "fe80::1%25eth0", "fe80::1%3"])
def test_an_address_with_the_name_of_an_interface_is_left_to_the_resolver(host: str) -> None:
    assert parse_address(host, 80) == []


def test_families_alternate() -> None:
    v6 = [(socket.AF_INET6, number) for number in range(3)]
    v4 = [(socket.AF_INET, number) for number in range(1)]
    assert interleave_families([*v6, *v4]) == [v6[0], v4[0], v6[1], v6[2]]
    assert interleave_families([*v4, *v6]) == [v4[0], v6[0], v6[1], v6[2]]
    assert interleave_families([]) == []


def test_the_text_of_a_socket_error() -> None:
    error = system_error(errno.ECONNREFUSED)
    assert isinstance(error, ConnectionRefusedError)
    assert error.strerror == "Connection refused"


def test_windows_has_the_texts_of_socket_errors_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "errorTab", {10061: "Connection refused."}, raising=False)
    assert str(system_error(10061)) == "[Errno 10061] Connection refused."
    assert system_error(errno.EPIPE).strerror == "Broken pipe"


def test_a_socket_that_cannot_connect_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    make = socket.socket

    def notice(*arguments: Any) -> socket.socket:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(socket, "socket", notice)
    with pytest.raises(OSError, match=r"denied|unreachable"):
        # TCP has no broadcast.
        start_connect((socket.AF_INET, ("255.255.255.255", 80)))
    assert [sock.fileno() for sock in made] == [-1]


def test_a_system_that_refuses_to_keep_connections_alive_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]  # one of its forms
            if (level, option) != (socket.IPPROTO_TCP, socket.TCP_NODELAY):
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            super().setsockopt(level, option, value)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(socket, "socket", Refusing)
        sock, _ = start_connect((socket.AF_INET, listener.getsockname()))
        with sock:
            assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_connection_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock, is_connected = start_connect((socket.AF_INET, listener.getsockname()))
        with sock:
            assert not sock.getblocking()
            assert not is_connected
            assert poll([sock], WRITE, 20) == [sock]
            assert sock.getpeername() == listener.getsockname()


def test_a_socket_that_connects_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems connect to their own addresses without a wait."""

    class Immediate(socket.socket):
        def connect(self, address: Any) -> None:
            self.setblocking(True)
            super().connect(address)
            self.setblocking(False)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(socket, "socket", Immediate)
        sock, is_connected = start_connect((socket.AF_INET, listener.getsockname()))
        with sock:
            assert is_connected
            assert sock.getpeername() == listener.getsockname()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", (socket.AF_INET, ("127.0.0.1", 80))),
        ("::1", (socket.AF_INET6, ("::1", 80, 0, 0))),
    ],
)
def test_the_address_of_a_literal(host: str, address: object) -> None:
    assert parse_address(host, 80) == [address]


def test_the_reason_of_an_exception() -> None:
    assert str(ClosedByCaller()) == "it was closed while it was under way"
    assert str(ClosedByCaller("mine")) == "mine"


def test_a_name_is_left_to_the_resolver() -> None:
    assert parse_address("localhost", 80) == []
    with pytest.raises(UnicodeError):
        parse_address("a..b", 80)


def test_data_is_received_without_a_wait() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        assert receive_now(one, 4) is None
        assert is_reusable(one)
        other.sendall(b"hello")
        assert not is_reusable(one)
        assert receive_now(one, 4) == b"hell"
        assert receive_now(one, 4) == b"o"
        other.close()
        assert receive_now(one, 4) == b""
        assert not is_reusable(one)


def test_an_error_of_the_system_is_returned() -> None:
    sock = socket.socket()
    sock.close()
    error = receive_now(sock, 4)
    assert isinstance(error, OSError)
    assert error.errno == errno.EBADF


def test_an_exception_of_a_signal_handler_is_raised() -> None:
    class Interrupted(socket.socket):
        def recv(self, *arguments: Any) -> bytes:
            raise TimeoutError("mine")

    with Interrupted() as sock, pytest.raises(TimeoutError, match="mine"):
        receive_now(sock, 4)


@pytest.mark.parametrize("in_main_thread", [True, False])
@pytest.mark.parametrize("system", ["poll", "select"])
def test_sockets_that_are_ready_are_found(
    system: str, in_main_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "select":
        monkeypatch.delattr("select.poll", raising=False)

    def check() -> None:
        one, other = socket.socketpair()
        with one, other:
            assert poll([one, other], READ, 0) == []
            assert poll([one, other], READ, 0.001) == []
            assert poll([one, other], WRITE, None) == [one, other]
            other.sendall(b"x")
            assert poll([one, other], READ, None) == [one]
            assert poll([one, other], READ, -1) == [one]

    if in_main_thread:
        check()
    else:
        with ThreadPoolExecutor(1) as executor:
            executor.submit(check).result()


@pytest.mark.parametrize("system", ["poll", "select"])
def test_a_wait_lasts_until_its_timeout(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float | None] = []
    if system == "select":
        monkeypatch.delattr("select.poll", raising=False)
        wait = select.select

        def notice(*arguments: Any) -> Any:
            timeouts.append(arguments[3])
            return wait(*arguments)

        monkeypatch.setattr("select.select", notice)

    def measure() -> float:
        one, other = socket.socketpair()
        with one, other:
            started = time.monotonic()
            assert poll([one], READ, 0.05) == []
            return time.monotonic() - started

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(measure).result() >= 0.05
    assert timeouts == ([0.05] if system == "select" else [])


@pytest.mark.skipif(not hasattr(select, "poll"), reason="select has a limit, and no alternative")
def test_a_thousand_descriptors_are_no_limit() -> None:
    import fcntl
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = 2000  # select takes at most 1024
    if limits[1] != resource.RLIM_INFINITY and limits[1] < number + 10:
        pytest.skip(f"the system allows only {limits[1]} descriptors")
    one, other = socket.socketpair()
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], number + 10), limits[1]))
    try:
        with one, other:
            with socket.socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, number)) as high:
                other.sendall(b"x")
                assert poll([high], READ, 20) == [high]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_timeout_is_rounded_up_to_milliseconds() -> None:
    seconds = (2, 0.25, 0.0001, 0, -1)
    assert [sockets._to_milliseconds(each) for each in seconds] == [2000, 250, 1, 0, 0]


def test_a_wait_in_the_main_thread_is_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of them, the interpreter runs the handlers of signals."""
    monkeypatch.setattr(sockets, "SIGNAL_DELAY_SECONDS", 0.01)
    waits: list[float | None] = []
    wait = sockets._poll_once

    def notice(socks: list[socket.socket], event: int, timeout: float | None) -> Any:
        waits.append(timeout)
        return wait(socks, event, timeout)

    monkeypatch.setattr(sockets, "_poll_once", notice)
    one, other = socket.socketpair()
    with one, other:
        assert poll([one], READ, 0.05) == []
    assert len(waits) > 1
    assert all(wait is not None and wait <= 0.01 for wait in waits)


def test_a_system_that_does_not_count_what_is_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert not is_request_unread(one, sent_bytes=1, seconds=1)
        assert is_request_unread(one, sent_bytes=1, seconds=0)
        monkeypatch.setitem(__import__("sys").modules, "termios", None)
        assert not is_request_unread(one, sent_bytes=1, seconds=1)


def test_a_close_on_its_way_is_told_from_one_after_the_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            accepted.close()
            client.send(b"request")
            assert client.recv(10) == b""
            assert is_request_unread(client, sent_bytes=7, seconds=1)
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            client.send(b"request")
            assert accepted.recv(10) == b"request"
            accepted.close()
            assert client.recv(10) == b""
            assert not is_request_unread(client, sent_bytes=7, seconds=1)


def test_the_bytes_that_are_not_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows does not count them")
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: (7).to_bytes(4, sys.byteorder))
    with socket.socket() as sock:
        assert is_request_unread(sock, sent_bytes=7, seconds=1)
        assert not is_request_unread(sock, sent_bytes=8, seconds=1)


def test_a_closed_socket_is_not_reusable() -> None:
    sock = socket.socket()
    sock.close()
    assert not is_reusable(sock)


def test_a_set_is_read_while_others_change_it() -> None:
    class Item:
        pass

    class Changing(weakref.WeakSet[Item]):
        iterations = 0

        def __iter__(self) -> Iterator[Item]:
            self.iterations += 1
            if self.iterations == 1:
                raise RuntimeError("Set changed size during iteration")
            return super().__iter__()

    item = Item()
    assert snapshot(Changing([item])) == [item]


def test_the_first_item_is_read_while_others_change_the_collection() -> None:
    class Changing(OrderedDict[str, None]):
        iterations = 0

        def __iter__(self) -> Iterator[str]:
            self.iterations += 1
            if self.iterations == 1:
                raise RuntimeError("OrderedDict mutated during iteration")
            return super().__iter__()

    assert find_first(Changing(one=None, two=None)) == "one"
    assert find_first([]) is None
