"""The queue of callers: who waits, who is next, and who is told to come back."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.to_thread
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from runtimes import Runtime
from signatures import build_request, sign

from cromicle_sdk import Client, InternalServerError, Retry
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk.server import LocalServer, create_app
from cromicle_sdk.server.concurrency import ConcurrencyLimit, Slot
from cromicle_sdk.server.errors import RequestRejected
from cromicle_sdk.server.tokens import AcceptedToken

PATIENCE = 20.0
ONCE = Retry(attempts=1)
A, B = AcceptedToken(Secret("a")), AcceptedToken(Secret("b"))


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def started(*slots: Slot) -> list[bool]:
    return [slot.started is not None for slot in slots]


def rejected(limit: ConcurrencyLimit, token: AcceptedToken | None = A) -> float:
    """The `Retry-After` of a caller who is rejected."""
    with pytest.raises(RequestRejected) as caught:
        limit.request_slot(token)
    assert caught.value.status == 503
    assert caught.value.retry_after is not None
    return caught.value.retry_after


class TestConcurrencyLimit:
    def test_without_a_limit_no_caller_waits(self) -> None:
        limit = ConcurrencyLimit()
        assert all(started(*(limit.request_slot(A) for _ in range(1000))))

    def test_callers_wait_in_order(self) -> None:
        limit = ConcurrencyLimit(2)
        slots = [limit.request_slot(A) for _ in range(5)]
        assert started(*slots) == [True, True, False, False, False]
        assert limit.waiting == 3
        slots[1].release()
        assert started(*slots) == [True, True, True, False, False]
        slots[3].release()
        slots[0].release()
        assert started(*slots) == [True, True, True, False, True]
        assert limit.waiting == 0

    def test_releasing_is_idempotent(self) -> None:
        limit = ConcurrencyLimit(1)
        first, second, third = (limit.request_slot(A) for _ in range(3))
        first.release()
        first.release()
        assert started(second, third) == [True, False]
        second.release()
        third.release()
        third.release()
        assert started(limit.request_slot(A), limit.request_slot(A)) == [True, False]

    @pytest.mark.parametrize(("max_waiting", "queued"), [(None, 8), (0, 0), (1, 1), (5, 5)])
    def test_the_queue_has_a_limit(self, max_waiting: int | None, queued: int) -> None:
        limit = ConcurrencyLimit(2, max_waiting=max_waiting)
        slots = [limit.request_slot(A) for _ in range(2 + queued)]
        rejected(limit)
        slots[0].release()
        if queued:
            assert not limit.request_slot(A).started
        else:
            assert limit.request_slot(A).started is not None

    def test_a_token_that_has_all_its_slots_keeps_no_other_waiting(self) -> None:
        limit = ConcurrencyLimit(3, per_token=2)
        mine = [limit.request_slot(A) for _ in range(4)]
        assert started(*mine) == [True, True, False, False]
        theirs = [limit.request_slot(B) for _ in range(3)]
        assert started(*theirs) == [True, False, False]
        # The oldest caller whose token has a free slot.
        theirs[0].release()
        assert started(*mine, *theirs) == [True, True, False, False, True, True, False]
        mine[0].release()
        assert started(*mine, *theirs) == [True, True, True, False, True, True, False]

    def test_a_token_cannot_fill_the_queue(self) -> None:
        limit = ConcurrencyLimit(4, per_token=1, max_waiting=8)
        for _ in range(3):
            limit.request_slot(A)
        rejected(limit, A)
        assert started(limit.request_slot(B), limit.request_slot(B)) == [True, False]

    @pytest.mark.parametrize(("max_waiting", "queued"), [(None, 8), (0, 0), (3, 3)])
    def test_without_a_limit_in_all_each_token_has_a_queue(
        self, max_waiting: int | None, queued: int
    ) -> None:
        limit = ConcurrencyLimit(per_token=2, max_waiting=max_waiting)
        for token in (A, B, None):
            assert all(started(limit.request_slot(token), limit.request_slot(token)))
            assert not any(started(*(limit.request_slot(token) for _ in range(queued))))
            rejected(limit, token)

    def test_retry_after_grows_with_the_callers_and_the_duration_of_replies(self) -> None:
        clock = FakeClock()
        limit = ConcurrencyLimit(2, max_waiting=4, clock=clock)
        slots = [limit.request_slot(A) for _ in range(6)]
        times = [rejected(limit) for _ in range(500)]
        assert times == sorted(times)
        assert times[0] == 2.5
        assert times[10] == 7.5
        assert times[-1] == 60.0
        # Ended replies release their slots, and show how long one takes.
        clock.now = 101.0
        slots[0].release()
        limit.request_slot(A)
        assert limit._mean_seconds == pytest.approx(11.0)
        for slot in slots[1:]:
            slot.release()

    def test_retry_after_shrinks_again(self) -> None:
        limit = ConcurrencyLimit(1, max_waiting=0, clock=FakeClock())
        slot = limit.request_slot(A)
        times = [rejected(limit) for _ in range(5)]
        for _ in range(10):
            slot.release()
            slot = limit.request_slot(A)
        assert rejected(limit) < times[-1]

    def test_a_caller_that_insists_does_not_make_others_wait_for_ever(self) -> None:
        limit = ConcurrencyLimit(1, max_waiting=0, clock=FakeClock())
        slot = limit.request_slot(A)
        for _ in range(10_000):
            rejected(limit)
        # As many replies as take the minute that the callers were told to wait.
        for _ in range(60):
            slot.release()
            slot = limit.request_slot(B)
        assert rejected(limit) < 10

    def test_callers_who_never_come_back_are_forgotten(self) -> None:
        clock = FakeClock()
        limit = ConcurrencyLimit(1, max_waiting=0, clock=clock)
        limit.request_slot(A)
        for _ in range(100):
            rejected(limit)
        clock.now = 59.0
        assert rejected(limit) == 60
        clock.now = 119.0
        assert rejected(limit) == 1

    def test_it_forgets_tokens(self) -> None:
        limit = ConcurrencyLimit(1, per_token=1)
        for number in range(100):
            token = AcceptedToken(Secret(str(number)))
            slots = [limit.request_slot(token) for _ in range(2)]
            for slot in slots:
                slot.release()
        assert limit._running_by_token == limit._queued_by_token == Counter()


class Gate:
    """A backend that reports each prompt, and waits before its reply."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.prompts: list[str] = []

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        async def chunks() -> AsyncIterator[str]:
            self.prompts.append(prompt)
            await anyio.to_thread.run_sync(self.opened.wait, abandon_on_cancel=True)
            yield prompt

        return chunks()


def count_waiting(server: LocalServer) -> float:
    text = httpx.get(server.base_url + "/metrics").text
    return next(
        family.samples[0].value
        for family in text_string_to_metric_families(text)
        if family.name == "cromicle_requests_waiting"
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_until_waiting(server: LocalServer, count: int) -> None:
    wait_until(lambda: count_waiting(server) == count)


def test_more_workers_than_slots_get_every_reply(runtime: Runtime) -> None:
    most = 0
    now = 0

    async def shout(prompt: str) -> AsyncIterator[str]:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await anyio.sleep(0.002)
        # However slowly the callers come.
        while most < 5:
            await anyio.sleep(0.001)
        yield prompt.upper()
        now -= 1

    replies: list[str] = []

    async def scenario() -> None:
        async with runtime.client(base_url=server.base_url, token="abc", retry=ONCE) as client:

            async def work() -> None:
                replies.extend([(await client.chat(f"prompt {n}")).text for n in range(10)])

            await runtime.together(*[work] * 20)

    with LocalServer(app=create_app(shout, max_concurrent=5)) as server:
        runtime.run(scenario)
    assert Counter(replies) == {f"PROMPT {number}": 20 for number in range(10)}
    assert most == 5


def test_waiting_callers_are_served_in_order() -> None:
    gate = Gate()

    def ask(prompt: str) -> None:
        httpx.post(server.base_url + "/chat", json=sign(prompt))

    with LocalServer(app=create_app(gate, max_concurrent=1)) as server:
        threads = []
        for number in range(5):
            call = threading.Thread(target=ask, args=(str(number),))
            call.start()
            threads.append(call)
            wait_until(lambda: bool(gate.prompts))
            wait_until_waiting(server, number)
        assert gate.prompts == ["0"]
        with Client(base_url=server.base_url, token="abc", retry=ONCE) as client:
            with pytest.raises(InternalServerError) as caught:
                client.chat("5")
        assert caught.value.status_code == 503
        assert caught.value.retry_after == 5
        gate.opened.set()
        for call in threads:
            call.join(PATIENCE)
    assert gate.prompts == ["0", "1", "2", "3", "4"]


def test_a_caller_that_disconnects_leaves_the_queue() -> None:
    gate = Gate()
    with LocalServer(app=create_app(gate, max_concurrent=1)) as server:
        url = httpx.URL(server.base_url)
        connections = []
        for prompt in ("first", "leaves", "stays"):
            connection = socket.create_connection((url.host, url.port or 0), PATIENCE)
            connections.append(connection)
            connection.sendall(build_request(sign(prompt)))
            wait_until(lambda: bool(gate.prompts))
            wait_until_waiting(server, len(connections) - 1)
        connections[1].close()
        wait_until_waiting(server, 1)
        gate.opened.set()
        assert b"200" in connections[2].recv(65536)
        for connection in connections:
            connection.close()
    assert gate.prompts == ["first", "stays"]


def test_one_token_cannot_take_all_replies() -> None:
    gate = Gate()
    app = create_app(
        gate, tokens=["greedy", "modest"], max_concurrent=2, max_concurrent_per_token=1
    )

    def ask(token: str) -> None:
        httpx.post(server.base_url + "/chat", json=sign(token, token))

    with LocalServer(app=app) as server:
        threads = [threading.Thread(target=ask, args=("greedy",)) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_until_waiting(server, 4)
        # It has also reached its limit in the queue.
        assert httpx.post(server.base_url + "/chat", json=sign("x", "greedy")).status_code == 503
        threads.append(threading.Thread(target=ask, args=("modest",)))
        threads[-1].start()
        wait_until(lambda: len(gate.prompts) > 1)
        assert gate.prompts == ["greedy", "modest"]
        gate.opened.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert Counter(gate.prompts) == {"greedy": 5, "modest": 1}


def test_the_shutdown_does_not_wait_for_the_queue() -> None:
    gate = Gate()
    with LocalServer(app=create_app(gate, max_concurrent=1)) as server:
        url = httpx.URL(server.base_url)
        connections = [
            socket.create_connection((url.host, url.port or 0), PATIENCE) for _ in range(2)
        ]
        for connection in connections:
            connection.sendall(build_request(sign("hi")))
        wait_until_waiting(server, 1)
    gate.opened.set()
    for connection in connections:
        connection.close()
