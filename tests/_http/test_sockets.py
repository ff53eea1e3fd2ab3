"""Addresses, and what is known of a socket without waiting for it."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

import pytest

from cromicle_sdk._http.sockets import (
    interleave_families,
    parse_address,
    start_connect,
    system_error,
)


@pytest.mark.parametrize("host", ["fe80::1%eth0", "fe80::1%25eth0", "fe80::1%3"])
def test_a_link_local_address_can_be_connected_to_or_is_a_name_to_resolve(host: str) -> None:
    for family, address in parse_address(host, 80):
        assert family == socket.AF_INET6
        assert ipaddress.ip_address(address[0])


def test_families_take_turns() -> None:
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
