"""`bulk` and `cromicle batch` on a real cluster of Dask, whose workers are processes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from left_out import skip_if_left_out

from cromicle_sdk import Client, Reply
from cromicle_sdk.bulk import bulk
from cromicle_sdk.cli import batch as _batch
from cromicle_sdk.cli import run
from cromicle_sdk.server import LocalServer

skip_if_left_out("distributed")
# It has no types.
distributed: Any = importlib.import_module("distributed")

PATIENCE = 60.0

# The number of prompts in a task.
SHARD = 5

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


def test_the_executor_of_a_client(cluster: Any, echo: LocalServer) -> None:
    with distributed.Client(cluster) as dask, Client(base_url=echo.base_url) as client:
        for _ in range(2):
            outcomes = dict(
                bulk(
                    map(str, range(100)), client=client, executor=dask.get_executor(), shard_size=10
                )
            )
            texts = [each.text for each in outcomes.values() if isinstance(each, Reply)]
            assert sorted(texts, key=int) == [str(i) for i in range(100)]


@pytest.mark.skipif(sys.platform == "win32", reason="it ends a worker by a signal")
def test_a_worker_that_is_killed_in_the_middle_loses_no_prompt(cluster: Any) -> None:
    are_busy, killed = threading.Event(), threading.Event()
    arrived: list[str] = []
    held: set[int] = set()

    async def answer(prompt: str) -> AsyncIterator[str]:
        arrived.append(prompt)
        if len(arrived) > 20:
            held.add(int(prompt) // SHARD)
            # As many as the two workers have threads: both wait for this server.
            if len(held) == 4:
                are_busy.set()
            await anyio.to_thread.run_sync(killed.wait, PATIENCE)
        yield prompt

    with distributed.Client(cluster) as dask, LocalServer(answer) as server:
        pids = dask.run(os.getpid)

        def kill() -> None:
            are_busy.wait(PATIENCE)
            os.kill(next(iter(pids.values())), signal.SIGKILL)
            killed.set()

        thread = threading.Thread(target=kill)
        thread.start()
        with Client(base_url=server.base_url) as client:
            executor = dask.get_executor()
            outcomes = list(
                bulk(map(str, range(200)), client=client, executor=executor, shard_size=SHARD)
            )
        thread.join()
        assert are_busy.is_set()
    assert sorted(
        (index, outcome.text) for index, outcome in outcomes if isinstance(outcome, Reply)
    ) == [(i, str(i)) for i in range(200)]
    # Some were sent twice, and answered once.
    assert len(arrived) > 200


def test_batch_on_the_workers(
    cluster: Any, echo: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("".join(f"{i}\n" for i in range(100)))
    address = cluster.scheduler_address.replace("tcp://", "dask://")
    assert (
        run(["batch", "in.txt", "out.jsonl", "--base-url", echo.base_url, "--executor", address])
        == 0
    )
    results = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert sorted((each["id"], each["text"]) for each in results) == [
        (i + 1, str(i)) for i in range(100)
    ]


def test_a_scheduler_that_is_not_there(
    echo: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_batch, "_SCHEDULER_SECONDS", 0.2)
    Path("in.txt").write_text("One")
    command = ["batch", "in.txt", "out.jsonl", "--base-url", echo.base_url, "--executor"]
    assert run([*command, "dask://127.0.0.1:9"]) == 1
    assert (
        "--executor: no Dask scheduler responds at tcp://127.0.0.1:9 (" in capsys.readouterr().err
    )
    assert run([*command, "dask://nonsense:x"]) == 2
    assert not Path("out.jsonl").exists()


def test_the_extra_is_missing(
    echo: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "distributed", None)
    Path("in.txt").write_text("One")
    command = ["batch", "in.txt", "out.jsonl", "--base-url", echo.base_url, "--executor"]
    assert run([*command, "dask://127.0.0.1:9"]) == 2
    assert 'pip install "cromicle-sdk[dask]"' in capsys.readouterr().err
