"""`bulk` through executors: threads, processes, and ones that break."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import anyio
import httpx
import pytest

from cromicle_sdk import AsyncClient, Client, ConfigurationError, CromicleError, Reply
from cromicle_sdk.bulk import Outcome, bulk
from cromicle_sdk.bulk.options import BulkOptions, dump_client
from cromicle_sdk.bulk.process import Setup, _Outcomes, _Process, run_shard
from cromicle_sdk.bulk.prompts import Prompt
from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer

PATIENCE = 30.0

SPAWN = multiprocessing.get_context("spawn")


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


@pytest.mark.parametrize("ordered", [False, True])
def test_threads_share_one_client(client: Client, ordered: bool) -> None:
    loops: set[int] = set()
    seen: list[tuple[int, str]] = []
    with ThreadPoolExecutor(4) as executor:
        for index, outcome in bulk(
            map(str, range(100)), client=client, executor=executor, shard_size=7, ordered=ordered
        ):
            seen.append((index, text_of(outcome)))
            names = [thread.name for thread in threading.enumerate()]
            loops.add(names.count("cromicle-bulk"))
    assert loops == {1}
    assert (seen if ordered else sorted(seen)) == [(i, str(i)) for i in range(100)]


def test_a_function_that_returns_an_executor(client: Client) -> None:
    made: list[ThreadPoolExecutor] = []

    def make() -> Executor:
        made.append(ThreadPoolExecutor(2))
        return made[-1]

    assert len(list(bulk(["One", "Two"], client=client, executor=make))) == 2
    with pytest.raises(RuntimeError, match="shutdown"):
        made[0].submit(print)
    not_one: Any = dict
    with pytest.raises(ConfigurationError, match="get_executor"):
        list(bulk(["One"], client=client, executor=not_one))


def test_ending_early_cancels_the_calls_of_threads(faults: FaultyServer) -> None:
    faults.reply("Yes.").stall(after="")
    with Client(base_url=faults.base_url) as client, ThreadPoolExecutor(4) as executor:
        outcomes = bulk(map(str, range(100)), client=client, executor=executor, shard_size=1)
        assert text_of(next(outcomes)[1]) == "Yes."
        outcomes.close()


def test_an_infinite_source_is_read_only_as_far_as_needed(client: Client) -> None:
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield str(read)

    with ThreadPoolExecutor(2) as executor:
        outcomes = bulk(source(), client=client, executor=executor, shard_size=2)
        for _ in range(40):
            next(outcomes)
        outcomes.close()
    assert read <= 40 + 64 * 2 + 2


def test_processes(client: Client) -> None:
    with ProcessPoolExecutor(2, mp_context=SPAWN) as executor:
        outcomes = dict(bulk(map(str, range(100)), client=client, executor=executor, shard_size=9))
    assert [text_of(outcomes[i]) for i in range(100)] == [str(i) for i in range(100)]


@pytest.mark.skipif(sys.platform == "win32", reason="it ends a worker by a signal")
@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_process_that_dies_loses_no_prompt(is_replaced: bool) -> None:
    arrived, killed = threading.Event(), threading.Event()
    executors: list[ProcessPoolExecutor] = []

    async def wait_once(prompt: str) -> AsyncIterator[str]:
        arrived.set()
        await anyio.to_thread.run_sync(killed.wait, PATIENCE)
        yield prompt

    def make() -> Executor:
        executors.append(ProcessPoolExecutor(1, mp_context=SPAWN))
        return executors[-1]

    def kill() -> None:
        arrived.wait(PATIENCE)
        (pid,) = executors[0]._processes
        os.kill(pid, signal.SIGKILL)
        killed.set()

    executor = make if is_replaced else make()
    thread = threading.Thread(target=kill)
    thread.start()
    with LocalServer(wait_once) as server, Client(base_url=server.base_url) as client:
        outcomes: dict[int, Outcome] = {}
        run = bulk(map(str, range(400)), client=client, executor=executor, shard_size=5)
        if is_replaced:
            outcomes.update(run)
            assert [text_of(outcomes[i]) for i in range(400)] == [str(i) for i in range(400)]
        else:
            with pytest.raises(CromicleError, match=r"accepts no more tasks \(BrokenProcessPool"):
                outcomes.update(run)
            for outcome in run:
                outcomes.update([outcome])
    thread.join()
    for each in executors:
        each.shutdown()


class Unreliable(Executor):
    """Runs tasks at once. `fails` says of each submission whether and how it fails."""

    def __init__(self, fails: Callable[[int], Exception | None], *, at_submit: bool) -> None:
        self._fails = fails
        self._at_submit = at_submit
        self.submitted = 0
        self.tasks: set[str] = set()

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        self.submitted += 1
        self.tasks.add(arguments[-1])
        error = self._fails(self.submitted)
        future: Future[Any] = Future()
        if error is None:
            future.set_result(function(*arguments, **options))
        elif self._at_submit:
            raise error
        else:
            future.set_exception(error)
        return future


def test_a_shard_whose_task_fails_is_submitted_again(client: Client) -> None:
    executor = Unreliable(lambda number: OSError("lost") if number <= 2 else None, at_submit=False)
    ((_, outcome),) = bulk(["One"], client=client, executor=executor)
    assert text_of(outcome) == "One"
    assert executor.submitted == 3
    # Dask runs one of two tasks with the same arguments.
    assert len(executor.tasks) == 3


def test_a_shard_whose_task_always_fails_comes_back_as_errors(client: Client) -> None:
    executor = Unreliable(lambda _: OSError("lost\n it"), at_submit=False)
    outcomes = list(bulk(map(str, range(5)), client=client, executor=executor, shard_size=3))
    assert sorted(index for index, _ in outcomes) == [0, 1, 2, 3, 4]
    assert executor.submitted == 6
    (message,) = {str(outcome) for _, outcome in outcomes}
    assert message == (
        "The executor failed to run the task of this prompt in 3 attempts (OSError: lost it);"
        " check its workers"
    )


def test_an_executor_that_takes_no_more_tasks(client: Client) -> None:
    executor = Unreliable(lambda number: OSError() if number > 1 else None, at_submit=True)
    seen: dict[int, Outcome] = {}
    with pytest.raises(CromicleError, match="not all prompts were read"):
        seen.update(bulk(map(str, range(1000)), client=client, executor=executor, shard_size=2))
    assert sorted(seen) == [0, 1, 2, 3]
    assert text_of(seen[0]) == "0"
    assert "1 attempt (OSError)" in str(seen[2])


def test_an_executor_that_cannot_be_replaced(client: Client) -> None:
    executors = iter([Unreliable(lambda _: OSError("broken"), at_submit=True)])
    outcomes = list(bulk(["One"], client=client, executor=lambda: next(executors)))
    assert "StopIteration" in str(outcomes[0][1])


def test_a_task_that_runs_out_of_a_closed_event_loop_fails(client: Client) -> None:
    setup = Setup(dump_client(client), BulkOptions(limit=1))
    threads = _Process.get_threads()
    assert run_shard(setup, [(0, Prompt("One"))])[0][0] == 0
    assert threads.find(setup) is threads.find(setup)
    threads.close_all()
    # A child that was forked.
    threads.pid = -1
    assert _Process.get_threads() is not threads


def test_an_event_loop_is_closed_with_its_last_user(client: Client) -> None:
    with ThreadPoolExecutor(2) as executor:
        first = bulk(map(str, range(100)), client=client, executor=executor, shard_size=1)
        next(first)
        assert len(list(bulk(["One"], client=client, executor=executor))) == 1
        assert len(list(first)) == 99


def test_the_end_of_an_event_loop_changes_no_outcome_that_is_there() -> None:
    outcomes = _Outcomes(1)
    outcomes.give(0, CromicleError("x"))
    outcomes.end(CromicleError("closed"))
    assert outcomes.future.result() == [(0, CromicleError("x"))]


def test_no_option_of_the_client_is_shown(client: Client) -> None:
    with Client(token="a token of mine", base_url="http://127.0.0.1:9") as own:
        setup = Setup(dump_client(own), BulkOptions())
    assert "mine" not in repr(setup)
    assert pickle.loads(pickle.dumps(setup)) == setup


def test_a_client_that_cannot_leave_the_process(client: Client) -> None:
    own = AsyncClient(base_url="http://127.0.0.1:9", http_client=httpx.AsyncClient())
    with ThreadPoolExecutor(1) as executor, pytest.raises(ConfigurationError, match="http_client"):
        bulk(["One"], client=own, executor=executor)


def test_without_a_client_the_environment_has_the_endpoint(
    echo: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", echo.base_url)
    executor = partial(ThreadPoolExecutor, 1)
    assert [text_of(outcome) for _, outcome in bulk(["One"], executor=executor)] == ["One"]
