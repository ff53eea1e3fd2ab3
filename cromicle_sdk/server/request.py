"""A request becomes its prompt, or a refusal: the protocol's checks, in their order."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from cromicle_sdk._core.messages import find_lone_surrogate
from cromicle_sdk._core.request import hash_prompt

from .errors import Refusal
from .tokens import Tokens

__all__ = ["ChatRequest", "check_signature", "parse_chat", "receive_prompt"]


@dataclass(frozen=True)
class ChatRequest:
    """The three fields of the protocol, as they were sent."""

    message: str = field(repr=False)
    token: str = field(repr=False)
    hash: str = field(repr=False)


async def receive_prompt(request: Request, *, tokens: Tokens, max_request_bytes: int) -> str:
    """The prompt of a request that passed every check.

    Raises `Refusal` with the status of the first check that failed: 505 version, 415 content
    type, 413 size, 400 form, 401 token, 422 hash; `ClientDisconnect` when the client left
    meanwhile.
    """
    _check_version(request.scope["http_version"])
    _check_content_type(request.headers)
    _check_content_length(request.headers, max_request_bytes)
    chat = parse_chat(await _read_body(request, max_request_bytes))
    check_signature(chat, tokens)
    return chat.message


def parse_chat(body: bytes) -> ChatRequest:
    """The fields of a request body; unknown ones are ignored. Raises `Refusal` 400."""
    fields = _parse_object(body)
    return ChatRequest(
        message=_take_text(fields, "message"),
        token=_take_text(fields, "token"),
        hash=_take_text(fields, "hash"),
    )


def check_signature(chat: ChatRequest, tokens: Tokens) -> None:
    """Raise `Refusal` 401 for a token that is none of `tokens`, 422 for a hash that is not right.

    How long it takes doesn't tell how much of either was right.
    """
    token = tokens.find(chat.token)
    if token is None:
        raise Refusal(401, "wrong_token", "the token is not one that this server expects")
    expected = hash_prompt(token.reveal(), chat.message)
    if not hmac.compare_digest(chat.hash.encode(), expected.encode()):
        raise Refusal(
            422,
            "hash_mismatch",
            "the hash is not the lower-case hex SHA-256 of the token followed by the message",
        )


def _check_version(http_version: str) -> None:
    # Before it there are no chunks: the end of the connection is that of the reply, cut or not.
    # A proxy that asks with it would hand on a cut as an end.
    if http_version < "1.1":
        raise Refusal(
            505,
            "http_version_not_supported",
            "ask with HTTP/1.1: in HTTP/1.0 a reply that is cut off looks like a whole one",
            unread=True,
        )


def _check_content_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise Refusal(415, "unsupported_media_type", "the content type must be application/json")


def _check_content_length(headers: Headers, limit: int) -> None:
    length = headers.get("content-length", "")
    # More digits than any length has would make `int` itself refuse them.
    if length.isdecimal() and (len(length) > 20 or int(length) > limit):
        raise _too_large(limit, unread=True)


async def _read_body(request: Request, limit: int) -> bytes:
    # Starlette's `Request.stream` would not say whether the piece that went too far was the last.
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) + len(piece) > limit:
            raise _too_large(limit, unread=more)
        body += piece
    return bytes(body)


def _too_large(limit: int, *, unread: bool) -> Refusal:
    return Refusal(
        413, "request_too_large", f"the body must be at most {limit} bytes", unread=unread
    )


def _parse_object(body: bytes) -> dict[str, Any]:
    problem = "the body must be a JSON object, in UTF-8"
    try:
        # Decoded here, for `json.loads` would also take the bytes for UTF-16 and UTF-32.
        value = json.loads(
            body.decode(), object_pairs_hook=_build_object, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):
        raise _malformed(problem) from None
    if not isinstance(value, dict):
        raise _malformed(problem)
    return cast("dict[str, Any]", value)


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    # "The names within an object SHOULD be unique" (RFC 8259): two readers could each take
    # another one of two tokens.
    if len(built) != len(pairs):
        raise ValueError("duplicate names")
    return built


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _take_text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _malformed(f"the field {name!r} must be there and be a string")
    if find_lone_surrogate(value) is not None:
        raise _malformed(f"the field {name!r} has a lone surrogate")
    return value


def _malformed(problem: str) -> Refusal:
    return Refusal(400, "bad_request", problem)
