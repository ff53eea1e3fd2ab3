"""The server in the foreground: when it is ready, and how it ends."""

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

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk.server import TokenFile, create_app, serve

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it ends by signals")

PATIENCE = 10.0

# Not a time-out, which is a transport error of httpx as well.
CUT_OFF = (httpx.RemoteProtocolError, httpx.NetworkError)


def sign(prompt: str, token: str = "abc") -> dict[str, str]:
    digest = hashlib.sha256((token + prompt).encode()).hexdigest()
    return {"message": prompt, "token": token, "hash": digest}


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def run_beside(user: Callable[[str], None], *args: Any, **options: Any) -> None:
    """Serve here while `user` works with the base URL in a thread; its errors are raised here."""
    errors: list[BaseException] = []
    ended = threading.Event()

    def work(base_url: str) -> None:
        try:
            # A connection that is answered shows that Ctrl-C is the server's by now.
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
def test_it_serves_until_ctrl_c(served: list[Any], options: dict[str, Any], token: str) -> None:
    replies: list[str] = []
    handler = signal.getsignal(signal.SIGINT)

    def user(base_url: str) -> None:
        replies.append(httpx.post(base_url + "/chat", json=sign("hello", token)).text)
        press_ctrl_c()

    run_beside(user, *served, **options)
    assert replies == ["hello"]
    assert signal.getsignal(signal.SIGINT) is handler


class Gate:
    """A backend that waits in the middle of its reply until it is let on."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        async def pieces() -> AsyncIterator[str]:
            yield "one "
            await anyio.to_thread.run_sync(self.opened.wait, abandon_on_cancel=True)
            yield "two"

        return pieces()


def wait_until_refused(base_url: str) -> None:
    with contextlib.suppress(httpx.TransportError):
        while True:
            httpx.get(base_url + "/health")


def test_after_ctrl_c_a_reply_in_flight_may_end() -> None:
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

    run_beside(user, gate, grace=60)
    assert replies == ["one two"]


def test_after_ctrl_c_an_idle_connection_is_closed() -> None:

    def user(base_url: str) -> None:
        port = httpx.URL(base_url).port
        assert port
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(65536)
            press_ctrl_c()
            assert connection.recv(65536) == b""

    run_beside(user, grace=60)


def test_a_second_ctrl_c_cuts_it_off() -> None:
    gate = Gate()

    def user(base_url: str) -> None:
        with httpx.stream("POST", base_url + "/chat", json=sign("hi")) as answer:
            texts = answer.iter_text()
            next(texts)
            press_ctrl_c()
            wait_until_refused(base_url)
            press_ctrl_c()
            with pytest.raises(CUT_OFF):
                next(texts)

    try:
        run_beside(user, gate, grace=60)
    finally:
        gate.opened.set()


def test_a_reply_that_does_not_end_in_time_is_cut_off() -> None:
    gate = Gate()

    def user(base_url: str) -> None:
        with httpx.stream("POST", base_url + "/chat", json=sign("hi")) as answer:
            texts = answer.iter_text()
            next(texts)
            press_ctrl_c()
            with pytest.raises(CUT_OFF):
                next(texts)

    try:
        run_beside(user, gate, grace=0.1)
    finally:
        gate.opened.set()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_as_a_process_of_its_own_it_ends_without_a_word(number: int, status: int) -> None:
    code = (
        "from cromicle_sdk.server import serve\n"
        "serve(port=0, on_ready=lambda url: print(url, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code],
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
    def test_it_has_a_file_of_tokens_read_again(
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

        run_beside(user, create_app(tokens=tokens))
        assert signal.getsignal(signal.SIGHUP) is handler

    @pytest.mark.parametrize(("host", "is_taken"), [("127.0.0.1", True), ("0.0.0.0", False)])
    def test_the_well_known_token_is_taken_on_this_machine_alone(
        self, host: str, is_taken: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
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

        run_beside(user, create_app(tokens=tokens), host=host)
        assert (tokens.find("abc") is not None) == is_taken
        assert tokens.find("mine") is not None

    def test_without_a_file_it_is_left_alone(self) -> None:
        handler = signal.getsignal(signal.SIGHUP)
        seen: list[Any] = []

        def user(base_url: str) -> None:
            seen.append(signal.getsignal(signal.SIGHUP))
            press_ctrl_c()

        run_beside(user, create_app(tokens=["mine"]))
        assert seen == [handler]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_hook_that_fails_ends_it() -> None:
    def fail(base_url: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        serve(port=0, on_ready=fail)


def test_without_a_hook_it_serves_as_well() -> None:
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
def test_a_wrong_option_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="backend" if "backend" in option else option):
        serve(**{option: value})


def test_an_app_has_its_own_token() -> None:
    with pytest.raises(ConfigurationError, match="create_app"):
        serve(create_app(), token="another")
