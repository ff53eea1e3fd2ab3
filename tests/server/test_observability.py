"""The access log and the Prometheus metrics."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from cromicle_sdk import Client, IncompleteReplyError, Retry
from cromicle_sdk.server import Backend, BackendRequest, LocalServer, create_app
from cromicle_sdk.server import response as _response

PATIENCE = 20.0
LINE = re.compile(
    r"method=(?P<method>\S+) path=(?P<path>\S+) status=(?P<status>\S+) bytes=(?P<bytes>\d+) "
    r"first_text=(?P<first_text>\d+\.\d{4}|-) duration=(?P<duration>\d+\.\d{4}) "
    r"end=(?P<end>\w+) request=(?P<request>\S+)"
)


def sign(prompt: str, token: str = "abc") -> dict[str, str]:
    digest = hashlib.sha256((token + prompt).encode()).hexdigest()
    return {"message": prompt, "token": token, "hash": digest}


class Gate:
    """A backend that yields "one", waits for an event, and yields "two"."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        async def chunks() -> AsyncIterator[str]:
            yield "one"
            await anyio.to_thread.run_sync(self.opened.wait, abandon_on_cancel=True)
            yield "two"

        return chunks()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


async def shout(prompt: str) -> AsyncIterator[str]:
    yield "é🎉"
    yield "!" * 10


async def fail_late(prompt: str) -> AsyncIterator[str]:
    yield "é"
    raise RuntimeError


class Log:
    """The lines of the access log."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def wait(self, count: int) -> list[dict[str, str]]:
        """Wait for `count` lines and parse them; a line is written after its request has ended."""
        deadline = time.monotonic() + PATIENCE
        while len(lines := self._lines()) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(lines) == count
        found = [LINE.fullmatch(line) for line in lines]
        return [match.groupdict() for match in found if match is not None]

    def _lines(self) -> list[str]:
        name = "cromicle_sdk.server.access"
        return [r.getMessage() for r in self._caplog.records if r.name == name]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO, "cromicle_sdk.server.access")
    return Log(caplog)


def get_metrics(base_url: str) -> dict[str, float]:
    """The samples of /metrics, by name and labels."""
    answer = httpx.get(base_url + "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name + "".join(f" {sample.labels[name]}" for name in ("path", "status", "end"))
        if "path" in sample.labels
        else sample.name + sample.labels.get("le", ""): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def post(base_url: str, prompt: str = "hi", **options: Any) -> httpx.Response:
    return httpx.post(base_url + "/chat", json=sign(prompt), **options)


def test_a_complete_reply(log: Log) -> None:
    with LocalServer(shout) as server:
        post(server.base_url, headers={"x-request-id": "my-id"})
        (line,) = log.wait(1)
        seen = get_metrics(server.base_url)
    assert line["method"] == "POST"
    assert (line["path"], line["status"], line["bytes"]) == ("/chat", "200", "16")
    assert (line["end"], line["request"]) == ("complete", "my-id")
    assert 0 <= float(line["first_text"]) <= float(line["duration"]) < PATIENCE
    assert seen["cromicle_requests_total /chat 200 complete"] == 1
    assert seen["cromicle_requests_in_flight"] == 0
    assert seen["cromicle_first_text_seconds_count"] == 1
    assert seen["cromicle_reply_seconds_count"] == 1
    assert seen["cromicle_reply_characters_total"] == 12


def test_a_reply_with_trailers_is_complete(log: Log) -> None:
    async def stop(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        yield prompt
        request.finish_reason = "stop"

    with LocalServer(stop) as server, Client(base_url=server.base_url) as client:
        assert client.chat("hi").finish_reason == "stop"
        (line,) = log.wait(1)
    assert (line["bytes"], line["end"]) == ("2", "complete")


def test_a_reply_in_progress_and_a_client_that_disconnects(log: Log, gate: Gate) -> None:
    with LocalServer(gate) as server:
        with httpx.stream("POST", server.base_url + "/chat", json=sign("hi")) as answer:
            texts = answer.iter_text()
            assert next(texts) == "one"
            assert get_metrics(server.base_url)["cromicle_requests_in_flight"] == 1
        lines = log.wait(2)
        seen = get_metrics(server.base_url)
    disconnected = next(line for line in lines if line["path"] == "/chat")
    assert (disconnected["status"], disconnected["end"], disconnected["bytes"]) == (
        "200",
        "client_disconnected",
        "3",
    )
    assert seen["cromicle_requests_total /chat 200 client_disconnected"] == 1
    assert seen["cromicle_requests_in_flight"] == 0


def test_a_client_that_disconnects_before_the_first_text(log: Log) -> None:
    begun = threading.Event()

    async def wait(prompt: str) -> AsyncIterator[str]:
        begun.set()
        await anyio.sleep_forever()
        yield "never"

    with LocalServer(wait) as server:
        with Client(base_url=server.base_url, token="abc") as client:
            stream = client.stream("hi")
            reading = threading.Thread(target=_read, args=(stream,))
            reading.start()
            assert begun.wait(PATIENCE)
            stream.close()
            reading.join(PATIENCE)
        (line,) = log.wait(1)
        assert (
            get_metrics(server.base_url)["cromicle_requests_total /chat none client_disconnected"]
            == 1
        )
    assert (line["status"], line["first_text"], line["end"]) == ("-", "-", "client_disconnected")


def _read(stream: Any) -> None:
    with contextlib.suppress(Exception):
        stream.read()


def test_a_truncated_reply(log: Log) -> None:
    once = Retry(attempts=1)
    with LocalServer(fail_late) as server:
        with (
            Client(base_url=server.base_url, token="abc", retry=once) as client,
            pytest.raises(IncompleteReplyError),
        ):
            client.chat("hi")
        (line,) = log.wait(1)
        assert get_metrics(server.base_url)["cromicle_requests_total /chat 200 truncated"] == 1
    assert (line["status"], line["end"], line["bytes"]) == ("200", "truncated", "2")


def test_a_client_that_disconnects_before_the_last_byte(log: Log) -> None:
    # More than the buffers of both sides take.
    async def talk(prompt: str) -> AsyncIterator[str]:
        yield "y" * 30_000_000

    with LocalServer(talk) as server:
        with httpx.stream("POST", server.base_url + "/chat", json=sign("hi")) as answer:
            next(answer.iter_raw(1))
        (line,) = log.wait(1)
    assert line["end"] == "client_disconnected"


def test_a_reply_truncated_by_the_shutdown(log: Log, gate: Gate) -> None:
    with LocalServer(gate) as server:
        with httpx.stream("POST", server.base_url + "/chat", json=sign("hi")) as answer:
            texts = answer.iter_text()
            assert next(texts) == "one"
            server.stop()
            with pytest.raises(httpx.RemoteProtocolError):
                next(texts)
    (line,) = log.wait(1)
    assert (line["status"], line["end"]) == ("200", "truncated")


def test_a_client_that_reads_nothing(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_response, "SEND_SECONDS", 0.1)

    async def talk(prompt: str) -> AsyncIterator[str]:
        while True:
            yield "y" * 100_000

    with LocalServer(talk) as server:
        with httpx.stream("POST", server.base_url + "/chat", json=sign("hi")):
            (line,) = log.wait(1)
    assert (line["status"], line["end"]) == ("200", "truncated")


@pytest.mark.parametrize(
    ("method", "path", "shown"),
    [
        ("GET", "/health", ("GET", "/health", "200")),
        ("HEAD", "/health", ("HEAD", "/health", "200")),
        ("GET", "/openapi.json", ("GET", "/openapi.json", "200")),
        ("GET", "/a%0Astatus=200%20secret?token=secret", ("GET", "other", "404")),
        ("GET", "/chat?token=secret", ("GET", "/chat", "405")),
        ("SECRET", "/chat", ("other", "/chat", "405")),
        ("POST", "/chat/", ("POST", "other", "404")),
    ],
)
def test_no_text_of_the_client_is_logged(
    method: str, path: str, shown: tuple[str, str, str], log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalServer() as server:
        httpx.request(method, server.base_url + path)
        (line,) = log.wait(1)
    assert (line["method"], line["path"], line["status"]) == shown
    assert "secret" not in line["path"] + line["method"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [({}, 400), (sign("hi", "wrong"), 401), ({**sign("hi"), "hash": ""}, 422)],
)
def test_a_rejected_request(fields: dict[str, str], status: int, log: Log) -> None:
    with LocalServer() as server:
        httpx.post(server.base_url + "/chat", json=fields)
        (line,) = log.wait(1)
        seen = get_metrics(server.base_url)
    assert (line["status"], line["first_text"], line["end"]) == (str(status), "-", "complete")
    assert seen[f"cromicle_requests_total /chat {status} complete"] == 1
    assert seen["cromicle_first_text_seconds_count"] == 0


def test_a_client_that_disconnects_during_its_request(log: Log) -> None:
    with LocalServer() as server:
        url = httpx.URL(server.base_url)
        with socket.create_connection((url.host, url.port or 0)) as connection:
            connection.sendall(
                b"POST /chat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: 100\r\n\r\n{"
            )
            # Once this is answered, the server has started to read the request above.
            httpx.get(server.base_url + "/health")
        lines = log.wait(2)
    disconnected = next(line for line in lines if line["path"] == "/chat")
    assert (disconnected["status"], disconnected["end"]) == ("-", "client_disconnected")


def test_an_exception_of_the_app(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cromicle_sdk.server.app.receive_chat_request", fail)
    with LocalServer() as server:
        assert post(server.base_url).status_code == 500
        (line,) = log.wait(1)
        assert get_metrics(server.base_url)["cromicle_requests_total /chat none failed"] == 1
    assert line["end"] == "failed"


def test_log_and_metrics_hold_no_token_hash_or_prompt(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        yield prompt
        raise RuntimeError(request, request.messages, request.options)

    messages = [{"role": "user", "content": "a private prompt"}]
    with LocalServer(fail, token="s3cret", allow_options=["user"]) as server:
        body = sign("a private prompt", "s3cret")
        more: dict[str, Any] = {**body, "messages": messages, "user": "private"}
        for extra in ({}, {"seed": "private"}, {"user": "private\ud800"}):
            with contextlib.suppress(httpx.RemoteProtocolError):
                answer = httpx.post(
                    server.base_url + "/chat",
                    content=json.dumps({**more, **extra}),
                    headers={"content-type": "application/json"},
                )
                assert answer.status_code == 400
                assert "private" not in answer.text
        text = httpx.get(server.base_url + "/metrics").text
        log.wait(4)
    for word in ("s3cret", "private", body["hash"]):
        assert word not in text
        assert word not in "".join(r.getMessage() for r in caplog.records if "cromicle" in r.name)


def test_each_app_has_its_own_metrics(log: Log) -> None:
    with LocalServer() as one, LocalServer() as other:
        post(one.base_url)
        log.wait(1)
        assert get_metrics(one.base_url)["cromicle_reply_characters_total"] == 2
        assert get_metrics(other.base_url)["cromicle_reply_characters_total"] == 0


def test_metrics_can_be_disabled() -> None:
    app = create_app(metrics=False)
    with LocalServer(app=app) as server:
        assert httpx.get(server.base_url + "/metrics").status_code == 404
        assert "/metrics" not in httpx.get(server.base_url + "/openapi.json").json()["paths"]
        assert post(server.base_url).text == "hi"


@pytest.mark.parametrize("prefix", ["", "/api", "/a/b"])
def test_a_mounted_app_logs_its_own_paths(prefix: str, log: Log) -> None:
    inner: ASGIApp = create_app()
    app = Starlette(routes=[Mount(prefix, inner)]) if prefix else inner
    with LocalServer(app=app) as server:
        httpx.get(server.base_url + prefix + "/health")
        post(server.base_url + prefix)
        lines = log.wait(2)
    assert [line["path"] for line in lines] == ["/health", "/chat"]


class TestConcurrencyLimit:
    def test_a_request_above_the_limit_is_a_503_with_retry_after(
        self, gate: Gate, log: Log
    ) -> None:
        app = create_app(gate, max_concurrent=1)
        with LocalServer(app=app) as server:
            with httpx.stream("POST", server.base_url + "/chat", json=sign("hi")) as answer:
                texts = answer.iter_text()
                assert next(texts) == "one"
                rejected = post(server.base_url)
                assert rejected.status_code == 503
                assert rejected.headers["retry-after"] == "1"
                assert rejected.json()["error"]["code"] == "too_busy"
                # Other paths and invalid requests use no slot.
                assert httpx.get(server.base_url + "/health").is_success
                assert httpx.post(server.base_url + "/chat", json={}).status_code == 400
                gate.opened.set()
                assert "".join(texts) == "two"
            log.wait(4)
            assert post(server.base_url).text == "onetwo"

    @pytest.mark.parametrize("backend", [fail_late, shout])
    def test_the_slot_is_released_however_a_reply_ends(self, backend: Backend, log: Log) -> None:
        app = create_app(backend, max_concurrent=1)
        with LocalServer(app=app) as server:
            for number in range(5):
                with contextlib.suppress(httpx.RemoteProtocolError):
                    assert post(server.base_url).status_code == 200
                log.wait(number + 1)

    def test_a_disconnect_releases_the_slot(self, gate: Gate, log: Log) -> None:
        app = create_app(gate, max_concurrent=1)
        with LocalServer(app=app) as server:
            with httpx.stream("POST", server.base_url + "/chat", json=sign("hi")) as answer:
                assert next(answer.iter_text()) == "one"
            log.wait(1)
            gate.opened.set()
            assert post(server.base_url).status_code == 200

    def test_the_slot_is_released_before_the_reply_ends(self) -> None:
        count = 20
        body = json.dumps(sign("hi")).encode()
        call = (
            b"POST /chat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        ) + body
        with LocalServer(app=create_app(shout, max_concurrent=1)) as server:
            url = httpx.URL(server.base_url)
            with socket.create_connection((url.host, url.port or 0), PATIENCE) as connection:
                connection.sendall(call * count)
                received = b""
                while received.count(b"0\r\n\r\n") + received.count(b"}}") < count:
                    data = connection.recv(65536)
                    assert data
                    received += data
        assert received.count(b"HTTP/1.1 200 ") == count

    def test_a_client_retries_until_a_slot_is_free(self, gate: Gate) -> None:
        app = create_app(gate, max_concurrent=1)
        with (
            LocalServer(app=app) as server,
            Client(base_url=server.base_url, token="abc", retry=Retry(attempts=5)) as client,
            client.stream("hi") as first,
        ):
            assert next(first) == "one"
            replies: list[Any] = []
            waiting = threading.Thread(target=lambda: replies.append(client.chat("hi")))
            waiting.start()
            while (
                get_metrics(server.base_url).get("cromicle_requests_total /chat 503 complete", 0)
                < 1
            ):
                pass
            gate.opened.set()
            first.read()
            waiting.join(PATIENCE)
        assert replies[0].text == "onetwo"
        assert replies[0].attempts > 1
