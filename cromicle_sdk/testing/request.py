"""Reading and recording requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from cromicle_sdk._core.fields import PROTOCOL_FIELDS

__all__ = ["MalformedRequestError", "RecordedRequest", "RequestHead", "read_body", "read_head"]


class MalformedRequestError(ValueError):
    """The received bytes are not an HTTP/1.1 request."""


@dataclass(frozen=True)
class RequestHead:
    """The request line and the headers, whose names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class RecordedRequest:
    """One request that the server has read.

    `path` is the request target, including its query. The names of `headers` are in lower case;
    the values of a repeated header are joined by ", ". `connection` is the serial number of its
    TCP connection, from 1. The repr shows neither headers nor body, because they contain the
    token.
    """

    method: str
    path: str
    headers: dict[str, str] = field(repr=False, hash=False)
    body: bytes = field(repr=False)
    connection: int

    @property
    def json(self) -> Any:
        """The decoded body. Raises `ValueError` if it is not JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The prompt. Raises `KeyError` if the body has no field `message`."""
        return str(self.json["message"])

    @property
    def token(self) -> str:
        """The token, in plain text. Raises `KeyError` if the body has no field `token`."""
        return str(self.json["token"])

    @property
    def hash(self) -> str:
        """The hash as sent, unchecked. Raises `KeyError` if the body has no field `hash`."""
        return str(self.json["hash"])

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        """The messages with their roles, unchecked; None if the client sent none."""
        messages: list[dict[str, Any]] | None = self.json.get("messages")
        return messages

    @property
    def options(self) -> dict[str, Any]:
        """The fields beside those of the protocol, such as those of `extra_body`."""
        return {name: value for name, value in self.json.items() if name not in PROTOCOL_FIELDS}


class _Source(Protocol):
    def read_until(self, separator: bytes) -> bytes: ...
    def read_exactly(self, count: int) -> bytes: ...


def read_head(source: _Source) -> RequestHead:
    """Read the head of one request.

    Raises `MalformedRequestError`, and the errors of `source`.
    """
    line, *fields = source.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise MalformedRequestError("The request line is not of the form METHOD TARGET HTTP/1.x.")
    headers: dict[str, str] = {}
    for name, colon, value in (text.partition(":") for text in fields):
        if not colon:
            raise MalformedRequestError("A header line has no colon.")
        key = name.strip().lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return RequestHead(method=words[0], path=words[1], headers=headers)


def read_body(source: _Source, head: RequestHead) -> bytes:
    """Read the body of the request with this head. Raises the same errors as `read_head`."""
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        return _read_chunks(source)
    return source.read_exactly(_parse(head.headers.get("content-length", "0"), int))


def _read_chunks(source: _Source) -> bytes:
    chunks: list[bytes] = []
    while size := _parse(source.read_until(b"\r\n").decode("latin-1"), _chunk_size):
        chunks.append(source.read_exactly(size))
        source.read_until(b"\r\n")
    while source.read_until(b"\r\n"):
        pass  # Trailers are not recorded.
    return b"".join(chunks)


def _chunk_size(line: str) -> int:
    return int(line.partition(";")[0], 16)


def _parse(text: str, parser: Callable[[str], int]) -> int:
    try:
        return parser(text)
    except ValueError:
        raise MalformedRequestError("A length of the body is not a number.") from None
