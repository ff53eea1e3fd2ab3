"""Many prompts: from blocking or async code, or through any executor.

`bulk` and `abulk` yield `(index, Reply | CromicleError)` for each prompt of any iterable, and `Ask`
is for systems that pass batches of rows, such as Ray Data and Spark.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractAsyncContextManager

from cromicle_sdk import AsyncClient, Client, ConfigurationError, Messages

from .ask import Ask
from .blocking import run_in_thread
from .options import (
    DEFAULT_LIMIT,
    DEFAULT_PATIENCE,
    BulkOptions,
    check_client,
    check_count,
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
    """Send many prompts, and yield `(index, Reply | CromicleError)` for each as it is answered.

    ```python
    for index, outcome in bulk(["One", "Two"], client=Client()):
        print(index, outcome)
    ```

    `prompts` is any iterable; it is read in the calling thread, only as far as needed: 4 times
    `limit` ahead of what was yielded, or 64 shards. A prompt is a text or messages, or a `Prompt`
    with options of its own. An exception of the iterable is raised after the outcomes of what it
    has yielded before.

    - `client`: its options are used, for connections of this call's own; defaults to `Client()`. An
      `AsyncClient` over an `http_client` is used as it is, without an executor.
    - `limit`: the calls in flight at a time, in each process.
    - `executor`: any `concurrent.futures.Executor`, or a function that returns one, which is then
      shut down in the end, and replaced if it breaks. Each task is a shard of `shard_size` prompts.
      A shard whose task fails, because a worker has died, is submitted again, 3 times in all; then
      its prompts have errors. Defaults to an event loop in a thread of this process.
    - `ordered`: yield them in the order of the prompts.
    - `rate`: the calls that start in a second at most; not with an executor.
    - `patience`: a status 429 or 503 slows all calls down together, and they wait for the
      `Retry-After`. If that lasts for so many seconds without any reply, or the server asks for a
      wait longer than `retry.max_retry_after`, the prompts have that error as their outcome.

    Closing the generator cancels the calls, except those in other processes, and closes their
    connections.

    Raises `ConfigurationError`, which names the option, before anything is read or sent; and
    `CromicleError` if the executor takes no more tasks.
    """
    options = BulkOptions(limit, rate, patience)
    check_count("shard_size", shard_size)
    check_prompts(prompts)
    if executor is None:
        own, owns_client = copy_client(client)
        return run_in_thread(prompts, own, options, ordered=ordered, owns_client=owns_client)
    if rate is not None:
        raise ConfigurationError("it cannot be kept by several processes", option="rate")
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
    """`bulk` for asyncio and trio: an async context manager of an async iterator.

    ```python
    async with AsyncClient() as client, abulk(["One", "Two"], client=client) as outcomes:
        async for index, outcome in outcomes:
            print(index, outcome)
    ```

    `prompts` is an iterable or an async iterable. The calls are made by `client` itself, which is
    not closed. Leaving the block cancels them. All else is as in `bulk`.
    """
    options = BulkOptions(limit, rate, patience)
    check_prompts(prompts, may_be_async=True)
    owns_client = client is None
    client = AsyncClient() if client is None else client
    if not isinstance(check_client(client), AsyncClient):
        raise ConfigurationError("expected an AsyncClient, not Client", option="client")
    return run_in_tasks(prompts, client, options, ordered=ordered, owns_client=owns_client)
