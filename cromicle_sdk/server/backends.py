"""Backends: the type, the error that a backend may raise, and the echo."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import anyio

from cromicle_sdk._core.messages import PROMPT_END
from cromicle_sdk._core.options import check_seconds

__all__ = ["Backend", "BackendError", "echo_backend", "last_user_message"]

Backend: TypeAlias = Callable[[str], AsyncIterator[str] | Awaitable[AsyncIterator[str]]]
"""Generates the reply to a prompt, chunk by chunk.

Called with the prompt, it returns an async iterator of `str`: either directly, as an async
generator function does, or as an awaitable, as a coroutine function does. Each chunk is sent on
its own as soon as it is yielded; empty chunks are skipped. A backend runs in a single task, so
`anyio` task groups and timeouts may span a `yield`. When the client disconnects, the iterator is
cancelled where it waits. Its `aclose`, if it has one, is always called in the end.

An exception fails the reply. Before the first chunk the client receives a 500, or the error that
a `BackendError` describes; after that the reply is truncated, which the client detects. A backend
must not block, since it would block the event loop of the whole server.
"""

_USER_LINE = "\nUser: "

# Each character is either white space or not, so the matches join to exactly the original text.
# Leading white space belongs to the first word; a text without words is one chunk.
_WORD = re.compile(r"\s*\S+\s*|\s+")


class BackendError(Exception):
    """Raised by a backend to choose the error response.

    Before the first chunk the caller receives `status` with the JSON
    `{"error": {"code": …, "message": …}}`, and a `Retry-After` of `retry_after` seconds (rounded
    up) where it is given. After the first chunk the reply is truncated, as by any other exception.

    `status` is an int from 400 to 599, `code` a word for programs, `message` a sentence for
    people. `detail` is logged instead of the message. Neither may quote the prompt or a key.

    Raises `ValueError` for a status or a `retry_after` out of range.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        detail: str | None = None,
    ) -> None:
        if not 400 <= status <= 599:
            raise ValueError("status must be from 400 to 599")
        if retry_after is not None and not 0 <= retry_after < math.inf:
            raise ValueError("retry_after must be a finite number of seconds, 0 or more")
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.detail: str = message if detail is None else detail

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


def echo_backend(*, delay: float = 0.0) -> Backend:
    """A backend that repeats the last user message of the prompt, word by word.

    Each chunk is a word and the white space after it; joined, the chunks are exactly the message.
    `delay` is the number of seconds before each word but the first. An empty message yields an
    empty reply, which a client in strict mode rejects.

    In a prompt that `format_prompt` built from several messages, the last user message is the
    text between the last line that starts with "User: " and the final "\\nAssistant:", line
    breaks included. Any other prompt is a single message. A prompt does not mark where a message
    ends, so a line of its content that starts with "User: " is taken for the start of a message.

    Raises `ConfigurationError` for a `delay` that is negative or not finite.
    """
    check_seconds("delay", delay)

    async def echo(prompt: str) -> AsyncIterator[str]:
        for index, word in enumerate(_WORD.finditer(last_user_message(prompt))):
            if index and delay:
                await anyio.sleep(delay)
            yield word.group()

    return echo


def last_user_message(prompt: str) -> str:
    """The last user message of a prompt, as `echo_backend` defines it."""
    if not prompt.endswith(PROMPT_END):
        return prompt
    lines = "\n" + prompt.removesuffix(PROMPT_END)
    _, found, content = lines.rpartition(_USER_LINE)
    return content if found else prompt
