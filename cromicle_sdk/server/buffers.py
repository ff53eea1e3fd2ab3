"""The memory budget shared by all request bodies that are being received."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import anyio
from starlette.types import Message, Receive

from .errors import RequestRejected

__all__ = ["BodyBuffer", "BufferBudget"]

# By then, the bodies that fill the budget have been received or have timed out.
RETRY_AFTER_SECONDS = 5

# A client may send one byte at a time: an object for each byte takes fifty times the memory.
PART_BYTES = 16 * 1024


class BufferBudget:
    """At most `limit` bytes for all bodies that are being received.

    If they exceed it, the largest body is rejected, regardless of its sender: large bodies that
    never end must not keep out prompts of the usual size.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._buffers: set[BodyBuffer] = set()

    @contextlib.contextmanager
    def open_buffer(self) -> Generator[BodyBuffer]:
        """Yield a buffer for one body, which counts until the block exits."""
        buffer = BodyBuffer(self)
        self._buffers.add(buffer)
        try:
            yield buffer
        finally:
            self._buffers.discard(buffer)
            self._used -= buffer.size

    def reserve(self, size: int) -> None:
        """Count `size` bytes that a buffer has just received. This may evict that buffer, too."""
        self._used += size
        while self._used > self._limit:
            largest = max(self._buffers, key=lambda buffer: buffer.size)
            self._used -= largest.size
            largest.evict()


class BodyBuffer:
    """The body of one request, as far as it has been received."""

    def __init__(self, budget: BufferBudget) -> None:
        self._budget = budget
        self._scope: anyio.CancelScope | None = None
        self._is_evicted = False
        # Not a single array: arrays that grow and are discarded fragment the memory.
        self._parts: list[bytearray] = []
        self.size: int = 0

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)

    async def receive(self, receive: Receive) -> Message:
        """Receive the next message. Raises `RequestRejected` 503 if the body has been evicted."""
        message: Message = {}
        with anyio.CancelScope() as self._scope:
            message = await receive()
        self._scope = None
        self._check()
        return message

    def append(self, chunk: bytes) -> None:
        """Add bytes to the body. Raises `RequestRejected` 503 if that evicts it."""
        if self._parts and len(self._parts[-1]) + len(chunk) <= PART_BYTES:
            self._parts[-1] += chunk
        else:
            self._parts.append(bytearray(chunk))
        self.size += len(chunk)
        self._budget.reserve(len(chunk))
        self._check()

    def evict(self) -> None:
        """Discard the data, and make the task that receives it raise `RequestRejected`."""
        self._is_evicted = True
        self._parts = []
        self.size = 0
        if self._scope is not None:
            self._scope.cancel()

    def _check(self) -> None:
        if self._is_evicted:
            raise RequestRejected(
                503,
                "too_busy",
                "the server is receiving too many long requests",
                has_unread_body=True,
                retry_after=RETRY_AFTER_SECONDS,
            )
