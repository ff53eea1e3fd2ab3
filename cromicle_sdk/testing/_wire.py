"""Response bytes, sound or not, built by hand."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from itertools import chain, repeat
from typing import Literal, cast

__all__ = [
    "CONTENT_TYPE",
    "LAST_CHUNK",
    "Headers",
    "build_chunk",
    "build_encoded",
    "build_head",
    "has_body",
    "to_bytes",
    "to_pairs",
]

Headers = Mapping[str, str] | list[tuple[str, str]]

CONTENT_TYPE = "text/plain; charset=utf-8"
LAST_CHUNK = b"0\r\n\r\n"

# zlib's names for the two wrappings of one deflate stream.
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_BLOCK_BYTES = 1 << 20


def to_bytes(text: str | bytes) -> bytes:
    """UTF-8 of a text; bytes pass as they are, so that a script can say what no text can."""
    return text.encode() if isinstance(text, str) else text


def to_pairs(headers: Headers | None) -> list[tuple[str, str]]:
    """The headers in order; pairs, unlike a mapping, can name one twice."""
    return headers if isinstance(headers, list) else list((headers or {}).items())


def has_body(status: int) -> bool:
    """Whether a response of this status carries a body (RFC 9112, section 6.3)."""
    return status not in (204, 304)


def build_head(
    status: int = 200,
    *,
    content_type: str | None = CONTENT_TYPE,
    length: Literal["chunked", "none"] | int = "chunked",
    headers: Headers | None = None,
) -> bytes:
    """The status line and headers of a response, to its blank line: a part for `raw()`.

    `length` is the framing that the head promises: chunks, a number of bytes, or "none",
    a body that lasts until the connection closes. `headers`, a mapping or a list of pairs,
    follow as they are, even where they contradict the rest. A 204 or 304 promises no body.
    Raises `TypeError` for a status that is no number.
    """
    if not isinstance(cast("object", status), int):
        raise TypeError(f"status: expected an int, not {type(status).__name__}")
    lines = [f"HTTP/1.1 {status} {_reason(status)}"]
    if content_type is not None:
        lines.append(f"content-type: {content_type}")
    if has_body(status):
        lines.append(_framing(length))
    lines.extend(f"{name}: {value}" for name, value in to_pairs(headers))
    return "\r\n".join([*lines, "\r\n"]).encode()


def build_chunk(text: str | bytes, *, size: str | int | None = None, end: bytes = b"\r\n") -> bytes:
    """One chunk of a chunked body: a part for `raw()`.

    `size` stands in for the true one, an int in bytes or a str as it is; `end` for the CRLF
    that closes a chunk: both make framing errors of every kind. `LAST_CHUNK` ends a body.
    """
    data = to_bytes(text)
    promised = len(data) if size is None else size
    digits = promised if isinstance(promised, str) else f"{promised:x}"
    return digits.encode() + b"\r\n" + data + end


def build_encoded(text: str | bytes, *, coding: str, size: int | None = None) -> bytes:
    """`text` under the content codings named in `coding`, applied in their order.

    With `size` the text is repeated up to that many bytes first; no more than a megabyte of
    it is in memory at once. A coding other than gzip and deflate leaves the bytes alone.
    """
    data = to_bytes(text)
    blocks: Iterable[bytes] = [data] if size is None else _repeated(data, size)
    for name in coding.split(","):
        if bits := _WINDOW_BITS.get(name.strip()):
            blocks = [_compress(blocks, bits)]
    return b"".join(blocks)


def _framing(length: Literal["chunked", "none"] | int) -> str:
    if length == "chunked":
        return "transfer-encoding: chunked"
    return "connection: close" if length == "none" else f"content-length: {length}"


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _repeated(data: bytes, size: int) -> Iterator[bytes]:
    block = data * (_BLOCK_BYTES // len(data))
    whole, rest = divmod(size, len(block))
    return chain(repeat(block, whole), [block[:rest]])


def _compress(blocks: Iterable[bytes], window_bits: int) -> bytes:
    compressor = zlib.compressobj(wbits=window_bits)
    return b"".join([*map(compressor.compress, blocks), compressor.flush()])
