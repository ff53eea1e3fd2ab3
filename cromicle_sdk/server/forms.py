"""The format of a response: the plain text of this protocol, or that of another API."""

from __future__ import annotations

from typing import Any, Protocol

from .backends import BackendError
from .errors import build_error

__all__ = ["PlainText", "ReplyForm"]


class ReplyForm(Protocol):
    """Encodes a reply and its errors. The body is the concatenation of the encoded parts."""

    @property
    def media_type(self) -> str:
        """The content type of the response."""
        ...

    @property
    def has_trailer(self) -> bool:
        """Whether the finish reason is sent as an HTTP trailer."""
        ...

    def encode(self, text: str) -> bytes:
        """Encode one chunk. The result may be empty."""
        ...

    def encode_end(self, finish_reason: str | None) -> bytes:
        """Return the bytes after the last chunk of a complete reply."""
        ...

    def encode_failure(self, error: BackendError) -> bytes:
        """Return the bytes after the last chunk of a truncated reply."""
        ...

    def build_error(
        self, status: int, code: str, message: str, *, param: str | None = None
    ) -> dict[str, Any]:
        """Return the JSON of an error before the first chunk."""
        ...


class PlainText:
    """The form of the Cromicle protocol: the text itself."""

    media_type = "text/plain; charset=utf-8"
    has_trailer = True

    def encode(self, text: str) -> bytes:
        return text.encode()

    def encode_end(self, finish_reason: str | None) -> bytes:
        return b""

    def encode_failure(self, error: BackendError) -> bytes:
        return b""

    def build_error(
        self, status: int, code: str, message: str, *, param: str | None = None
    ) -> dict[str, Any]:
        return build_error(status, code, message, param=param)
