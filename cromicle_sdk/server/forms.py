"""The form in which a reply and the errors before it are written: plain text, or another API's."""

from __future__ import annotations

from typing import Any, Protocol

from .backends import BackendError
from .errors import build_error

__all__ = ["PlainText", "ReplyForm"]


class ReplyForm(Protocol):
    """The bytes of a response, whose body is the concatenation of what these methods return."""

    @property
    def media_type(self) -> str:
        """The content type of the response."""
        ...

    @property
    def has_trailer(self) -> bool:
        """Whether the finish reason is sent as an HTTP trailer."""
        ...

    def encode(self, text: str) -> bytes:
        """The bytes of one chunk, which may be none."""
        ...

    def encode_end(self, finish_reason: str | None) -> bytes:
        """The bytes after the last chunk of a reply that is complete."""
        ...

    def encode_failure(self, error: BackendError) -> bytes:
        """The bytes after the last chunk of a reply that is truncated."""
        ...

    def build_error(
        self, status: int, code: str, message: str, *, param: str | None = None
    ) -> dict[str, Any]:
        """The JSON of an error before the first chunk."""
        ...


class PlainText:
    """The form of this protocol: the text as it is."""

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
