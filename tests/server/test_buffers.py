"""The budget for request bodies, on asyncio and trio."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from signatures import sign
from starlette.types import ASGIApp, Message

from cromicle_sdk import ConfigurationError
from cromicle_sdk.server import create_app
from cromicle_sdk.server.buffers import BufferBudget
from cromicle_sdk.server.errors import RequestRejected

pytestmark = pytest.mark.anyio

LIMIT = 1000


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Upload:
    """A request whose body is sent when the test says so, as the ASGI server sees it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._incoming: list[Message] = []
        self._has_more = anyio.Event()
        self.sent: list[Message] = []

    async def run(self) -> None:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/chat",
            "headers": [(b"content-type", b"application/json")],
        }
        await self._app(scope, self._receive, self._send)

    async def send(self, data: bytes, *, more_body: bool = True) -> None:
        self._incoming.append({"type": "http.request", "body": data, "more_body": more_body})
        self._has_more.set()
        await anyio.wait_all_tasks_blocked()

    @property
    def status(self) -> int | None:
        """The status of the response, None before it."""
        return self.sent[0]["status"] if self.sent else None

    async def _receive(self) -> Message:
        while not self._incoming:
            self._has_more = anyio.Event()
            await self._has_more.wait()
        return self._incoming.pop(0)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


@contextlib.asynccontextmanager
async def start_uploads(count: int) -> AsyncGenerator[list[Upload]]:
    app = create_app(max_request_bytes=LIMIT, max_buffered_bytes=2 * LIMIT)
    async with anyio.create_task_group() as group:
        uploads = [Upload(app) for _ in range(count)]
        for upload in uploads:
            group.start_soon(upload.run)
        yield uploads
        group.cancel_scope.cancel()


async def test_the_longest_body_is_rejected_and_others_are_served() -> None:
    body = json.dumps(sign("hi")).encode()
    async with start_uploads(4) as (longest, long, another, short):
        await longest.send(b" " * 900)
        await long.send(b" " * 800)
        await short.send(body[:50])
        assert [longest.status] == [None]
        # With these the budget is exceeded.
        await another.send(b" " * 700)
        assert longest.status == 503
        headers = dict(longest.sent[0]["headers"])
        assert headers[b"connection"] == b"close"
        assert headers[b"retry-after"] == b"5"
        assert json.loads(longest.sent[1]["body"])["error"]["code"] == "too_busy"
        assert (long.status, another.status, short.status) == (None, None, None)
        await short.send(body[50:], more_body=False)
        assert short.status == 200
        await long.send(b"", more_body=False)
        await another.send(b"", more_body=False)
        assert (long.status, another.status) == (400, 400)


async def test_a_body_that_is_the_longest_itself_is_rejected() -> None:
    async with start_uploads(3) as uploads:
        for upload in uploads:
            await upload.send(b" " * 600)
        assert [upload.status for upload in uploads] == [None] * 3
        await uploads[2].send(b" " * 300)
        assert [upload.status for upload in uploads] == [None, None, 503]
        # Its share is free again.
        for upload in uploads[:2]:
            await upload.send(b" " * 400, more_body=False)
        assert [upload.status for upload in uploads] == [400, 400, 503]


async def test_the_budget_is_free_after_each_request() -> None:
    for body, status in [
        (json.dumps(sign("hi")).encode(), 200),
        (b" " * LIMIT, 400),
        (b" " * (LIMIT + 1), 413),
    ]:
        async with start_uploads(10) as uploads:
            for upload in uploads:
                await upload.send(body, more_body=False)
            assert [upload.status for upload in uploads] == [status] * 10


async def test_a_message_that_arrives_with_the_eviction_is_dropped() -> None:
    budget = BufferBudget(10)
    with budget.open_buffer() as buffer, budget.open_buffer() as other:
        buffer.append(b"x" * 8)

        async def receive() -> Message:
            other.append(b"x" * 5)
            return {"type": "http.request", "body": b"x"}

        with pytest.raises(RequestRejected):
            await buffer.receive(receive)
        assert bytes(buffer) == b""
        assert bytes(other) == b"x" * 5


@pytest.mark.parametrize("value", [0, True, "1", LIMIT - 1])
def test_an_invalid_budget_is_rejected_by_name(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_buffered_bytes: "):
        create_app(max_request_bytes=LIMIT, max_buffered_bytes=value)


def test_the_default_fits_one_request() -> None:
    create_app(max_request_bytes=1024**3)
