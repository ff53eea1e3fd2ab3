"""The memory for the bodies of requests in progress: a budget that all of them share."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import anyio
from starlette.types import Message, Receive

from .errors import RequestRejected

__all__ = ["BodyBuffer", "BufferBudget"]

# Until then the clients whose bodies fill the budget have sent them or have timed out.
RETRY_AFTER_SECONDS = 5

# A client may send a byte at a time; a part of its own for each would take fifty times as much.
PART_BYTES = 16 * 1024


class BufferBudget:
    """At most `limit` bytes for all bodies that are being received.

    Beyond it the largest body is rejected, whoever sends it: so large ones that never end do not
    keep out prompts of the usual size.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._buffers: set[BodyBuffer] = set()

    @contextlib.contextmanager
    def open_buffer(self) -> Generator[BodyBuffer]:
        """A buffer for one body, which is counted while the block runs."""
        buffer = BodyBuffer(self)
        self._buffers.add(buffer)
        try:
            yield buffer
        finally:
            self._buffers.discard(buffer)
            self._used -= buffer.size

    def reserve(self, size: int) -> None:
        """Count so many bytes more, which a buffer has just received; may evict that one too."""
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
        # Not one array: the memory of those that grow and are discarded is not reused for others.
        self._parts: list[bytearray] = []
        self.size: int = 0

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)

    async def receive(self, receive: Receive) -> Message:
        """The next message. Raises `RequestRejected` 503 if the body is evicted until then."""
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
