"""How a reply streams, ends, fails and stops, seen by an ASGI server on asyncio and trio."""

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
from cromicle_sdk.server import response as _replies
from cromicle_sdk.server.response import CutMark, ReplyCut, is_of_cut

pytestmark = pytest.mark.anyio

HEAD = "http.response.start"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Exchange:
    """One request for `prompt`, from the side of the ASGI server."""

    def __init__(self, backend: Backend, prompt: str = "hi") -> None:
        self.app = create_app(backend)
        digest = hashlib.sha256(f"abc{prompt}".encode()).hexdigest()
        fields = {"message": prompt, "token": "abc", "hash": digest}
        self.incoming: list[Message] = [
            {"type": "http.request", "body": json.dumps(fields).encode(), "more_body": False}
        ]
        self.gone = anyio.Event()
        self.sent: list[Message] = []
        self.send_error: Exception | None = None
        self.leave_after = 0
        self.stuck_after: int | None = None

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
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.send_error is not None:
            raise self.send_error
        if self.stuck_after is not None and len(self.sent) >= self.stuck_after:
            await anyio.sleep_forever()
        # As servers do, each in its way.
        assert len(message.get("body", b"")) == len(bytes(message.get("body", b"")))
        # An empty piece says nothing.
        if message.get("body") != b"" or not message.get("more_body", False):
            self.sent.append(message)
        if len(self.sent) == self.leave_after:
            self.gone.set()

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def pieces(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]

    @property
    def ended(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", True)


async def test_every_piece_is_sent_by_itself_and_empty_ones_are_not() -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        for piece in ("", "a", "", "é", "\n", ""):
            yield piece

    exchange = Exchange(backend)
    await exchange.run()
    assert exchange.pieces == [b"a", "é".encode(), b"\n", b""]
    assert exchange.ended


async def test_a_piece_is_sent_before_the_next_is_made() -> None:
    sent_before: list[int] = []

    async def backend(prompt: str) -> AsyncIterator[str]:
        for piece in ("a", "b", "c"):
            sent_before.append(len(exchange.sent))
            yield piece

    exchange = Exchange(backend)
    await exchange.run()
    assert sent_before == [0, 2, 3]


async def test_an_empty_reply_is_empty_and_whole() -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        yield ""

    exchange = Exchange(backend)
    await exchange.run()
    assert exchange.status == 200
    assert exchange.pieces == [b""]
    assert exchange.ended


async def test_a_coroutine_function_may_return_the_iterator() -> None:
    async def pieces() -> AsyncIterator[str]:
        yield "ready"

    async def backend(prompt: str) -> AsyncIterator[str]:
        await anyio.lowlevel.checkpoint()
        return pieces()

    exchange = Exchange(backend)
    await exchange.run()
    assert exchange.pieces == [b"ready", b""]


class Plain:
    """An async iterator that can't be closed, for there is nothing to close."""

    def __init__(self, prompt: str) -> None:
        self.pieces: Iterator[str] = iter([prompt, "!"])

    def __aiter__(self) -> Plain:
        return self

    async def __anext__(self) -> str:
        for piece in self.pieces:
            return piece
        raise StopAsyncIteration


async def test_an_iterator_need_not_be_a_generator() -> None:
    exchange = Exchange(Plain)
    await exchange.run()
    assert exchange.pieces == [b"hi", b"!", b""]


async def raise_at_once(prompt: str) -> AsyncIterator[str]:
    if prompt:
        raise OSError(prompt)
    yield "never"


async def raise_when_awaited(prompt: str) -> AsyncIterator[str]:
    raise OSError(prompt)


def raise_when_called(prompt: str) -> AsyncIterator[str]:
    raise OSError(prompt)


def return_nonsense(prompt: str) -> Any:
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
        (return_nonsense, "TypeError"),
        (yield_bytes, "the backend gave bytes, not str"),
        (yield_surrogate, "UnicodeEncodeError"),
    ],
)
async def test_a_failure_before_the_first_piece_is_a_500(
    backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange(backend, "very private")
    await exchange.run()
    assert exchange.status == 500
    assert (b"content-type", b"application/json") in exchange.sent[0]["headers"]
    assert (b"x-request-id", b"id-1") in exchange.sent[0]["headers"]
    assert json.loads(exchange.pieces[0])["error"]["code"] == "backend_failed"
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("cromicle_sdk.server", "ERROR")
    line = record.getMessage()
    assert kind in line
    assert "id-1" in line
    assert "\n" not in line
    assert "private" not in caplog.text


async def test_the_log_says_where_the_backend_failed(caplog: pytest.LogCaptureFixture) -> None:
    await Exchange(raise_at_once).run()
    assert "test_server_replies.py" in caplog.text
    assert "raise_at_once" in caplog.text


async def test_a_failure_in_the_middle_leaves_the_reply_without_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        yield "the beginning"
        raise RuntimeError(prompt)

    exchange = Exchange(backend, "very private")
    with pytest.raises(ReplyCut):
        await exchange.run()
    assert exchange.status == 200
    assert exchange.pieces == [b"the beginning"]
    assert not exchange.ended
    assert "RuntimeError" in caplog.text
    assert "private" not in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("pieces", [[], ["one"]], ids=["before the first piece", "after it"])
async def test_a_client_that_leaves_cancels_the_backend(pieces: list[str]) -> None:
    waiting, closed = anyio.Event(), anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            for piece in pieces:
                yield piece
            waiting.set()
            await anyio.sleep_forever()
        finally:
            closed.set()

    exchange = Exchange(backend)
    async with anyio.create_task_group() as group:
        group.start_soon(exchange.run)
        await waiting.wait()
        exchange.gone.set()
    assert closed.is_set()
    assert not exchange.ended


async def test_what_a_client_sends_after_its_request_means_nothing() -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        await anyio.wait_all_tasks_blocked()
        yield "whole"

    exchange = Exchange(backend)
    exchange.incoming.append({"type": "http.request", "body": b"", "more_body": False})
    await exchange.run()
    assert exchange.pieces == [b"whole", b""]


async def test_a_backend_that_never_waits_is_stopped_too() -> None:
    closed = anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
        finally:
            closed.set()

    exchange = Exchange(backend)
    exchange.leave_after = 5
    await exchange.run()
    assert closed.is_set()
    assert len(exchange.sent) < 20


async def test_a_cleanup_may_wait_although_the_client_has_left() -> None:
    cleaned = anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
        finally:
            await anyio.sleep(0.001)
            cleaned.set()

    exchange = Exchange(backend)
    exchange.leave_after = 3
    await exchange.run()
    assert cleaned.is_set()


async def test_a_cleanup_that_never_ends_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_replies, "CLOSE_SECONDS", 0.01)

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
        finally:
            await anyio.sleep_forever()

    exchange = Exchange(backend)
    exchange.leave_after = 3
    await exchange.run()
    assert not exchange.ended


async def test_a_cleanup_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
        finally:
            raise KeyError(prompt)

    exchange = Exchange(backend, "private")
    exchange.leave_after = 3
    await exchange.run()
    assert "KeyError" in caplog.text
    assert "private" not in caplog.text


async def test_a_server_that_refuses_to_send_ends_the_backend_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            yield "one"
        finally:
            closed.set()

    exchange = Exchange(backend)
    exchange.send_error = OSError("the client is gone")
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
        async with aclosing(inner()) as pieces:  # type: ignore[type-var]  # it is a generator
            async for piece in pieces:
                yield piece

    exchange = Exchange(backend)
    await exchange.run()
    assert exchange.pieces == [b"one ", b"two", b""]


async def test_a_client_that_leaves_while_it_posts_gets_nothing_and_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exchange = Exchange(raise_at_once)
    exchange.incoming = [{"type": "http.request", "body": b"{", "more_body": True}]
    exchange.gone.set()
    await exchange.run()
    assert exchange.status == 400
    assert not caplog.records


@pytest.mark.parametrize("stuck_after", [0, 1, 2, 3], ids=["head", "piece", "piece 2", "end"])
async def test_a_client_that_takes_nothing_is_cut_off(
    stuck_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_replies, "SEND_SECONDS", 0.05)
    closed = anyio.Event()

    async def backend(prompt: str) -> AsyncIterator[str]:
        try:
            yield "one"
            yield "two"
        finally:
            closed.set()

    exchange = Exchange(backend)
    exchange.stuck_after = stuck_after
    with pytest.raises(ReplyCut):
        await exchange.run()
    assert closed.is_set()
    assert len(exchange.sent) == stuck_after
    assert not exchange.ended


@pytest.mark.parametrize("pieces", [[], ["one"]], ids=["no answer", "reply cut off"])
async def test_the_log_tells_a_cut_from_no_answer(
    pieces: list[str], request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    async def backend(prompt: str) -> AsyncIterator[str]:
        for piece in pieces:
            yield piece
        raise BackendError(502, "broken", "it broke")

    exchange = Exchange(backend)
    with pytest.raises(ReplyCut) if pieces else contextlib.nullcontext():
        await exchange.run()
    (record,) = caplog.records
    words = "reply cut off" if pieces else "no answer"
    assert record.getMessage().startswith(f"{words}: broken, ")


@pytest.mark.parametrize(
    "use",
    [len, bytes, memoryview, b"".join, lambda mark: b"" + mark, lambda mark: mark.encode()],
    ids=["len", "bytes", "memoryview", "join", "add", "encode"],
)
def test_nobody_can_make_bytes_of_the_mark(use: Any) -> None:
    mark = CutMark()
    assert mark
    with pytest.raises((ReplyCut, TypeError, AttributeError)) as caught:
        use([mark] if use == b"".join else mark)
    assert is_of_cut(caught.value)


async def test_a_websocket_is_turned_down() -> None:
    exchange = Exchange(raise_at_once)
    scope = {"type": "websocket", "path": "/chat", "headers": []}
    await exchange.app(scope, exchange.receive, exchange.send)
    assert [message["type"] for message in exchange.sent] == ["websocket.close"]
