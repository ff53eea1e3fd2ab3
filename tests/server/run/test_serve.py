"""The server in the foreground: readiness, signals and shutdown."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from cromicle_sdk import Client, Reply
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk.server import BackendRequest, TokenFile, create_app, serve

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it stops by signals")

PATIENCE = 10.0

# Excludes httpx.TimeoutException, which is also a transport error.
DISCONNECTED = (httpx.RemoteProtocolError, httpx.NetworkError)


def sign(prompt: str, token: str = "abc") -> dict[str, str]:
    digest = hashlib.sha256((token + prompt).encode()).hexdigest()
    return {"message": prompt, "token": token, "hash": digest}


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def serve_while(user: Callable[[str], None], *args: Any, **options: Any) -> None:
    """Serve while `user` runs with the base URL in a thread; its errors are raised here."""
    errors: list[BaseException] = []
    ended = threading.Event()

    def work(base_url: str) -> None:
        try:
            # Once a request is answered, the server has installed its signal handlers.
            httpx.get(base_url + "/health")
            user(base_url)
        except BaseException as error:
            errors.append(error)
            if not ended.is_set():
                press_ctrl_c()

    threads: list[threading.Thread] = []

    def start(base_url: str) -> None:
        threads.append(threading.Thread(target=work, args=(base_url,)))
        threads[0].start()

    serve(*args, port=0, on_ready=start, **options)
    ended.set()
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize(
    ("served", "options", "token"),
    [
        ([], {}, "abc"),
        ([None], {"token": "t"}, "t"),
        ([create_app(token="u")], {"host": "0.0.0.0"}, "u"),
    ],
)
def test_serve_returns_after_ctrl_c(served: list[Any], options: dict[str, Any], token: str) -> None:
    replies: list[str] = []
    handler = signal.getsignal(signal.SIGINT)

    def user(base_url: str) -> None:
        replies.append(httpx.post(base_url + "/chat", json=sign("hello", token)).text)
        press_ctrl_c()

    serve_while(user, *served, **options)
    assert replies == ["hello"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_serve_takes_options_and_sends_the_finish_reason() -> None:
    async def repeat(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        for _ in range(request.options["times"]):
            yield prompt
        request.finish_reason = "length"

    replies: list[Reply] = []

    def user(base_url: str) -> None:
        with Client(base_url=base_url, token="abc", extra_body={"times": 2}) as client:
            replies.append(client.chat("hello"))
        press_ctrl_c()

    serve_while(user, repeat, allow_options=["times"])
    (reply,) = replies
    assert (reply.text, reply.finish_reason) == ("hellohello", "length")


class Gate:
    """A backend that waits for an event in the middle of its reply."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        async def chunks() -> AsyncIterator[str]:
            yield "one "
            await anyio.to_thread.run_sync(self.opened.wait, abandon_on_cancel=True)
            yield "two"

        return chunks()


def wait_until_refused(base_url: str) -> None:
    with contextlib.suppress(httpx.TransportError):
        while True:
            httpx.get(base_url + "/health")


def test_a_reply_in_progress_completes_after_ctrl_c() -> None:
    gate = Gate()
    replies: list[str] = []

    def user(base_url: str) -> None:
        with httpx.stream("POST", base_url + "/chat", json=sign("hi")) as answer:
            texts = answer.iter_text()
            first = next(texts)
            press_ctrl_c()
            wait_until_refused(base_url)
            gate.opened.set()
            replies.append(first + "".join(texts))

    serve_while(user, gate, grace=60)
    assert replies == ["one two"]


def test_idle_connections_are_closed_after_ctrl_c() -> None:

    def user(base_url: str) -> None:
        port = httpx.URL(base_url).port
        assert port
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(65536)
            press_ctrl_c()
            assert connection.recv(65536) == b""

    serve_while(user, grace=60)


def test_a_second_ctrl_c_truncates_replies() -> None:
    gate = Gate()

    def user(base_url: str) -> None:
        with httpx.stream("POST", base_url + "/chat", json=sign("hi")) as answer:
            texts = answer.iter_text()
            next(texts)
            press_ctrl_c()
            wait_until_refused(base_url)
            press_ctrl_c()
            with pytest.raises(DISCONNECTED):
                next(texts)

    try:
        serve_while(user, gate, grace=60)
    finally:
        gate.opened.set()


def test_a_reply_is_truncated_after_the_grace_period() -> None:
    gate = Gate()

    def user(base_url: str) -> None:
        with httpx.stream("POST", base_url + "/chat", json=sign("hi")) as answer:
            texts = answer.iter_text()
            next(texts)
            press_ctrl_c()
            with pytest.raises(DISCONNECTED):
                next(texts)

    try:
        serve_while(user, gate, grace=0.1)
    finally:
        gate.opened.set()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_the_process_exits_silently_on_a_signal(number: int, status: int) -> None:
    code = (
        "from cromicle_sdk.server import serve\n"
        "serve(port=0, on_ready=lambda url: print(url, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        base_url = process.stdout.readline().strip()
        assert httpx.post(base_url + "/chat", json=sign("hello")).text == "hello"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout, stderr) == (status, "", "")


class TestHangup:
    def test_sighup_reloads_the_token_file(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "cromicle_sdk.server")
        file = tmp_path / "tokens"
        file.write_text("old-token")
        tokens = TokenFile(file)
        handler = signal.getsignal(signal.SIGHUP)

        def user(base_url: str) -> None:
            file.write_text("new-token")
            os.kill(os.getpid(), signal.SIGHUP)
            wait_until(lambda: tokens.find("new-token") is not None)
            answer = httpx.post(base_url + "/chat", json=sign("hi", "new-token"))
            assert answer.status_code == 200
            press_ctrl_c()

        serve_while(user, create_app(tokens=tokens))
        assert signal.getsignal(signal.SIGHUP) is handler

    @pytest.mark.parametrize(("host", "is_accepted"), [("127.0.0.1", True), ("0.0.0.0", False)])
    def test_a_reloaded_well_known_token_requires_a_loopback_host(
        self, host: str, is_accepted: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "cromicle_sdk.server")
        file = tmp_path / "tokens"
        file.write_text("mine")
        tokens = TokenFile(file)

        def user(base_url: str) -> None:
            file.write_text("mine\nabc")
            os.kill(os.getpid(), signal.SIGHUP)
            wait_until(lambda: "tokens: " in caplog.text)
            press_ctrl_c()

        serve_while(user, create_app(tokens=tokens), host=host)
        assert (tokens.find("abc") is not None) == is_accepted
        assert tokens.find("mine") is not None

    def test_sighup_is_not_handled_without_a_token_file(self) -> None:
        handler = signal.getsignal(signal.SIGHUP)
        seen: list[Any] = []

        def user(base_url: str) -> None:
            seen.append(signal.getsignal(signal.SIGHUP))
            press_ctrl_c()

        serve_while(user, create_app(tokens=["mine"]))
        assert seen == [handler]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_an_exception_of_on_ready_ends_serve() -> None:
    def fail(base_url: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        serve(port=0, on_ready=fail)


def test_on_ready_is_optional() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    def user() -> None:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
            except httpx.ConnectError:
                continue
            press_ctrl_c()
            return

    thread = threading.Thread(target=user)
    thread.start()
    serve(port=port)
    thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("app_or_backend", "nonsense"),
        ("host", ""),
        ("port", 70000),
        ("token", ""),
        ("token", 5),
        ("max_request_bytes", 0),
        ("on_ready", 1),
        ("grace", -1),
        ("grace", None),
        ("host", "0.0.0.0"),
    ],
)
def test_an_invalid_option_is_rejected_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="backend" if "backend" in option else option):
        serve(**{option: value})


def test_a_token_is_rejected_together_with_an_app() -> None:
    with pytest.raises(ConfigurationError, match="create_app"):
        serve(create_app(), token="another")
