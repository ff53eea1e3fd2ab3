"""`bulk` from blocking code, over real sockets."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import pytest

from cromicle_sdk import (
    AsyncClient,
    Client,
    ConfigurationError,
    CromicleError,
    InternalServerError,
    InvalidMessageError,
    NotFoundError,
    RateLimitError,
    Reply,
    Retry,
    Timeout,
)
from cromicle_sdk.bulk import Outcome, Prompt, bulk
from cromicle_sdk.bulk.options import BulkOptions, copy_client
from cromicle_sdk.bulk.pace import Pace
from cromicle_sdk.bulk.thread import LoopThread
from cromicle_sdk.server import BackendError, LocalServer
from cromicle_sdk.testing import FaultyServer

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "cromicle-bulk"]


@pytest.fixture
def client(echo: LocalServer) -> Iterator[Client]:
    with Client(base_url=echo.base_url) as client:
        yield client


def text_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Reply), outcome
    return outcome.text


def test_each_prompt_has_one_outcome(client: Client) -> None:
    outcomes = list(bulk((f"Prompt {i}" for i in range(300)), client=client, limit=10))
    assert sorted((index, text_of(outcome)) for index, outcome in outcomes) == [
        (i, f"Prompt {i}") for i in range(300)
    ]


def test_without_a_client_the_environment_has_the_endpoint(
    echo: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", echo.base_url)
    assert [text_of(outcome) for _, outcome in bulk(["One"])] == ["One"]


def test_no_prompts() -> None:
    with Client(base_url="http://127.0.0.1:9") as client:
        assert list(bulk([], client=client)) == []


def test_outcomes_come_as_they_finish_or_in_order() -> None:
    release = threading.Event()

    async def first_is_slow(prompt: str) -> AsyncIterator[str]:
        if prompt == "0":
            await anyio.to_thread.run_sync(release.wait, PATIENCE)
        yield prompt

    with LocalServer(first_is_slow) as server, Client(base_url=server.base_url) as client:
        seen: list[int] = []
        for index, _ in bulk(map(str, range(10)), client=client, limit=4):
            seen.append(index)
            if len(seen) == 9:
                assert 0 not in seen
                release.set()
        assert seen[9] == 0
        release.clear()
        threading.Timer(0.2, release.set).start()
        ordered = bulk(map(str, range(40)), client=client, limit=4, ordered=True)
        assert [index for index, _ in ordered] == list(range(40))


def test_messages_and_options_of_a_prompt(faults: FaultyServer) -> None:
    faults.fail(503, retry_after=0).reply("Yes.")
    messages = iter([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
    with Client(base_url=faults.base_url) as client:
        prompt = Prompt(messages, {"extra_body": {"seed": 1}, "send_messages": True})
        ((_, outcome),) = bulk([prompt], client=client)
    assert text_of(outcome) == "Yes."
    # The iterator is read once, for both attempts.
    assert [request.message for request in faults.requests] == [
        "System: S\nUser: U\nAssistant:"
    ] * 2
    assert faults.requests[1].options == {"seed": 1}
    assert isinstance(outcome, Reply)
    assert outcome.attempts == 2


def test_an_error_is_an_outcome_and_the_others_go_on(client: Client) -> None:
    prompts: list[Any] = ["One", 5, Prompt("Two", {"timeout": -1}), "Three"]
    outcomes = [outcome for _, outcome in bulk(prompts, client=client, ordered=True)]
    assert isinstance(outcomes[1], InvalidMessageError)
    assert isinstance(outcomes[2], ConfigurationError)
    assert [text_of(outcomes[0]), text_of(outcomes[3])] == ["One", "Three"]


def test_a_prompt_rejects_an_option_that_a_call_does_not_have() -> None:
    with pytest.raises(ConfigurationError, match=r"^tiemout: .*; the options are timeout, retry"):
        Prompt("One", {"tiemout": 3})  # type: ignore[typeddict-unknown-key]  # the mistake under test


def test_the_client_retries_what_is_not_about_load(faults: FaultyServer) -> None:
    faults.reset().reply("Yes.").fail(404)
    with Client(base_url=faults.base_url, retry=Retry(first_delay=0)) as client:
        outcomes = [outcome for _, outcome in bulk(["One", "Two"], client=client, limit=1)]
    assert isinstance(outcomes[0], Reply)
    assert outcomes[0].attempts == 2
    assert isinstance(outcomes[1], NotFoundError)
    assert outcomes[1].attempts == 1


def test_an_error_counts_the_rejections_before_it(faults: FaultyServer) -> None:
    faults.fail(503, retry_after=0).fail(404).fail(503, retry_after=0).cut(after="Hel")
    with Client(base_url=faults.base_url, retry=Retry(attempts=1)) as client:
        outcomes = [outcome for _, outcome in bulk(["One", "Two"], client=client, limit=1)]
    assert [(type(each).__name__, each.attempts) for each in outcomes] == [
        ("NotFoundError", 2),
        ("IncompleteReplyError", 2),
    ]


def test_the_source_is_read_only_as_far_as_needed(client: Client) -> None:
    read = itertools.count()
    outcomes = bulk((f"Prompt {next(read)}" for _ in itertools.count()), client=client, limit=5)
    for _ in range(50):
        next(outcomes)
    outcomes.close()
    assert next(read) <= 50 + 4 * 5 + 1


def test_a_slow_source_does_not_hold_outcomes_back(client: Client) -> None:
    has_outcome = threading.Event()

    def source() -> Iterator[str]:
        yield from ("One", "Two")
        for _ in range(3):
            has_outcome.wait(0.2)
            yield "More"
        assert has_outcome.wait(PATIENCE)

    for _ in bulk(source(), client=client):
        has_outcome.set()


def test_an_exception_of_the_source_comes_after_the_outcomes(client: Client) -> None:
    def source() -> Iterator[str]:
        yield "One"
        yield "Two"
        raise LookupError("no more")

    seen: list[str] = []
    with pytest.raises(LookupError, match="no more"):
        seen.extend(text_of(outcome) for _, outcome in bulk(source(), client=client, ordered=True))
    with pytest.raises(LookupError):
        for _, outcome in bulk(source(), client=client, ordered=True):
            seen.append(text_of(outcome))
    assert seen[-2:] == ["One", "Two"]


@pytest.mark.parametrize("how", ["close", "drop", "interrupt"])
def test_ending_early_cancels_the_calls(
    how: str, faults: FaultyServer, interrupt: Callable[[], None]
) -> None:
    faults.reply("Yes.").stall(after="")
    with Client(base_url=faults.base_url) as client:
        outcomes = bulk(map(str, range(100)), client=client, limit=4)
        next(outcomes)
        if how == "close":
            outcomes.close()
        elif how == "drop":
            del outcomes
            gc.collect()
        else:
            with pytest.raises(KeyboardInterrupt):
                threading.Timer(0.1, interrupt).start()
                next(outcomes)
            # If it was interrupted just before `next`.
            outcomes.close()


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor])
def test_a_signal_that_another_thread_receives_ends_a_wait(
    executor: Callable[[], ThreadPoolExecutor] | None,
    faults: FaultyServer,
    interrupter: threading.Thread,
) -> None:
    """The interpreter runs its handler only when the main thread stops waiting for an outcome."""
    faults.stall()
    started = time.monotonic()
    with Client(base_url=faults.base_url, timeout=Timeout(first_byte=60)) as client:
        outcomes = bulk(["One"], client=client, executor=executor)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            next(outcomes)
    interrupter.join()
    assert time.monotonic() - started < 30


def test_an_exception_of_a_hook_is_raised(echo: LocalServer) -> None:
    async def fail(request: httpx.Request) -> None:
        raise LookupError("of the hook")

    http_client = httpx.AsyncClient(event_hooks={"request": [fail]})
    client = AsyncClient(base_url=echo.base_url, http_client=http_client)
    with pytest.raises(LookupError, match="of the hook"):
        list(bulk(map(str, range(10)), client=client))


def test_an_own_http_client_is_used_and_not_closed(echo: LocalServer) -> None:
    seen: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(200, text="mocked")

    http_client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    client = AsyncClient(base_url=echo.base_url, http_client=http_client)
    assert [text_of(outcome) for _, outcome in bulk(["One"], client=client)] == ["mocked"]
    assert seen == ["/chat"]
    assert not http_client.is_closed


def test_bad_options_are_rejected_before_anything_is_read(client: Client) -> None:
    closed = Client()
    closed.close()
    with httpx.Client() as http_client:
        own = Client(base_url="http://127.0.0.1:9", http_client=http_client)
        cases: list[tuple[str, dict[str, Any]]] = [
            ("limit", {"limit": 0}),
            ("limit", {"limit": True}),
            ("limit", {"limit": "8"}),
            ("rate", {"rate": 0}),
            ("rate", {"rate": "fast"}),
            ("patience", {"patience": float("inf")}),
            ("shard_size", {"shard_size": 0}),
            ("executor", {"executor": 4}),
            ("client", {"client": "http://127.0.0.1:9"}),
            ("client", {"client": closed}),
            ("client", {"client": own}),
            ("rate", {"rate": 5, "executor": lambda: None}),
            ("prompts", {"prompts": "a text"}),
            ("prompts", {"prompts": 5}),
        ]
        for option, given in cases:
            with pytest.raises(ConfigurationError) as caught:
                bulk(**{"prompts": ["One"], "client": client, **given})
            assert caught.value.option == option, given


def test_a_prompt_shows_nothing_of_itself() -> None:
    assert repr(Prompt("secret", {"extra_body": {"a": "secret"}})) == "Prompt()"


# A busy server


class Busy:
    """A backend that takes so many at once, and the times at which requests came."""

    def __init__(self, capacity: int, retry_after: float | None = None) -> None:
        self.capacity = capacity
        self.retry_after = retry_after
        self.running = 0
        self.rejected = 0
        self.times: list[float] = []

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        self.times.append(time.monotonic())
        if self.running >= self.capacity:
            self.rejected += 1
            raise BackendError(503, "busy", "busy", retry_after=self.retry_after)
        self.running += 1
        try:
            await anyio.sleep(0.02)
            yield prompt
        finally:
            self.running -= 1


@pytest.mark.parametrize("retry_after", [None, 0])
def test_a_server_that_takes_five_at_once_answers_all(retry_after: float | None) -> None:
    busy = Busy(5, retry_after)
    with LocalServer(busy.__call__) as server, Client(base_url=server.base_url) as client:
        outcomes = list(bulk(map(str, range(200)), client=client, limit=32))
    assert sorted(int(text_of(outcome)) for _, outcome in outcomes) == list(range(200))
    # Callers that wait for themselves are rejected more often than they are answered.
    assert busy.rejected < 100


def test_one_retry_after_makes_all_calls_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    rejections: list[float] = []
    is_known = threading.Event()
    reject = Pace.reject

    def note_and_reject(*arguments: Any) -> None:
        rejections.append(time.monotonic())
        reject(*arguments)
        is_known.set()

    async def first_is_rejected(prompt: str) -> AsyncIterator[str]:
        times.append(time.monotonic())
        if len(times) == 1:
            raise BackendError(429, "rate", "too many", retry_after=1)
        # One more call may be in progress. If it ended before, another would start.
        await anyio.to_thread.run_sync(is_known.wait, PATIENCE)
        yield prompt

    monkeypatch.setattr(Pace, "reject", note_and_reject)

    with LocalServer(first_is_rejected) as server, Client(base_url=server.base_url) as client:
        outcomes = list(bulk(map(str, range(40)), client=client, limit=2))
    assert sorted(int(text_of(outcome)) for _, outcome in outcomes) == list(range(40))
    (rejected,) = rejections
    assert len([began for began in times if began < rejected + 0.9]) <= 2


def test_a_server_that_stays_busy_is_given_up(faults: FaultyServer) -> None:
    faults.fail(503)
    retry = Retry(first_delay=0.01, max_delay=60)
    with Client(base_url=faults.base_url, retry=retry) as client:
        outcomes = list(bulk(map(str, range(500)), client=client, limit=4, patience=0.1))
    assert len(outcomes) == 500
    assert all(isinstance(outcome, InternalServerError) for _, outcome in outcomes)
    assert len(faults.requests) < 50
    attempts = [outcome.attempts for _, outcome in outcomes]
    assert sum(attempts) == len(faults.requests)
    assert attempts.count(0) > 450


def test_a_longer_retry_after_than_max_retry_after_is_the_outcome(faults: FaultyServer) -> None:
    faults.fail(429, retry_after=3600)
    with Client(base_url=faults.base_url) as client:
        outcomes = list(bulk(map(str, range(50)), client=client, limit=2))
    assert all(isinstance(outcome, RateLimitError) for _, outcome in outcomes)
    assert len(faults.requests) <= 2


def test_a_rate_is_not_exceeded(client: Client) -> None:
    started = time.monotonic()
    assert len(list(bulk(map(str, range(10)), client=client, rate=50))) == 10
    assert time.monotonic() - started > 0.15


# The event loop in a thread


def test_a_limit_far_above_the_number_of_prompts_costs_nothing(client: Client) -> None:
    started = time.process_time()
    assert len(list(bulk(map(str, range(10)), client=client, limit=100_000))) == 10
    assert time.process_time() - started < 5


def test_an_event_loop_that_cannot_start_is_an_error(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("cromicle_sdk.bulk.thread.anyio.run", fail)
    with pytest.raises(CromicleError, match=r"The event loop cannot start .*open files") as caught:
        list(bulk(["One"], client=client))
    assert caught.value.hint == "raise the limit of open files (ulimit -n)"


def test_a_closed_thread_takes_nothing(client: Client) -> None:
    class Sink:
        def __init__(self) -> None:
            self.errors: list[Exception] = []
            self.outcomes: list[Outcome] = []

        def give(self, index: int, outcome: Outcome) -> None:
            self.outcomes.append(outcome)
            # As the garbage collector may.
            thread.close()

        def end(self, error: Exception) -> None:
            self.errors.append(error)

    own, _ = copy_client(client)
    thread = LoopThread(own, BulkOptions(limit=1), owns_client=True)
    sink = Sink()
    thread.attach(sink)
    thread.put([(0, Prompt("One")), (1, Prompt("Two"))], sink)
    thread._thread.join(PATIENCE)
    assert [type(error) for error in sink.errors] == [CromicleError]
    assert len(sink.outcomes) == 1
    assert own.is_closed
    thread.close()
    thread.detach(sink)
    with pytest.raises(CromicleError, match="closed"):
        thread.attach(sink)
    thread._is_waiting = True
    thread.put([(2, Prompt("Three"))], sink)
    assert len(sink.outcomes) == 1


def test_a_thread_that_ends_while_a_job_is_added_does_not_block(client: Client) -> None:
    class Sink:
        def give(self, index: int, outcome: Outcome) -> None:
            raise AssertionError

        def end(self, error: Exception) -> None:
            errors.append(error)

    errors: list[Exception] = []
    own, _ = copy_client(client)
    thread = LoopThread(own, BulkOptions(limit=1), owns_client=True)
    sink = Sink()
    thread.attach(sink)
    with thread._lock:
        thread._loop.call_soon_threadsafe(thread._cancel)
        thread.put([(0, Prompt("One"))], sink)
    thread.close()
    assert [type(error) for error in errors] == [CromicleError]


class _FoundLater(deque[Any]):
    """Looks empty once, as if a job came just after somebody had looked."""

    was_overlooked = False

    def __bool__(self) -> bool:
        if len(self) and not self.was_overlooked:
            self.was_overlooked = True
            return False
        return len(self) > 0


def test_a_job_that_is_added_before_the_wait_is_found(client: Client) -> None:
    own, _ = copy_client(client)
    thread = LoopThread(own, BulkOptions(limit=1), owns_client=True)
    done = threading.Event()

    class Sink:
        def give(self, index: int, outcome: Outcome) -> None:
            done.set()

        def end(self, error: Exception) -> None:
            pass

    sink = Sink()
    thread.attach(sink)
    thread._jobs = _FoundLater()
    thread.put([(0, Prompt("One"))], sink)
    assert done.wait(PATIENCE)
    thread.close()
