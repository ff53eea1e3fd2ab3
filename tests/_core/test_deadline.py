"""The clock of one call, with a clock that the test winds."""

from __future__ import annotations

import math
import socket
from types import SimpleNamespace

import pytest

from cromicle_sdk._core import deadline as _limits
from cromicle_sdk._core.deadline import Limits
from cromicle_sdk._core.errors import TimeoutPhase
from cromicle_sdk._core.options import Timeout


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_limits, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


TIMEOUT = Timeout(connect=5, first_byte=20, stall=10, total=100)


def test_a_call_begins_in_the_pool(clock: Clock) -> None:
    limits = Limits(TIMEOUT)
    assert limits.phase == "pool"
    assert limits.started == 1000.0
    assert limits.left() == 100
    assert limits.total_left() == 100
    clock.now += 30
    assert limits.left() == 70


@pytest.mark.parametrize(
    ("phase", "left"), [("pool", 100), ("connect", 5), ("first_byte", 20), ("stall", 10)]
)
def test_each_phase_has_its_limit(phase: TimeoutPhase, left: float, clock: Clock) -> None:
    limits = Limits(TIMEOUT)
    limits.enter(phase)
    assert limits.phase == phase
    assert limits.left() == left
    clock.now += 1
    assert limits.left() == left - 1
    limits.enter(phase)
    assert limits.left() == min(left, 99)
    clock.now += min(left, 99)
    with pytest.raises(TimeoutError):
        limits.left()
    assert limits.phase_that_ended() == phase


@pytest.mark.parametrize("phase", ["connect", "first_byte", "stall"])
def test_the_total_limits_every_phase(phase: TimeoutPhase, clock: Clock) -> None:
    limits = Limits(TIMEOUT)
    clock.now += 98
    limits.enter(phase)
    assert limits.left() == 2
    clock.now += 2
    with pytest.raises(TimeoutError):
        limits.left()
    assert limits.phase_that_ended() == "total"


def test_the_wait_for_a_connection_is_named_when_it_took_the_total(clock: Clock) -> None:
    limits = Limits(TIMEOUT)
    clock.now += 100
    with pytest.raises(TimeoutError):
        limits.left()
    assert limits.phase_that_ended() == "pool"


@pytest.mark.parametrize("phase", ["connect", "first_byte", "stall"])
def test_total_only(phase: TimeoutPhase, clock: Clock) -> None:
    limits = Limits(TIMEOUT)
    limits.enter(phase, total_only=True)
    assert limits.phase == phase
    assert limits.left() == 100


@pytest.mark.parametrize("phase", ["pool", "connect", "first_byte", "stall"])
def test_no_limits(phase: TimeoutPhase, clock: Clock) -> None:
    limits = Limits(Timeout(connect=None, first_byte=None, stall=None, total=None))
    limits.enter(phase)
    clock.now += 1e9
    assert limits.left() is None
    assert limits.total_left() == math.inf
    assert limits.phase_that_ended() == phase


def test_one_limit_without_a_total(clock: Clock) -> None:
    limits = Limits(Timeout(connect=5, total=None))
    assert limits.left() is None
    limits.enter("connect")
    assert limits.left() == 5


def test_stall_counts_from_each_read_and_first_byte_goes_on(clock: Clock) -> None:
    limits = Limits(TIMEOUT)
    limits.enter("first_byte")
    clock.now += 15
    limits.begin_read()
    assert limits.phase == "first_byte"
    assert limits.left() == 5
    limits.enter("stall")
    clock.now += 9
    limits.begin_read()
    assert limits.left() == 10


def test_the_total_runs_on_over_attempts(clock: Clock) -> None:
    limits = Limits(TIMEOUT)
    limits.enter("connect")
    clock.now += 60
    limits.enter("pool")
    assert limits.left() == 40
    clock.now += 41
    assert limits.total_left() == -1


@pytest.mark.parametrize("seconds", [1e10, 1e100, 1.7e308])
def test_a_huge_limit_can_be_waited_for(seconds: float) -> None:
    # It passed the check of the option, so no `OverflowError` may come of it later.
    limits = Limits(Timeout(connect=seconds, total=seconds))
    limits.enter("connect")
    with socket.socket() as sock:
        sock.settimeout(limits.left())
