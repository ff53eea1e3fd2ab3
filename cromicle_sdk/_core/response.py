"""Decoding of responses: status, headers and bytes in, text or an error out."""

from __future__ import annotations

import codecs
import http
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple, cast

from .errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    CromicleError,
    IncompleteReplyError,
    ReplyDecodeError,
    ReplyError,
    ReplyTooLargeError,
    UnexpectedContentError,
    describe_status,
    shorten,
    status_error_class,
)
from .options import Options

__all__ = [
    "FINISH_REASON_HEADER",
    "Head",
    "Headers",
    "Reply",
    "ResponseDecoder",
    "parse_finish_reason",
    "parse_retry_after",
]

# The trailer with the reason why a reply ended.
FINISH_REASON_HEADER = "x-finish-reason"

_BYTE_ORDER_MARK = "\ufeff"
# Enough for the explanation of an error, and a limit for endless pages.
_MAX_ERROR_BODY = 64 * 1024
# The number of additional bytes that are read, so that the limit cannot cut a secret before
# redaction.
_REDACTION_MARGIN = 8 * 1024
# Replaces a `Retry-After` that is too large for a float, in seconds. It exceeds every limit.
_FOREVER = 1e9

# The `re` module compiles a pattern when it is first used, and keeps it; that takes 0.1 ms each.
_SECONDS = r"[0-9]+(?:\.[0-9]+)?\Z"
_FINISH_REASON = r"[A-Za-z0-9_.-]{1,64}\Z"
_MEDIA_TYPE = r"\s*([\w!#$&^.+-]+/[\w!#$&^.+-]+)"
# Names that errors look up. They are not redacted, although a short token may be part of them.
_READ_BY_NAME = frozenset({"content-encoding", "content-type", "location", "x-request-id"})
# Parts of subtypes of text that are not replies: text/html, text/x-json, text/event-stream.
_NOT_PLAIN = frozenset({"html", "xml", "json", "event"})

_WRONG_CREDENTIAL = "Check the token: the option token, or $CROMICLE_TOKEN."
_NO_POST = "Check base_url: the server does not accept POST requests there."
_ADVICE = {
    400: "The server could not read the request: check that base_url is a Cromicle endpoint.",
    401: _WRONG_CREDENTIAL,
    403: "The token does not permit this request.",
    404: "Check base_url: requests go to its path plus /chat.",
    405: _NO_POST,
    408: "Try again later.",
    413: "Send a shorter prompt.",
    422: "If it is a Cromicle endpoint, check that client and server have the same token.",
    429: "Wait before the next request.",
    501: _NO_POST,
    503: "Try again later.",
    504: "Try again later.",
}

_TOO_LONG = "The conversation is too long for the model: send a shorter one."
_REJECTED = "The model server rejected the prompt or one of its options: change it."
_ASK_OPERATOR = "A retry does not help: contact the operator of the server."
# The hints by code, for errors of this package's servers. They are more specific than the status.
_ADVICE_BY_CODE = {
    "bad_request": "The body is not valid: check its fields.",
    "content_filter": "A content filter rejected the prompt: change it.",
    "content_policy_violation": "A content filter rejected the prompt: change it.",
    "context_length_exceeded": _TOO_LONG,
    "hash_mismatch": "Check that client and server have the same token.",
    "messages_mismatch": "Send the messages that the prompt was formatted from, or none.",
    "string_above_max_length": _TOO_LONG,
    "too_many_wrong_tokens": _WRONG_CREDENTIAL,
    "unknown_field": "Omit that field, or ask the operator of the server to allow it.",
    "upstream_denied": _ASK_OPERATOR,
    "upstream_redirected": _ASK_OPERATOR,
    "wrong_host": "Check base_url: the server there does not accept requests for this host.",
    "wrong_origin": "Omit the header origin.",
}
# The other codes of the gateway, for errors of its model server.
_OF_GATEWAY = frozenset(
    {
        *("invalid_prompt", "invalid_request_error", "unsupported_parameter"),
        *("unsupported_value", "upstream_refused"),
    }
)

_SERVER_FAILED = "The server failed; try again later, or contact its operator."
_REDIRECTED = (
    "Redirects are not followed, because the body contains the token: "
    "set base_url to the right address."
)


class Headers(Mapping[str, str]):
    """The headers of a response: a read-only mapping with case-insensitive names.

    The values of a repeated header are joined by ", " (RFC 9110, section 5.2).
    """

    __slots__ = ("_values",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._values = _join_by_name(pairs)

    def __getitem__(self, name: str) -> str:
        # As in any mapping, a key of another type is missing.
        try:
            return self._values[name.lower()]
        except AttributeError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Headers({self._values!r})"


def _join_by_name(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in pairs:
        lowered = name.lower()
        joined[lowered] = f"{joined[lowered]}, {value}" if lowered in joined else value
    return joined


_NO_HEADERS = Headers()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A complete reply. `str(reply)` is its text.

    `attempts` is the number of requests, and `chunks` the number of chunks of the text.
    `first_text_after` (None for an empty reply) and `elapsed` are seconds since the call began.

    `finish_reason` is the reason why the reply ended, as one word: "stop", "length" if the model
    reached its limit, "content_filter", …; None if the server does not send it. It is an HTTP
    trailer, which a custom `http_client` provides only with a transport of this package.
    """

    text: str
    status_code: int
    headers: Headers = field(repr=False)
    attempts: int
    chunks: int
    first_text_after: float | None
    elapsed: float
    finish_reason: str | None = None

    @property
    def request_id(self) -> str | None:
        """The header `x-request-id`, which the operators of the server can look up; or None."""
        return self.headers.get("x-request-id")

    def __str__(self) -> str:
        return self.text


class Head(NamedTuple):
    """The head of a response as received.

    `came_over_network` is false if a transport created the response itself, as mocks do.
    """

    status_code: int
    headers: Iterable[tuple[bytes, bytes]]
    http_version: bytes
    came_over_network: bool


class ResponseDecoder:
    """Decodes the response to one attempt: bytes in, text out.

    Call `receive_head` once, then `receive_data` for each chunk and `receive_eof` at the end; or
    `receive_failure` if the connection fails. All errors are those of this package. Times are in
    seconds of the same monotonic clock.
    """

    def __init__(
        self, options: Options, *, redact: Callable[[str], str], started: float, attempt: int
    ) -> None:
        self._endpoint = options.endpoint
        self._strict = options.strict
        self._max_bytes = options.max_reply_bytes
        self._redact = redact
        self._started = started
        self._attempt = attempt
        self._status_code: int | None = None
        self._headers = _NO_HEADERS
        self._is_encoded = False
        self._rejection: Callable[[str], CromicleError] | None = None
        self._rejected_body = bytearray()
        # Kept as UTF-8, which takes a quarter of the memory of a `StringIO`.
        self._text = bytearray()
        self._tail: bytes | bytearray = b""
        self._begun = False
        self._received = 0
        self._decoded = 0
        self._chunks = 0
        self._first_text_after: float | None = None
        self._ended: float | None = None
        self._finish_reason: str | None = None
        self._reply: Reply | None = None

    @property
    def _url(self) -> str:
        return self._endpoint.url

    @property
    def text(self) -> str:
        """The reply so far."""
        return self._text.decode() if self._reply is None else self._reply.text

    @property
    def status_code(self) -> int | None:
        """The status of the response; None before the head."""
        return self._status_code

    @property
    def headers(self) -> Headers:
        return self._headers

    @property
    def first_text_after(self) -> float | None:
        """The seconds from the start of the call to the first text; None before it."""
        return self._first_text_after

    @property
    def is_accepted(self) -> bool:
        """Whether the body is a reply, not the body of a rejected response."""
        return self._status_code is not None and self._rejection is None

    def receive_head(self, head: Head, *, wall_clock: float) -> None:
        """Receive the head. `wall_clock` is the time in seconds since the epoch.

        Raises `UnexpectedContentError` or `ReplyTooLargeError` if the head alone excludes a reply.
        An error that shows the body is raised later, by `receive_data` or `receive_eof`.
        """
        status_code = self._status_code = head.status_code
        # Decisions depend on the headers as sent; errors show the redacted ones.
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers]
        sent = _join_by_name(pairs)
        self._headers = self._redact_headers(sent, pairs)
        encoding = sent.get("content-encoding", "").strip().lower()
        self._is_encoded = encoding not in ("", "identity")
        if not 200 <= status_code < 300:
            retry_after = parse_retry_after(sent.get("retry-after"), now=wall_clock)
            self._rejection = lambda body: self._status_error(status_code, body, retry_after)
            return
        # Rejected even without `strict`, because this package does not decompress.
        if self._is_encoded:
            shown = shorten(self._headers["content-encoding"])
            raise self._unexpected(
                f"it is compressed ({shown}) although the request did not accept that"
            )
        if self._strict:
            self._check_strictly(head, sent)
        length = sent.get("content-length", "")
        is_length = length.isascii() and length.isdecimal()
        if is_length and int(length[:20]) > self._max_bytes and self.is_accepted:
            raise self._too_large()

    def receive_data(self, data: bytes | bytearray, *, now: float) -> str:
        """Receive bytes of the body, and return the text that they complete, which may be ""."""
        if self._rejection is not None:
            self._collect_rejected(data, self._rejection)
            return ""
        self._received += len(data)
        if self._received > self._max_bytes:
            surplus = self._received - self._max_bytes
            self._decode(data[:-surplus], final=False, now=now)
            raise self._too_large()
        return self._decode(data, final=False, now=now)

    def receive_eof(self, *, now: float, trailers: Iterable[tuple[bytes, bytes]] = ()) -> str:
        """Receive the end of the body, and return the rest of the text, which is usually ""."""
        if self._rejection is not None:
            raise self._reject(self._rejection)
        text = self._decode(b"", final=True, now=now)
        self._finish_reason = self._find_finish_reason(trailers)
        if self._strict and not self._chunks:
            raise self._empty()
        self._ended = now
        return text

    def receive_failure(self, error: APIConnectionError) -> CromicleError:
        """Return the error for a failed connection, which depends on the data received so far."""
        if self._rejection is not None:
            # The error of the status, with the body received so far.
            return self._reject(self._rejection)
        error.attempts = self._attempt
        error.partial_text = self._text
        # h11 quotes a line that it cannot parse.
        error.detail = self._redact(error.detail)
        error.args = (self._redact(error.problem),)
        if self._status_code is None or isinstance(error, APITimeoutError):
            return error
        return IncompleteReplyError(
            f"The reply from {self._url} was truncated after {self._received} bytes: "
            f"{error.detail}.",
            partial_text=self._text,
            attempts=self._attempt,
            hint="The text so far is in partial_text.",
            is_final=error.is_final,
        )

    @property
    def reply(self) -> Reply:
        """The complete reply, after `receive_eof`. Built on demand, because it copies the text."""
        if self._reply is None:
            assert self._status_code is not None, "a reply follows receive_eof()"
            assert self._ended is not None, "a reply follows receive_eof()"
            self._reply = Reply(
                text=self.text,
                status_code=self._status_code,
                headers=self._headers,
                attempts=self._attempt,
                chunks=self._chunks,
                first_text_after=self._first_text_after,
                elapsed=self._ended - self._started,
                finish_reason=self._finish_reason,
            )
            self._text.clear()
        return self._reply

    @property
    def may_end(self) -> bool:
        """Whether the reply would be complete if the body ended now."""
        return self._chunks > 0 and not self._tail

    @property
    def summary(self) -> str:
        """The status, sizes and times for a log line, without text of the reply."""
        elapsed = 0.0 if self._ended is None else self._ended - self._started
        status = describe_status(self.status_code, self._headers.get("x-request-id"))
        return f"{status}, {self._received} bytes in {self._chunks} chunks, {elapsed:.3f} s"

    def _find_finish_reason(self, trailers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the finish reason, or None if there is none or more than one."""
        expected = FINISH_REASON_HEADER.encode()
        values = [value for name, value in trailers if name.lower() == expected]
        if len(values) != 1:
            return None
        return parse_finish_reason(self._redact(values[0].decode("latin-1")))

    def _redact_headers(self, sent: dict[str, str], pairs: list[tuple[str, str]]) -> Headers:
        # A single search for all names and values, because a head may have 20,000 of them.
        everything = "\n".join([text for pair in pairs for text in pair])
        redacted = self._redact(everything)
        if redacted == everything:
            return Headers(pairs)
        texts = redacted.split("\n")
        if len(texts) != 2 * len(pairs):
            # A match spans several headers, or there were too many: keep only those that errors
            # use.
            kept = ((name, sent[name]) for name in sorted(_READ_BY_NAME) if name in sent)
            return Headers((name, self._redact(value)) for name, value in kept)
        names = (
            name if name.lower() in _READ_BY_NAME else text
            for (name, _), text in zip(pairs, texts[::2], strict=True)
        )
        return Headers(zip(names, texts[1::2], strict=True))

    def _check_strictly(self, head: Head, sent: dict[str, str]) -> None:
        if head.status_code != 200:
            raise self._unexpected(f"its status is {_status_line(head.status_code)}, not 200")
        if not _may_be_text(sent.get("content-type", "")):
            problem = f"it is {shorten(_media_type(self._headers['content-type']))}"
            self._rejection = lambda body: self._unexpected(problem, body)
        elif head.came_over_network and not (
            "content-length" in sent
            or "transfer-encoding" in sent
            or head.http_version == b"HTTP/2"
        ):
            raise self._unexpected(
                "it has neither a length nor chunks, so that a truncation would go unnoticed"
            )

    def _decode(self, data: bytes | bytearray, *, final: bool, now: float) -> str:
        if self._tail:
            data = self._tail + data
        errors = "strict" if self._strict else "replace"
        try:
            text, used = codecs.utf_8_decode(data, errors, final)
        except UnicodeDecodeError as error:
            problem = f"{error.reason} at byte {self._decoded + error.start}"
            good = data[: error.start].decode()
        else:
            self._decoded += used
            self._tail = data[used:] if used < len(data) else b""
            if not text or not self._chunks:
                return self._accept(text, now)
            # The fast path for all chunks except the first.
            self._chunks += 1
            self._text += text.encode()
            return text
        self._accept(good, now)
        raise ReplyDecodeError(
            f"The reply from {self._url} is not UTF-8: {problem}.",
            partial_text=self._text,
            attempts=self._attempt,
            hint="The text before that is in partial_text; strict=False accepts such bytes.",
        )

    def _accept(self, text: str, now: float) -> str:
        if not self._chunks:
            text = self._begin(text, now)
        if text:
            self._chunks += 1
            self._text += text.encode()
        return text

    def _begin(self, text: str, now: float) -> str:
        if text and not self._begun:
            # U+FEFF is a byte order mark only at the very beginning.
            self._begun = True
            text = text.removeprefix(_BYTE_ORDER_MARK)
        if text:
            self._first_text_after = now - self._started
        return text

    def _collect_rejected(
        self, data: bytes | bytearray, rejection: Callable[[str], CromicleError]
    ) -> None:
        missing = _MAX_ERROR_BODY + _REDACTION_MARGIN - len(self._rejected_body)
        self._rejected_body += data[:missing]
        if len(data) >= missing:
            raise self._reject(rejection)

    def _reject(self, rejection: Callable[[str], CromicleError]) -> CromicleError:
        body = self._redact(
            "" if self._is_encoded else self._rejected_body.decode(errors="replace")
        )
        if len(self._rejected_body) >= _MAX_ERROR_BODY + _REDACTION_MARGIN:
            # The body was cut, perhaps within a secret.
            body = body[:-_REDACTION_MARGIN]
        return rejection(body.encode()[:_MAX_ERROR_BODY].decode(errors="ignore"))

    def _status_error(
        self, status_code: int, body: str, retry_after: float | None
    ) -> APIStatusError:
        # The error shows only its beginning.
        excerpt = _excerpt(body, self._headers.get("content-type", ""))[:_REDACTION_MARGIN]
        said = shorten(self._redact(excerpt)).rstrip(".")
        problem = (
            f"{self._url} responded with {_status_line(status_code)}{f': {said}' if said else ''}."
        )
        if 300 <= status_code < 400:
            problem += f" It redirects to {shorten(self._headers.get('location', 'nowhere'))}."
        if retry_after is not None:
            problem += f" The server requests a wait of {retry_after:g} s."
        error = status_error_class(status_code)(
            problem,
            status_code=status_code,
            headers=self._headers,
            body=body,
            retry_after=retry_after,
            attempts=self._attempt,
        )
        error.hint = _choose_hint(error)
        if error.hint == _WRONG_CREDENTIAL:
            error.option = "token"
        return error

    def _unexpected(
        self,
        problem: str,
        body: str = "",
        hint: str = "Check that base_url is a Cromicle endpoint.",
        option: str = "base_url",
    ) -> UnexpectedContentError:
        return UnexpectedContentError(
            f"The response from {self._url} is not a reply: {problem}.",
            body=body,
            attempts=self._attempt,
            hint=hint,
            option=option,
        )

    def _empty(self) -> UnexpectedContentError:
        if self._finish_reason is None:
            return self._unexpected("it is empty")
        return self._unexpected(
            f"it is empty, with the finish reason {self._finish_reason!r}",
            hint="The model ended without text: change the prompt, or pass strict=False.",
            option="strict",
        )

    def _too_large(self) -> ReplyError:
        return ReplyTooLargeError(
            f"The reply from {self._url} is longer than max_reply_bytes ({self._max_bytes}).",
            partial_text=self._text,
            attempts=self._attempt,
            hint="Raise max_reply_bytes to accept a longer reply.",
        )


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Return the delay of a `Retry-After` header in seconds, or None if it is missing or invalid.

    The value is a number of seconds or an HTTP date (RFC 9110, section 10.2.3). `now` is in seconds
    since the epoch. Never raises; the result is finite and not negative.
    """
    if value is None:
        return None
    value = value.strip()
    if re.match(_SECONDS, value):
        return min(float(value), _FOREVER)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    # For the zone "-0000", the parser returns a naive date in UTC.
    seconds = (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() - now
    return min(max(seconds, 0.0), _FOREVER)


def parse_finish_reason(value: object) -> str | None:
    """Return the finish reason that a server sent, or None unless it is one short word."""
    return value if isinstance(value, str) and re.match(_FINISH_REASON, value) else None


def _choose_hint(error: APIStatusError) -> str:
    """Return the hint for a status that is not a success."""
    status_code, code = error.status_code, error.code
    if 300 <= status_code < 400:
        return _REDIRECTED
    if code in _ADVICE_BY_CODE:
        return _ADVICE_BY_CODE[code]
    if code in _OF_GATEWAY:
        return _ASK_OPERATOR if status_code >= 500 else _REJECTED
    if error.retry_after is not None and (status_code in (408, 429) or status_code >= 500):
        return "Retry after that time."
    return _ADVICE.get(status_code, _SERVER_FAILED if status_code >= 500 else "")


# Cached, because parsing takes 5 us and servers send few different values.
@lru_cache(maxsize=64)
def _may_be_text(content_type: str) -> bool:
    media_type = _media_type(content_type)
    kind, _, subtype = media_type.partition("/")
    if kind == "text" and subtype:
        return _NOT_PLAIN.isdisjoint(re.split(r"[.+-]", subtype))
    return media_type in ("", "application/octet-stream")


def _media_type(content_type: str) -> str:
    match = re.match(_MEDIA_TYPE, content_type)
    return (match[1] if match else content_type.partition(";")[0].strip()).lower()


def _status_line(status_code: int) -> str:
    try:
        return f"{status_code} {http.HTTPStatus(status_code).phrase}"
    except ValueError:
        return str(status_code)


def _excerpt(body: str, content_type: str) -> str:
    """Return the explanation in a body: the message of a JSON error, or the text itself."""
    if "html" in content_type.lower():
        return ""
    try:
        content: object = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    for name in ("error", "message"):
        if isinstance(content, Mapping):
            fields = cast("Mapping[str, object]", content)
            content = fields.get(name, fields)
    return content if isinstance(content, str) else body
