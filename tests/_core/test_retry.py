"""Which failures are tried again, after how long, and when it has been enough."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cromicle_sdk import Headers
from cromicle_sdk._core.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    CromicleError,
    IncompleteReplyError,
    InvalidMessageError,
    ReplyDecodeError,
    ReplyError,
    ReplyTooLargeError,
    TimeoutPhase,
    UnexpectedContentError,
    status_error_class,
)
from cromicle_sdk._core.options import Retry
from cromicle_sdk._core.retry import Attempts, RetryBudget

RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)


def status_error(status_code: int, retry_after: float | None = None) -> APIStatusError:
    return status_error_class(status_code)(
        "x", status_code=status_code, headers=Headers(), body="", retry_after=retry_after
    )


def timeout_error(phase: TimeoutPhase, partial_text: str = "") -> APITimeoutError:
    return APITimeoutError("x", phase=phase, partial_text=partial_text)


def final(error: Any) -> CromicleError:
    error.is_final = True
    assert isinstance(error, CromicleError)
    return error


def build_attempts(
    retry: Retry | None = None,
    *,
    whole: bool = False,
    budget: RetryBudget | None = None,
    draw: float = 0.5,
    begun: int = 1,
) -> Attempts:
    attempts = Attempts(
        Retry() if retry is None else retry,
        RetryBudget() if budget is None else budget,
        whole=whole,
        random=lambda: draw,
    )
    for _ in range(begun):
        attempts.begin()
    return attempts


CASES: list[tuple[CromicleError, bool, bool]] = [
    # the error; is it tried again by stream, by chat
    (APIConnectionError("refused"), True, True),
    (final(APIConnectionError("certificate")), False, False),
    (timeout_error("connect"), True, True),
    (timeout_error("first_byte"), True, True),
    (timeout_error("stall"), False, True),
    (timeout_error("stall", "some"), False, True),
    (timeout_error("total"), False, False),
    (timeout_error("pool"), False, False),
    (IncompleteReplyError("cut"), True, True),
    (IncompleteReplyError("cut", partial_text="some"), False, True),
    (final(IncompleteReplyError("closed")), False, False),
    (final(IncompleteReplyError("closed", partial_text="some")), False, False),
    (ReplyTooLargeError("long"), False, False),
    (ReplyDecodeError("bytes"), False, False),
    (UnexpectedContentError("page"), False, False),
    (ReplyError("x"), False, False),
    (CromicleError("x"), False, False),
    (ConfigurationError("x"), False, False),
    (InvalidMessageError("x"), False, False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case[0]))
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "chat"])
def test_what_is_tried_again(case: tuple[CromicleError, bool, bool], whole: bool) -> None:
    error, by_stream, by_chat = case
    wait = build_attempts(whole=whole).wait_after(error, time_left=600)
    assert (wait is not None) == (by_chat if whole else by_stream)


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "chat"])
def test_every_status(whole: bool) -> None:
    for status_code in range(100, 1000):
        wait = build_attempts(whole=whole).wait_after(status_error(status_code), time_left=600)
        assert (wait is not None) == (status_code in RETRIED_STATUSES), status_code


@pytest.mark.parametrize(
    ("attempts", "begun", "again"),
    [(1, 1, False), (2, 1, True), (2, 2, False), (3, 2, True), (3, 3, False), (3, 4, False)],
)
def test_attempts_are_counted(attempts: int, begun: int, again: bool) -> None:
    made = build_attempts(Retry(attempts=attempts), begun=begun)
    assert made.count == begun
    assert (made.wait_after(APIConnectionError("x"), time_left=600) is not None) == again


@pytest.mark.parametrize(
    ("begun", "longest"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (5, 8), (6, 8), (60, 8), (3000, 8)]
)
@pytest.mark.parametrize("draw", [0.0, 0.25, 0.999])
def test_exponential_with_full_jitter(begun: int, longest: float, draw: float) -> None:
    attempts = build_attempts(Retry(attempts=5000), begun=begun, draw=draw)
    wait = attempts.wait_after(APIConnectionError("x"), time_left=600)
    assert wait == pytest.approx(draw * longest)


@pytest.mark.parametrize("begun", [1, 2, 100, 1024, 1025, 3000])
def test_no_delay_stays_none(begun: int) -> None:
    # The smaller of `first_delay * 2 ** (n - 1)` and `max_delay` is 0 for every n.
    attempts = build_attempts(Retry(attempts=5000, first_delay=0), begun=begun)
    assert attempts.wait_after(APIConnectionError("x"), time_left=600) == 0


@pytest.mark.parametrize("begun", [1, 2, 1024, 1025, 3000])
@pytest.mark.parametrize("first_delay", [1e-300, 0.5, 1e300])
def test_large_numbers(begun: int, first_delay: float) -> None:
    attempts = build_attempts(Retry(attempts=5000, first_delay=first_delay), begun=begun, draw=1.0)
    wait = attempts.wait_after(APIConnectionError("x"), time_left=600)
    assert wait is not None
    assert 0 <= wait <= 8


@settings(deadline=None, max_examples=200)
@given(
    st.floats(0, 1e308),
    st.floats(0, 1e308),
    st.integers(1, 2000),
    st.floats(0, 1, exclude_max=True),
)
def test_a_wait_is_between_0_and_the_cap(
    first_delay: float, max_delay: float, begun: int, draw: float
) -> None:
    retry = Retry(attempts=10**6, first_delay=first_delay, max_delay=max_delay)
    attempts = build_attempts(retry, begun=begun, draw=draw)
    wait = attempts.wait_after(APIConnectionError("x"), time_left=math.inf)
    assert wait is not None
    assert math.isfinite(wait)
    assert 0 <= wait <= max_delay


@pytest.mark.parametrize("number", [1e10, 1e300])
def test_a_wait_is_one_that_can_be_waited(number: float) -> None:
    # More is an `OverflowError` of `threading` and `anyio`, which would leave the package.
    attempts = build_attempts(Retry(first_delay=number, max_delay=number), draw=0.999)
    wait = attempts.wait_after(APIConnectionError("x"), time_left=math.inf)
    assert wait is None or wait <= threading.TIMEOUT_MAX
    asking = build_attempts(Retry(max_retry_after=number))
    wait = asking.wait_after(status_error(503, 1e9), time_left=math.inf)
    assert wait is None or wait <= threading.TIMEOUT_MAX


def test_jitter_is_drawn_anew() -> None:
    budget = RetryBudget()
    waits = set()
    for _ in range(10):
        attempts = Attempts(Retry(), budget, whole=False)
        attempts.begin()
        waits.add(attempts.wait_after(APIConnectionError("x"), time_left=600))
    assert None not in waits
    assert len(waits) > 1


@pytest.mark.parametrize(
    ("retry_after", "limit", "wait"),
    [
        (0, 60, 0),
        (3.5, 60, 3.5),
        (60, 60, 60),
        (60.1, 60, None),
        (1e9, 60, None),
        (1e9, 1e10, 1e9),
        (1, 0, None),
        (0, 0, 0),
        (None, 0, 0.25),
    ],
)
@pytest.mark.parametrize("status_code", [429, 503])
def test_retry_after(
    retry_after: float | None, limit: float, wait: float | None, status_code: int
) -> None:
    attempts = build_attempts(Retry(max_retry_after=limit))
    error = status_error(status_code, retry_after)
    assert attempts.wait_after(error, time_left=math.inf) == wait


def test_retry_after_makes_no_other_status_retried() -> None:
    assert build_attempts().wait_after(status_error(400, 1), time_left=600) is None


@pytest.mark.parametrize(
    ("time_left", "again"),
    [(math.inf, True), (0.26, True), (0.25, False), (0.1, False), (0, False), (-5, False)],
)
def test_a_wait_that_would_use_up_the_total_is_not_begun(time_left: float, again: bool) -> None:
    wait = build_attempts().wait_after(APIConnectionError("x"), time_left=time_left)
    assert wait == (0.25 if again else None)


# The budget


def test_a_hundred_retries_and_then_none() -> None:
    budget = RetryBudget()
    granted = 0
    for _ in range(1000):
        attempts = build_attempts(budget=budget)
        granted += attempts.wait_after(APIConnectionError("x"), time_left=600) is not None
    assert granted == 100


def test_five_successes_pay_for_one_retry() -> None:
    budget = RetryBudget()
    while budget.take():
        pass
    for successes in range(1, 11):
        build_attempts(budget=budget).succeed()
        assert budget.take() is (successes % 5 == 0)


def test_the_budget_never_holds_more_than_it_did() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.give_back()
    assert sum(budget.take() for _ in range(1000)) == 100


@pytest.mark.parametrize(
    ("error", "time_left"),
    [
        (status_error(400), 600),
        (status_error(429, 61), 600),
        (APIConnectionError("x"), 0.1),
        (ReplyDecodeError("x"), 600),
    ],
    ids=repr,
)
def test_what_is_not_tried_again_costs_nothing(error: CromicleError, time_left: float) -> None:
    budget = RetryBudget()
    for _ in range(1000):
        assert build_attempts(budget=budget).wait_after(error, time_left=time_left) is None
    assert build_attempts(Retry(attempts=1), budget=budget).wait_after(error, time_left=600) is None
    assert sum(budget.take() for _ in range(1000)) == 100
