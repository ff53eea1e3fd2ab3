"""Which failures are retried, after which delay, and the budget of retries."""

from __future__ import annotations

import json
import math
import threading

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

RETRIED_STATUSES = {408, 429, *range(500, 600)} - {501, 505}


def status_error(
    status_code: int, retry_after: float | None = None, body: str = ""
) -> APIStatusError:
    return status_error_class(status_code)(
        "x", status_code=status_code, headers=Headers(), body=body, retry_after=retry_after
    )


def timeout_error(phase: TimeoutPhase, partial_text: str = "") -> APITimeoutError:
    return APITimeoutError("x", phase=phase, partial_text=partial_text)


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
        RetryBudget(500) if budget is None else budget,
        whole=whole,
        random=lambda: draw,
    )
    for _ in range(begun):
        attempts.begin()
    return attempts


CASES: list[tuple[CromicleError, bool, bool]] = [
    # the error; whether stream retries, whether chat retries
    (APIConnectionError("refused"), True, True),
    (APIConnectionError("certificate", is_final=True), False, False),
    (timeout_error("connect"), True, True),
    (timeout_error("first_byte"), True, True),
    (timeout_error("stall"), False, True),
    (timeout_error("stall", "some"), False, True),
    (timeout_error("total"), False, False),
    (timeout_error("pool"), False, False),
    (IncompleteReplyError("cut"), True, True),
    (IncompleteReplyError("cut", partial_text="some"), False, True),
    (IncompleteReplyError("closed", is_final=True), False, False),
    (IncompleteReplyError("closed", partial_text="some", is_final=True), False, False),
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
def test_retried_errors(case: tuple[CromicleError, bool, bool], whole: bool) -> None:
    error, by_stream, by_chat = case
    wait = build_attempts(whole=whole).decide(error, time_left=600).wait
    assert (wait is not None) == (by_chat if whole else by_stream)


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "chat"])
def test_retried_statuses(whole: bool) -> None:
    for status_code in range(100, 1000):
        wait = build_attempts(whole=whole).decide(status_error(status_code), time_left=600).wait
        assert (wait is not None) == (status_code in RETRIED_STATUSES), status_code


def test_a_busy_server_is_left_to_the_caller() -> None:
    attempts = build_attempts(Retry(busy=False))
    assert attempts.decide(status_error(429, retry_after=1), time_left=100).wait is None
    assert attempts.decide(status_error(503), time_left=100).wait is None
    assert attempts.decide(status_error(500), time_left=100).wait is not None


@pytest.mark.parametrize(
    ("status_code", "code", "is_retried"),
    [
        (502, "upstream_denied", False),
        (502, "upstream_redirected", False),
        (502, "upstream_refused", False),
        (502, "upstream_failed", True),
        (502, "upstream_invalid", True),
        (502, "upstream_unreachable", True),
        (503, "upstream_refused", True),
        (429, "upstream_busy", True),
        (400, "context_length_exceeded", False),
        (413, "upstream_refused", False),
        (422, "upstream_refused", False),
    ],
)
@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_a_502_that_will_not_pass_is_final(
    status_code: int, code: str, is_retried: bool, retry_after: float | None
) -> None:
    body = json.dumps({"error": {"code": code, "message": "x"}})
    error = status_error(status_code, retry_after, body)
    assert (build_attempts().decide(error, time_left=600).wait is not None) == is_retried


@pytest.mark.parametrize(
    ("attempts", "begun", "again"),
    [(1, 1, False), (2, 1, True), (2, 2, False), (3, 2, True), (3, 3, False), (3, 4, False)],
)
def test_attempts_are_counted(attempts: int, begun: int, again: bool) -> None:
    made = build_attempts(Retry(attempts=attempts), begun=begun)
    assert made.count == begun
    assert (made.decide(APIConnectionError("x"), time_left=600).wait is not None) == again


@pytest.mark.parametrize(
    ("begun", "longest"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (5, 8), (6, 8), (60, 8), (3000, 8)]
)
@pytest.mark.parametrize("draw", [0.0, 0.25, 0.999])
def test_exponential_with_full_jitter(begun: int, longest: float, draw: float) -> None:
    attempts = build_attempts(Retry(attempts=5000), begun=begun, draw=draw)
    wait = attempts.decide(APIConnectionError("x"), time_left=600).wait
    assert wait == pytest.approx(draw * longest)


@pytest.mark.parametrize("begun", [1, 2, 100, 1024, 1025, 3000])
def test_a_delay_of_0_stays_0(begun: int) -> None:
    # The smaller of `first_delay * 2 ** (n - 1)` and `max_delay` is 0 for every n.
    attempts = build_attempts(Retry(attempts=5000, first_delay=0), begun=begun)
    assert attempts.decide(APIConnectionError("x"), time_left=600).wait == 0


@pytest.mark.parametrize("begun", [1, 2, 1024, 1025, 3000])
@pytest.mark.parametrize("first_delay", [1e-300, 0.5, 1e300])
def test_large_numbers(begun: int, first_delay: float) -> None:
    attempts = build_attempts(Retry(attempts=5000, first_delay=first_delay), begun=begun, draw=1.0)
    wait = attempts.decide(APIConnectionError("x"), time_left=600).wait
    assert wait is not None
    assert 0 <= wait <= 8


@settings(deadline=None, max_examples=200)
@given(
    st.floats(0, 1e308),
    st.floats(0, 1e308),
    st.integers(1, 2000),
    st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_between_0_and_its_maximum(
    first_delay: float, max_delay: float, begun: int, draw: float
) -> None:
    retry = Retry(attempts=10**6, first_delay=first_delay, max_delay=max_delay)
    attempts = build_attempts(retry, begun=begun, draw=draw)
    wait = attempts.decide(APIConnectionError("x"), time_left=math.inf).wait
    assert wait is not None
    assert math.isfinite(wait)
    assert 0 <= wait <= max_delay


@pytest.mark.parametrize("number", [1e10, 1e300])
def test_a_delay_is_accepted_by_threading_and_anyio(number: float) -> None:
    # More is an `OverflowError` of `threading` and `anyio`, which would leave the package.
    attempts = build_attempts(Retry(first_delay=number, max_delay=number), draw=0.999)
    wait = attempts.decide(APIConnectionError("x"), time_left=math.inf).wait
    assert wait is None or wait <= threading.TIMEOUT_MAX
    asking = build_attempts(Retry(max_retry_after=number))
    wait = asking.decide(status_error(503, 1e9), time_left=math.inf).wait
    assert wait is None or wait <= threading.TIMEOUT_MAX


def test_each_delay_is_drawn_again() -> None:
    budget = RetryBudget(500)
    waits = set()
    for _ in range(10):
        attempts = Attempts(Retry(), budget, whole=False)
        attempts.begin()
        waits.add(attempts.decide(APIConnectionError("x"), time_left=600).wait)
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
    assert attempts.decide(error, time_left=math.inf).wait == wait


def test_retry_after_does_not_change_which_statuses_are_retried() -> None:
    assert build_attempts().decide(status_error(400, 1), time_left=600).wait is None


@pytest.mark.parametrize(
    ("time_left", "again"),
    [(math.inf, True), (0.26, True), (0.25, False), (0.1, False), (0, False), (-5, False)],
)
def test_a_delay_that_would_use_up_the_total_is_not_begun(time_left: float, again: bool) -> None:
    wait = build_attempts().decide(APIConnectionError("x"), time_left=time_left).wait
    assert wait == (0.25 if again else None)


# The budget


def test_a_budget_of_500_pays_for_100_retries() -> None:
    budget = RetryBudget(500)
    granted = 0
    for _ in range(1000):
        attempts = build_attempts(budget=budget)
        granted += attempts.decide(APIConnectionError("x"), time_left=600).wait is not None
    assert granted == 100


def test_five_successes_pay_for_one_retry() -> None:
    budget = RetryBudget(500)
    while budget.take():
        pass
    for successes in range(1, 11):
        build_attempts(budget=budget).succeed()
        assert budget.take() is (successes % 5 == 0)


def test_the_budget_never_exceeds_its_capacity() -> None:
    budget = RetryBudget(500)
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
def test_an_error_that_is_not_retried_costs_nothing(error: CromicleError, time_left: float) -> None:
    budget = RetryBudget(500)
    for _ in range(1000):
        assert build_attempts(budget=budget).decide(error, time_left=time_left).wait is None
    assert (
        build_attempts(Retry(attempts=1), budget=budget).decide(error, time_left=600).wait is None
    )
    assert sum(budget.take() for _ in range(1000)) == 100


def test_an_error_says_that_the_budget_is_used_up() -> None:
    error = IncompleteReplyError("Cut.", partial_text=b"some", attempts=1, hint="Do it again.")
    decision = build_attempts(budget=RetryBudget(4), whole=True).decide(error, time_left=600)
    assert decision.wait is None
    assert str(decision.error) == (
        "Cut. It was not retried, because the budget of the client is used up (retry.budget). "
        "Do it again."
    )
    assert type(decision.error) is IncompleteReplyError
    assert (decision.error.partial_text, decision.error.attempts) == ("some", 1)
    assert str(error) == "Cut. Do it again."


@pytest.mark.parametrize("whole", [False, True])
def test_any_other_error_is_raised_as_it_is(whole: bool) -> None:
    for error in (status_error(400), status_error(429, 61), ReplyDecodeError("x")):
        assert build_attempts(whole=whole).decide(error, time_left=600).error is error
    last = APIConnectionError("x")
    assert build_attempts(Retry(attempts=1)).decide(last, time_left=600).error is last


def test_a_retry_that_obeys_retry_after_costs_nothing() -> None:
    budget = RetryBudget(5)
    for _ in range(10):
        assert build_attempts(budget=budget).decide(status_error(503, 2), time_left=600).wait == 2
    assert budget.take()
    # Even if there is none left.
    assert build_attempts(budget=budget).decide(status_error(429, 2), time_left=600).wait == 2


@pytest.mark.parametrize(
    ("retry", "budget"),
    [(Retry(budget=None), RetryBudget(5)), (Retry(), RetryBudget(None))],
    ids=["of the call", "of the client"],
)
def test_no_budget(retry: Retry, budget: RetryBudget) -> None:
    for _ in range(1000):
        attempts = build_attempts(retry, budget=budget)
        assert attempts.decide(APIConnectionError("x"), time_left=600).wait is not None
        attempts.succeed()
