"""Every error that leaves the package.

CromicleError
├── ConfigurationError             also ValueError
├── InvalidMessageError            also ValueError
├── APIConnectionError             no answer came
│   └── APITimeoutError            also TimeoutError
├── APIStatusError                 an answer that refuses
│   ├── BadRequestError            400
│   ├── AuthenticationError        401
│   ├── PermissionDeniedError      403
│   ├── NotFoundError              404
│   ├── ConflictError              409
│   ├── UnprocessableEntityError   422
│   ├── RateLimitError             429
│   ├── RedirectError              3xx
│   └── InternalServerError        5xx
└── ReplyError                     the answer began and went wrong
    ├── IncompleteReplyError       cut off
    ├── ReplyTooLargeError         past max_reply_bytes
    ├── ReplyDecodeError           not UTF-8
    └── UnexpectedContentError     not a reply at all
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "ConfigurationError",
    "ConflictError",
    "CromicleError",
    "IncompleteReplyError",
    "InternalServerError",
    "InvalidMessageError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RedirectError",
    "ReplyDecodeError",
    "ReplyError",
    "ReplyTooLargeError",
    "TimeoutPhase",
    "UnexpectedContentError",
    "UnprocessableEntityError",
    "shorten",
    "status_error_class",
]

# Enough of what a server said for one line of an error.
_MAX_QUOTED = 200

TimeoutPhase = Literal["connect", "first_byte", "stall", "total", "pool"]


class CromicleError(Exception):
    """The base of every error of this package.

    `partial_text` is the part of the reply that had arrived, "" where none had: always an
    exact beginning of what was sent. `attempts` is how many attempts were begun, 0 where the call
    itself was wrong. Errors pickle and copy; two of one type with the same facts are equal.
    """

    def __init__(self, message: str, *, partial_text: str = "", attempts: int = 0) -> None:
        super().__init__(message)
        self.partial_text = partial_text
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with `args` alone, which drops keyword-only facts.
        return _rebuild, (type(self), self.args, self.__dict__.copy())

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, CromicleError):
            return NotImplemented
        return self.args == other.args and _facts(self) == _facts(other)

    def __hash__(self) -> int:
        return hash((type(self), self.args))


def _rebuild(
    kind: type[CromicleError], args: tuple[Any, ...], facts: dict[str, Any]
) -> CromicleError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


def _facts(error: CromicleError) -> dict[str, Any]:
    # Notes are what a reader of the traceback added, not what happened.
    return {name: value for name, value in error.__dict__.items() if name != "__notes__"}


class ConfigurationError(CromicleError, ValueError):
    """An option has a value that it can't have; the message names the option."""


class InvalidMessageError(CromicleError, ValueError):
    """A message can't be sent. `index` is its place, None where it is not about one message."""

    def __init__(self, problem: str, *, index: int | None = None) -> None:
        where = "" if index is None else f"message {index}: "
        super().__init__(where + problem)
        self.index = index


class APIConnectionError(CromicleError):
    """No answer came: DNS, refused, TLS, proxy, dropped before the answer.

    `detail` is what the network said. `is_final` says that another attempt can't help: a
    certificate that does not verify, a host that can't be a name, a client that was closed.
    """

    detail: str = ""
    is_final: bool = False


class APITimeoutError(APIConnectionError, TimeoutError):
    """A limit of `timeout` ran out. `phase` is its name, "pool" the wait for a free connection.

    With `phase` "stall" and "total" some text may have arrived: it is in `partial_text`.
    """

    def __init__(
        self, message: str, *, phase: TimeoutPhase, partial_text: str = "", attempts: int = 0
    ) -> None:
        super().__init__(message, partial_text=partial_text, attempts=attempts)
        self.phase: TimeoutPhase = phase


class APIStatusError(CromicleError):
    """The server answered with a status that is not success.

    `status_code`, `headers`, `body` (its first 64 KiB, as text) and `request_id` (the header
    `x-request-id`, or None) are the answer's. `retry_after` is how many seconds the server asks
    to wait before the next request, None where it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        headers: Mapping[str, str],
        body: str,
        retry_after: float | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message, attempts=attempts)
        self.status_code = status_code
        self.headers = headers
        self.body = body
        self.retry_after = retry_after

    @property
    def request_id(self) -> str | None:
        """The server's name for the request, to quote to those who run it."""
        return self.headers.get("x-request-id")


class BadRequestError(APIStatusError):
    """400: the server could not read the request."""


class AuthenticationError(APIStatusError):
    """401: the token is not one that the server knows."""


class PermissionDeniedError(APIStatusError):
    """403: the token does not allow this."""


class NotFoundError(APIStatusError):
    """404: there is no such address; `base_url` may be wrong."""


class ConflictError(APIStatusError):
    """409."""


class UnprocessableEntityError(APIStatusError):
    """422: the hash does not match the prompt and the token."""


class RateLimitError(APIStatusError):
    """429: too many requests; `retry_after` says when to come back."""


class RedirectError(APIStatusError):
    """3xx. `location` is where it points; it was not followed, for the body holds the token."""

    @property
    def location(self) -> str | None:
        """The header `location` as it was sent, None if there was none."""
        return self.headers.get("location")


class InternalServerError(APIStatusError):
    """5xx: the server failed."""


class ReplyError(CromicleError):
    """The answer began and went wrong; `partial_text` is what had arrived."""


class IncompleteReplyError(ReplyError):
    """The reply was cut off: reset, closed early, broken framing.

    `is_final` says that another attempt can't help: the caller closed it.
    """

    is_final: bool = False


class ReplyTooLargeError(ReplyError):
    """The reply is longer than `max_reply_bytes`."""


class ReplyDecodeError(ReplyError):
    """The reply is not UTF-8."""


class UnexpectedContentError(ReplyError):
    """A success that is no reply: HTML, JSON, nothing, encoded, unframed, a status like 204.

    `body` is its first 64 KiB as text, "" where it was not read.
    """

    def __init__(self, message: str, *, body: str = "", attempts: int = 0) -> None:
        super().__init__(message, attempts=attempts)
        self.body = body


def shorten(text: str) -> str:
    """A text of somebody else's as part of one short line, safe to print on a terminal."""
    line = " ".join(text[: 4 * _MAX_QUOTED].split())
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return printable if len(printable) <= _MAX_QUOTED else printable[:_MAX_QUOTED] + "…"


_STATUS_ERRORS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error_class(status_code: int) -> type[APIStatusError]:
    """The error class for a status that is not success."""
    if 300 <= status_code < 400:
        return RedirectError
    if 500 <= status_code < 600:
        return InternalServerError
    return _STATUS_ERRORS.get(status_code, APIStatusError)
