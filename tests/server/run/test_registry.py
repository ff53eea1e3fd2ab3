"""The limits of connections, without a network."""

from __future__ import annotations

import logging

import pytest

from cromicle_sdk.server.run.registry import Connections

US, THEM = "192.0.2.1", "198.51.100.7"


class FakeConnection:
    def __init__(self) -> None:
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def add_idle(connections: Connections, address: str = US) -> FakeConnection:
    assert connections.admit(address)
    connection = FakeConnection()
    connections.mark_idle(connection)
    return connection


def test_without_limits_every_connection_is_admitted() -> None:
    connections = Connections()
    assert all(connections.admit(US) for _ in range(10_000))


def test_a_new_connection_replaces_the_one_that_is_idle_for_longest() -> None:
    connections = Connections(limit=3)
    first, second, third = (add_idle(connections) for _ in range(3))
    connections.mark_busy(first)
    connections.mark_idle(first)
    add_idle(connections)
    assert [each.is_aborted for each in (first, second, third)] == [False, True, False]
    connections.release(second, US)
    add_idle(connections)
    assert [each.is_aborted for each in (first, second, third)] == [False, True, True]


def test_a_connection_that_stays_idle_keeps_its_turn() -> None:
    connections = Connections(limit=2)
    first, second = add_idle(connections), add_idle(connections)
    connections.mark_idle(first)
    add_idle(connections)
    assert first.is_aborted
    assert not second.is_aborted


def test_a_busy_connection_is_never_replaced() -> None:
    connections = Connections(limit=2)
    both = [add_idle(connections) for _ in range(2)]
    for each in both:
        connections.mark_busy(each)
    assert not connections.admit(US)
    assert not any(each.is_aborted for each in both)
    connections.release(both[0], US)
    assert connections.admit(US)


def test_one_address_cannot_take_all_connections() -> None:
    connections = Connections(limit=10, per_address=2, is_exempt="127.0.0.1".__eq__)
    first, _ = add_idle(connections), add_idle(connections)
    assert not connections.admit(US)
    assert not first.is_aborted
    assert connections.admit(THEM)
    connections.release(first, US)
    assert connections.admit(US)
    local = [add_idle(connections, "127.0.0.1") for _ in range(3)]
    assert [each.is_aborted for each in local] == [False, False, False]


@pytest.mark.parametrize(
    ("address", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_the_addresses_of_one_client_count_together(
    address: str, other: str, is_same: bool
) -> None:
    connections = Connections(per_address=1)
    assert connections.admit(address)
    assert connections.admit(other) is not is_same


def test_there_is_one_line_of_log_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    connections = Connections(limit=1, per_address=5, clock=lambda: now)
    add_idle(connections)
    for _ in range(100):
        connections.admit(US)
        now += 0.5
    (record,) = caplog.records
    assert record.getMessage() == (
        "connections: a limit was reached (closed while idle: 1, refused: 0, "
        "max_connections: 1, max_connections_per_address: 5)"
    )
    assert record.levelname == "WARNING"
    now = 60.0
    connections.admit(THEM)
    assert "closed while idle: 0, refused: 100, " in caplog.records[1].getMessage()
