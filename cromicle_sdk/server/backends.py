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
    """What a request holds beside its prompt: the second argument of a backend.

    - `id`: the request's ID, which the client receives as `x-request-id`.
    - `messages`: the messages that the prompt was built from, if the client sent them
      (`send_messages=True`); None otherwise. Their roles are as the client wrote them.
    - `options`: the other JSON fields of the request by name, read-only. They are limited to the
      names that `allow_options` of `create_app` allows; their values are any JSON and unchecked.
    - `finish_reason`: None, unless the backend sets it while it runs.

    The constructor is for tests of a backend.
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
        return self._id

    @property
    def messages(self) -> list[Message] | None:
        return self._messages

    @property
    def options(self) -> Mapping[str, Any]:
        return self._options

    @property
    def finish_reason(self) -> str | None:
        """Why the reply ended: "stop", "length", "content_filter", or another such word.

        The client receives it as `Reply.finish_reason`, by an HTTP trailer that `serve` and
        `LocalServer` send after the last chunk; other ASGI servers may not send it. It may be set
        until the backend's iterator ends.

        Setting it raises `ValueError` for anything but None and a word of 1 to 64 letters, digits,
        `_`, `-` and `.`.
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

Called with the prompt, it returns an async iterator of `str`: either directly, as an async
generator function does, or as an awaitable, as a coroutine function does. Each chunk is sent on
its own as soon as it is yielded; empty chunks are skipped. A backend runs in a single task, so
`anyio` task groups and timeouts may span a `yield`. When the client disconnects, the iterator is
cancelled where it waits. Its `aclose`, if it has one, is always called in the end.

A backend with a second parameter, which has no default or is named `request`, is called with the
prompt and a `BackendRequest`. Its signature decides, once, when the app is created.

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


def takes_request(backend: Backend) -> bool:
    """Whether a backend is called with a `BackendRequest` as its second argument.

    Its second positional parameter decides: one without a default, or named `request`. Another
    one with a default, or `*args`, is the backend's own. Raises `ConfigurationError` for a
    signature that fits neither call.
    """
    try:
        signature = inspect.signature(backend)
    except ValueError:
        # Some callables that are written in C have no signature.
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
    """Whether a call with so many positional arguments is valid."""
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def echo_backend(*, delay: float = 0.0) -> Callable[[str], AsyncIterator[str]]:
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
