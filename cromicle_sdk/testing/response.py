"""Building the bytes of responses, which may be malformed."""

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
    "build_last_chunk",
    "has_body",
    "to_bytes",
    "to_pairs",
]

Headers = Mapping[str, str] | list[tuple[str, str]]

CONTENT_TYPE = "text/plain; charset=utf-8"
LAST_CHUNK = b"0\r\n\r\n"

# zlib's `wbits` for the two containers of a deflate stream.
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_BLOCK_BYTES = 1 << 20


def to_bytes(text: str | bytes) -> bytes:
    """Encode a text as UTF-8. Bytes are returned unchanged, and need not be UTF-8."""
    return text.encode() if isinstance(text, str) else text


def to_pairs(headers: Headers | None) -> list[tuple[str, str]]:
    """Return the headers as pairs. Unlike a mapping, a list of pairs can repeat a name."""
    return headers if isinstance(headers, list) else list((headers or {}).items())


def has_body(status: int) -> bool:
    """Whether a response of this status has a body (RFC 9112, section 6.3)."""
    return status not in (204, 304)


def build_head(
    status: int = 200,
    *,
    content_type: str | None = CONTENT_TYPE,
    length: Literal["chunked", "none"] | int = "chunked",
    headers: Headers | None = None,
) -> bytes:
    """Build the status line and headers of a response, for `raw()`.

    `length` is the framing in the head: "chunked", a content-length in bytes, or "none" for a
    body that ends with the connection. `headers`, a mapping or a list of pairs, are added
    unchecked, even if they contradict the others. The head of a 204 or 304 announces no body.
    Raises `TypeError` if the status is not an int.
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
    """Build one chunk of a chunked body, for `raw()`.

    To build framing errors, `size` replaces the actual size, with a number of bytes or a str
    that is sent unchanged, and `end` replaces the CRLF at the end of the chunk. `LAST_CHUNK`
    ends a body.
    """
    data = to_bytes(text)
    announced = len(data) if size is None else size
    digits = announced if isinstance(announced, str) else f"{announced:x}"
    return digits.encode() + b"\r\n" + data + end


def build_last_chunk(trailers: Headers | None = None) -> bytes:
    """Build the end of a chunked body with trailers, for `raw()`. They are not checked."""
    lines = [f"{name}: {value}\r\n" for name, value in to_pairs(trailers)]
    return f"0\r\n{''.join(lines)}\r\n".encode()


def build_encoded(text: str | bytes, *, coding: str, size: int | None = None) -> bytes:
    """Encode `text` with the content codings named in `coding`, in their order.

    With `size`, the text is first repeated up to that many bytes, of which at most a megabyte is
    in memory at a time. Codings other than gzip and deflate leave the bytes unchanged.
    """
    data = to_bytes(text)
    blocks: Iterable[bytes] = [data] if size is None else _repeat_to(data, size)
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


def _repeat_to(data: bytes, size: int) -> Iterator[bytes]:
    block = data * (_BLOCK_BYTES // len(data))
    whole, rest = divmod(size, len(block))
    return chain(repeat(block, whole), [block[:rest]])


def _compress(blocks: Iterable[bytes], window_bits: int) -> bytes:
    compressor = zlib.compressobj(wbits=window_bits)
    return b"".join([*map(compressor.compress, blocks), compressor.flush()])
