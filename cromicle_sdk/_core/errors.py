"""The errors that the package raises.

CromicleError
├── ConfigurationError             also ValueError
├── InvalidMessageError            also ValueError
├── APIConnectionError             no response
│   └── APITimeoutError            also TimeoutError
├── APIStatusError                 a status that is not a success
│   ├── BadRequestError            400
│   ├── AuthenticationError        401
│   ├── PermissionDeniedError      403
│   ├── NotFoundError              404
│   ├── ConflictError              409
│   ├── UnprocessableEntityError   422
│   ├── RateLimitError             429
│   ├── RedirectError              3xx
│   └── InternalServerError        5xx
└── ReplyError                     the response failed after it had started
    ├── IncompleteReplyError       truncated
    ├── ReplyTooLargeError         longer than max_reply_bytes
    ├── ReplyDecodeError           not UTF-8
    └── UnexpectedContentError     not a reply
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, cast

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
    "add_sentence",
    "describe",
    "describe_status",
    "find_text",
    "shorten",
    "status_error_class",
]

# The maximum length of a quote of the server in a message, which is one line.
_MAX_QUOTED = 200

TimeoutPhase = Literal["connect", "first_byte", "stall", "total", "pool"]


class CromicleError(Exception):
    """The base class of the errors of this package.

    `str(error)` is `problem` followed by `hint`, the next step, which may be "".
    `option` is the name of the option that the hint is about, or None.
    `partial_text` is the text that arrived before the error, "" if none did. It is always an exact
    beginning of the reply. `attempts` is the number of attempts that were started, 0 if the call
    itself was invalid. Errors can be pickled and copied. Two errors of the same type and with the
    same attributes are equal.
    """

    def __init__(
        self,
        message: str,
        *,
        partial_text: str | bytes | bytearray = "",
        attempts: int = 0,
        hint: str = "",
        option: str | None = None,
    ) -> None:
        super().__init__(message)
        self._partial_text = partial_text
        self.attempts = attempts
        self.hint = hint
        self.option = option

    @property
    def partial_text(self) -> str:
        """The part of the reply that arrived before the error."""
        # Decoded at the first access: decoding a gigabyte would take longer than a call may exceed
        # its deadline.
        if not isinstance(self._partial_text, str):
            self._partial_text = self._partial_text.decode(errors="replace")
        return self._partial_text

    @partial_text.setter
    def partial_text(self, value: str | bytes | bytearray) -> None:
        self._partial_text = value

    @property
    def problem(self) -> str:
        """The message without the hint."""
        return super().__str__()

    def __str__(self) -> str:
        if not self.hint:
            return self.problem
        separator = " " if self.problem.endswith(".") else "; "
        return f"{self.problem}{separator}{self.hint}"

    def __copy__(self) -> CromicleError:
        # Unlike pickling, copying does not decode the partial text.
        return _rebuild(type(self), self.args, self.__dict__.copy())

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args` only, which drops keyword-only arguments.
        return _rebuild, (type(self), self.args, _facts(self) | _notes(self))

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, CromicleError):
            return NotImplemented
        return self.args == other.args and _facts(self) == _facts(other)

    def __hash__(self) -> int:
        return hash((type(self), self.args))


def _rebuild(
    kind: type[CromicleError], args: tuple[Any, ...], facts: dict[str, Any]
) -> CromicleError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


def _facts(error: CromicleError) -> dict[str, Any]:
    facts = {name: value for name, value in error.__dict__.items() if name != "__notes__"}
    return {**facts, "_partial_text": error.partial_text}


def _notes(error: CromicleError) -> dict[str, Any]:
    # Notes (PEP 678) are copied, but errors with different notes are equal.
    notes = error.__dict__.get("__notes__")
    return {} if notes is None else {"__notes__": notes}


class ConfigurationError(CromicleError, ValueError):
    """An option has an invalid value.

    `option` is the name of the option ("timeout.total") or of the environment variable
    ("$CROMICLE_TOKEN"), with which the message begins; None if the error is not about one option.
    `detail` is the message without that name and without the hint.
    """

    def __init__(self, problem: str, *, option: str | None = None, hint: str = "") -> None:
        message = problem if option is None else f"{option}: {problem}"
        super().__init__(message, hint=hint, option=option)
        self.detail = problem


class InvalidMessageError(CromicleError, ValueError):
    """A message cannot be sent.

    `index` is the position of the message, with which the message of the error begins; None if
    the error is not about one message.
    """

    def __init__(self, problem: str, *, index: int | None = None, hint: str = "") -> None:
        super().__init__(problem if index is None else f"message {index}: {problem}", hint=hint)
        self.index = index


class APIConnectionError(CromicleError):
    """No response was received: DNS, connection refused, TLS, proxy, closed too early, not HTTP.

    `detail` is the text of the network's own error. `is_final` is true if a retry cannot succeed,
    for example because the certificate does not verify, or because the client is closed.
    """

    def __init__(
        self,
        message: str,
        *,
        partial_text: str | bytes | bytearray = "",
        attempts: int = 0,
        hint: str = "",
        option: str | None = None,
        detail: str = "",
        is_final: bool = False,
    ) -> None:
        super().__init__(
            message, partial_text=partial_text, attempts=attempts, hint=hint, option=option
        )
        self.detail = detail
        self.is_final = is_final


class APITimeoutError(APIConnectionError, TimeoutError):
    """A limit of `timeout` expired.

    `phase` is the name of the limit, and `option` is "timeout." followed by it. In the phases
    "stall" and "total", part of the reply may have arrived: it is in `partial_text`.
    """

    def __init__(
        self,
        message: str,
        *,
        phase: TimeoutPhase,
        partial_text: str | bytes | bytearray = "",
        attempts: int = 0,
        hint: str = "",
    ) -> None:
        super().__init__(
            message,
            partial_text=partial_text,
            attempts=attempts,
            hint=hint,
            option=f"timeout.{phase}",
        )
        self.phase: TimeoutPhase = phase


class APIStatusError(CromicleError):
    """The server responded with a status that is not a success.

    `status_code`, `headers`, `body` (its first 64 KiB, as text) and `request_id` (the header
    `x-request-id`, or None) are those of the response. `retry_after` is the wait before the next
    request in seconds, from the header `retry-after`, or None. `code` is the server's code for the
    error, or None.
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
        hint: str = "",
    ) -> None:
        super().__init__(message, attempts=attempts, hint=hint)
        self.status_code = status_code
        self.headers = headers
        self.body = body
        self.retry_after = retry_after

    @property
    def request_id(self) -> str | None:
        """The header `x-request-id`, which the operators of the server can look up; or None."""
        return self.headers.get("x-request-id")

    @property
    def code(self) -> str | None:
        """The code in the body, `{"error": {"code": …}}`, which servers of this package send.

        For example "context_length_exceeded" or "upstream_denied". None for any other body.
        """
        return find_text(self.body, "error", "code")


def find_text(body: str, *names: str) -> str | None:
    """Return the text in nested JSON objects, by the names of the fields, or None."""
    try:
        content: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    for name in names:
        if not isinstance(content, dict):
            return None
        content = cast("dict[str, object]", content).get(name)
    return content if isinstance(content, str) else None


class BadRequestError(APIStatusError):
    """400: the server rejects the request, or a model server rejects the prompt."""


class AuthenticationError(APIStatusError):
    """401: the server does not accept the token."""


class PermissionDeniedError(APIStatusError):
    """403: the token does not allow this."""


class NotFoundError(APIStatusError):
    """404: the server has no such path; `base_url` may be wrong."""


class ConflictError(APIStatusError):
    """409: the request conflicts with the state of the server."""


class UnprocessableEntityError(APIStatusError):
    """422: the hash does not match prompt and token, or a model server rejects the prompt."""


class RateLimitError(APIStatusError):
    """429: too many requests. `retry_after` is the time to wait, if the server sends it."""


class RedirectError(APIStatusError):
    """3xx. Redirects are not followed, because the body of the request contains the token."""

    @property
    def location(self) -> str | None:
        """The header `location`, or None."""
        return self.headers.get("location")


class InternalServerError(APIStatusError):
    """5xx: the server failed."""


class ReplyError(CromicleError):
    """The response failed after it had started. `partial_text` is the text so far."""


class IncompleteReplyError(ReplyError):
    """The reply was truncated: the connection was reset or closed early, or the framing is invalid.

    `is_final` is true if a retry cannot succeed: the caller closed the stream.
    """

    def __init__(
        self,
        message: str,
        *,
        partial_text: str | bytes | bytearray = "",
        attempts: int = 0,
        hint: str = "",
        is_final: bool = False,
    ) -> None:
        super().__init__(message, partial_text=partial_text, attempts=attempts, hint=hint)
        self.is_final = is_final


class ReplyTooLargeError(ReplyError):
    """The reply is longer than `max_reply_bytes`."""


class ReplyDecodeError(ReplyError):
    """The reply is not UTF-8."""


class UnexpectedContentError(ReplyError):
    """The response is a success but not a reply.

    It is HTML, JSON or of another media type, empty, encoded, without framing, or has a status like
    204. `body` is its first 64 KiB as text, "" if it was not read.
    """

    def __init__(
        self,
        message: str,
        *,
        body: str = "",
        attempts: int = 0,
        hint: str = "",
        option: str | None = None,
    ) -> None:
        super().__init__(message, attempts=attempts, hint=hint, option=option)
        self.body = body


def add_sentence(error: CromicleError, sentence: str) -> CromicleError:
    """Return a copy of the error with a sentence appended to its problem."""
    problem = error.problem if error.problem.endswith(".") else f"{error.problem}."
    return _rebuild(type(error), (f"{problem} {sentence}",), error.__dict__.copy())


def shorten(text: str) -> str:
    """Shorten a text of the server to a part of one line, without control characters."""
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
    """Return the error class for a status that is not a success."""
    if 300 <= status_code < 400:
        return RedirectError
    if 500 <= status_code < 600:
        return InternalServerError
    return _STATUS_ERRORS.get(status_code, APIStatusError)


def describe(error: CromicleError) -> str:
    """Describe an error for a log line. Of the server's text, it contains only the request ID."""
    if isinstance(error, APIStatusError):
        return describe_status(error.status_code, error.request_id)
    if isinstance(error, APITimeoutError):
        return f"timeout ({error.phase})"
    return type(error).__name__


def describe_status(status_code: int | None, request_id: str | None) -> str:
    """Describe a status for a log line, with the request ID if there is one."""
    return f"status {status_code}" + (f", request id {shorten(request_id)}" if request_id else "")
