"""Backends: the types, the error that a backend may raise, and the echo."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import anyio

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.messages import PROMPT_END, Message
from cromicle_sdk._core.options import check_seconds
from cromicle_sdk._core.response import parse_finish_reason

__all__ = [
    "Backend",
    "BackendError",
    "BackendRequest",
    "echo_backend",
    "last_user_message",
    "takes_request",
]


class BackendRequest:
    """A request without its prompt: the second argument of a backend.

    - `id`: the ID of the request.
    - `messages`: the messages that the prompt was built from, if the client sent them
      (`send_messages=True`).
    - `options`: the other JSON fields of the request. Their names are limited by `allow_options` of
      `create_app`; their values are unchecked JSON.
    - `finish_reason`: None, until the backend sets it.

    The server creates these objects. Construct one only to test a backend.
    """

    __slots__ = ("_finish_reason", "_id", "_messages", "_options")

    def __init__(
        self,
        *,
        id: str = "",  # noqa: A002 - the name of the attribute
        messages: list[Message] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._id = id
        self._messages = messages
        self._options = MappingProxyType(dict(options or {}))
        self._finish_reason: str | None = None

    @property
    def id(self) -> str:
        """The ID of the request, which the client receives as `x-request-id`."""
        return self._id

    @property
    def messages(self) -> list[Message] | None:
        """The messages with their roles as the client sent them; None if it did not send them."""
        return self._messages

    @property
    def options(self) -> Mapping[str, Any]:
        """The other JSON fields of the request by name, read-only and unchecked."""
        return self._options

    @property
    def finish_reason(self) -> str | None:
        """Why the reply ended: "stop", "length", "content_filter" or a similar word.

        The backend may set it until its iterator ends. The client receives it as
        `Reply.finish_reason`, from an HTTP trailer that `serve` and `LocalServer` send after the
        last chunk. Other ASGI servers may not send the trailer.

        Setting it raises `ValueError` unless it is None or a word of 1 to 64 letters, digits, `_`,
        `-` and `.`.
        """
        return self._finish_reason

    @finish_reason.setter
    def finish_reason(self, value: str | None) -> None:
        if value is not None and parse_finish_reason(value) is None:
            raise ValueError(
                "finish_reason must be a word of 1 to 64 letters, digits, '_', '-' and '.', or None"
            )
        self._finish_reason = value

    def __repr__(self) -> str:
        return f"<BackendRequest {self._id}>"


Chunks: TypeAlias = AsyncIterator[str] | Awaitable[AsyncIterator[str]]

Backend: TypeAlias = Callable[[str], Chunks] | Callable[[str, BackendRequest], Chunks]
"""Generates the reply to a prompt, chunk by chunk.

A backend is called with the prompt and returns an async iterator of `str`: either directly, as an
async generator function does, or as an awaitable, as a coroutine function does. Each chunk is sent
as soon as it is yielded; empty chunks are skipped. A backend runs in a single task, so `anyio` task
groups and timeouts may span a `yield`. When the client disconnects, the iterator is cancelled
where it waits. Its `aclose`, if it has one, is always called at the end.

A backend with a second parameter that has no default or is named `request` is called with the
prompt and a `BackendRequest`. `create_app` inspects the signature once.

If a backend raises before its first chunk, the client receives a 500, or the error described by a
`BackendError`. If it raises later, the reply is truncated, which the client detects. A backend must
not block, since that blocks the event loop of the whole server.
"""

_USER_LINE = "\nUser: "

# Each character is either white space or not, so the matches join to exactly the original text.
# Leading white space belongs to the first word; a text without words is one chunk.
_WORD = re.compile(r"\s*\S+\s*|\s+")


class BackendError(Exception):
    """Raised by a backend to choose the error response.

    Before the first chunk, the client receives `status` with the JSON
    `{"error": {"code": …, "message": …}}`, and a `Retry-After` of `retry_after` seconds (rounded
    up) unless it is None. After the first chunk, the reply is truncated, as by any other exception.

    `status` is an int from 400 to 599, `code` an identifier for programs, `message` a sentence for
    people. `detail` is logged and defaults to the message. Neither may quote the prompt or a key.

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


def takes_request(backend: Backend) -> bool:
    """Whether a backend is called with a `BackendRequest` as its second argument.

    It is if its second positional parameter has no default or is named `request`. Any other
    parameter with a default, or `*args`, is left to the backend. Raises `ConfigurationError` if the
    signature accepts neither call.
    """
    try:
        signature = inspect.signature(backend)
    except ValueError:
        # Some callables implemented in C have no signature.
        return False
    positional = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    second = positional[1] if len(positional) > 1 else None
    result = second is not None and (second.default is second.empty or second.name == "request")
    if not _fits(signature, 2 if result else 1):
        raise ConfigurationError(
            "expected a callable that takes a prompt, or a prompt and a BackendRequest",
            option="backend",
        )
    return result


def _fits(signature: inspect.Signature, count: int) -> bool:
    """Whether the signature accepts `count` positional arguments."""
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def echo_backend(*, delay: float = 0.0) -> Callable[[str], AsyncIterator[str]]:
    """Return a backend that repeats the last user message of the prompt, word by word.

    Each chunk is a word and the white space after it; joined, the chunks are exactly the message.
    `delay` is the number of seconds before each word but the first. An empty message yields an
    empty reply, which a client in strict mode rejects.

    In a prompt that `format_prompt` built from several messages, the last user message is the
    text between the last line that starts with "User: " and the final "\\nAssistant:", including
    line breaks. Any other prompt is a single message. Since a prompt does not mark where a message
    ends, a line of the content that starts with "User: " counts as the start of a message.

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
    """Return the last user message of a prompt, as `echo_backend` defines it."""
    if not prompt.endswith(PROMPT_END):
        return prompt
    lines = "\n" + prompt.removesuffix(PROMPT_END)
    _, found, content = lines.rpartition(_USER_LINE)
    return content if found else prompt
