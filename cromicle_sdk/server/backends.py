"""What answers a prompt: the shape of a backend, its way to refuse, and one that echoes."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import anyio

from cromicle_sdk._core.messages import PROMPT_END
from cromicle_sdk._core.options import check_seconds

__all__ = ["Backend", "BackendError", "echo_backend", "last_user_turn"]

Backend: TypeAlias = Callable[[str], AsyncIterator[str] | Awaitable[AsyncIterator[str]]]
"""What answers a prompt, piece by piece.

Called with the prompt, it gives an async iterator of `str`: either directly, as an async
generator function does, or once awaited, as a coroutine function that returns one. Each piece
is sent on its own as soon as it is there; empty ones are skipped. Everything runs in one task,
so `anyio` task groups and timeouts may span a `yield`. When the client goes away the iterator
is cancelled where it waits; in any case its `aclose`, where it has one, is called in the end.

An exception is a failed reply: the client gets a 500, or what a `BackendError` says, if no piece
was sent, else a reply that is visibly cut off. It must not block: the whole server waits with it.
"""

_USER_LINE = "\nUser: "

# Every character is white space or not, so that the matches join to exactly the whole text. A
# white space before the first word goes with it; a text without words is one piece.
_WORD = re.compile(r"\s*\S+\s*|\s+")


class BackendError(Exception):
    """A backend can't answer; raised by one, it says what its caller gets instead.

    Before the first piece that is the status with `{"error": {"code": …, "message": …}}`, and
    with a `Retry-After` of `retry_after` seconds, rounded up, where that is given. After it the
    reply is cut off, as by any other exception.

    `status` is an int from 400 to 599, `code` a word for programs, `message` a sentence for
    people. The message must not quote the prompt, nor a key of the backend's. `detail` is for the
    log alone, in place of the message; the same goes for it.

    Raises `ValueError` for a status or a `retry_after` that no answer can have.
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
            raise ValueError("the status of a refusal is from 400 to 599")
        if retry_after is not None and not 0 <= retry_after < math.inf:
            raise ValueError("retry_after is a finite number of seconds, 0 or more")
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.detail: str = message if detail is None else detail

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


def echo_backend(*, delay: float = 0.0) -> Backend:
    """A backend that answers with the prompt's last user turn, word by word.

    Each piece is a word with the white space that follows it; joined they are exactly the
    turn. `delay` seconds pass before every word but the first. An empty turn is echoed as an
    empty reply, which a strict client refuses as no reply at all.

    The last user turn of a prompt that was made of several messages (`format_prompt`) is what
    stands between the last line that starts with "User: " and the "\\nAssistant:" at the end,
    line breaks included. A prompt without either is one message, and is the turn itself. A
    prompt doesn't say where a message ends, so a content with such lines of its own is taken
    at its word.

    Raises `ConfigurationError` for a `delay` that is negative or not a finite number.
    """
    check_seconds("delay", delay)

    async def echo(prompt: str) -> AsyncIterator[str]:
        for index, word in enumerate(_WORD.finditer(last_user_turn(prompt))):
            if index and delay:
                await anyio.sleep(delay)
            yield word.group()

    return echo


def last_user_turn(prompt: str) -> str:
    """What the user said last, as `echo_backend` defines it."""
    if not prompt.endswith(PROMPT_END):
        return prompt
    lines = "\n" + prompt.removesuffix(PROMPT_END)
    _, found, turn = lines.rpartition(_USER_LINE)
    return turn if found else prompt
