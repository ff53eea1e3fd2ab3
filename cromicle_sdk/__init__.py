"""Clients for chat endpoints that speak the Cromicle protocol, blocking and async."""

from __future__ import annotations

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
from ._version import __version__

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
