"""`bulk` with an executor: submitting shards of prompts, and collecting their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from uuid import uuid4

from cromicle_sdk import ConfigurationError, CromicleError, Messages
from cromicle_sdk._http.queues import take

from .process import Setup, Shard, keep_thread, release_thread, run_shard
from .prompts import InOrder, Outcome, Prompt, Reader

__all__ = ["MAX_SHARDS", "ExecutorOption", "check_executor", "run_in_executor"]

ExecutorOption = Executor | Callable[[], Executor]

# The maximum number of shards that are submitted or whose outcomes have not been yielded yet.
MAX_SHARDS = 64

# How many times a shard is submitted before its prompts fail.
_ATTEMPTS = 3


def run_in_executor(
    prompts: Iterable[Prompt | Messages],
    setup: Setup,
    executor: ExecutorOption,
    *,
    ordered: bool,
    shard_size: int,
) -> Generator[tuple[int, Outcome]]:
    """Yield the outcomes as their shards complete.

    Closing the generator cancels the shards that have not started.
    """
    reader, order = Reader(prompts), InOrder(ordered=ordered)
    workers = _Workers(executor, setup)
    is_finished = False
    try:
        ahead = 0
        while True:
            # Submit two shards for each completed one, as in `run_in_thread`.
            for _ in range(2):
                if ahead < MAX_SHARDS * shard_size and not (reader.is_at_end or workers.error):
                    shard = reader.read(shard_size)
                    workers.submit(shard)
                    ahead += len(shard)
            if not ahead:
                break
            is_full = ahead >= MAX_SHARDS * shard_size or reader.is_at_end
            for outcome in workers.take(wait=is_full or workers.error is not None):
                for passed in order.add(*outcome):
                    ahead -= 1
                    yield passed
        is_finished = True
    finally:
        workers.close(wait=is_finished)
    reader.check()
    if workers.error is not None and not reader.is_at_end:
        raise CromicleError(
            f"The executor accepts no more tasks ({_describe(workers.error)}), and not all prompts"
            " were read",
            hint="pass a function that returns an executor, so that it can be replaced",
        ) from None


class _Workers:
    """The shards that are submitted to an executor, which is replaced if a function returns it."""

    def __init__(self, executor: ExecutorOption, setup: Setup) -> None:
        self._make = None if isinstance(executor, Executor) else executor
        self._executor = _check_executor(executor if self._make is None else self._make())
        self._setup = setup
        self._shards: dict[Future[list[tuple[int, Outcome]]], tuple[Shard, int]] = {}
        self._done: SimpleQueue[Future[list[tuple[int, Outcome]]]] = SimpleQueue()
        # The reason why the executor accepts no more tasks.
        self.error: Exception | None = None
        keep_thread(setup)

    def submit(self, shard: Shard, *, attempt: int = 1) -> None:
        """Submit a shard, unless it is empty."""
        if shard:
            future = self._submit(shard)
            self._shards[future] = (shard, attempt)
            future.add_done_callback(self._done.put)

    def take(self, *, wait: bool) -> list[tuple[int, Outcome]]:
        """Return the outcomes of one shard; [] if none is complete, or if it is resubmitted."""
        futures = take(self._done, wait=wait)
        if not futures:
            return []
        (future,) = futures
        shard, attempt = self._shards.pop(future)
        try:
            return future.result()
        except Exception as error:  # noqa: BLE001 - of any executor and worker
            if attempt < _ATTEMPTS and self.error is None:
                self.submit(shard, attempt=attempt + 1)
                return []
            return [(index, _build_error(error, attempt)) for index, _ in shard]

    def close(self, *, wait: bool) -> None:
        """Cancel the shards that have not started, and those that are running in this process."""
        for future in self._shards:
            future.cancel()
        release_thread(self._setup)
        if self._make is not None:
            self._executor.shutdown(wait=wait)

    def _submit(self, shard: Shard) -> Future[list[tuple[int, Outcome]]]:
        try:
            return self._executor.submit(run_shard, self._setup, shard, uuid4().hex)
        except Exception as error:  # noqa: BLE001 - of any executor; it is broken or shut down
            failure = error
        if self._make is not None:
            self._executor.shutdown(wait=False)
            try:
                self._executor = _check_executor(self._make())
                return self._executor.submit(run_shard, self._setup, shard, uuid4().hex)
            except Exception as error:  # noqa: BLE001 - as above
                failure = error
        self.error = failure
        failed: Future[list[tuple[int, Outcome]]] = Future()
        failed.set_exception(failure)
        return failed


def check_executor(executor: object) -> None:
    """Raise `ConfigurationError` unless it is an executor or a callable."""
    if not callable(executor):
        _check_executor(executor)


def _check_executor(executor: object) -> Executor:
    if not isinstance(executor, Executor):
        raise ConfigurationError(
            f"expected a concurrent.futures.Executor, not {type(executor).__name__}",
            option="executor",
            hint="pass one, or a function that returns one; for Dask, pass client.get_executor()",
        )
    return executor


def _build_error(error: Exception, attempts: int) -> CromicleError:
    return CromicleError(
        f"The executor failed to run the task of this prompt in {attempts}"
        f" attempt{'s' if attempts > 1 else ''} ({_describe(error)})",
        hint="check its workers",
    )


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
