"""Sending many prompts, from blocking or async code, or with any executor.

`bulk` and `abulk` yield `(index, Reply | CromicleError)` for each prompt of an iterable. `Ask` is a
callable for systems that process batches of rows, such as Ray Data and Spark.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractAsyncContextManager

from cromicle_sdk import AsyncClient, Client, ConfigurationError, Messages
from cromicle_sdk._core.options import check_count

from .ask import Ask
from .blocking import run_in_thread
from .options import (
    DEFAULT_LIMIT,
    DEFAULT_PATIENCE,
    BulkOptions,
    check_client,
    copy_client,
    dump_client,
)
from .process import Setup
from .prompts import Outcome, Prompt, check_prompts
from .shards import ExecutorOption, check_executor, run_in_executor
from .tasks import AsyncPrompts, Results, run_in_tasks

__all__ = ["Ask", "Outcome", "Prompt", "abulk", "bulk"]


def bulk(
    prompts: Iterable[Prompt | Messages],
    *,
    client: Client | AsyncClient | None = None,
    limit: int = DEFAULT_LIMIT,
    executor: ExecutorOption | None = None,
    ordered: bool = False,
    rate: float | None = None,
    patience: float = DEFAULT_PATIENCE,
    shard_size: int = DEFAULT_LIMIT,
) -> Generator[tuple[int, Outcome]]:
    """Send many prompts, and yield `(index, Reply | CromicleError)` for each as it completes.

    ```python
    for index, outcome in bulk(["One", "Two"], client=Client()):
        print(index, outcome)
    ```

    `index` is the position of the prompt in `prompts`, from 0. A call that fails yields its error
    and does not stop the others.

    - `prompts`: any iterable of texts, of lists of messages, or of `Prompt` objects, which have
      their own call options. It is read lazily in the calling thread, at most 4 times `limit`
      prompts (with an executor, 64 shards) ahead of the yielded results. An exception that it
      raises is re-raised after the results of the prompts before it.
    - `client`: the client whose options are used, by default `Client()`. The calls use their own
      connections, not those of `client`, which stays open. Only an `AsyncClient` with an
      `http_client` makes the calls itself, and only without an executor.
    - `limit`: the maximum number of concurrent calls, in each process. Defaults to 32.
    - `executor`: a `concurrent.futures.Executor`, or a function that returns one. By default the
      calls run in an event loop in a thread of this process. With an executor, each task is a shard
      of `shard_size` prompts, by default 32. If a task fails, for example because a worker died, it
      is submitted again, at most 3 times in total; then its prompts yield errors. An executor that
      the function returned is shut down at the end, and replaced if it breaks.
    - `ordered`: yield the results in the order of the prompts. Defaults to False.
    - `rate`: the maximum number of calls that start per second, on average: calls that are late by
      up to 0.1 s are made up for. None, the default, is no limit. It cannot be combined with
      `executor`.
    - `patience`: the seconds to wait for a busy server, by default 600. A status 429 or 503 slows
      down all calls. They wait for its `Retry-After` after a 429, or if no call was accepted. A
      prompt yields that error if no call succeeds for `patience` seconds, or if that `Retry-After`
      exceeds `retry.max_retry_after`.

    Closing the generator cancels the calls, except those in other processes, and closes their
    connections.

    Raises `ConfigurationError`, which names the option, before anything is read or sent, and
    `CromicleError` if the executor accepts no more tasks.
    """
    options = BulkOptions(limit, rate, patience)
    check_count("shard_size", shard_size)
    check_prompts(prompts)
    if executor is None:
        own, owns_client = copy_client(client)
        return run_in_thread(prompts, own, options, ordered=ordered, owns_client=owns_client)
    if rate is not None:
        raise ConfigurationError(
            "it cannot be combined with an executor, whose processes do not share it", option="rate"
        )
    check_executor(executor)
    setup = Setup(dump_client(client), options)
    return run_in_executor(prompts, setup, executor, ordered=ordered, shard_size=shard_size)


def abulk(
    prompts: AsyncPrompts,
    *,
    client: AsyncClient | None = None,
    limit: int = DEFAULT_LIMIT,
    ordered: bool = False,
    rate: float | None = None,
    patience: float = DEFAULT_PATIENCE,
) -> AbstractAsyncContextManager[Results]:
    """The async variant of `bulk`: an async context manager that returns an async iterator.

    ```python
    async with AsyncClient() as client, abulk(["One", "Two"], client=client) as outcomes:
        async for index, outcome in outcomes:
            print(index, outcome)
    ```

    It works on asyncio and trio. `prompts` is an iterable or an async iterable. The calls use
    `client` itself, which stays open, or a new `AsyncClient()`. Exiting the block cancels them. The
    other options are as in `bulk`; there is no executor.

    Raises `ConfigurationError`, which names the option, before anything is read or sent.
    """
    options = BulkOptions(limit, rate, patience)
    check_prompts(prompts, may_be_async=True)
    owns_client = client is None
    client = AsyncClient() if client is None else client
    if not isinstance(check_client(client), AsyncClient):
        raise ConfigurationError("expected an AsyncClient, not Client", option="client")
    return run_in_tasks(prompts, client, options, ordered=ordered, owns_client=owns_client)
