"""Clients for chat endpoints that speak the Cromicle protocol, blocking and async."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from ._async import AsyncClient, AsyncStream
    from ._errors import (
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
    from ._messages import Conversation, Message, format_prompt
    from ._options import Retry, Timeout
    from ._reply import Headers, Reply
    from ._sync import Client, Stream

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
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
    "Timeout",
    "UnexpectedContentError",
    "UnprocessableEntityError",
    "__version__",
    "format_prompt",
]

_ROOMS = {
    "AsyncClient": "_async",
    "AsyncStream": "_async",
    "Client": "_sync",
    "Conversation": "_messages",
    "Headers": "_reply",
    "Message": "_messages",
    "Reply": "_reply",
    "Retry": "_options",
    "Stream": "_sync",
    "Timeout": "_options",
    "format_prompt": "_messages",
}


def __getattr__(name: str) -> object:
    """What the package offers is loaded when it is first asked for (PEP 562).

    httpcore brings asyncio with it, and trio where that is installed: too much for somebody who
    only wants an error class, or for the pytest plugin, which is loaded with every run.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_ROOMS.get(name, '_errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
