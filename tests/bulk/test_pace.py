"""How many calls may start: the shared slow-down, on a clock of the test."""

from __future__ import annotations

import math

import pytest

from cromicle_sdk import Retry
from cromicle_sdk.bulk.pace import Pace


def build(limit: int = 8, *, rate: float | None = None, patience: float = 100) -> Pace:
    retry = Retry(first_delay=1, max_delay=8, max_retry_after=60)
    return Pace(limit, rate=rate, retry=retry, patience=patience, random=lambda: 1.0)


def admit_all(pace: Pace, now: float) -> int:
    """How many calls start at this time."""
    count = 0
    while pace.admit(now) == 0:
        count += 1
    return count


def test_no_more_calls_than_the_limit_are_in_flight() -> None:
    pace = build(8)
    assert admit_all(pace, 0) == 8
    assert pace.admit(0) == math.inf
    pace.succeed(1)
    pace.leave()
    assert admit_all(pace, 1) == 2


def test_rejections_set_the_number_of_calls_to_those_that_were_accepted() -> None:
    pace = build(32)
    assert admit_all(pace, 0) == 32
    for _ in range(27):
        pace.reject(0, 0.1, 503, None)
    # The five others run, and the next starts when one of them has ended.
    assert pace.admit(0.2) == math.inf
    pace.succeed(0.3)
    assert admit_all(pace, 0.3) == 1


def test_all_calls_wait_for_the_shortest_retry_after() -> None:
    pace = build(8)
    admit_all(pace, 0)
    pace.reject(0, 0, 429, 5)
    pace.reject(0, 0, 429, 3)
    pace.reject(0, 0, 429, 4)
    for _ in range(5):
        pace.succeed(1)
    assert pace.admit(1) == 2
    assert admit_all(pace, 3) == 5


def test_where_some_are_accepted_a_503_does_not_stop_them() -> None:
    pace = build(8)
    admit_all(pace, 0)
    for _ in range(3):
        pace.reject(0, 0, 503, 30)
    pace.succeed(1)
    assert admit_all(pace, 1) == 1
    # It is rejected, too, and so are the others in the end: then it is time to wait.
    pace.reject(pace.round, 2, 503, 30)
    for _ in range(4):
        pace.reject(0, 3, 503, 10)
    assert pace.admit(3) == 10


def test_the_number_rises_by_one_for_as_many_replies_and_not_before_its_time() -> None:
    pace = build(8)
    admit_all(pace, 0)
    for _ in range(4):
        pace.reject(0, 0, 503, None)
    for _ in range(8):
        pace.succeed(0.5)
        assert admit_all(pace, 0.5) == 1
    admitted = 0
    for _ in range(5):
        pace.succeed(2)
        admitted += admit_all(pace, 2)
    assert admitted == 5 + 1


def test_a_raise_after_a_pause_waits_for_twenty_times_the_pause() -> None:
    pace = build(8)
    admit_all(pace, 0)
    for _ in range(4):
        pace.reject(0, 0, 429, 2)
    for now in (10, 20, 30, 41):
        for _ in range(10):
            pace.succeed(now)
            assert admit_all(pace, now) == 1
    for _ in range(50):
        pace.succeed(43)
        admit_all(pace, 43)
    assert pace.admit(43) == math.inf
    pace.succeed(43)
    # The limit is reached again, and not exceeded.
    for _ in range(7):
        pace.succeed(43)
    assert admit_all(pace, 43) == 8


def test_if_all_are_rejected_one_call_is_tried_and_each_reply_doubles_them() -> None:
    pace = build(8)
    admit_all(pace, 0)
    for _ in range(8):
        pace.reject(0, 0, 503, None)
    assert pace.admit(0) == 1
    assert admit_all(pace, 1) == 1
    pace.succeed(1)
    assert admit_all(pace, 1) == 2
    pace.succeed(1)
    pace.succeed(1)
    assert admit_all(pace, 1) == 4


def test_the_pauses_grow_while_all_are_rejected() -> None:
    pace = build(1)
    now, pauses = 0.0, []
    for _ in range(6):
        assert pace.admit(now) == 0
        pace.reject(pace.round, now, 503, None)
        pauses.append(pace.admit(now))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 8, 8]


def test_a_server_is_given_up_after_its_patience_and_tried_again_after_each_pause() -> None:
    pace = build(1, patience=10)
    now = 0.0
    while not pace.is_given_up(now):
        assert pace.admit(now) == 0
        pace.reject(pace.round, now, 503, None)
        if not pace.is_given_up(now):
            now += pace.admit(now)
    assert now == 15
    assert not pace.is_given_up(now + 8)
    assert pace.admit(now + 8) == 0
    pace.succeed(now + 9)
    assert not pace.is_given_up(now + 9)


@pytest.mark.parametrize(("retry_after", "given_up"), [(60, False), (61, True)])
def test_a_server_that_asks_for_too_long_a_wait_is_given_up(
    retry_after: float, given_up: bool
) -> None:
    pace = build(2)
    admit_all(pace, 0)
    pace.reject(0, 0, 429, retry_after)
    assert pace.is_given_up(59) == given_up
    assert not pace.is_given_up(61)


def test_a_rate_is_kept_and_late_calls_catch_up() -> None:
    pace = build(1000, rate=10)
    assert pace.admit(0) == 0
    assert pace.admit(0) == pytest.approx(0.1)
    assert pace.admit(0.15) == 0
    assert pace.admit(0.15) == pytest.approx(0.05)
    # Long after, it has saved no more than a tenth of a second.
    assert admit_all(pace, 100) == 2
