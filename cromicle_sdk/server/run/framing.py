"""The server side of an h11 connection, with additional checks of the framing."""

from __future__ import annotations

import re
from typing import Any

import h11

__all__ = ["Rejection", "StrictConnection"]

# h11 silently joins a folded line to the one before it. A server "MUST either reject the message
# […] or replace each received obs-fold" (RFC 9112, section 5.2), and proxies differ in this.
_FOLD = re.compile(rb"\n[ \t]")
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_CHUNKED = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)

# h11 takes 9 µs for a chunk of any size, so a body in chunks of one byte keeps a core busy at
# 5 Mbit/s. An incremental JSON encoder produces about a hundred small chunks.
SMALL_CHUNK_BYTES = 16
MAX_SMALL_CHUNKS = 1_000

# A faster check, which counts line breaks in each read instead of parsing it. A chunk has two line
# breaks, so this means less than 12 bytes of data per chunk. It takes 1 µs for 1,024 bytes.
DENSE_READ_BYTES = 1_024
BYTES_PER_LINE_BREAK = 8


class Rejection(h11.RemoteProtocolError):
    """A request that h11 accepts and this package rejects. `message` is sent to the client."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message, error_status_hint=status)
        self.status = status
        self.code = code
        self.message = message


class StrictConnection(h11.Connection):
    """The server side of an HTTP/1.1 connection.

    In addition to h11's own checks, `next_event` raises `Rejection` for a message whose end is
    ambiguous (request smuggling), for a version other than 1.0 and 1.1, and for a body in tiny
    chunks. After that, `rejection` is set, and only a response can be sent.
    """

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self.rejection: Rejection | None = None
        self.method: bytes = b""
        self._is_chunked = False
        self._small_chunks = 0

    def receive_data(self, data: bytes) -> None:
        super().receive_data(data)
        if len(data) < DENSE_READ_BYTES or not _is_dense(data):
            return
        if self.their_state is h11.IDLE:
            is_chunked = _CHUNKED.search(data) is not None
        else:
            is_chunked = self.their_state is h11.SEND_BODY and self._is_chunked
        if is_chunked:
            self.rejection = _too_many_chunks()

    def next_event(self) -> Any:
        if self.rejection is not None:
            raise self.rejection
        if self.their_state is h11.IDLE and _has_fold(self.trailing_data[0]):
            raise self._reject(_bad_request("a header that is continued on the next line"))
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._start_request(event)
        elif isinstance(event, h11.Data) and self._is_chunked:
            self._small_chunks += len(event.data) < SMALL_CHUNK_BYTES
            if self._small_chunks > MAX_SMALL_CHUNKS:
                raise self._reject(_too_many_chunks())
        return event

    def _start_request(self, request: h11.Request) -> None:
        names = {name for name, _ in request.headers}
        self.method = request.method
        self._is_chunked = b"transfer-encoding" in names
        self._small_chunks = 0
        if request.http_version not in (b"1.0", b"1.1"):
            raise self._reject(
                Rejection(505, "http_version_not_supported", "use HTTP/1.1 or HTTP/1.0")
            )
        # "a server MAY reject […] or process such a request in accordance with the
        # Transfer-Encoding alone" (RFC 9112, section 6.1): a proxy that uses the length instead
        # interprets the rest of the body as a request.
        if self._is_chunked and b"content-length" in names:
            raise self._reject(_bad_request("both a content length and a transfer encoding"))
        if self._is_chunked and request.http_version == b"1.0":
            raise self._reject(_bad_request("a transfer encoding in HTTP/1.0"))

    def _reject(self, rejection: Rejection) -> Rejection:
        self.rejection = rejection
        return rejection


def _is_dense(data: bytes) -> bool:
    return data.count(b"\r\n") * BYTES_PER_LINE_BREAK > len(data)


def _has_fold(data: bytes) -> bool:
    fold = _FOLD.search(data)
    if fold is None:
        return False
    end = _END_OF_HEAD.search(data)
    return end is None or fold.start() <= end.start()


def _bad_request(problem: str) -> Rejection:
    return Rejection(400, "bad_request", f"the request has {problem}")


def _too_many_chunks() -> Rejection:
    return _bad_request("a body in chunks that are too small")
