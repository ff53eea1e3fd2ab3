"""The timeouts of a call: a table of phases and of times that the test passes in."""

from __future__ import annotations

import math
import socket

import pytest

from cromicle_sdk._core.deadline import CallTimeouts, Phase
from cromicle_sdk._core.errors import TimeoutPhase
from cromicle_sdk._core.options import Timeout

TIMEOUT = Timeout(connect=5, first_byte=20, stall=10, total=100, pool=50)
NO_LIMITS = Timeout(connect=None, first_byte=None, stall=None, total=None, pool=None)


def build(timeout: Timeout = TIMEOUT, now: float = 1000.0) -> CallTimeouts:
    return CallTimeouts.for_call(timeout, now=now)


def test_the_first_bytes_of_the_body_begin_stall() -> None:
    timeouts = build()
    timeouts.enter("first_byte", 1000)
    timeouts.receive_body(1005)
    assert (timeouts.phase, timeouts.left(1005)) == ("stall", 10)
    timeouts.receive_body(1008)
    assert timeouts.left(1008) == 7


def test_a_call_begins_in_the_pool() -> None:
    timeouts = build()
    assert timeouts.phase == "pool"
    assert timeouts.started == 1000
    assert timeouts.left(1000) == 50
    assert timeouts.left(1030) == 20
    assert timeouts.expired_phase(1050) == "pool"


@pytest.mark.parametrize(
    ("phase", "limit", "reported"),
    [
        ("connect", 5, "connect"),
        ("send", 20, "first_byte"),
        ("first_byte", 20, "first_byte"),
        ("stall", 10, "stall"),
    ],
)
def test_each_phase_has_its_limit(phase: Phase, limit: float, reported: str) -> None:
    timeouts = build()
    timeouts.enter(phase, 1000)
    assert timeouts.phase == phase
    assert timeouts.left(1000) == limit
    assert timeouts.left(1001) == limit - 1
    left = timeouts.left(1000 + limit)
    assert left is not None
    assert left <= 0
    assert timeouts.expired_phase(1000 + limit) == reported


@pytest.mark.parametrize("phase", ["connect", "send", "first_byte", "stall"])
def test_the_total_limits_every_phase(phase: Phase) -> None:
    timeouts = build()
    timeouts.enter("connect", 1000)
    timeouts.enter(phase, 1098)
    assert timeouts.left(1098) == 2
    assert timeouts.total_left(1098) == 2
    assert timeouts.expired_phase(1100) == "total"


def test_waiting_for_a_slot_is_not_charged_to_the_total() -> None:
    timeouts = build()
    assert timeouts.total_left(1040) == 100
    timeouts.enter("connect", 1040)
    assert timeouts.total_left(1040) == 100
    timeouts.enter("pool", 1070)
    assert timeouts.left(1070) == 50
    assert timeouts.total_left(1110) == 70
    timeouts.enter("connect", 1110)
    assert timeouts.total_left(1110) == 70
    assert timeouts.total_left(1181) == -1


@pytest.mark.parametrize("phase", ["pool", "connect", "send", "first_byte", "stall"])
def test_no_limits(phase: Phase) -> None:
    timeouts = build(NO_LIMITS)
    timeouts.enter(phase, 1000)
    assert timeouts.left(1e9) is None
    assert timeouts.total_left(1e9) == math.inf


def test_the_timeouts_that_errors_name() -> None:
    phases: list[TimeoutPhase] = ["pool", "connect", "first_byte", "stall", "total"]
    assert [build().limit(phase) for phase in phases] == [50, 5, 20, 10, 100]
    assert [build(NO_LIMITS).limit(phase) for phase in phases] == [None] * 5


def test_one_limit_without_a_total() -> None:
    timeouts = build(Timeout(connect=5, total=None, pool=None))
    assert timeouts.left(1000) is None
    timeouts.enter("connect", 1000)
    assert timeouts.left(1000) == 5


def test_stall_counts_from_each_wait_and_first_byte_goes_on() -> None:
    timeouts = build()
    timeouts.enter("first_byte", 1000)
    timeouts.begin_wait(1015)
    assert timeouts.left(1015) == 5
    timeouts.enter("stall", 1015)
    timeouts.begin_wait(1024)
    assert timeouts.left(1024) == 10


def test_sending_that_moves_does_not_run_out() -> None:
    timeouts = build()
    timeouts.enter("send", 1000)
    timeouts.progress(1019)
    assert timeouts.left(1019) == 20
    timeouts.enter("first_byte", 1030)
    timeouts.progress(1040)
    assert timeouts.left(1040) == 10


def test_the_callers_time_between_head_and_body_counts_for_the_total_alone() -> None:
    timeouts = build()
    timeouts.enter("first_byte", 1000)
    timeouts.hold(1005)
    timeouts.begin_wait(1060)
    assert timeouts.left(1060) == 15
    timeouts.hold(1065)
    timeouts.begin_wait(1095)
    assert timeouts.left(1095) == 5


def test_a_plain_request_has_the_timeouts_of_httpx() -> None:
    limits = {"pool": 1.0, "connect": 2.0, "write": 3.0, "read": 4.0}
    timeouts = CallTimeouts.for_request(limits, now=1000)
    assert timeouts.left(1000) == 1
    for phase, limit in (("connect", 2), ("send", 3), ("first_byte", 4), ("stall", 4)):
        timeouts.enter(phase, 1000)  # type: ignore[arg-type]  # a str of the table
        assert timeouts.left(1000) == limit
    # Each read has the whole of it.
    timeouts.enter("first_byte", 1000)
    timeouts.begin_wait(1003)
    assert timeouts.left(1003) == 4
    assert CallTimeouts.for_request({}, now=1000).left(1000) is None


@pytest.mark.parametrize("seconds", [1e10, 1e100, 1.7e308])
def test_a_huge_limit_can_be_waited_for(seconds: float) -> None:
    # It passed the check of the option, so no `OverflowError` may come of it later.
    timeouts = build(Timeout(connect=seconds, total=seconds))
    timeouts.enter("connect", 1000)
    with socket.socket() as sock:
        sock.settimeout(timeouts.left(1000))


def test_what_waits_is_late_from_the_first_look_in_a_phase_on() -> None:
    timeouts = CallTimeouts.for_call(Timeout(total=1), now=0)
    timeouts.enter("first_byte", 0)
    assert [timeouts.late_for(now) for now in (5, 5.05, 7)] == pytest.approx([0, 0.05, 2])
    timeouts.enter("stall", 8)
    assert timeouts.late_for(9) == 0
