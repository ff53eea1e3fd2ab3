"""What answers a prompt: the shape of a backend, and one that echoes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import anyio

from ._checks import check_delay

__all__ = ["Backend", "echo_backend", "last_user_turn"]

Backend: TypeAlias = Callable[[str], AsyncIterator[str] | Awaitable[AsyncIterator[str]]]
"""What answers a prompt, piece by piece.

Called with the prompt, it gives an async iterator of `str`: either directly, as an async
generator function does, or once awaited, as a coroutine function that returns one. Each piece
is sent on its own as soon as it is there; empty ones are skipped. Everything runs in one task,
so `anyio` task groups and timeouts may span a `yield`. When the client goes away the iterator
is cancelled where it waits; in any case its `aclose`, where it has one, is called in the end.

An exception is a failed reply: the client gets a 500 if no piece was sent, else a reply that
is visibly cut off. It must not block: the whole server waits with it.
"""

_PROMPT_END = "\nAssistant:"
_USER_LINE = "\nUser: "

# Every character is white space or not, so that the matches join to exactly the whole text. A
# white space before the first word goes with it; a text without words is one piece.
_WORD = re.compile(r"\s*\S+\s*|\s+")


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
    check_delay(delay)

    async def echo(prompt: str) -> AsyncIterator[str]:
        for index, word in enumerate(_WORD.finditer(last_user_turn(prompt))):
            if index and delay:
                await anyio.sleep(delay)
            yield word.group()

    return echo


def last_user_turn(prompt: str) -> str:
    """What the user said last, as `echo_backend` defines it."""
    if not prompt.endswith(_PROMPT_END):
        return prompt
    lines = "\n" + prompt.removesuffix(_PROMPT_END)
    _, found, turn = lines.rpartition(_USER_LINE)
    return turn if found else prompt
