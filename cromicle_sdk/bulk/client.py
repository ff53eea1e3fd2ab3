"""A client whose calls share one `Pace`."""

from __future__ import annotations

import time
from copy import copy
from dataclasses import replace

import anyio

from cromicle_sdk import APIStatusError, AsyncClient, CromicleError

from .options import BulkOptions, leave_busy_to_pace
from .prompts import Outcome, Prompt

__all__ = ["PacedClient"]

# The longest single wait, in seconds: event loops count milliseconds in 32 bits.
_MAX_WAIT = 3600.0


class PacedClient:
    """Sends prompts as fast as the pace admits. For any number of tasks of one event loop.

    After a 429 or 503, the prompt is sent again until the pace gives up. All other failures are
    retried by the client, according to its own options.
    """

    def __init__(self, client: AsyncClient, options: BulkOptions) -> None:
        self._client = leave_busy_to_pace(client)
        self._pace = options.build_pace(client)
        # Only the first waiter polls the pace, after each call that has ended.
        self._queue = anyio.Lock()
        self._ended = anyio.Event()
        self._last_rejection: CromicleError | None = None

    async def ask(self, prompt: Prompt) -> Outcome:
        """Send a prompt and return its reply or error. Raises only errors of other packages."""
        attempts = 0
        while await self._wait_for_start():
            started_in = self._pace.round
            try:
                reply = await self._client.chat(prompt.messages, **prompt.options)
            except APIStatusError as error:
                attempts += error.attempts
                error.attempts = attempts
                if error.status_code not in (429, 503):
                    self._leave()
                    return error
                self._last_rejection = error
                self._pace.reject(
                    started_in, time.monotonic(), error.status_code, error.retry_after
                )
                self._ended.set()
            except CromicleError as error:
                self._leave()
                error.attempts += attempts
                return error
            except BaseException:
                self._leave()
                raise
            else:
                self._pace.succeed(time.monotonic())
                self._ended.set()
                if attempts:
                    return replace(reply, attempts=reply.attempts + attempts)
                return reply
        assert self._last_rejection is not None, "the pace gives up only after a rejection"
        rejection = copy(self._last_rejection)
        rejection.attempts = attempts
        return rejection

    def _leave(self) -> None:
        self._pace.leave()
        self._ended.set()

    async def _wait_for_start(self) -> bool:
        """Wait until a call may start. Returns False if the pace has given up."""
        now = time.monotonic()
        if self._pace.is_given_up(now):
            return False
        if not self._queue.locked() and self._pace.admit(now) == 0:
            return True
        async with self._queue:
            while True:
                now = time.monotonic()
                if self._pace.is_given_up(now):
                    return False
                wait = self._pace.admit(now)
                if wait == 0:
                    return True
                self._ended = anyio.Event()
                with anyio.move_on_after(min(wait, _MAX_WAIT)):
                    await self._ended.wait()
