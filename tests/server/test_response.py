"""How a reply streams, ends and fails, as an ASGI server sees it, on asyncio and trio."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from starlette.types import Message

from cromicle_sdk.server import Backend, BackendError, create_app
from cromicle_sdk.server import response as _response
from cromicle_sdk.server.response import ResponseTruncated, UnsendableBody, is_truncation

pytestmark = pytest.mark.anyio

HEAD = "http.response.start"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Exchange:
    """One request for `prompt`, as the ASGI server sees it."""

    def __init__(self, backend: Backend, prompt: str = "hi") -> None:
        self.app = create_app(backend)
        digest = hashlib.sha256(f"abc{prompt}".encode()).hexdigest()
        fields = {"message": prompt, "token": "abc", "hash": digest}
        self.incoming: list[Message] = [
            {"type": "http.request", "body": json.dumps(fields).encode(), "more_body": False}
        ]
        self.disconnected = anyio.Event()
        self.sent: list[Message] = []
        self.send_error: Exception | None = None
        self.disconnect_after = 0
        self.blocked_after: int | None = None

    async def run(self) -> None:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/chat",
            "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"id-1")],
        }
        with anyio.fail_after(10):
            await self.app(scope, self.receive, self.send)

    async def receive(self) -> Message:
        if self.incoming:
            return self.incoming.pop(0)
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.send_error is not None:
            raise self.send_error
        if self.blocked_after is not None and len(self.sent) >= self.blocked_after:
            await anyio.sleep_forever()
        # Servers serialize a body with either of these.
        assert len(message.get("body", b"")) == len(bytes(message.get("body", b"")))
        # An empty chunk carries nothing.
        if message.get("body") != b"" or not message.get("more_body", False):
            self.sent.append(message)
        if len(self.sent) == self.disconnect_after:
            self.disconnected.set()

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def chunks(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]

    @property
    def is_complete(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", True)


async def test_each_chunk_is_sent_on_its_own_and_empty_ones_are_skipped() -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        for chunk in ("", "a", "", "é", "\n", ""):
            yield chunk

    exchange = Exchange(backend)
    await exchange.run()
    assert exchange.chunks == [b"a", "é".encode(), b"\n", b""]
    assert exchange.is_complete


async def test_a_chunk_is_sent_before_the_next_is_generated() -> None:
    sent_before: list[int] = []

    async def backend(prompt: str) -> AsyncIterator[str]:
        for chunk in ("a", "b", "c"):
            sent_before.append(len(exchange.sent))
            yield chunk

    exchange = Exchange(backend)
    await exchange.run()
    assert sent_before == [0, 2, 3]


async def test_a_long_chunk_is_sent_in_parts() -> None:
    text = "é" * 20_000

    async def backend(prompt: str) -> AsyncIterator[str]:
        yield text

    exchange = Exchange(backend)
    await exchange.run()
    assert [len(chunk) for chunk in exchange.chunks] == [16384, 16384, 7232, 0]
    assert b"".join(exchange.chunks).decode() == text


async def test_a_reply_without_text_is_empty_and_complete() -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        yield ""

    exchange = Exchange(backend)
    await exchange.run()
    assert exchange.status == 200
    assert exchange.chunks == [b""]
    assert exchange.is_complete


async def test_a_coroutine_function_may_return_the_iterator() -> None:
    async def chunks() -> AsyncIterator[str]:
        yield "ready"

    async def backend(prompt: str) -> AsyncIterator[str]:
        await anyio.lowlevel.checkpoint()
        return chunks()

    exchange = Exchange(backend)
    await exchange.run()
    assert exchange.chunks == [b"ready", b""]


class PlainIterator:
    """An async iterator without `aclose`."""

    def __init__(self, prompt: str) -> None:
        self.chunks: Iterator[str] = iter([prompt, "!"])

    def __aiter__(self) -> PlainIterator:
        return self

    async def __anext__(self) -> str:
        for chunk in self.chunks:
            return chunk
        raise StopAsyncIteration


async def test_an_iterator_without_aclose_is_accepted() -> None:
    exchange = Exchange(PlainIterator)
    await exchange.run()
    assert exchange.chunks == [b"hi", b"!", b""]


async def raise_at_once(prompt: str) -> AsyncIterator[str]:
    if prompt:
        raise OSError(prompt)
    yield "never"


async def raise_when_awaited(prompt: str) -> AsyncIterator[str]:
    raise OSError(prompt)


def raise_when_called(prompt: str) -> AsyncIterator[str]:
    raise OSError(prompt)


def return_a_list(prompt: str) -> Any:
    return [prompt]


async def yield_bytes(prompt: str) -> AsyncIterator[Any]:
    yield prompt.encode()


async def yield_surrogate(prompt: str) -> AsyncIterator[str]:
    yield "\ud800"


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        (raise_at_once, "OSError"),
        (raise_when_awaited, "OSError"),
        (raise_when_called, "OSError"),
        (return_a_list, "TypeError"),
        (yield_bytes, "the backend yielded bytes, not str"),
        (yield_surrogate, "UnicodeEncodeError"),
    ],
)
async def test_a_failure_before_the_first_chunk_is_a_500(
    backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange(backend, "very private")
    await exchange.run()
    assert exchange.status == 500
    assert (b"content-type", b"application/json") in exchange.sent[0]["headers"]
    assert (b"x-request-id", b"id-1") in exchange.sent[0]["headers"]
    assert json.loads(exchange.chunks[0])["error"]["code"] == "backend_failed"
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("cromicle_sdk.server", "ERROR")
    line = record.getMessage()
    assert kind in line
    assert "id-1" in line
    assert "\n" not in line
    assert "private" not in caplog.text


async def test_the_log_names_the_location_of_the_failure(caplog: pytest.LogCaptureFixture) -> None:
    await Exchange(raise_at_once).run()
    assert "test_response.py" in caplog.text
    assert "raise_at_once" in caplog.text


async def test_a_failure_after_the_first_chunk_truncates_the_reply(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        yield "the beginning"
        raise RuntimeError(prompt)

    exchange = Exchange(backend, "very private")
    with pytest.raises(ResponseTruncated):
        await exchange.run()
    assert exchange.status == 200
    assert exchange.chunks == [b"the beginning"]
    assert not exchange.is_complete
    assert "RuntimeError" in caplog.text
    assert "private" not in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("chunks", [[], ["one"]], ids=["before the first chunk", "after it"])
async def test_a_disconnect_cancels_the_backend(chunks: list[str]) -> None:
    waiting, closed = anyio.Event(), anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            for chunk in chunks:
                yield chunk
            waiting.set()
            await anyio.sleep_forever()
        finally:
            closed.set()

    exchange = Exchange(backend)
    async with anyio.create_task_group() as group:
        group.start_soon(exchange.run)
        await waiting.wait()
        exchange.disconnected.set()
    assert closed.is_set()
    assert not exchange.is_complete


async def test_messages_after_the_request_are_ignored() -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        await anyio.wait_all_tasks_blocked()
        yield "text"

    exchange = Exchange(backend)
    exchange.incoming.append({"type": "http.request", "body": b"", "more_body": False})
    await exchange.run()
    assert exchange.chunks == [b"text", b""]


async def test_a_disconnect_stops_a_backend_that_never_waits() -> None:
    closed = anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
        finally:
            closed.set()

    exchange = Exchange(backend)
    exchange.disconnect_after = 5
    await exchange.run()
    assert closed.is_set()
    assert len(exchange.sent) < 20


async def test_the_cleanup_of_a_backend_may_wait_after_a_disconnect() -> None:
    cleaned = anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
        finally:
            await anyio.sleep(0.001)
            cleaned.set()

    exchange = Exchange(backend)
    exchange.disconnect_after = 3
    await exchange.run()
    assert cleaned.is_set()


async def test_a_cleanup_that_never_ends_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_response, "CLOSE_SECONDS", 0.01)

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
        finally:
            await anyio.sleep_forever()

    exchange = Exchange(backend)
    exchange.disconnect_after = 3
    await exchange.run()
    assert not exchange.is_complete


async def test_a_failing_cleanup_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
        finally:
            raise KeyError(prompt)

    exchange = Exchange(backend, "private")
    exchange.disconnect_after = 3
    await exchange.run()
    assert "KeyError" in caplog.text
    assert "private" not in caplog.text


async def test_an_os_error_of_send_stops_the_backend_without_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            yield "one"
        finally:
            closed.set()

    exchange = Exchange(backend)
    exchange.send_error = OSError("the client has disconnected")
    await exchange.run()
    assert closed.is_set()
    assert not caplog.records


async def test_task_groups_and_timeouts_may_span_a_yield() -> None:
    async def inner() -> AsyncIterator[str]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            with anyio.move_on_after(60):
                yield "one "
                yield "two"
            group.cancel_scope.cancel()

    async def backend(prompt: str) -> AsyncIterator[str]:
        async with aclosing(inner()) as chunks:  # type: ignore[type-var]  # it is a generator
            async for chunk in chunks:
                yield chunk

    exchange = Exchange(backend)
    await exchange.run()
    assert exchange.chunks == [b"one ", b"two", b""]


async def test_a_disconnect_during_the_request_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exchange = Exchange(raise_at_once)
    exchange.incoming = [{"type": "http.request", "body": b"{", "more_body": True}]
    exchange.disconnected.set()
    await exchange.run()
    assert exchange.status == 400
    assert not caplog.records


@pytest.mark.parametrize("blocked_after", [0, 1, 2, 3], ids=["head", "chunk", "chunk 2", "end"])
async def test_a_client_that_reads_nothing_is_disconnected(
    blocked_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_response, "SEND_SECONDS", 0.05)
    closed = anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            yield "one"
            yield "two"
        finally:
            closed.set()

    exchange = Exchange(backend)
    exchange.blocked_after = blocked_after
    with pytest.raises(ResponseTruncated):
        await exchange.run()
    assert closed.is_set()
    assert len(exchange.sent) == blocked_after
    assert not exchange.is_complete


@pytest.mark.parametrize("chunks", [[], ["one"]], ids=["no reply", "reply truncated"])
async def test_the_log_tells_a_truncated_reply_from_none(
    chunks: list[str], request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        for chunk in chunks:
            yield chunk
        raise BackendError(502, "broken", "it broke")

    exchange = Exchange(backend)
    with pytest.raises(ResponseTruncated) if chunks else contextlib.nullcontext():
        await exchange.run()
    (record,) = caplog.records
    words = "reply truncated" if chunks else "no reply"
    assert record.getMessage().startswith(f"{words}: broken, ")


@pytest.mark.parametrize(
    "use",
    [len, bytes, memoryview, b"".join, lambda body: b"" + body, lambda body: body.encode()],
    ids=["len", "bytes", "memoryview", "join", "add", "encode"],
)
def test_an_unsendable_body_cannot_be_serialized(use: Any) -> None:
    body = UnsendableBody()
    assert body
    with pytest.raises((ResponseTruncated, TypeError, AttributeError)) as caught:
        use([body] if use == b"".join else body)
    assert is_truncation(caught.value)


@pytest.mark.parametrize("fails", [False, True], ids=["reply", "error"])
async def test_the_slot_is_released_before_the_last_message_is_sent(fails: bool) -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        if fails:
            raise OSError
        yield prompt

    app = create_app(backend, max_concurrent=1, max_waiting=0)
    first, second = Exchange(backend), Exchange(backend)
    first.app = second.app = app
    send = first.send

    async def send_and_start_the_second(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            await second.run()
        await send(message)

    first.send = send_and_start_the_second  # type: ignore[method-assign]  # as a fast client
    await first.run()
    assert first.status == second.status == (500 if fails else 200)


async def test_the_slot_is_held_until_all_text_is_written() -> None:
    """A server waits in an empty chunk for a client that reads slowly: its reply is in progress."""

    async def backend(prompt: str) -> AsyncIterator[str]:
        yield prompt

    app = create_app(backend, max_concurrent=1, max_waiting=0)
    first = Exchange(backend)
    first.app = app
    send = first.send
    statuses: list[int] = []

    async def send_and_try_another(message: Message) -> None:
        if message.get("more_body"):
            other = Exchange(backend)
            other.app = app
            await other.run()
            statuses.append(other.status)
        await send(message)

    first.send = send_and_try_another  # type: ignore[method-assign]  # as a slow client
    await first.run()
    assert first.status == 200
    assert statuses == [503, 503]


async def test_a_websocket_is_rejected() -> None:
    exchange = Exchange(raise_at_once)
    scope = {"type": "websocket", "path": "/chat", "headers": []}
    await exchange.app(scope, exchange.receive, exchange.send)
    assert [message["type"] for message in exchange.sent] == ["websocket.close"]
