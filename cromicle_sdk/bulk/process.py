"""The tasks of an executor: shards of prompts, which share one client in each process."""

from __future__ import annotations

import atexit
import os
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field

from .options import BulkOptions, load_client
from .prompts import Outcome, Prompt
from .thread import LoopThread

__all__ = ["Setup", "Shard", "keep_thread", "release_thread", "run_shard"]

Shard = list[tuple[int, Prompt]]


@dataclass(frozen=True)
class Setup:
    """The options with which a process creates its client, serialized by `dump_client`.

    They contain the token, and are hidden in the repr because an executor may log the arguments of
    its tasks.
    """

    client: bytes = field(repr=False)
    options: BulkOptions


class _Threads:
    """The event loops of this process, one for each setup. They are closed at exit."""

    def __init__(self) -> None:
        self.pid: int = os.getpid()
        self.lock: threading.Lock = threading.Lock()
        self.threads: dict[Setup, LoopThread] = {}
        self.users: Counter[Setup] = Counter()

    def find(self, setup: Setup) -> LoopThread:
        with self.lock:
            thread = self.threads.get(setup)
            if thread is None:
                thread = LoopThread(load_client(setup.client), setup.options, owns_client=True)
                self.threads[setup] = thread
            return thread

    def close(self, setup: Setup) -> None:
        with self.lock:
            thread = self.threads.pop(setup, None)
        if thread is not None:
            thread.close()

    def close_all(self) -> None:
        for setup in list(self.threads):
            self.close(setup)


class _Process:
    """The event loops of the current process. A forked child does not inherit threads."""

    threads: _Threads | None = None

    @classmethod
    def get_threads(cls) -> _Threads:
        if cls.threads is None or cls.threads.pid != os.getpid():
            cls.threads = _Threads()
            atexit.register(cls.threads.close_all)
        return cls.threads


class _Outcomes:
    """The outcomes of one shard, in the order of their arrival."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._outcomes: list[tuple[int, Outcome]] = []
        self.future: Future[list[tuple[int, Outcome]]] = Future()

    def give(self, index: int, outcome: Outcome) -> None:
        self._outcomes.append((index, outcome))
        if len(self._outcomes) == self._count:
            self.future.set_result(self._outcomes)

    def end(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def run_shard(setup: Setup, shard: Shard, task: str = "") -> list[tuple[int, Outcome]]:
    """Send these prompts and return their outcomes. Runs in any thread and process.

    `task` is a unique name, because Dask runs only one of two tasks with the same arguments.

    Raises `CromicleError` if `bulk` has ended in this process and has cancelled the calls.
    """
    outcomes = _Outcomes(len(shard))
    thread = _Process.get_threads().find(setup)
    thread.attach(outcomes)
    try:
        thread.put(shard, outcomes)
        return outcomes.future.result()
    finally:
        thread.detach(outcomes)


def keep_thread(setup: Setup) -> None:
    """Register a user of the event loop that the tasks in threads of this process share."""
    threads = _Process.get_threads()
    with threads.lock:
        threads.users[setup] += 1


def release_thread(setup: Setup) -> None:
    """Unregister a user. The last one closes the event loop, which cancels its calls."""
    threads = _Process.get_threads()
    with threads.lock:
        threads.users[setup] -= 1
        is_last = not threads.users[setup]
    if is_last:
        threads.close(setup)
