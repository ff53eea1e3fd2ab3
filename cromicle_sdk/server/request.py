"""Receiving and checking a request, in the order that `create_app` documents."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from cromicle_sdk._core.errors import InvalidMessageError
from cromicle_sdk._core.fields import PROTOCOL_FIELDS, find_json_problem
from cromicle_sdk._core.messages import Message, find_lone_surrogate, format_prompt
from cromicle_sdk._core.request import hash_prompt

from .buffers import BodyBuffer
from .errors import RequestRejected
from .nesting import find_nesting_problem
from .protections import Protections
from .tokens import AcceptedToken, set_token

__all__ = [
    "ChatRequest",
    "check_hash",
    "check_token",
    "is_field_name",
    "receive_chat_request",
    "receive_object",
]

# The names of fields that an error may quote. Any other name may be any text, of any length.
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


@dataclass(frozen=True)
class ChatRequest:
    """The fields of a request as received: those of the protocol, and all others as `options`."""

    message: str = field(repr=False)
    token: str = field(repr=False)
    hash: str = field(repr=False)
    messages: list[Message] | None = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)


async def receive_chat_request(
    request: Request, protections: Protections, *, allow_options: frozenset[str] | None
) -> ChatRequest:
    """Receive and check a request. Store its token in its scope, and return its fields.

    `allow_options` are the accepted names of fields beside the protocol's; None for any name.

    Raises `RequestRejected` with the status of the first failed check: those of `receive_object`,
    400 fields, those of `check_token`, 422 hash. Raises `ClientDisconnect` if the client
    disconnects during the request.
    """
    chat = _parse_chat_request(await receive_object(request, protections), allow_options)
    check_hash(chat, check_token(request, chat.token, protections))
    return chat


async def receive_object(request: Request, protections: Protections) -> dict[str, Any]:
    """Receive the JSON object in the body of a request.

    Raises `RequestRejected` with the status of the first failed check: 505 version, 415 content
    type, 413 size, 503 the budget of all bodies, 400 JSON. Raises `ClientDisconnect`.
    """
    _check_version(request.scope["http_version"])
    _check_content_type(request.headers)
    _check_content_length(request.headers, protections.max_request_bytes)
    with protections.budget.open_buffer() as buffer:
        await _read_body(request, protections.max_request_bytes, buffer)
        return _parse_object(bytes(buffer))


def check_token(request: Request, token: str, protections: Protections) -> AcceptedToken:
    """Return the accepted token that equals `token`, and store it in the scope of the request.

    Raises `RequestRejected`: 401, or 429 after too many wrong tokens from the client's address.
    """
    accepted = protections.tokens.find(token)
    if accepted is None:
        client = "" if request.client is None else request.client.host
        raise _wrong_token(protections.guesses.record(client))
    set_token(request.scope, accepted)
    return accepted


def _parse_chat_request(
    fields: dict[str, Any], allow_options: frozenset[str] | None
) -> ChatRequest:
    message = _get_text(fields, "message")
    return ChatRequest(
        message=message,
        token=_get_text(fields, "token"),
        hash=_get_text(fields, "hash"),
        messages=_parse_messages(fields["messages"], message) if "messages" in fields else None,
        options={
            name: _check_option(name, value, allow_options)
            for name, value in fields.items()
            if name not in PROTOCOL_FIELDS
        },
    )


def check_hash(chat: ChatRequest, token: AcceptedToken) -> None:
    """Raise `RequestRejected` 422 for an incorrect hash.

    The duration does not reveal how much of the hash is correct.
    """
    expected = hash_prompt(token.secret.reveal(), chat.message)
    if not hmac.compare_digest(chat.hash.encode(), expected.encode()):
        raise RequestRejected(
            422,
            "hash_mismatch",
            "the hash is not the lower-case hex SHA-256 of the token followed by the message",
        )


def _wrong_token(retry_after: float | None) -> RequestRejected:
    if retry_after is None:
        return RequestRejected(401, "wrong_token", "this server does not accept the token")
    return RequestRejected(
        429,
        "too_many_wrong_tokens",
        "this server does not accept the token, and has received too many wrong tokens from your "
        "address",
        retry_after=retry_after,
    )


def _check_version(http_version: str) -> None:
    # Earlier versions have no chunked encoding: the reply ends when the connection closes, whether
    # it is complete or not. A proxy that uses HTTP/1.0 would pass on a truncated reply as complete.
    if http_version < "1.1":
        raise RequestRejected(
            505,
            "http_version_not_supported",
            "use HTTP/1.1: in HTTP/1.0 a truncated reply looks like a complete one",
            has_unread_body=True,
        )


def _check_content_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise RequestRejected(
            415, "unsupported_media_type", "the content type must be application/json"
        )


def _check_content_length(headers: Headers, limit: int) -> None:
    length = headers.get("content-length", "")
    # `int` raises ValueError for a string of thousands of digits.
    if length.isdecimal() and (len(length) > 20 or int(length) > limit):
        raise _too_large(limit, has_unread_body=True)


async def _read_body(request: Request, limit: int, buffer: BodyBuffer) -> None:
    # Starlette's `Request.stream` does not tell whether the chunk beyond the limit is the last.
    more_body = True
    while more_body:
        message = await buffer.receive(request.receive)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        more_body = message.get("more_body", False)
        if buffer.size + len(chunk) > limit:
            raise _too_large(limit, has_unread_body=more_body)
        buffer.append(chunk)


def _too_large(limit: int, *, has_unread_body: bool) -> RequestRejected:
    return RequestRejected(
        413,
        "request_too_large",
        f"the body must be at most {limit} bytes",
        has_unread_body=has_unread_body,
    )


def _parse_object(body: bytes) -> dict[str, Any]:
    problem = find_nesting_problem(body)
    if problem is not None:
        raise _bad_request(f"the body is too complex: {problem}")
    problem = "the body must be a JSON object in UTF-8"
    try:
        # Decoded first, because `json.loads` also accepts bytes in UTF-16 and UTF-32.
        value = json.loads(
            body.decode(),
            object_pairs_hook=_build_object,
            parse_constant=_reject_constant,
        )
    except (ValueError, RecursionError):
        raise _bad_request(problem) from None
    if not isinstance(value, dict):
        raise _bad_request(problem)
    return cast("dict[str, Any]", value)


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    # "The names within an object SHOULD be unique" (RFC 8259, section 4): if a request has two
    # tokens, different parsers may use different ones.
    if len(built) != len(pairs):
        raise ValueError("duplicate names")
    return built


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_messages(value: Any, message: str) -> list[Message]:
    """Parse the field `messages`, whose `format_prompt` must equal `message`.

    The hash covers only `message`.
    """
    if not isinstance(value, list):
        raise _bad_request("the field 'messages' must be an array")
    messages = [_parse_message(item) for item in cast("list[object]", value)]
    try:
        is_same = format_prompt(messages) == message
    except InvalidMessageError:
        is_same = False
    if not is_same:
        raise _bad_request(
            "the field 'message' is not the prompt that results from the field 'messages'",
            code="messages_mismatch",
        )
    return messages


def _parse_message(item: object) -> Message:
    fields = cast("dict[str, object]", item) if isinstance(item, dict) else {}
    role, content = fields.get("role"), fields.get("content")
    if len(fields) != 2 or not isinstance(role, str) or not isinstance(content, str):
        raise _bad_request(
            "each item of the field 'messages' must be an object with the strings 'role' and "
            "'content', and no other fields"
        )
    return Message(role=role, content=content)


def is_field_name(name: str) -> bool:
    """Whether an error may quote the name of a field."""
    return _FIELD_NAME.match(name) is not None


def _check_option(name: str, value: Any, allowed: frozenset[str] | None) -> Any:
    shown = f"the field {name!r}" if is_field_name(name) else "a field of the body"
    if allowed is not None and name not in allowed:
        raise _bad_request(f"this server does not accept {shown}", code="unknown_field")
    problem = find_json_problem({name: value})
    if problem is not None:
        raise _bad_request(f"{shown} is invalid: {problem}")
    return value


def _get_text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _bad_request(f"the field {name!r} is required and must be a string")
    if find_lone_surrogate(value) is not None:
        raise _bad_request(f"the field {name!r} has a lone surrogate")
    return value


def _bad_request(problem: str, code: str = "bad_request") -> RequestRejected:
    return RequestRejected(400, code, problem)
