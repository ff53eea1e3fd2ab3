"""`bulk` without an executor: an event loop in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from queue import SimpleQueue

from cromicle_sdk import AsyncClient, Messages
from cromicle_sdk._http.queues import take

from .options import BulkOptions
from .prompts import InOrder, Outcome, Prompt, Reader
from .thread import LoopThread

__all__ = ["AHEAD", "run_in_thread"]

# How many prompts are read ahead of the yielded outcomes, for each concurrent call. More than one,
# so that neither a slow consumer nor, with `ordered`, one slow reply stops the other calls.
AHEAD = 4


class _Results:
    """A queue of outcomes."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[int, Outcome] | Exception] = SimpleQueue()

    def give(self, index: int, outcome: Outcome) -> None:
        self._queue.put((index, outcome))

    def end(self, error: Exception) -> None:
        self._queue.put(error)

    def take(self, *, wait: bool) -> tuple[int, Outcome] | None:
        """Return the next outcome, or None if there is none yet. Raises the error of `end`."""
        for result in take(self._queue, wait=wait):
            if isinstance(result, Exception):
                raise result
            return result
        return None


def run_in_thread(
    prompts: Iterable[Prompt | Messages],
    client: AsyncClient,
    options: BulkOptions,
    *,
    ordered: bool,
    owns_client: bool,
) -> Generator[tuple[int, Outcome]]:
    """Yield the outcomes as they arrive. Closing the generator cancels the calls."""
    reader, order, results = Reader(prompts), InOrder(ordered=ordered), _Results()
    thread = LoopThread(client, options, owns_client=owns_client)
    try:
        thread.attach(results)
        ahead = 0
        while True:
            # Read two prompts for each outcome: this fills the window if the source is fast, and
            # does not delay outcomes if it is slow.
            for _ in range(2):
                if ahead < AHEAD * options.limit and not reader.is_at_end:
                    read = reader.read()
                    thread.put(read, results)
                    ahead += len(read)
            is_full = ahead == AHEAD * options.limit or reader.is_at_end
            if not ahead:
                break
            result = results.take(wait=is_full)
            if result is not None:
                for passed in order.add(*result):
                    ahead -= 1
                    yield passed
    finally:
        thread.close()
    reader.check()
