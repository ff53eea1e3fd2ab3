"""`cromicle serve` in front of a model server: a process, signals, and its stderr."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from upstreams import KEY, answer, answer_models, answer_texts, say

from cromicle_sdk import (
    AuthenticationError,
    Client,
    IncompleteReplyError,
    InternalServerError,
    Retry,
)
from cromicle_sdk.testing import FaultyServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it ends by signals")

PATIENCE = 20.0
ONCE = Retry(attempts=1)
COMMAND = [sys.executable, "-W", "error", "-m", "cromicle_sdk", "serve"]
SHARED = ["--port", "0"]


class Command:
    """A process of `cromicle serve`: its base URL, and what it says on stderr."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.base_url = self.wait_for("Serving at ").split()[-1]

    def wait_for(self, words: str, *, after: int = 0) -> str:
        """The first line, after so many, that holds these words."""

        def find() -> str | None:
            return next((line for line in self.lines[after:] if words in line), None)

        with self._changed:
            assert self._changed.wait_for(find, PATIENCE), self.lines
            return find() or ""

    def connect(self, token: str = "abc") -> Client:
        return Client(base_url=self.base_url, token=token, retry=ONCE)

    def end(self, number: int = signal.SIGTERM) -> str:
        """Everything on stderr, once the signal has ended it."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        self._reading.join(PATIENCE)
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()


@contextlib.contextmanager
def serve(*arguments: str, **environment: str) -> Generator[Command]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("CROMICLE_")}
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, **environment},
    ) as process:
        try:
            yield Command(process)
        finally:
            process.kill()


@pytest.fixture
def upstream() -> Iterator[FaultyServer]:
    """A model server that has listed its models when the test's own script begins."""
    with FaultyServer() as server:
        answer_models(server, "m")
        yield server


def gateway(upstream: FaultyServer, *arguments: str) -> list[str]:
    """The arguments for a gateway; the model server is asked for its models first."""
    return [*SHARED, "--upstream", f"{upstream.base_url}/v1", "--model", "m", *arguments]


def test_a_prompt_goes_to_the_model_server(upstream: FaultyServer) -> None:
    answer_texts(upstream, "Grüße ", "🎉")
    arguments = gateway(upstream, "--system", "Rhyme.", "--parse-roles")
    with serve(*arguments, CROMICLE_UPSTREAM_KEY=KEY) as command:
        with command.connect() as client:
            turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
            reply = client.chat(turns)
        line = command.wait_for(f"request={reply.request_id}")
        said = command.end()
    assert reply.text == "Grüße 🎉"
    assert upstream.requests[1].json == {
        "model": "m",
        "messages": [{"role": "system", "content": "Rhyme."}, *turns],
        "stream": True,
    }
    assert upstream.requests[1].headers["authorization"] == f"Bearer {KEY}"
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO method=POST path=/chat status=200 bytes=12 "
        r"first_text=0\.\d{4} duration=0\.\d{4} end=complete client=127\.0\.0\.1 "
        r"token=[0-9a-f]{8} request=[0-9a-f]{32}\n",
        line,
    )
    assert KEY not in said
    assert command.process.returncode == -signal.SIGTERM


def test_a_rejected_key_is_logged_in_one_line(upstream: FaultyServer) -> None:
    upstream.fail(401)
    with serve(*gateway(upstream, "--no-access-log"), CROMICLE_UPSTREAM_KEY=KEY) as command:
        with command.connect() as client, pytest.raises(InternalServerError, match="key"):
            client.chat("a private prompt")
        line = command.wait_for("upstream_denied")
        said = command.end()
    assert " ERROR " in line
    assert "it rejects the key of this gateway" in line
    assert "path=" not in said
    assert KEY not in said
    assert "private" not in said


def test_without_an_access_log_nothing_is_logged(upstream: FaultyServer) -> None:
    answer_texts(upstream, "ok")
    with serve(*gateway(upstream, "--no-access-log")) as command:
        with command.connect() as client:
            client.chat("Hi")
        command.end()
    assert len(command.lines) == 5


def test_sigterm_waits_for_unfinished_replies(upstream: FaultyServer) -> None:
    gate = threading.Event()
    answer(upstream, *say("one", "two"), "data: [DONE]\n\n", gate=gate)
    with serve(*gateway(upstream, "--grace", "60")) as command:
        with command.connect() as client, client.stream("Hi") as stream:
            assert next(stream) == "one"
            command.process.terminate()
            gate.set()
            assert list(stream) == ["two"]
        command.process.wait(PATIENCE)
    assert command.process.returncode == -signal.SIGTERM


def test_sigterm_truncates_replies_after_the_grace_period(upstream: FaultyServer) -> None:
    answer(upstream, *say("one", "two"), gate=threading.Event())
    with serve(*gateway(upstream, "--grace", "0.1")) as command:
        with command.connect() as client, client.stream("Hi") as stream:
            assert next(stream) == "one"
            command.process.terminate()
            with pytest.raises(IncompleteReplyError):
                next(stream)
        command.process.wait(PATIENCE)
        upstream.wait_until_closed()
    assert command.process.returncode == -signal.SIGTERM


def test_sighup_reloads_the_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# mine\nold-token\n")
    # If other machines can reach the server, a file with the well-known token is rejected.
    arguments = [*SHARED, "--host", "0.0.0.0", "--tokens-file", str(file)]
    with serve(*arguments, CROMICLE_TOKEN="ignored") as command:
        command.wait_for(f"Clients need one of the tokens in {file}")
        with command.connect("old-token") as client:
            assert client.chat("Hi").text == "Hi"
            file.write_text("new-token\n")
            command.process.send_signal(signal.SIGHUP)
            command.wait_for("INFO tokens: 1 loaded from")
            with pytest.raises(AuthenticationError):
                client.chat("Hi")
            assert client.with_options(token="new-token").chat("Hi").text == "Hi"
            for bad in ("", "abc\n"):
                file.write_text(bad)
                seen = len(command.lines)
                command.process.send_signal(signal.SIGHUP)
                command.wait_for("ERROR tokens: ", after=seen)
            assert client.with_options(token="new-token").chat("Hi").text == "Hi"
        said = command.end()
    assert "old-token" not in said
    assert "new-token" not in said
    assert command.process.returncode == -signal.SIGTERM


def test_sighup_without_a_file_ends_the_process() -> None:
    with serve(*SHARED) as command:
        command.end(signal.SIGHUP)
    assert command.process.returncode == -signal.SIGHUP


@pytest.mark.parametrize("tokens", ["abc\n", "mine\nabc\n"])
def test_the_well_known_token_is_rejected_for_other_machines(tokens: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(tokens)
    done = subprocess.run(
        [*COMMAND, "--host", "0.0.0.0", "--tokens-file", str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert "your own --token" in done.stderr
    assert "mine" not in done.stderr


def test_a_closed_stderr_does_not_stop_the_server() -> None:
    with subprocess.Popen([*COMMAND, *SHARED], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        base_url = process.stderr.readline().split()[-1]
        process.stderr.readline()
        process.stderr.close()
        with Client(base_url=base_url, token="abc", retry=ONCE) as client:
            for _ in range(3):
                assert client.chat("Hi").text == "Hi"
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM
