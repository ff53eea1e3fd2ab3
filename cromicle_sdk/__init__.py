"""Sync and async clients for chat endpoints that speak the Cromicle protocol.

```python
from cromicle_sdk import Client

with Client(base_url="http://127.0.0.1:8000") as client:
    print(client.chat("Hello, how are you?").text)
    for text in client.stream("Tell me a story"):
        print(text, end="")
```

- `Client` is for blocking code, `AsyncClient` for asyncio and trio; both have the same methods and
  options. `chat` returns a `Reply`, `stream` a `Stream` or an `AsyncStream` of text.
- `Timeout` and `Retry` are options of both. A `Conversation` holds messages.
- All errors of the clients are `CromicleError`, and have `hint`, `partial_text` and `attempts`.
- `Transport` and `AsyncTransport` give an httpx client of your own the same connections.
- Below: `cromicle_sdk.bulk` for many prompts, `cromicle_sdk.server` for servers and gateways,
  `cromicle_sdk.testing` for tests, `cromicle_sdk.integrations` for other tools.

`cromicle docs` lists the pages of the documentation.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from ._async.client import AsyncClient
    from ._async.stream import AsyncStream
    from ._async.transport import AsyncTransport
    from ._core.errors import (
        APIConnectionError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        ConfigurationError,
        ConflictError,
        CromicleError,
        IncompleteReplyError,
        InternalServerError,
        InvalidMessageError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        RedirectError,
        ReplyDecodeError,
        ReplyError,
        ReplyTooLargeError,
        UnexpectedContentError,
        UnprocessableEntityError,
    )
    from ._core.messages import (
        Conversation,
        Message,
        MessageLike,
        Messages,
        TextPart,
        format_prompt,
    )
    from ._core.options import CallOptions, Retry, Timeout, ViewOptions
    from ._core.response import Headers, Reply
    from ._sync.client import Client
    from ._sync.stream import Stream
    from ._sync.transport import Transport

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AsyncStream",
    "AsyncTransport",
    "AuthenticationError",
    "BadRequestError",
    "CallOptions",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "Conversation",
    "CromicleError",
    "Headers",
    "IncompleteReplyError",
    "InternalServerError",
    "InvalidMessageError",
    "Message",
    "MessageLike",
    "Messages",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RedirectError",
    "Reply",
    "ReplyDecodeError",
    "ReplyError",
    "ReplyTooLargeError",
    "Retry",
    "Stream",
    "TextPart",
    "Timeout",
    "Transport",
    "UnexpectedContentError",
    "UnprocessableEntityError",
    "ViewOptions",
    "__version__",
    "format_prompt",
]

_MODULES = {
    "AsyncClient": "_async.client",
    "AsyncStream": "_async.stream",
    "AsyncTransport": "_async.transport",
    "CallOptions": "_core.options",
    "Client": "_sync.client",
    "Conversation": "_core.messages",
    "Headers": "_core.response",
    "Message": "_core.messages",
    "MessageLike": "_core.messages",
    "Messages": "_core.messages",
    "Reply": "_core.response",
    "Retry": "_core.options",
    "Stream": "_sync.stream",
    "TextPart": "_core.messages",
    "Timeout": "_core.options",
    "Transport": "_sync.transport",
    "ViewOptions": "_core.options",
    "format_prompt": "_core.messages",
}


def __getattr__(name: str) -> object:
    """Load a public name on its first use (PEP 562).

    httpcore imports asyncio, and trio if it is installed: too much for a program that only needs
    an error class, and for the pytest plugin, which is loaded in every run.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES.get(name, '_core.errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
